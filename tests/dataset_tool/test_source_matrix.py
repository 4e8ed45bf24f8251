"""Every kind of source with every type of pixels: through `shards make` and back, bit by bit."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from distgan.commands import shards
from distgan.data.stream import Reader
from distgan.samples import LIMITS

COUNT = 6


def images_of(dtype: str, channels: int) -> np.ndarray:
    rng = np.random.default_rng(channels)
    shape = (COUNT, 12, 20, channels)
    if dtype in LIMITS:
        return rng.integers(0, LIMITS[dtype][1], shape, dtype, endpoint=True)  # type: ignore[arg-type]
    return (rng.standard_normal(shape) * 50).astype(dtype)


def npy(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, image)
    return out.getvalue()


def tiff(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, image, photometric="minisblack", planarconfig="contig")
    return out.getvalue()


def write_folder(root: Path, images: np.ndarray, encode: Callable[[np.ndarray], bytes], suffix: str) -> Path:
    (root / "folder").mkdir()
    for i, image in enumerate(images):
        (root / "folder" / f"{i}.{suffix}").write_bytes(encode(image))
    return root / "folder"


def write_zip(root: Path, images: np.ndarray) -> Path:
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for i, image in enumerate(images):
            archive.writestr(f"{i}.npy", npy(image))
    return root / "x.zip"


def write_tars(root: Path, images: np.ndarray, mode: str = "w") -> Path:
    (root / "tars").mkdir()
    with tarfile.open(root / "tars" / ("a.tar" if mode == "w" else "a.tar.gz"), mode) as archive:  # type: ignore[call-overload]
        for i, image in enumerate(images):
            data = npy(image)
            info = tarfile.TarInfo(f"{i}.npy")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return root / "tars"


def write_parquet(root: Path, images: np.ndarray) -> Path:
    pq.write_table(pa.table({"image": [npy(image) for image in images]}), root / "x.parquet", row_group_size=4)
    return root / "x.parquet"


def write_lmdb(root: Path, images: np.ndarray) -> Path:
    with lmdb.open(str(root / "lmdb"), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for i, image in enumerate(images):
            transaction.put(f"{i:03d}".encode(), npy(image))
    return root / "lmdb"


def write_hdf5(root: Path, images: np.ndarray) -> Path:
    with h5py.File(root / "x.h5", "w") as file:
        file["images"] = images
    return root / "x.h5"


def write_npy(root: Path, images: np.ndarray) -> Path:
    np.save(root / "x.npy", images)
    return root / "x.npy"


def write_npz(root: Path, images: np.ndarray) -> Path:
    np.savez(root / "x.npz", images=images)
    return root / "x.npz"


SOURCES: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "folder of .npy": lambda root, images: write_folder(root, images, npy, "npy"),
    "folder of TIFF": lambda root, images: write_folder(root, images, tiff, "tif"),
    "zip": write_zip,
    "tar": write_tars,
    "tar.gz": lambda root, images: write_tars(root, images, "w:gz"),
    "Parquet": write_parquet,
    "LMDB": write_lmdb,
    "HDF5": write_hdf5,
    ".npy": write_npy,
    ".npz": write_npz,
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_every_type(kind, dtype, tmp_path):
    images = images_of(dtype, 5)
    src = SOURCES[kind](tmp_path, images)
    assert shards.main(["make", str(src), str(tmp_path / "set"), "--jobs", "1"]) == 0
    dataset = shards.open_dataset(str(tmp_path / "set"), None)
    assert (dataset.spec.shape, dataset.spec.dtype) == ((5, 12, 20), dtype)
    read = Reader(dataset).read(np.arange(COUNT)).images
    assert {image.tobytes() for image in read} == {image.tobytes() for image in images}
