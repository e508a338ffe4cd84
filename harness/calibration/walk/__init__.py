"""Passing over the blocks with the hidden states of calibration windows, on all devices of a host."""
