"""Plans for TPUs, made without one: programs are compiled ahead of time for a named topology."""
