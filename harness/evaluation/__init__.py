"""Measures of a model: perplexity, zero-shot tasks, achieved zeros."""
