"""distgan: a GAN trainer that runs the same on a laptop, on N GPUs and on a cluster."""

__version__ = "0.1.0"


class DistganError(Exception):
    """An error that is understood. The message is one line; the command ends with `exit_code`."""

    exit_code = 1
    on_all_ranks = False
    """Whether every process of the run raises it: then only rank 0 prints it."""


class UsageError(DistganError, ValueError):
    """What the user gave cannot be used. The message names the key or file and how to fix it."""

    exit_code = 2


class RunError(DistganError, RuntimeError):
    """The work failed. The message says what failed and what is left to continue from."""


class CorruptDataError(RunError):
    """The bytes of a shard are not those that were written. Names the shard, and the key and offset if known."""


def format_os_error(error: OSError) -> str:
    """The system's message in one line, with the file it names, if any."""
    message = error.strerror or str(error)
    return f"{error.filename}: {message}" if error.filename else message
