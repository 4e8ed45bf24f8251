"""Fixtures of all tests."""

from shared import folder_of_images, tiny, trained  # noqa: F401
