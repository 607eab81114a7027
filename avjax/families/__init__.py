"""Families of models: for each a file with its config reader, network, token layout and key table, and its record."""
