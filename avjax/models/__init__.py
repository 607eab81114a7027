"""The networks, one file per family, from shared parts."""
