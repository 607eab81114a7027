"""Hugging Face safetensors to Flax/Orbax and back: a key table per family."""
