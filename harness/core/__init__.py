"""Pure arithmetic and plain values: torch, the standard library, and the errors and warnings of `runtime`."""
