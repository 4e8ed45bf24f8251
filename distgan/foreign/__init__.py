"""Weights of other projects: read without executing anything, renamed, and written as a checkpoint has them."""
