"""A trained generator, and its images."""
