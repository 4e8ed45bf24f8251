"""Repositories on the Hugging Face hub: addresses hf://OWNER/NAME[@REVISION], download, and upload."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from distgan.errors import RunError, UsageError

HUB = "hf://"
NAME = re.compile(r"[\w.-]+/[\w.-]+")
ADDRESS = re.compile(rf"hf:/{{1,2}}(?:datasets/)?({NAME.pattern})(?:@([\w./-]+))?/?")  # a Path has one slash


class Address(NamedTuple):
    """A repository, at a branch, tag or commit; None: its newest commit."""

    repository: str
    revision: str | None

    def __str__(self) -> str:
        return f"{HUB}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(path: str | Path) -> bool:
    """Whether a path is meant as an address on the hub."""
    return str(path).startswith("hf:/")


def parse_address(path: str | Path, what: str) -> Address:
    """The repository of `what` at an address. Raises UsageError."""
    match = ADDRESS.fullmatch(str(path))
    if match is None:
        shown = HUB + str(path).removeprefix("hf:").lstrip("/")
        raise UsageError(f"{shown}: {what} on the hub is {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION")
    return Address(*match.groups())


def import_hub(address: Address, extra: str) -> Any:
    """The hub's client. Raises UsageError, which names the extra that installs it."""
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise UsageError(f"{address} needs huggingface_hub; pip install 'distgan[{extra}]'") from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    return huggingface_hub


def download(
    address: Address, files: Sequence[str], *, extra: str = "hub", kind: Literal["model", "dataset"] = "model"
) -> Path:
    """The folder of a repository's files in the hub's cache; what is there is not downloaded again.

    `files` are names or patterns. Raises UsageError.
    """
    client = import_hub(address, extra)
    try:
        folder = client.snapshot_download(
            address.repository, repo_type=kind, revision=address.revision, allow_patterns=list(files)
        )
    except Exception as error:  # of the hub's client, of its HTTP client, of the disk
        raise UsageError(f"{address}: {describe(error)}") from None
    return Path(folder)


def upload(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Send a folder as one commit to a repository, which is created if it is not there; returns its address on the web.

    Files of the repository that the folder does not have stay. Raises UsageError without the client, and RunError: then
    nothing was committed.
    """
    address = Address(repository, None)
    client = import_hub(address, "hub").HfApi()
    try:
        client.create_repo(repository, private=private, exist_ok=True)
        client.upload_folder(folder_path=folder, repo_id=repository, commit_message=message)
    except Exception as error:  # of the hub's client, of its HTTP client, of the disk
        fix = "nothing was published: `hf auth login` (or HF_TOKEN), and run the same command again"
        raise RunError(f"{address}: {describe(error)}; {fix}") from None
    return f"{client.endpoint}/{repository}"


def describe(error: Exception) -> str:
    """An error of the hub's client in one line, with what it was caused by."""
    reason = " ".join(str(error).split())
    reason = re.sub(r"\(Request ID: [^)]*\)", "", reason).split("Request ID")[0].strip()
    cause = error.__cause__
    more = f" ({describe(cause)})" if isinstance(cause, Exception) and str(cause) not in str(error) else ""
    return f"{type(error).__name__}: {reason}{more}"
