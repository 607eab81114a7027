"""Many cells in memory: prepared, computed and joined as one dataset; what they would cost."""
