"""Plausible slips in Python: each is one sentence that says what to write, as a user without type checks sees it."""
