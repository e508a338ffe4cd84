"""How a pruned model is healed: one file per paper."""
