"""Why `shards index` refuses a tar of another program that `shards make` takes, and what to type."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from distgan.data.tar import Member
from distgan.dataset_tool.sources.archives import TAR_SUFFIXES, opener_of
from distgan.dataset_tool.sources.folders import check_splits
from distgan.dataset_tool.sources.source import is_hidden
from distgan.dataset_tool.sources.tar_samples import is_numbered, is_picture
from distgan.errors import CorruptDataError, UsageError
from distgan.images import ENCODINGS

MAKE = "`distgan shards make DIR_OF_TARS DEST`"


def explain_images(sample: Mapping[str, Member]) -> str | None:
    """What keeps a sample, its members by extension, from having one image that is read as it is; None: nothing."""
    images = [extension for extension in sample if extension in ENCODINGS]
    numbered = [extension for extension in sample if is_numbered(extension)]
    pictures = [extension for extension in sample if is_picture(f"key.{extension}")]
    if len(images) == 1 and not numbered:
        return None
    has = ", ".join(f".{extension}" for extension in sample)
    needs = f"needs one image (.npy, .png, .jpg), it has {has}"
    name = next(iter(sample.values())).name
    if any(map(is_hidden, PurePosixPath(name).parts)):
        return f"{needs}: {name} is a hidden file, such as macOS adds; {MAKE} leaves it out"
    if numbered:
        name = sample[numbered[0]].name
        return f"{needs}: a dot in the name ends the key (WebDataset's rule), as in {name}; {MAKE} takes the whole name"
    if len(pictures) > 1:
        return f"{needs}: several images; {MAKE} --image_key {pictures[0]} takes one of each sample"
    if len(pictures) == 1:
        return f"{needs}: {sample[pictures[0]].name} is not read as it is; {MAKE} converts it"
    return f"{needs}, and no image; {MAKE} leaves it out, or takes it with --image_key if one of these is an image"


def check_uncompressed(path: Path) -> None:
    """Raises CorruptDataError if a tar is compressed."""
    if opener_of(path) is not None:
        raise CorruptDataError(f"{path}: a compressed tar, of which no image can be read alone; {MAKE} takes it")


def find_tars(folder: Path) -> list[Path]:
    """The tars that `shards index` takes, in order. Raises UsageError if there is none, or others are beside them."""
    found = folder.rglob("*.t*") if folder.is_dir() else ()
    files = sorted(path for path in found if path.name.lower().endswith(TAR_SUFFIXES))
    compressed = next((path for path in files if path.suffix != ".tar"), None)
    if compressed is not None:
        check_uncompressed(compressed)
    paths = [path for path in files if path.suffix == ".tar"]
    if not paths:
        raise UsageError(f"{folder}: there is no .tar in it")
    check_splits([path.relative_to(folder).as_posix() for path in paths], str(folder), "distgan shards index DIR")
    return paths
