"""Pickles read without executing anything: tensors and plain values are collected, and every other name is refused.

A pickle is a program that calls any function it names. Here the names stand for the few classes below, whatever the
pickle wants of them, and no module is imported for it; source code that it holds stays text.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import torch

from distgan.errors import UsageError, shorten
from distgan.foreign.stored import Storage, rebuild_tensor

OPCODES = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT STRING BINSTRING "
    "SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_DICT EMPTY_LIST "
    "EMPTY_TUPLE EMPTY_SET DICT LIST TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS ADDITEMS FROZENSET "
    "BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID".split()
)
"""Those that the pickles of networks have, of protocols 2 to 5."""


class Table(dict[Any, Any]):
    """In place of the dictionaries of collections and of the official code; attributes are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class Ignored:
    """In place of what has no part in a network: options, numbers of NumPy, types."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Module:
    """In place of a module of the official code, which a pickle describes by its source, class name and attributes."""

    __slots__ = ("class_name", "state")

    def __init__(self, description: Any) -> None:
        if not isinstance(description, dict) or not isinstance(description.get("state"), dict):
            raise UsageError("a module without attributes")
        self.class_name = str(description.get("class_name"))
        self.state: dict[Any, Any] = description["state"]

    def __setstate__(self, state: Any) -> None:
        raise UsageError("a module whose attributes are set twice")


class Call:
    """A function that a pickle may call; not a bare one, whose defaults a pickle could replace."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UsageError("a function with attributes")


class StorageType:
    """In place of torch.FloatStorage and so on."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        raise UsageError("a type with attributes")


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
IGNORED = (
    ["argparse.Namespace", "torch.Size", "torch.device", "_codecs.encode"]
    + [f"torch.{name}" for name in ("float16", "float32", "float64", "bfloat16", "int64", "uint8", "bool")]
    + [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
    + [f"numpy.{name}" for name in ("dtype", "ndarray")]
    + [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset")]
)
KNOWN: dict[str, Any] = {
    **dict.fromkeys(IGNORED, Ignored),
    **dict.fromkeys(["collections.OrderedDict", "dnnlib.util.EasyDict", "dnnlib.EasyDict"], Table),
    **{f"torch.{name}": StorageType(dtype) for name, dtype in STORAGES.items()},
    "torch_utils.persistence._reconstruct_persistent_obj": Module,
    "torch._utils._rebuild_tensor": Call(rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": Call(rebuild_tensor),
    "torch._utils._rebuild_parameter": Call(lambda tensor, *_: tensor),
}
"""The names that a pickle may have; with them, `torch.storage._load_from_bytes` where storages are pickles inside."""
LOAD_FROM_BYTES = "torch.storage._load_from_bytes"


class Collector(pickle.Unpickler):
    """Collects `Storage`s, `StoredTensor`s, `Module`s and plain values from one pickle."""

    def __init__(
        self,
        data: bytes,
        *,
        find_storage: Callable[[Any], Storage] | None,
        load_from_bytes: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self.find_storage = find_storage
        """The storage of an id of torch; None: the pickle has no ids."""
        self.load_from_bytes = load_from_bytes

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if full == LOAD_FROM_BYTES and self.load_from_bytes is not None:
            return Call(self.load_from_bytes)
        if full in KNOWN:
            return KNOWN[full]
        if full.startswith("dnnlib.tflib."):
            raise UsageError("it is a network of TensorFlow; convert it to a .pt or .h5 with its project first")
        raise UsageError(f"it names {shorten(full)!r}, which is no part of a network's weights; nothing was executed")

    def persistent_load(self, pid: Any, /) -> Any:
        if self.find_storage is None:
            raise UsageError("it has ids of another file")
        return self.find_storage(pid)


def unpickle(
    stream: io.BytesIO,
    *,
    find_storage: Callable[[Any], Storage] | None = None,
    load_from_bytes: Callable[[Any], Any] | None = None,
) -> Any:
    """What the next pickle of `stream` holds; the stream is then behind it. Raises UsageError."""
    start = stream.tell()
    try:
        check_opcodes(stream)
        data = stream.getvalue()
        pickled = data if (start, stream.tell()) == (0, len(data)) else data[start : stream.tell()]
        return Collector(pickled, find_storage=find_storage, load_from_bytes=load_from_bytes).load()
    except UsageError:
        raise
    except (Exception, RecursionError) as error:  # a damaged pickle may raise anything
        raise UsageError(f"it is damaged, or no pickle ({shorten(str(error)) or type(error).__name__})") from None


def check_opcodes(stream: io.BytesIO) -> None:
    """Read the next pickle without building anything. Raises UsageError, or ValueError where it is no pickle.

    The unpickler of CPython allocates for lengths and places that a pickle only claims; here each is read first.
    """
    stored = 0
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name not in OPCODES:
            raise UsageError(f"it has the pickle's operation {opcode.name}, which no file of weights has")
        if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if argument is not None and argument > stored:
                raise UsageError("it is damaged: a place of the pickle's memory is skipped")
            stored += 1
