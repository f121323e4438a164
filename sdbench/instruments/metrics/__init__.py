"""Metrics of images, one a file: its function, what its numbers depend on, its entry `METRIC`."""
