"""Arrays and words -> Prompt, and which token is which."""
