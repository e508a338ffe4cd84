"""Answers of the command line without a run: it imports neither torch nor Hydra unless a question needs them."""
