"""What a model is worth: perplexity, zero-shot tasks, achieved zeros."""
