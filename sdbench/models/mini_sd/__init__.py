"""The embedded model: its scenes, networks, training, reader, card and weights."""
