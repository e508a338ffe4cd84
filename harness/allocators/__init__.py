"""How much to remove where: one file per paper."""
