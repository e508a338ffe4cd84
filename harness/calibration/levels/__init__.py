"""Every matrix pruned to every level that a search may choose, and candidates put together from them."""
