"""A training run: its components, its loop, its minibatches, its log, its state on disk."""
