"""Which weights stay: one file per paper."""
