"""What avjax brings along: its built-in checkpoints."""
