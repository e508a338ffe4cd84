"""Values that cost much, kept: traces and searches, finished blocks, what points have in common, states in between."""
