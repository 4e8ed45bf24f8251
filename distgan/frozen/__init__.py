"""Pretrained networks that are used as they are: autoencoders, feature networks."""
