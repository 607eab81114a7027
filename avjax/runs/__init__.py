"""Runs on disk: a specification, its blocks of cells, and the store that keeps them."""
