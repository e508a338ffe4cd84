"""Read-only questions to the model, as allocators and planners ask them."""
