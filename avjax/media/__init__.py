"""Clips in, prompts out: decoding, features, token layout and positions."""
