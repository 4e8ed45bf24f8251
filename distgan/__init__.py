"""distgan: a GAN trainer that runs the same on a laptop, on N GPUs and on a cluster."""

__version__ = "0.1.0"


def told(error: OSError) -> str:
    """What the system said, in a line, with the file where it named one."""
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what


class BadInput(ValueError):
    """What the user gave cannot be used. The message is one line: the thing, and what would mend it. Exit code 2."""

    shared = False
    """Whether all of a run's processes raise it, so that the first may speak for all."""


class Failed(RuntimeError):
    """The work went wrong in a way that is understood. The message says what, and what stands. Exit code 1."""

    shared = False
    """Whether all of a run's processes raise it, so that the first may speak for all."""
