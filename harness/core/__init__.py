"""Pure arithmetic and plain values: torch and the standard library only."""
