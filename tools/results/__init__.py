"""Rebuilds the folders of `results/` from their recipes."""
