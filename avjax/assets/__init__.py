"""What avjax brings along: recipes of small checkpoints and clips."""
