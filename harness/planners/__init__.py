"""Which structures go: depth, width, experts."""
