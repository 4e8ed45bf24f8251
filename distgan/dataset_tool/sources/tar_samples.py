"""Which members of a foreign tar are images, and which .cls and .json are theirs."""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from distgan.data.tar import Member, split_key
from distgan.dataset_tool.notes import escape_name, note
from distgan.dataset_tool.sources.source import count_suffixes, is_hidden, is_image
from distgan.errors import UsageError

NUMBERED = re.compile(r"[\d.]*\d\.[^.]+")
LABEL_SUFFIXES = (".cls", ".json")


class TarImage(NamedTuple):
    """An image in a tar."""

    member: Member
    label_members: dict[str, Member]
    """Its .cls and .json, by suffix."""


class LeftOut:
    """Members of all tars that are not read."""

    def __init__(self) -> None:
        self.hidden = 0
        """What macOS adds, and other hidden files."""
        self.without_image: list[str] = []
        """Members of samples without an image."""
        self.samples_without_image = 0
        self.beside: list[str] = []
        """Members beside an image that are neither images nor labels."""
        self.dotted: list[str] = []
        """Images with further dots in their names, of keys that others share."""

    def say(self) -> None:
        """Print what is left out, a line for each kind."""
        if self.hidden:
            note(f"left out: {self.hidden:,} hidden members, such as ._ files of macOS")
        if self.without_image:
            first = escape_name(self.without_image[0])
            counts = count_suffixes(self.without_image)
            note(f"left out: {self.samples_without_image:,} samples without an image ({counts}), the first is {first}")
        if self.beside:
            note(f"members beside the images that are not read: {count_suffixes(self.beside)}")
        if self.dotted:
            first = escape_name(self.dotted[0])
            rule = "by WebDataset's rule the first dot ends the key, here the last one does"
            note(f"{len(self.dotted):,} images have dots in their names, such as {first}; {rule}")


def find_images(tar: str, members: Iterator[Member], image_key: str | None, left_out: LeftOut) -> list[TarImage]:
    """The images of a tar, in its order. Raises UsageError if a sample has several, and `image_key` says not which.

    An image is what ends in `.image_key`: of a sample with several, the member with just that extension, if it has
    one. Without `image_key`, all members with a suffix of images are images. What is beside them adds to `left_out`.
    """
    images: dict[str, list[Member]] = {}
    labels: dict[str, dict[str, Member]] = {}
    others: list[str] = []
    seen: set[str] = set()
    for member in members:
        path = PurePosixPath(member.name)
        if any(map(is_hidden, path.parts)):
            left_out.hidden += 1
            continue
        if member.name in seen:
            raise UsageError(f"{tar}: it has two members {escape_name(member.name)}; keep one")
        seen.add(member.name)
        suffix = path.suffix.lower()
        if member.name.lower().endswith(f".{image_key.lower()}") if image_key else is_picture(member.name):
            images.setdefault(split_key(member.name)[0], []).append(member)
        elif suffix in LABEL_SUFFIXES:
            labels.setdefault(member.name[: -len(suffix)], {})[suffix] = member
        else:
            others.append(member.name)
    chosen = {key: choose(tar, key, found, image_key, others, left_out) for key, found in images.items()}
    others += [member.name for key, fields in labels.items() if key not in chosen for member in fields.values()]
    count_others(tar, others, chosen, left_out)
    return [
        TarImage(member, labels.get(member.name.rpartition(".")[0]) or labels.get(key, {}))
        for key, found in chosen.items()
        for member in found
    ]


def is_picture(name: str) -> bool:
    """Whether a member is an image by its suffix."""
    return is_image(name) or name.lower().endswith(".npy")


def is_numbered(extension: str) -> bool:
    """Whether what WebDataset takes for an extension is the rest of a name with a dot, as 05.png of 22.05.png."""
    return NUMBERED.fullmatch(extension) is not None and is_picture(f"key.{extension}")


def choose(
    tar: str, key: str, found: Sequence[Member], image_key: str | None, others: list[str], left_out: LeftOut
) -> Sequence[Member]:
    """Those of the images `found` under a key of WebDataset that are taken. Raises UsageError."""
    if len(found) == 1:
        return found
    extensions = [split_key(member.name)[1] for member in found]
    if image_key is not None:
        exact = [member for member, extension in zip(found, extensions, strict=True) if extension == image_key.lower()]
        others += [member.name for member in found if exact and member not in exact]
        return exact or found
    stems = {member.name.rpartition(".")[0] for member in found}
    if len(stems) == len(found) and all(map(is_numbered, extensions)):
        left_out.dotted += [member.name for member in found]
        return found
    shown = ", ".join(escape_name(f".{extension}") for extension in extensions[:4])
    last = escape_name(extensions[0].rpartition(".")[2])
    fix = f"--image_key {escape_name(extensions[0])} takes one of each"
    if len(stems) == len(found):
        fix += f", and --image_key {last} takes all that end in .{last} as samples of their own"
    raise UsageError(f"{tar}: the sample {escape_name(key)} has several images ({shown}); {fix}")


def count_others(tar: str, others: Sequence[str], images: dict[str, Sequence[Member]], left_out: LeftOut) -> None:
    """Add the members that are no images to `left_out`."""
    stems = {member.name.rpartition(".")[0] for found in images.values() for member in found}
    lone: set[str] = set()
    for name in others:
        key = split_key(name)[0]
        stem = name.rpartition(".")[0]
        if key in images or stem in stems:
            if not name.endswith(LABEL_SUFFIXES):
                left_out.beside.append(name)
        else:
            lone.add(key)
            left_out.without_image.append(f"{tar}/{name}")
    left_out.samples_without_image += len(lone)
