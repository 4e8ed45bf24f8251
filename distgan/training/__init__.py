"""A training run: its components, its loop, its minibatches, what it costs and what is refused."""
