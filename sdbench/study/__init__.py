"""A fixed list of pipeline calls: what runs, in which order and where."""
