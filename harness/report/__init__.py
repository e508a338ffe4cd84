"""Records → tables, figures, comparison with reported numbers. Sees records only."""
