"""Networks, and what their parts share across families."""
