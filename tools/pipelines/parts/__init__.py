"""Components with tiny random weights that recipes share."""
