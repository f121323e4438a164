"""What runs: a name, hub id, folder or pipeline object becomes a stock diffusers pipeline."""
