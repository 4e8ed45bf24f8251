"""Files of torch.save, in zip archives and as before torch 1.6, and pickles of modules: without torch.load.

`torch.load(weights_only=True)` executes nothing either, but it does not read the modules of official files, nor the
options that rosinality's training saves beside the weights. With one reader all kinds pass the same checks, and a
tensor is read when its shape is known to fit.
"""

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from distgan.errors import UsageError
from distgan.foreign.stored import Storage
from distgan.foreign.unpickle import StorageType, unpickle

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
"""The first two pickles of a file of before torch 1.6."""
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The bytes of the first one."""
COUNT_BYTES = 8
"""Before the numbers of each storage there: how many."""


def read_zip(data: bytes) -> Any:
    """What a file of torch.save since 1.6 holds: data.pkl, and a member of the archive for each storage.

    Raises UsageError.
    """
    archive = open_zip(data)
    sizes = {member.filename: member.file_size for member in archive.infolist()}
    pickles = [name for name in sizes if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise UsageError("it is a zip archive, and not of torch.save: it has no NAME/data.pkl")
    folder = pickles[0].split("/")[0]
    byteorder = f"{folder}/byteorder"
    if byteorder in sizes and read_member(archive, byteorder) != b"little":
        raise UsageError("it was written on a big-endian machine")

    def reader(key: str, nbytes: int) -> Callable[[], bytes]:
        name = f"{folder}/data/{key}"
        if sizes.get(name, -1) < nbytes:
            raise UsageError(f"it has fewer numbers than it says: {name}")
        return lambda: read_member(archive, name)

    pickled = io.BytesIO(read_member(archive, pickles[0]))
    return unpickle(pickled, find_storage=lambda pid: storage_of(pid, reader))


def open_zip(data: bytes) -> zipfile.ZipFile:
    """An archive of members that take as much room as they claim. Raises UsageError."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error) as error:
        raise UsageError(f"it is a damaged zip archive ({error})") from None
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise UsageError(f"{member.filename} is compressed, which torch.save does not do")
        if member.file_size > len(data):
            raise UsageError(f"{member.filename} claims to be larger than the file")
    return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Raises UsageError for one that is damaged."""
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise UsageError(f"it is damaged at {name} ({error})") from None


def read_legacy(data: bytes) -> Any:
    """What a file of torch.save before 1.6 holds: pickles, then the numbers of each storage. Raises UsageError."""
    stream = io.BytesIO(data)
    if unpickle(stream) != MAGIC or unpickle(stream) != PROTOCOL:
        raise UsageError("it is no file of torch.save")
    machine = unpickle(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UsageError("it was written on a big-endian machine")
    sizes: dict[str, int] = {}
    starts: dict[str, int] = {}

    def read_slice(key: str, nbytes: int) -> Callable[[], bytes]:
        if sizes.setdefault(key, nbytes) != nbytes:
            raise UsageError(f"it has two sizes of the storage {key}")
        return lambda: data[starts[key] : starts[key] + nbytes]

    found = unpickle(stream, find_storage=lambda pid: storage_of(pid, read_slice))
    keys = unpickle(stream)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(sizes):
        raise UsageError("it is damaged: its storages are not those of its tensors")
    place = stream.tell()
    for key in map(str, keys):
        starts[key] = place + COUNT_BYTES
        place = starts[key] + sizes[key]
    if place > len(data):
        raise UsageError("it is cut off, or has fewer numbers than it says")
    return found


def storage_of(pid: Any, reader: Callable[[str, int], Callable[[], bytes]]) -> Storage:
    """The storage of an id ("storage", type, key, device, count[, view]). Raises UsageError."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
        raise UsageError("it has an id that is not of a storage")
    _, kind, key, _, count = pid[:5]
    if not isinstance(kind, StorageType) or not isinstance(key, str) or type(count) is not int or count < 0:
        raise UsageError("it has a storage without a type, a key or a size")
    return Storage(kind.dtype, count, reader(key, count * kind.dtype.itemsize))


def read_pickle(data: bytes) -> Any:
    """What a pickle of modules holds, where each storage is a file of torch.save in bytes. Raises UsageError."""

    def load_from_bytes(inside: Any) -> Storage:
        storage = read_legacy(inside) if isinstance(inside, bytes) else None
        if not isinstance(storage, Storage):
            raise UsageError("it has a storage that is none")
        return storage

    return unpickle(io.BytesIO(data), load_from_bytes=load_from_bytes)
