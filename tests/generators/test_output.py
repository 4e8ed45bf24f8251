"""What `distgan sample` writes of images of any shape and type: the values that the dataset stores."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import distgan
from distgan.commands import sample as sample_command
from distgan.commands import shards
from distgan.data.index_file import NUMBERS
from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.generators import output
from distgan.images import grid
from distgan.pixels import to_picture, to_stored
from distgan.samples import LIMITS, Condition, DType, SampleSpec
from helpers import save_generator

COUNT = 5
DTYPES: list[DType] = ["uint8", "uint16", "float16", "float32"]


def sample(*words: object) -> int:
    return sample_command.main([str(word) for word in words])


def expected_pixels(path: Path) -> np.ndarray:
    """The images of seed 0 as they are stored."""
    G = distgan.load(path)
    return to_stored(G.sample(COUNT), G.spec).numpy()


def read(path: Path) -> np.ndarray:
    """The pixels in a file, by libraries that know nothing of distgan."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return np.asarray(image)
    if path.suffix == ".npy":
        return np.load(path)
    with tifffile.TiffFile(path) as tiff:
        (page,) = tiff.pages  # of several, each would be a row
        assert page.axes in ("YX", "YXS")
        return page.asarray()


def make_again(src: Path, dest: Path, spec: SampleSpec, *words: object) -> ShardSet:
    """The dataset that `shards make` makes of what was written, as the manual has it."""
    low, high = spec.range
    kind = ("--dtype", spec.dtype, "--channels", spec.channels, f"--range={low!r},{high!r}", "--jobs", 1)
    assert shards.main([str(word) for word in ("make", src, dest, *kind, *words)]) == 0
    return shards.open_dataset(str(dest), None)


def pixels_in_order(dataset: ShardSet) -> np.ndarray:
    """The pixels of a dataset [N, H, W, C], in the order of what it was made of."""
    return np.asarray(Reader(dataset).read(np.argsort(dataset.sources() or [])).images)


@st.composite
def specs(draw: st.DrawFn) -> SampleSpec:
    dtype: DType = draw(st.sampled_from(DTYPES))
    value_range = LIMITS.get(dtype)
    if value_range is None or draw(st.booleans()):
        low = float(draw(st.integers(0, 40) if dtype in LIMITS else st.floats(-100, 100, width=16)))
        value_range = (low, low + draw(st.integers(1, 200)))
    height, width, channels = (draw(st.integers(*bounds)) for bounds in ((8, 24), (8, 24), (1, 5)))
    return SampleSpec(height, width, channels, dtype=dtype, range=value_range)


@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(spec=specs())
def test_what_is_written_is_what_the_dataset_stores(spec):
    """In every format that holds it, bit by bit; and a dataset of the files has the same pixels and spec."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = save_generator(folder / "G.safetensors", spec)
        pixels = expected_pixels(file)
        assert pixels.dtype == spec.dtype and pixels.shape == (COUNT, spec.height, spec.width, spec.channels)
        for out in ("a.npy", "a.npz"):
            assert sample(file, "--count", COUNT, "--out", folder / out) == 0
        assert np.load(folder / "a.npy").dtype == spec.dtype
        np.testing.assert_array_equal(np.load(folder / "a.npy"), pixels)
        np.testing.assert_array_equal(np.load(folder / "a.npz")["images"], pixels)
        is_png = (spec.dtype, spec.channels) in (("uint8", 1), ("uint8", 3), ("uint16", 1))
        for format in ("npy", "tiff", "auto", *(["png"] if is_png else [])):
            files = folder / format
            assert sample(file, "--count", COUNT, "--out", files, "--format", format) == 0
            written = [read(path) for path in sorted(files.iterdir())]
            chosen = ("png" if is_png else "tiff") if format == "auto" else format
            assert {path.suffix for path in files.iterdir()} == {f".{chosen}"}
            assert {image.dtype.name for image in written} == {spec.dtype}
            np.testing.assert_array_equal(np.stack(written).reshape(pixels.shape), pixels)
        for written in ("npy", "tiff", "auto", "a.npy", "a.npz"):
            dataset = make_again(folder / written, folder / f"set of {written}", spec, "--labels", "none")
            assert dataset.spec == spec
            np.testing.assert_array_equal(pixels_in_order(dataset), pixels)


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        (SampleSpec(8, 8, 3), "png"),
        (SampleSpec(8, 8, 1, dtype="uint16", range=(0.0, 4095.0)), "png"),
        (SampleSpec(8, 8, 3, dtype="uint16", range=(0.0, 4095.0)), "tiff"),
        (SampleSpec(8, 8, 2), "tiff"),
        (SampleSpec(8, 8, 1, dtype="float32", range=(0.0, 1.0)), "tiff"),
    ],
)
def test_format_of_single_files(spec, chosen, monkeypatch):
    assert output.choose_format(spec, "auto") == (chosen, "")
    monkeypatch.setattr(output.importlib.util, "find_spec", lambda name: None)
    format, remark = output.choose_format(spec, "auto")
    assert format == (chosen if chosen == "png" else "npy")
    assert ("pip install 'distgan[tiff]'" in remark) == (format == "npy")
    with pytest.raises(distgan.UsageError, match="format: a TIFF needs tifffile: pip install"):
        output.choose_format(spec, "tiff")


def test_a_file_without_tifffile_is_announced(tmp_path, monkeypatch, capsys):
    file = save_generator(tmp_path / "G.safetensors", SampleSpec(8, 12, 5))
    monkeypatch.setattr(output.importlib.util, "find_spec", lambda name: None)
    assert sample(file, "--count", 2, "--out", tmp_path / "files") == 0
    assert [path.name for path in sorted((tmp_path / "files").iterdir())] == ["000000.npy", "000001.npy"]
    line = capsys.readouterr().out
    assert "files: 2 images, 8x12x5," in line and "as .npy, since TIFF needs tifffile" in line


@pytest.mark.parametrize(("show", "channels"), [(None, [0, 1, 2]), ("5,1,2", [4, 0, 1]), ("4", [3, 3, 3])])
def test_a_sheet_shows_channels_by_range(tmp_path, show, channels):
    spec = SampleSpec(8, 12, 5, dtype="float16", range=(-3.0, 8.0))
    file = save_generator(tmp_path / "G.safetensors", spec)
    words = [] if show is None else ["--show", show]
    assert sample(file, "--count", 6, "--out", tmp_path / "a.png", *words) == 0
    images = distgan.load(file).sample(6)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), grid(to_picture(images[:, channels].numpy())))
    assert sample(file, "--count", 2, "--interpolate", 3, "--out", tmp_path / "a.gif", *words) == 0
    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (30, 12)


def test_a_file_of_version_0_1(tmp_path):
    """Its metadata has `size` in place of height and width, and no type."""
    new = save_generator(tmp_path / "new.safetensors", SampleSpec(16, 16, 3, 2), ["a", "b"])
    without: dict[str, Any] = dict.fromkeys(["height", "width", "dtype", "range", "conditions"])
    old = save_generator(tmp_path / "old.safetensors", SampleSpec(16, 16, 3, 2), ["a", "b"], size=16, **without)
    assert distgan.load(old).spec == SampleSpec(16, 16, 3, 2) == distgan.load(new).spec
    for path in (new, old):
        assert sample(path, "--count", 4, "--out", path.with_suffix(".npz")) == 0
    assert new.with_suffix(".npz").read_bytes() == old.with_suffix(".npz").read_bytes()
    neither = save_generator(tmp_path / "neither.safetensors", SampleSpec(16, 16, 3), **without)
    with pytest.raises(distgan.UsageError, match="does not say what images it makes"):
        distgan.load(neither)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.npz", "--show", "1"], "show: it is of sheets and loops, and x.npz has all channels"),
        (["--out", "x.png", "--show", "1,2"], "show: [1, 2] is not one (grey) or three (RGB) of the channels 1 to"),
        (["--out", "x.png", "--show", "6"], "show: [6] is not one (grey) or three (RGB) of the channels 1 to 5"),
        (["--out", "x.png", "--show", "a"], "show: 'a' is neither one channel nor three"),
        (["--out", "x.npy", "--format", "npy"], "format: it is of single files in a folder, and --out x.npy is one"),
        (["--out", "x", "--format", "png"], "format: a PNG cannot hold 5 channels of uint8; take --format npy or tiff"),
        (["--out", "x", "--format", "bmp"], "format: expected one of 'auto', 'png', 'npy', 'tiff', got bmp"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    file = save_generator(tmp_path / "G.safetensors", SampleSpec(8, 8, 5))
    assert sample(file, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["G.safetensors"]


def test_conditions_are_recorded(tmp_path):
    """In an .npz by name, a name of its own arrays apart; beside single files in a CSV, which `shards make` reads."""
    conditions = (Condition("z", "number", 5.0, 2.0, 1.0, 9.0), Condition("label", "flag"))
    file = save_generator(tmp_path / "G.safetensors", SampleSpec(8, 8, 3, 2, conditions), ["a", "b"])
    words = ("--count", 4, "--condition", "z=2.5")
    assert sample(file, *words, "--out", tmp_path / "a.npz") == 0
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["condition_z"].tolist() == [2.5] * 4 and sorted(arrays["label"]) == [0, 0, 1, 1]
    G = distgan.load(file)
    labels = G.labels(arrays["labels"], {"z": arrays["condition_z"], "label": arrays["label"]})
    np.testing.assert_array_equal(to_stored(G(torch.from_numpy(arrays["z"]), labels), G.spec), arrays["images"])
    assert sample(file, *words, "--out", tmp_path / "files") == 0
    lines = (tmp_path / "files" / "labels.csv").read_text().splitlines()
    flags = arrays["label"].astype(int).tolist()
    assert lines[0] == "file_name,label,z,condition_label"
    assert lines[1:] == [f"{i:06d}.png,{'ab'[i % 2]},2.5,{flags[i]}" for i in range(4)]


def test_a_dataset_of_samples_has_their_conditions(tmp_path):
    """Of the arrays of an .npz, and of single files with their labels.csv: the manual's commands."""
    conditions = (Condition("energy", "number", 5.0, 2.0, 1.0, 9.0), Condition("tilted", "flag"))
    spec = SampleSpec(8, 10, 2, 2, conditions, "float16", (-2.0, 3.0))
    file = save_generator(tmp_path / "G.safetensors", spec, ["a", "b"])
    for out in ("a.npz", "files"):
        assert sample(file, "--count", 6, "--out", tmp_path / out) == 0
    arrays = np.load(tmp_path / "a.npz")
    words = ("--label_columns", "label:class,energy:number,tilted:flag", "--labels", tmp_path / "files" / "labels.csv")
    of_files = make_again(tmp_path / "files", tmp_path / "set of files", spec, *words)
    words = ("--label_columns", "labels:class,energy:number,tilted:flag")
    of_arrays = make_again(tmp_path / "a.npz", tmp_path / "set of arrays", spec, *words)
    assert [one.name for one in of_files.classes] == ["a", "b"]
    for dataset in (of_files, of_arrays):
        assert [(one.name, one.kind) for one in dataset.spec.conditions] == [("energy", "number"), ("tilted", "flag")]
        order = np.argsort(dataset.sources() or [])
        np.testing.assert_array_equal(dataset.columns["label"][order], arrays["labels"])
        numbers = np.stack([arrays["energy"], arrays["tilted"]], axis=1).astype(np.float32)
        np.testing.assert_array_equal(dataset.columns[NUMBERS][order], numbers)
        np.testing.assert_array_equal(pixels_in_order(dataset), arrays["images"])
