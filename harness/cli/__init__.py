"""What the command line answers without a run: it imports neither torch nor Hydra unless a question needs them."""
