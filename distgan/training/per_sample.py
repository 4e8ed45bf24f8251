"""Losses and penalties, of a user's perhaps, return a value for each sample."""

from collections.abc import Callable

from torch import Tensor

from distgan.errors import UsageError


def check_per_sample(what: str, compute: Callable[[], object], of: str, values: str) -> None:
    """Compute a part, of a user's perhaps, on three samples. Raises UsageError unless it returns three values."""
    try:
        value = compute()
    except Exception as error:  # a user's part may raise anything
        message = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{what} raises {type(error).__name__}: {message}") from error
    if not isinstance(value, Tensor) or value.shape != (3,):
        returned = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"{what} returns {returned} for 3 {of}; it must return [3], per-sample {values}")
