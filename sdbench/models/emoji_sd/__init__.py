"""The embedded model emoji-sd: its data, networks, training, reader and weights."""
