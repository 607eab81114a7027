"""The built-in checkpoints from seeds: `python -m sweeps.train_tiny`."""
