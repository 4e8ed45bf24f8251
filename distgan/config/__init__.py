"""The configuration of a run: its keys, their types, and how it is read."""
