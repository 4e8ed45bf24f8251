"""The errors that are reported in one line, and how they are worded."""

import re

INTERRUPTED = "distgan: interrupted"
ECHO = 200
"""Characters of what was given that a message repeats, at most."""


class DistganError(Exception):
    """An expected error, reported in one line without a traceback; the command exits with `exit_code`."""

    exit_code = 1
    on_all_ranks = False
    """Whether every process of the run raises it: then only rank 0 prints it."""


class UsageError(DistganError, ValueError):
    """Invalid configuration, arguments or files. The message names the key or file, and how to fix it."""

    exit_code = 2


class RunError(DistganError, RuntimeError):
    """The run failed. The message says what failed, and from which checkpoint it can be resumed."""


class CorruptDataError(RunError):
    """A shard does not hold the bytes that were written. The message names it, and the key and offset if known."""


def format_os_error(error: OSError) -> str:
    """The system's message in one line, after the file that the error names, if any."""
    message = error.strerror or str(error)
    return f"{error.filename}: {message}" if error.filename else message


def shorten(text: str, limit: int = ECHO) -> str:
    """The start and the end of `text`, together at most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[5 - limit // 2 :]}"


def shorten_values(message: str) -> str:
    """`message` with its long words and quotations shortened, and then its long lines."""
    message = re.sub(rf"\S{{{ECHO + 1},}}|'[^'\n]{{{ECHO},}}'", lambda match: shorten(match[0]), message)
    return "\n".join(shorten(line, 3 * ECHO) for line in message.split("\n"))
