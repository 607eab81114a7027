"""Edits applied to a model: lowering to arrays, the reference forward pass, decoding."""
