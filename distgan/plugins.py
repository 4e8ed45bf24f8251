"""Modules of the user that add losses, penalties, augmentations and networks."""

import importlib
import os
import sys
from collections.abc import Sequence

from distgan.errors import UsageError


def import_user_modules(modules: Sequence[str]) -> None:
    """Import the user's modules, also from the current folder: they add entries to LOSSES, MODELS and the like.

    Only modules that the user names in a configuration or on the command line; never those that a checkpoint names.
    Raises UsageError.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"import: {module} cannot be imported: {error}") from error
