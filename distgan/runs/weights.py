"""The files of trained weights at a path: of a run, of one of its checkpoints, of a folder, or one file."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distgan.errors import DistganError, RunError, UsageError
from distgan.files import sha256_file
from distgan.hub import download, is_address, parse_address
from distgan.runs.checkpoint import Checkpoints, find_corruption, read_state

STATE = "state.json"
MODEL = "model.safetensors"
"""The file of G in a folder that `distgan publish` wrote: the EMA, if the run has one."""


def find_folder(path: Path, newest: bool = False) -> tuple[Path, str]:
    """The best checkpoint of a run, and a note that says so, else its newest one; of another folder itself.

    With `newest` never the best. hf://OWNER/NAME[@REVISION] is a folder in the hub's cache. Raises RunError if all
    checkpoints are corrupt, and UsageError for what cannot be downloaded.
    """
    if is_address(path):
        address = parse_address(path, "a generator")
        folder = download(address, [MODEL])
        if not (folder / MODEL).is_file():
            raise UsageError(f"{address} has no {MODEL}; give a repository that `distgan publish` wrote")
        return folder, ""
    with contextlib.closing(Checkpoints(path / "checkpoints")) as checkpoints:
        best = None if newest else checkpoints.best
        if best is not None and find_corruption(checkpoints.folder / str(best.images)) is None:
            return checkpoints.folder / str(best.images), f" ({best})"
        return checkpoints.newest() or path, ""


@dataclass(frozen=True)
class WeightFiles:
    """The files that a run begins with, by network: generator, discriminator if there is one, ema."""

    place: Path
    """The folder or file that was found."""
    note: str
    """Why that one, of a run with evaluations; empty otherwise."""
    files: Mapping[str, Path]

    def sha256(self) -> dict[str, str]:
        """That of each file, by network. Raises UsageError for a file that is not as the checkpoint's state.json says,
        and OSError."""
        digests = {file: sha256_file(file) for file in sorted(set(self.files.values()))}
        state = self.place / STATE
        if self.place.is_dir() and state.is_file():
            try:
                expected = read_state(self.place).files
            except ValueError as error:
                raise UsageError(f"{state} is not of a checkpoint ({error}); copy it once more") from None
            for file, digest in digests.items():
                if expected.get(file.name, digest) != digest:
                    raise UsageError(f"{file} is damaged: its sha256 is not that in {STATE}; copy it once more")
        return {network: digests[file] for network, file in self.files.items()}


def find_files(path: Path) -> WeightFiles:
    """What `path` has of generator, discriminator and ema; G stands in for an EMA that is not there, and the reverse.

    One file is both G and EMA, without D. Raises UsageError if there is neither.
    """
    if path.is_file():
        return WeightFiles(path, "", {"generator": path, "ema": path})
    if not path.is_dir() and not is_address(path):
        raise UsageError(f"{path} is not there; give a run, a checkpoint, or a .safetensors file")
    try:
        folder, note = find_folder(path)
    except RunError:
        raise UsageError(f"every checkpoint of {path} is corrupt; give another run") from None
    files = {name: folder / f"{name}.safetensors" for name in ("ema", "generator", "discriminator")}
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found and (folder / MODEL).is_file():
        found["ema"] = folder / MODEL
    G = found.get("ema", found.get("generator"))
    if G is None:
        raise UsageError(f"{path} holds no checkpoint, and no generator.safetensors, ema.safetensors or {MODEL}")
    return WeightFiles(folder, note, {"ema": G, "generator": G, **found})


def is_moved(path: str | None, digests: Mapping[str, str]) -> bool:
    """Whether the files at `path` are those with these sha256, by network: then only their place has changed."""
    try:
        return path is not None and find_files(Path(path)).sha256() == digests
    except (DistganError, OSError):
        return False
