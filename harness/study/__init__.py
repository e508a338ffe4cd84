"""Published tables and figures as grids of runs: planning, running, asking how far they are."""
