"""What was seen: the tidy tables, their disk form, and the environment they were measured in."""
