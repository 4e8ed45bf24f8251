"""The algorithm: the training step, losses, the EMA of G. Pure: torch and the standard library only."""
