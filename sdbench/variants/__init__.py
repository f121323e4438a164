"""What is varied: a text such as `last:20%` changes a pipeline for a while."""
