"""Images by seed, walks through seeds, folders of classes, and files of latents: `distgan sample`."""

import re
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

import distgan
import distgan.commands.sample
import distgan.commands.shards
from distgan.data.shardset import LocalStorage, open_shardset
from distgan.data.stream import Reader
from distgan.generators.class_folders import folder_names
from distgan.generators.sampling import closed_walk, slerp
from distgan.generators.seeds import parse_seeds, seed_inputs
from distgan.pixels import to_stored
from distgan.samples import Condition, SampleSpec
from helpers import save_gat, save_generator, save_stylegan2

CONDITIONS = (Condition("energy", "number", 5.0, 2.0, 1.0, 9.0), Condition("tilted", "flag"))


@pytest.fixture(scope="module")
def gat(tmp_path_factory) -> Path:
    """A G with a mapping network."""
    return save_gat(tmp_path_factory.mktemp("gat") / "G.safetensors", SampleSpec(8, 8, 3, 3), ["a", "b", "c"])


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Path:
    """A G of two classes, with a number and a flag."""
    spec = SampleSpec(8, 8, 3, 2, CONDITIONS)
    return save_generator(tmp_path_factory.mktemp("mlp") / "G.safetensors", spec, ["a", "b"])


def sample(*words: object) -> int:
    return distgan.commands.sample.main([str(word) for word in words])


def arrays(file: Path, out: Path, *words: object) -> dict[str, np.ndarray]:
    assert sample(file, "--out", out, *words) == 0
    return dict(np.load(out))


def test_lists_of_seeds():
    assert parse_seeds("6600-6602") == [6600, 6601, 6602]
    assert parse_seeds("1, 5,9-11,0") == [1, 5, 9, 10, 11, 0]
    assert parse_seeds("7+1", "mix", "+") == [7, 1]


@pytest.mark.parametrize("name", ["gat", "conditional"])
def test_an_image_is_a_function_of_its_seed_alone(request, tmp_path, name):
    """Bit for bit the same in another list, with the same class and conditions."""
    file = request.getfixturevalue(name)
    first = arrays(file, tmp_path / "a.npz", "--seeds", "3,7-9,40")
    again = arrays(file, tmp_path / "b.npz", "--seeds", "9,5,3")
    assert len(np.unique(first["images"].reshape(5, -1), axis=0)) == 5
    for key in first:
        np.testing.assert_array_equal(again[key][[0, 2]], first[key][[3, 0]], err_msg=key)


def test_seeds_are_those_of_draw(gat, tmp_path):
    G = distgan.load(gat)
    assert seed_inputs(G, [4, 12], [0, 1, 2], {}).batch == 1  # in larger ones, other kernels may round otherwise
    found = arrays(gat, tmp_path / "a.npz", "--seeds", "4,12", "--truncation", 0.5)
    z = torch.cat([G.draw(1, seed, 0.5) for seed in (4, 12)])
    assert torch.equal(torch.from_numpy(found["z"]), z)
    assert found["labels"].tolist() == [4 % 3, 12 % 3]
    expected = torch.cat([G(z[:1], torch.tensor([1])), G(z[1:], torch.tensor([0]))])
    np.testing.assert_array_equal(found["images"], to_stored(expected, G.spec).numpy())


def test_single_images_are_named_by_seed(gat, tmp_path):
    expected = arrays(gat, tmp_path / "a.npz", "--seeds", "6600-6602")["images"]
    assert sample(gat, "--seeds", "6600-6602", "--out", tmp_path / "one") == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [f"seed{n}.png" for n in (6600, 6601, 6602)]
    with Image.open(tmp_path / "one" / "seed6601.png") as image:
        np.testing.assert_array_equal(np.asarray(image), expected[1])


def test_several_classes_of_a_seed(gat, tmp_path):
    """A row per seed and a column per class; single files are in the folder of their class."""
    found = arrays(gat, tmp_path / "a.npz", "--seeds", "1-2", "--label", "c,a")
    assert found["labels"].tolist() == [2, 0, 2, 0]
    np.testing.assert_array_equal(found["z"][0], found["z"][1])
    assert sample(gat, "--seeds", "1-2", "--label", "c,a", "--out", tmp_path / "files") == 0
    names = sorted(path.relative_to(tmp_path / "files").as_posix() for path in (tmp_path / "files").rglob("*.png"))
    assert names == ["a/seed1.png", "a/seed2.png", "c/seed1.png", "c/seed2.png"]
    with Image.open(tmp_path / "files" / "a" / "seed2.png") as image:
        np.testing.assert_array_equal(np.asarray(image), found["images"][3])


# ---- folders of classes


def test_names_of_class_folders():
    names = ["cat", "a/b", "a\\b", "Cat", ".hidden", "", "x" * 300, "ü ber", "..", "__MACOSX", "a_b"]
    found = folder_names(names)
    assert found[0] == "cat" and found[7] == "ü ber"
    assert len({name.casefold() for name in found}) == len(names)
    for name in found:
        assert name and Path(name).name == name and not name.startswith(".") and len(name) <= 110
    assert "__MACOSX" not in found


def test_class_folders_are_read_by_shards_make(tmp_path):
    """--count of each class, with the pixels and the class of each image."""
    classes = ["b/c", "a", ".d"]
    file = save_gat(tmp_path / "G.safetensors", SampleSpec(8, 8, 3, 3), classes)
    found = arrays(file, tmp_path / "a.npz", "--count", 12, "--label", "all")
    assert sample(file, "--count", 4, "--label", "all", "--out", tmp_path / "tree") == 0
    assert sorted(path.name for path in (tmp_path / "tree").iterdir()) == ["_d", "a", "b_c"]
    assert len(list((tmp_path / "tree").rglob("*.png"))) == 12
    command = ["make", tmp_path / "tree", tmp_path / "set", "--jobs", 1]
    assert distgan.commands.shards.main([str(word) for word in command]) == 0
    dataset = open_shardset(LocalStorage(tmp_path / "set"), "set")
    assert {one.name: one.samples for one in dataset.classes} == {"_d": 4, "a": 4, "b_c": 4}
    pixels = np.asarray(Reader(dataset).read(np.arange(12)).images)
    for source, label, image in zip(dataset.sources() or [], dataset.columns["label"], pixels, strict=True):
        folder, name = source.split("/")
        assert dataset.classes[label].name == folder
        number = 3 * int(name.removesuffix(".png")) + ["b_c", "a", "_d"].index(folder)
        np.testing.assert_array_equal(image, found["images"][number])


def test_one_class_has_no_folder(gat, tmp_path):
    assert sample(gat, "--count", 2, "--label", "b", "--out", tmp_path / "one") == 0
    assert sample(gat, "--count", 2, "--out", tmp_path / "none") == 0
    for name in ("one", "none"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["000000.png", "000001.png"]


# ---- walks


def read_video(path: Path) -> tuple[np.ndarray, str]:
    """The frames [frames, H, W, 3] of a video, and what ffmpeg says of it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    about = done.stderr.decode()
    size = re.search(r"Video: h264.*?yuv420p.*? (\d+)x(\d+)", about)
    assert size is not None, about
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, int(size[2]), int(size[1]), 3).astype(int), about


def test_a_closed_walk():
    """It passes its points, straight in w and on a circle in z, and ends before the first."""
    points = torch.randn(3, 2, 16)
    for spherical in (False, True):
        path = closed_walk(points, 4, spherical)
        assert path.shape == (12, 2, 16)
        torch.testing.assert_close(path[::4], points)
    torch.testing.assert_close(closed_walk(points, 2, False)[5], (points[2] + points[0]) / 2)
    torch.testing.assert_close(closed_walk(points, 4, True)[9], slerp(points[2], points[0], torch.tensor(0.25)))


def test_a_walk_through_seeds_as_mp4(tmp_path):
    """Frames of even sides, each close to the image of its w; grey, whose chroma is not halved."""
    file = save_stylegan2(tmp_path / "G.safetensors", SampleSpec(14, 10, 1))
    assert sample(file, "--seeds", "3,8,5", "--interpolate", 4, "--fps", 12, "--out", tmp_path / "a.mp4") == 0
    frames, about = read_video(tmp_path / "a.mp4")
    assert frames.shape == (12, 14, 10, 3) and "12 fps" in about
    G = distgan.load(file)
    G.set_noise("const")
    w = G.mapping(torch.cat([G.draw(1, seed) for seed in (3, 8, 5)]))
    expected = to_stored(G.synthesis(closed_walk(w, 4, False)), G.spec).numpy().astype(int)
    errors = np.array([[np.abs(frame - image).mean() for image in expected] for frame in frames])
    assert np.diag(errors).max() < 4 and (errors.argmin(1) == np.arange(12)).mean() > 0.8
    assert errors[0, 4] > 4 * errors[0, 0]


def test_odd_sides_and_other_formats(tmp_path):
    file = save_generator(tmp_path / "G.safetensors", SampleSpec(9, 7, 1))
    assert sample(file, "--seeds", "1-2", "--interpolate", 3, "--out", tmp_path / "a.mp4") == 0
    frames, _ = read_video(tmp_path / "a.mp4")
    assert frames.shape == (6, 10, 8, 3) and frames[:, 9].max() < 24 < frames[:, 8].mean()
    assert sample(file, "--count", 4, "--interpolate", 3, "--out", tmp_path / "loop.mp4") == 0
    assert read_video(tmp_path / "loop.mp4")[0].shape == (3, 24, 20, 3)
    assert sample(file, "--seeds", "1-2", "--interpolate", 3, "--fps", 10, "--out", tmp_path / "a.gif") == 0
    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (7, 9) and image.info["duration"] == 100


def test_a_walk_has_a_column_per_class(gat, tmp_path):
    assert sample(gat, "--seeds", "1,2", "--label", "a,b", "--interpolate", 2, "--out", tmp_path / "a.webp") == 0
    with Image.open(tmp_path / "a.webp") as image:
        assert image.size == (22, 12)


def test_a_video_needs_its_package(gat, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert sample(gat, "--seeds", "1,2", "--out", tmp_path / "a.mp4") == 2
    assert "out: an .mp4 needs imageio-ffmpeg: pip install 'distgan[video]'" in capsys.readouterr().err


# ---- files of latents


@pytest.mark.parametrize("name", ["gat", "conditional"])
def test_latents_of_an_npz_give_its_images(request, tmp_path, name):
    file = request.getfixturevalue(name)
    first = arrays(file, tmp_path / "a.npz", "--count", 5)
    again = arrays(file, tmp_path / "b.npz", "--latents", tmp_path / "a.npz")
    assert first.keys() == again.keys()
    for key in first:
        np.testing.assert_array_equal(again[key], first[key], err_msg=key)


def test_latents_w(gat, tmp_path):
    """w alone, without labels, gives G.synthesis(w)."""
    G = distgan.load(gat)
    w = G.mapping(G.draw(3), torch.tensor([0, 1, 2]))
    np.savez(tmp_path / "w.npz", w=w.numpy())
    found = arrays(gat, tmp_path / "b.npz", "--latents", tmp_path / "w.npz")
    np.testing.assert_array_equal(found["images"], to_stored(G.synthesis(w), G.spec).numpy())
    np.testing.assert_array_equal(found["w"], w.numpy())
    torch.testing.assert_close(G.synthesis(w), G(G.draw(3), torch.tensor([0, 1, 2])))


def test_truncated_w(gat):
    """mapping gives what the images are made of."""
    G = distgan.load(gat, truncation_psi=0.5)
    z, labels = G.draw(3), torch.tensor([0, 1, 2])
    torch.testing.assert_close(G.synthesis(G.mapping(z, labels)), G(z, labels))
    free = distgan.load(gat)
    assert not torch.allclose(free.mapping(z, labels), G.mapping(z, labels), atol=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"z": np.zeros((2, 7), np.float32)}, "z of FILE is [2, 7], the generator takes [2, 8]"),
        ({"w": np.zeros((2, 4, 32), np.float32)}, "w of FILE is [2, 4, 32], the generator takes [2, 32]"),
        ({"images": np.zeros(3)}, "FILE has the arrays none; one of z and w is needed"),
        ({"z": np.zeros((2, 8)), "w": np.zeros((2, 32))}, "FILE has the arrays z, w; one of z and w is needed"),
        ({"z": np.zeros((2, 8))}, "FILE needs an array labels [2], of numbers, beside z"),
        ({"z": np.zeros((2, 8)), "labels": np.array([0, 3])}, "a label of FILE is not one of the 3 classes"),
        ({"z": np.full((2, 8), np.nan)}, "z of FILE are not finite floating-point numbers"),
        ({"z": np.array([[{}]], object)}, "FILE is no .npz of `sample` or `project`"),
    ],
)
def test_latents_that_are_none(gat, tmp_path, capsys, content, message):
    np.savez(tmp_path / "x.npz", **content)
    assert sample(gat, "--latents", tmp_path / "x.npz", "--out", tmp_path / "a.png") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distgan: latents: {message.replace('FILE', str(tmp_path / 'x.npz'))}"), error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1,x"], "seeds: 'x' is neither a seed nor a range; write 6600-6625 or 1,5"),
        (["--seeds", "5-1"], "seeds: the range 5-1 runs backwards; write 1-5"),
        (["--seeds", "1,3-5,4"], "seeds: 4 is given twice; keep one"),
        (["--seeds", "0-100000"], "seeds: there are more than 100,000"),
        (["--seeds", "1", "--count", "3"], "count: --seeds says what the images are made of; leave it out"),
        (["--seeds", "1", "--seed", "0"], "seed: --seeds says what the images are made of; leave it out"),
        (["--seeds", "1", "--latents", "x.npz"], "seeds: it excludes --latents; give one of them"),
        (["--seeds", "1", "--interpolate", "4"], "interpolate: of --seeds it is for a walk"),
        (["--latents", "x.npz", "--label", "a"], "label: --latents says what the images are made of"),
        (["--latents", "nowhere.npz"], "latents: nowhere.npz cannot be read"),
        (["--mix", "1,2"], "mix: the layers of GAT have no w of their own, as those of stylegan2 have"),
        (["--mix", "1,2", "--out", "x.npz"], "mix: it makes a sheet (.png, .jpg, .jpeg), and --out is x.npz"),
        (["--mix_layers", "fine"], "mix_layers: they are those of --mix A,B, which is not given"),
        (["--noise", "const"], "noise: GAT has no noise inputs, which are those of stylegan2; leave it out"),
        (["--fps", "30"], "fps: it is of animations (.gif, .webp, .mp4), and --out is a.png; leave it out"),
    ],
)
def test_refusals(gat, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert sample(gat, "--out", "a.png", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distgan: {message.replace('GAT', str(gat))}"), error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())
