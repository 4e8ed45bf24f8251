"""Tars of others as they are: images of any format and size, labels beside them, compressed or not."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from distgan.data.tar import Member, members_of
from distgan.dataset_tool.label_files import class_names
from distgan.dataset_tool.notes import escape_name, note
from distgan.dataset_tool.sources.archives import TAR_SUFFIXES, Archives, Place
from distgan.dataset_tool.sources.encoded import open_bytes
from distgan.dataset_tool.sources.folders import check_splits
from distgan.dataset_tool.sources.pixels import Layout
from distgan.dataset_tool.sources.source import Source, add_labels, count_suffixes, take_labels
from distgan.dataset_tool.sources.tar_samples import LeftOut, TarImage, find_images
from distgan.dataset_tool.tar_labels import TarLabels, made_columns, read_made_labels
from distgan.errors import UsageError


def is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_SUFFIXES)


def open_tars(
    root: Path,
    paths: list[Path],
    labels: str,
    columns: str | None,
    label_key: str,
    image_key: str | None,
    layout: Layout | None,
) -> Source:
    """The images in the tars `paths`, in the folder `root`; the options are those of `shards make`.

    With `labels` "auto", labels come from a dataset.json in the folder or in the only tar, else from the .cls and .json
    of the images (all of them if it is a dataset of ours), else from class folders in the tars. Raises UsageError, and
    CorruptDataError for a damaged tar.
    """
    paths = sorted(paths)
    where = str(root if len(paths) > 1 else paths[0])
    check_splits([path.relative_to(root).as_posix() for path in paths], str(root), "distgan shards make DIR DEST")
    archives = Archives(root, paths)
    images, inner_table = find_all(archives, image_key and image_key.removeprefix("."), where)
    source = Source(
        "tars",
        [f"{archives.names[place.tar]}/{image.member.name}" for place, image in images],
        lambda i: open_bytes(archives.read(images[i][0]), layout),
        has_paths=True,
        fingerprint=[(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in paths)],
    )
    members = [image.member.name for _, image in images]
    beside = root / "dataset.json"
    table = beside.read_bytes() if beside.is_file() else inner_table
    if labels != "auto" or table is not None:
        if label_key != "label":
            given = "dataset.json" if labels == "auto" else f"--labels {labels}"
            raise UsageError(f"--label_key: labels come from {given}, not from .json members; leave it out")
        return add_tar_labels(source, members, labels, columns, files_beside(root, table))
    made = read_made_labels(root) if columns is None and label_key == "label" else None
    in_tars = TarLabels(columns if made is None else made_columns(made), label_key)
    for name, (place, image) in zip(source.names, images, strict=True):
        in_tars.add(name, read_labels(archives, place.tar, image))
    names = class_names(root) or ([row.name for row in made.classes] if made is not None else [])
    found = in_tars.labels(where, names)
    if found is None:
        return add_tar_labels(source, members, "auto", None, {})
    take_labels(source, found)
    return source


def find_all(
    archives: Archives, image_key: str | None, where: str
) -> tuple[list[tuple[Place, TarImage]], bytes | None]:
    """The images of all tars, and the dataset.json of an only one; prints what is left out. Raises UsageError."""
    left_out = LeftOut()
    images: list[tuple[Place, TarImage]] = []
    tables: list[Place] = []
    for tar, path in enumerate(archives.paths):
        with archives.open(tar) as file:
            members = tidy(members_of(file, path), tar, tables)
            found = find_images(archives.names[tar], members, image_key, left_out)
        images += [(Place(tar, image.member.offset, image.member.size), image) for image in found]
    if not images:
        others = count_suffixes(left_out.without_image) or "nothing"
        what = f"--image_key: no member ends in .{image_key}" if image_key else "there is no image"
        raise UsageError(f"{where}: {what}; there are {others}")
    left_out.say()
    if tables and len(archives.paths) > 1:
        note(f"left out: dataset.json in {len(tables)} tars; put one that lists all beside them, or give --labels FILE")
    return images, archives.read(tables[0]) if tables and len(archives.paths) == 1 else None


def tidy(members: Iterator[Member], tar: int, tables: list[Place]) -> Iterator[Member]:
    """The members without `./` before their names; a dataset.json goes to `tables`."""
    for member in members:
        name = member.name.removeprefix("./")
        if name == "dataset.json":
            tables.append(Place(tar, member.offset, member.size))
        else:
            yield member._replace(name=name)


def read_labels(archives: Archives, tar: int, image: TarImage) -> dict[str, bytes]:
    """The .cls and .json of an image, by suffix. Raises UsageError."""
    fields: dict[str, bytes] = {}
    for suffix, member in image.label_members.items():
        try:
            fields[suffix] = archives.read(Place(tar, member.offset, member.size))
        except ValueError as error:
            raise UsageError(f"{archives.names[tar]}/{escape_name(member.name)}: {error}") from None
    return fields


def files_beside(root: Path, table: bytes | None) -> dict[str, bytes]:
    """The dataset.json `table`, if there is one, and the classes.json in the folder."""
    names = root / "classes.json"
    found = {"classes.json": names.read_bytes()} if names.is_file() else {}
    return found if table is None else found | {"dataset.json": table}


def add_tar_labels(
    source: Source, members: list[str], labels: str, columns: str | None, read: dict[str, bytes]
) -> Source:
    """Add labels of class folders in the tars, or of a file that lists TAR/MEMBER, MEMBER or MEMBER without suffix.

    The latter two name an image if no other tar has them too. `read` are the dataset.json and classes.json. Raises
    UsageError.
    """
    if labels == "folders" or (labels == "auto" and "dataset.json" not in read):
        by_member = add_labels(Source("tars", members, source.load), labels, read.__getitem__, columns)
        source.labels = by_member.labels
        source.classes = by_member.classes
        return source
    stems = [member.rpartition(".")[0] for member in members]
    aliases: dict[str, str] = {}
    for others in (stems, members):
        counts = Counter(others)
        aliases |= {other: name for other, name in zip(others, source.names, strict=True) if counts[other] == 1}
    return add_labels(source, labels, read.__getitem__, columns, aliases)
