"""What the trainings of the embedded models share: optimisation, tokenizer, export."""
