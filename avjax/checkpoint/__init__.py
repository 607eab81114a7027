"""Checkpoints on disk, and models from them."""
