"""Damaged Parquet, LMDB, HDF5, .npy, .npz and TIFF: one line or bad images; no traceback, no hang.

FUZZ_CASES=20000 pytest tests/dataset_tool/test_table_fuzz.py          # by hand: more cases of each kind
"""

import contextlib
import faulthandler
import io
import json
import os
import shutil
import signal
import struct
from collections import Counter
from pathlib import Path

import h5py
import hypothesis.strategies as st
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given, settings
from PIL import Image

from distgan.dataset_tool.sources import open_source
from distgan.dataset_tool.sources.apart import call_apart
from distgan.errors import UsageError
from helpers import noise

CASES = int(os.environ.get("FUZZ_CASES", "30"))
HANGS = 60  # seconds
IMAGES = noise(6)
MAY_CRASH = ("lmdb", "hdf5")
"""Their libraries trust the file: a crash ends a worker process, which `shards make` reports in one line."""

damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "flip", "number", "number", "cut", "double", "zero", "zero", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 7),
        st.sampled_from([1, 2, 8, 100, 500, 2000]),
    ),
    min_size=1,
    max_size=4,
)
"""(what, where as a part of the file, bit or number, bytes)."""


def damaged(data: bytes, damage: list[tuple[str, float, int, int]]) -> bytes:
    changed = bytearray(data)
    for what, place, number, size in damage:
        at = int(place * len(changed))
        if what == "flip" and changed:
            changed[at] ^= 1 << number
        elif what == "number":
            changed[at : at + 8] = struct.pack("<q", (-1, 0, 1, 2**31, 2**32, 2**40, 2**62, -(2**63))[number])
        elif what == "cut":
            del changed[at : at + size]
        elif what == "double":
            changed[at:at] = changed[at : at + size]
        elif what == "zero":
            changed[at : at + size] = bytes(len(changed[at : at + size]))
        elif what == "end":
            del changed[at:]
    return bytes(changed)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """The files that are damaged."""
    folder = tmp_path_factory.mktemp("originals")
    rows = [{"bytes": png(image), "path": None} for image in IMAGES]
    features = {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    table = pa.table({"image": rows, "label": [0, 1, 2] * 2})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "x.parquet", row_group_size=2)
    with lmdb.open(str(folder / "lmdb"), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for i in range(300):  # a tree of several pages
            transaction.put(f"{i:050d}".encode(), png(IMAGES[i % 6]))
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("images", data=IMAGES, chunks=(2, 8, 8, 3), compression="gzip")
        file.create_dataset("label", data=[0, 1, 2] * 2)
    np.save(folder / "x.npy", IMAGES)
    np.savez(folder / "x.npz", images=IMAGES, label=[0, 1, 2] * 2)
    np.savez_compressed(folder / "packed.npz", images=IMAGES, label=[0, 1, 2] * 2)
    bands = np.concatenate([IMAGES[0], IMAGES[1]], axis=2)
    (folder / "tiff").mkdir()
    tifffile.imwrite(folder / "tiff" / "0.tif", bands, photometric="minisblack", planarconfig="contig")
    names = ["x.parquet", "lmdb/data.mdb", "x.h5", "x.npy", "x.npz", "packed.npz", "tiff/0.tif"]
    kinds = ["parquet", "lmdb", "hdf5", "npy", "npz", "packed", "tiff"]
    return {kind: folder / name for kind, name in zip(kinds, names, strict=True)}


def read_all(source: Path) -> str:
    """Open a source, and load its images; says how that went. Only a UsageError may come out of opening it."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            opened = open_source(str(source), split="train", files=None, labels="auto", samples=1, seed=0)
    except UsageError as error:
        assert "\n" not in str(error) and "Traceback" not in str(error)
        return "refused"
    bad = 0
    for index in range(min(len(opened), 20)):
        try:
            image = opened.load(index)
            if isinstance(image, Image.Image):
                with image:
                    image.load()
        except Exception:  # a bad image, as the worker processes have it
            bad += 1
    return "bad images" if bad else "read"


def read_apart(source: Path) -> str:
    faulthandler.disable()  # a crash is one of the outcomes
    return read_all(source)


@pytest.mark.parametrize("kind", ["parquet", "lmdb", "hdf5", "npy", "npz", "packed", "tiff"])
def test_damaged_files(originals, tmp_path, kind):
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    outcomes: Counter[str] = Counter()
    original = originals[kind]
    data = original.read_bytes()

    @settings(deadline=None, max_examples=CASES, database=None, derandomize=CASES < 1000)
    @given(damages)
    def check(damage: list[tuple[str, float, int, int]]) -> None:
        case = tmp_path / "case"
        shutil.rmtree(case, ignore_errors=True)
        path = case / original.relative_to(original.parents[1] if kind in ("lmdb", "tiff") else original.parent)
        path.parent.mkdir(parents=True)
        path.write_bytes(damaged(data, damage))
        source = path.parent if kind in ("lmdb", "tiff") else path
        signal.alarm(HANGS)
        try:
            outcome = call_apart(lambda: read_apart(source), "case") if kind in MAY_CRASH else read_all(source)
        except UsageError:
            outcome = "crashed"
        finally:
            signal.alarm(0)
        outcomes[outcome] += 1

    check()
    print(kind, dict(outcomes))
    assert len(outcomes) > 1
