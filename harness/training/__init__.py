"""The training of recoveries: adapters in place of weights, one loop, its checkpoints."""
