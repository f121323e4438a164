"""What was measured means: frames in, frames out. Nothing here imports torch."""
