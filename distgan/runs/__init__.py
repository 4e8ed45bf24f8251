"""A run on disk: its folder, metrics.jsonl and checkpoints. Knows no network and no loop."""
