"""The file that a run is made from."""
