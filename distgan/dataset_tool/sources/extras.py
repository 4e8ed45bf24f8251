"""The packages that some sources need: extras of distgan."""

import contextlib
from collections.abc import Iterator

from distgan.errors import UsageError


@contextlib.contextmanager
def extra(name: str, where: str) -> Iterator[None]:
    """Around imports: a missing package is a UsageError that names the source `where` and the extra `name`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("distgan"):
            raise
        raise UsageError(f"{where} needs {error.name}, which is not installed; pip install 'distgan[{name}]'") from None
