"""Anatomy, loading and surgery of Hugging Face decoders."""
