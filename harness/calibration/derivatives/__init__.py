"""Gradients of the loss, and traces of its curvature, one block's weights in memory at a time."""
