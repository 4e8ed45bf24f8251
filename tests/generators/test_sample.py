"""Images of a trained generator: `distgan sample` and `distgan.load`."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distgan
import distgan.commands.sample
import distgan.images
from distgan.generators.sampling import slerp
from distgan.pixels import to_stored
from distgan.samples import Condition, SampleSpec
from helpers import ROOT, TINY, save_gat, save_generator, train

MANUAL = ROOT / "distgan" / "generators" / "README.md"


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A run with three classes, a, b and c."""
    folder = tmp_path_factory.mktemp("labels") / "run"
    assert train("--data.shards", tiny, "--run_dir", folder, *TINY, "--epochs", 1, "--data.labels", "true") == 0
    return folder


def sample(*words: object) -> int:
    return distgan.commands.sample.main([str(word) for word in words])


def readme_example(first_line: str) -> str:
    """A Python example of the manual."""
    found = re.search(rf"```python\n({re.escape(first_line)}\n.*?)```", MANUAL.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_sample_is_a_function_of_the_file_and_the_seed(trained, tmp_path, monkeypatch):
    run = trained("--epochs", 1)

    def sheet(source: Path, name: str, seed: int = 7) -> bytes:
        assert sample(source, "--count", 64, "--seed", seed, "--out", tmp_path / name) == 0
        return (tmp_path / name).read_bytes()

    first = sheet(run, "a.png")
    assert sheet(run, "b.png") == first and sheet(run, "c.png", seed=8) != first
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(run / "checkpoints" / "80" / "ema.safetensors", tmp_path / "elsewhere" / "mine.safetensors")
    shutil.rmtree(run)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sheet(Path("mine.safetensors"), "d.png") == first


def test_sample_with_labels(run, tmp_path):
    pictures = []
    for words in (["--label", "0"], ["--label", "1"], ["--label", "b"], []):
        assert sample(run, "--out", tmp_path / "a.png", *words) == 0
        pictures.append((tmp_path / "a.png").read_bytes())
    assert len(set(pictures)) == 3 and pictures[1] == pictures[2]


def tiles(path: Path, columns: int) -> np.ndarray:
    """The images of a sheet of 8x8 images, [rows, columns, 8, 8, 3]."""
    with Image.open(path) as image:
        picture = np.asarray(image)
    assert picture.shape[1] == columns * 10 + 2
    rows = range((len(picture) - 2) // 10)
    return np.array([[picture[2 + 10 * y :, 2 + 10 * x :][:8, :8] for x in range(columns)] for y in rows])


def test_a_column_per_class(run, tmp_path):
    assert sample(run, "--label", "all", "--out", tmp_path / "all.png") == 0
    assert sample(run, "--label", "c,a", "--count", 6, "--out", tmp_path / "two.png") == 0
    assert tiles(tmp_path / "all.png", 3).shape[0] == 8
    G = distgan.load(run)
    expected = distgan.images.to_uint8(G(G.draw(6), torch.tensor([2, 0] * 3)).numpy()).reshape(3, 2, 8, 8, 3)
    assert np.abs(tiles(tmp_path / "two.png", 2).astype(int) - expected).max() <= 1


def test_arrays(run, tmp_path):
    assert sample(run, "--out", tmp_path / "a.npz", "--count", 70, "--label", "a,b") == 0
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["images"].shape == (70, 8, 8, 3) and arrays["images"].dtype == np.uint8
    assert arrays["labels"].tolist() == [0, 1] * 35
    again = distgan.load(run)(torch.from_numpy(arrays["z"]), torch.from_numpy(arrays["labels"]))
    assert np.abs(distgan.images.to_uint8(again.numpy()).astype(int) - arrays["images"]).max() <= 1


def test_single_files(run, tmp_path, capsys):
    assert sample(run, "--out", tmp_path / "folder", "--count", 70) == 0
    files = sorted((tmp_path / "folder").iterdir())
    assert [files[0].name, files[-1].name, len(files)] == ["000000.png", "000069.png", 70]
    with Image.open(files[0]) as image:
        assert image.size == (8, 8)
    capsys.readouterr()
    assert sample(run, "--out", tmp_path / "folder", "--count", 3) == 2
    assert "folder is not empty; give a new one" in capsys.readouterr().err


def test_formats_of_a_sheet(run, tmp_path):
    for name, format in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")):
        assert sample(run, "--out", tmp_path / name, "--columns", 4, "--count", 8) == 0
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (format, (42, 22))


def test_interpolation(run, tmp_path):
    """A row goes from one latent to another, in steps."""
    assert sample(run, "--interpolate", 5, "--count", 2, "--label", "b", "--out", tmp_path / "a.png") == 0
    assert tiles(tmp_path / "a.png", 5).shape[:2] == (2, 5)
    assert sample(run, "--interpolate", 5, "--count", 2, "--label", "all", "--out", tmp_path / "all.png") == 0
    assert tiles(tmp_path / "all.png", 5).shape[:2] == (2, 5)
    a, b = distgan.load(run).draw(2)
    t = torch.linspace(0, 1, 5)[:, None]
    path = slerp(a, b, t)
    torch.testing.assert_close(path[[0, 4]], torch.stack([a, b]))
    norms = path.norm(dim=1)  # stays between those of its ends
    assert norms.min() > 0.95 * min(a.norm(), b.norm()) and norms.max() < 1.05 * max(a.norm(), b.norm())


@pytest.fixture(scope="module")
def transformer(tmp_path_factory) -> Path:
    """An untrained G of three classes with a mapping network, and four outputs."""
    return save_gat(tmp_path_factory.mktemp("gat") / "gat.safetensors", SampleSpec(8, 8, 3, 3), ["a", "b", "c"])


def test_truncation_of_w(transformer, run, tmp_path, capsys):
    """psi 0 is one image a class, psi 1 changes nothing, and between them images are nearer to that of their class."""

    def pixels(name: str, *words: object) -> np.ndarray:
        assert sample(transformer, "--count", 30, "--out", tmp_path / name, *words) == 0
        return np.load(tmp_path / name).astype(int)

    free = pixels("free.npy")
    assert "psi" not in capsys.readouterr().out
    assert np.array_equal(pixels("one.npy", "--truncation_psi", 1), free)
    centre = pixels("centre.npy", "--truncation_psi", 0)
    assert "truncation psi 0" in capsys.readouterr().out
    assert np.abs(centre - np.resize(centre[:3], centre.shape)).max() <= 1
    assert np.abs(centre[0] - centre[1]).max() > 1
    half = pixels("half.npy", "--truncation_psi", 0.5)
    assert np.abs(half - centre).mean() < 0.8 * np.abs(free - centre).mean() and not np.array_equal(half, free)
    G = distgan.load(transformer, truncation_psi=0.5)
    assert np.abs(to_stored(G.sample(30, 0), G.spec).numpy().astype(int) - half).max() <= 1
    assert sample(run, "--truncation_psi", 0.5, "--out", tmp_path / "a.npy") == 2
    error = capsys.readouterr().err
    assert error.startswith("distgan: truncation_psi: G has no w to truncate") and error.count("\n") == 1


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_a_loop(run, tmp_path, name):
    assert sample(run, "--interpolate", 6, "--count", 4, "--out", tmp_path / name) == 0
    with Image.open(tmp_path / name) as image:
        assert getattr(image, "n_frames", 1) > 1 and (image.size, image.info["loop"]) == (
            (22, 22),
            0,
        )  # equal frames are merged


def test_truncation(run):
    G = distgan.load(run)
    free, cut = G.draw(100, seed=1), G.draw(100, seed=1, truncation=0.5)
    assert cut.abs().max() <= 0.5 < free.abs().max()
    inside = free.abs() <= 0.5
    assert torch.equal(cut[inside], free[inside])  # only what was outside is drawn again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such file: nowhere"),
        (["RUN", "--label", "1"], "was trained without labels"),
        (["RUN", "--count", "0"], "count: expected an integer above 0, got 0"),
        (["RUN/samples"], "holds no checkpoint"),
        (["RUN/metrics.jsonl"], "is not a complete .safetensors file"),
        (["RUN/checkpoints/80/discriminator.safetensors"], "does not hold a generator"),
        (["RUN", "--out", "/proc/x.png"], "/proc/x.png cannot be written"),
        (["RUN", "--out", "x.bmp"], "out: unknown format .bmp; choose from .png"),
        (["RUN", "--label", "a"], "was trained without labels"),
        (["RUN", "--truncation", "0"], "truncation: expected a finite number above 0, got 0"),
        (["RUN", "--truncation", "1e-5"], "truncation: 1e-05 is less than 0.01: all images would be alike"),
    ],
)
def test_sample_refuses_bad_input(trained, words, message, capsys):
    run = trained("--epochs", 1)
    capsys.readouterr()
    assert distgan.commands.sample.main([word.replace("RUN", str(run)) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ---- distgan.load


def test_load_in_four_lines(run, tmp_path, monkeypatch):
    """The manual's example, on a run in the current folder, and those that follow it there."""
    monkeypatch.chdir(tmp_path)
    code = readme_example("import distgan").replace("runs/demo", str(run))
    names: dict = {}
    exec(code, names)
    assert len([line for line in code.splitlines() if line.strip()]) == 4
    images = names["images"]
    assert images.shape[1:] == (3, 8, 8) and images.abs().max() <= 1
    exec(readme_example("import torch"), names)
    assert names["pixels"].shape == (16, 8, 8, 3) and names["pixels"].dtype == np.uint8
    assert names["row"].shape == (8, 3, 8, 8)
    assert torch.equal(names["row"][:1], names["G"](names["a"][None], torch.tensor([1])))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the exporters' dependencies
def test_exports(run, tmp_path, monkeypatch):
    """The manual's torch.export and ONNX files give G's images, for any number of latents."""
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    G = distgan.load(run)
    exec(readme_example('n = torch.export.Dim("n")'), {"torch": torch, "G": G})
    z, labels = G.draw(5, seed=3), torch.tensor([0, 1, 2, 1, 0])
    program = torch.export.load("G.pt2").module()
    torch.testing.assert_close(program(z, labels), G(z, labels))
    session = onnxruntime.InferenceSession("G.onnx", providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {"z": z.numpy(), "labels": labels.numpy()})
    torch.testing.assert_close(torch.tensor(images), G(z, labels), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("default")  # of the exporter
def test_export_with_conditions(tmp_path):
    """Labels of numbers are an input as classes are, of rectangles of many channels too."""
    spec = SampleSpec(8, 12, 5, 2, (Condition("energy", "number", 40.0, 20.0, 1.0, 100.0),))
    G = distgan.load(save_generator(tmp_path / "G.safetensors", spec, ["a", "b"]))
    n = torch.export.Dim("n")
    inputs = G.draw(2), G.labels([0, 1], {"energy": 50})
    program = torch.export.export(G, inputs, dynamic_shapes=({0: n}, {0: n})).module()
    z, labels = G.draw(5, seed=3), G.labels([0, 1, 0, 1, 1], {"energy": [1, 2, 30, 40, 50]})
    torch.testing.assert_close(program(z, labels), G(z, labels))


def test_load(run):
    G = distgan.load(run)
    assert (G.z_dim, G.classes, G.spec) == (8, ["a", "b", "c"], SampleSpec(8, 8, 3, 3))
    assert G.path == run / "checkpoints" / "80" / "ema.safetensors"
    assert not G.training and not any(p.requires_grad for p in G.parameters())
    images = G.sample(70, seed=1)
    assert images.shape == (70, 3, 8, 8) and torch.equal(images, G.sample(70, seed=1))
    assert not torch.equal(images, G.sample(70, seed=2))
    assert torch.equal(G.sample(4, label="b"), G.sample(4, label=1))
    z, labels = torch.zeros(2, 8), torch.tensor([0, 2])
    assert torch.equal(G(z, labels), distgan.load(G.path)(z, labels))
    with pytest.raises(distgan.UsageError, match=r"label: unknown class 'd'; choose from a, b, c \(or 0 to 2\)"):
        G.sample(1, label="d")
    with pytest.raises(ValueError, match="a generator trained with 3 classes needs labels"):
        G(z)
    with pytest.raises(distgan.UsageError, match="device: nonsense cannot be used"):
        distgan.load(run, "nonsense")
