"""Measurements against other implementations, on the same weights, interleaved."""
