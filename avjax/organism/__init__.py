"""A small world of things that are seen and sounds that belong to them."""
