"""Fixtures of all tests."""

from shared import folder_of_images, small_disk, tiny, trained  # noqa: F401
