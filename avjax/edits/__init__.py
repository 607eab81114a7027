"""What a user asks: edits, rules that are text, grids of them, and their JSON forms."""
