"""What to run and in which order: studies, their units, and the runner that keeps comparisons paired."""
