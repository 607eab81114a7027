"""Experiments on a model, one technique per file."""
