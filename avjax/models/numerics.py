"""Which numbers avjax computes: part of the name of all that is kept for another day."""

VERSION = 4  # one more whenever avjax computes other numbers than before, beyond rounding
