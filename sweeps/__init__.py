"""Scripted parameter grids: the paper's experiments, and the benchmark."""
