"""One process per method; each file runs as a script in its method's own environment."""
