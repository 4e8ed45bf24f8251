"""Writing and checking datasets: what `distgan shards` does."""
