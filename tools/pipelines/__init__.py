"""The seam held against every guided pipeline of diffusers: `nox -s pipelines`."""
