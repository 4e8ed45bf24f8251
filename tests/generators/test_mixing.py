"""Networks whose layers each take a w, and with noise inputs: mixed styles and noise in `distgan sample`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distgan
import distgan.commands.sample
from distgan.generators.mixing import mix, parse_layers, parse_mix
from distgan.generators.pretrained import PretrainedGenerator
from distgan.pixels import to_stored
from distgan.samples import SampleSpec
from helpers import save_stylegan2

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A G of 16x16 pixels: 6 layers."""
    return save_stylegan2(tmp_path_factory.mktemp("stylegan2") / "G.safetensors", SampleSpec(16, 16, 3, 3), CLASSES)


def sample(*words: object) -> int:
    return distgan.commands.sample.main([str(word) for word in words])


def w_of(G: PretrainedGenerator, seed: int, label: int) -> torch.Tensor:
    """w [w_dim] of a seed."""
    return G.mapping(G.draw(1, seed), torch.tensor([label]))[0]


def pixels(G: PretrainedGenerator, w: torch.Tensor) -> np.ndarray:
    """The stored image [H, W, C] of w [num_ws, w_dim], as integers."""
    return to_stored(G.synthesis(w[None]), G.spec).numpy()[0].astype(int)


def test_a_mix_is_made_layer_by_layer():
    """Against a loop over its layers."""
    w_a, w_b = torch.randn(2, 5), torch.randn(3, 5)
    mixed = mix(w_a, w_b, range(1, 3), 4)
    assert mixed.shape == (3, 2, 4, 5)
    for row in range(3):
        for column in range(2):
            for layer in range(4):
                expected = w_a[column] if layer in (1, 2) else w_b[row]
                assert torch.equal(mixed[row, column, layer], expected)


def test_layers_of_the_styles():
    assert parse_layers("coarse", 18) == range(4) and parse_layers("middle", 18) == range(4, 8)
    assert parse_layers("fine", 18) == range(8, 18) and parse_layers("middle", 6) == range(4, 6)
    assert parse_layers("2", 6) == range(2, 3) and parse_layers("0-5", 6) == range(6)
    assert parse_mix("1,2") == ([1], [2]) and parse_mix("0-1,7+3") == ([0, 1], [7, 3])


@pytest.mark.parametrize(("words", "layers"), [([], range(4)), (["--mix_layers", "2-4"], range(2, 5))])
def test_a_sheet_of_mixes(file, tmp_path, words, layers):
    """A in columns, B in rows; each is the synthesis of w put together by hand, with constant noise."""
    assert sample(file, "--mix", "4-5,6+9+1", "--out", tmp_path / "a.png", *words) == 0
    with Image.open(tmp_path / "a.png") as image:
        sheet = np.asarray(image).astype(int)
    assert sheet.shape == (4 * 18 + 2, 3 * 18 + 2, 3)
    cells = [[sheet[2 + 18 * y :, 2 + 18 * x :][:16, :16] for x in range(3)] for y in range(4)]
    assert not cells[0][0].any()
    G = distgan.load(file)
    G.set_noise("const")
    by_seed = {seed: w_of(G, seed, seed % 3) for seed in (4, 5, 6, 9, 1)}
    for x, a in enumerate((4, 5), 1):
        assert np.abs(cells[0][x] - pixels(G, by_seed[a].expand(6, -1))).max() <= 1
        for y, b in enumerate((6, 9, 1), 1):
            w = torch.stack([by_seed[a] if layer in layers else by_seed[b] for layer in range(6)])
            assert np.abs(cells[y][x] - pixels(G, w)).max() <= 1
            assert np.abs(cells[y][x] - cells[y][0]).max() > 8 < np.abs(cells[y][x] - cells[0][x]).max()
    for y, b in enumerate((6, 9, 1), 1):
        assert np.abs(cells[y][0] - pixels(G, by_seed[b].expand(6, -1))).max() <= 1


def images(file: Path, out: Path, *words: object) -> np.ndarray:
    assert sample(file, "--seeds", "3-5", "--out", out, *words) == 0
    return np.load(out)["images"].astype(int)


def test_noise_inputs(file, tmp_path):
    """By default those of z; const and none as asked for; an .npz keeps which."""
    default = images(file, tmp_path / "default.npz")
    random, const, none = (
        images(file, tmp_path / f"{name}.npz", "--noise", name) for name in ("random", "const", "none")
    )
    np.testing.assert_array_equal(default, random)
    assert min(np.abs(a - b).mean() for a, b in ((random, const), (const, none), (none, random))) > 1
    G = distgan.load(file)
    G.set_noise("none")
    expected = [to_stored(G(G.draw(1, seed), torch.tensor([seed % 3])), G.spec).numpy()[0] for seed in (3, 4, 5)]
    np.testing.assert_array_equal(none, expected)
    again = tmp_path / "again.npz"
    for name in ("default", "const"):
        assert sample(file, "--latents", tmp_path / f"{name}.npz", "--out", again) == 0
        assert np.abs(np.load(again)["images"].astype(int) - {"default": default, "const": const}[name]).max() <= 1


def test_images_of_w_have_the_noise_of_w(file):
    """In the mode random: a function of w, the same in another batch."""
    G = distgan.load(file)
    assert G.noise == "random"
    w = G.mapping(G.draw(3), torch.tensor([0, 1, 2]))
    free = G.synthesis(w)
    torch.testing.assert_close(G.synthesis(w[1:]), free[1:])
    assert (G.synthesis(w + 1e-6) - free).abs().mean() > 0.01  # other noise
    G.set_noise("const")
    assert (G.synthesis(w) - free).abs().mean() > 0.01
    z = G.draw(3)
    keyed = G.core
    keyed.noise = "random"
    torch.testing.assert_close(G.synthesis(w, keyed.noise_keys(z)), G(z, torch.tensor([0, 1, 2])))


def test_truncation_keeps_the_noise_of_z(file):
    """psi = 0 leaves nothing of z but the noise."""
    G = distgan.load(file, truncation_psi=0)
    labels = torch.zeros(2, dtype=torch.int64)
    a, b = G(G.draw(2), labels)
    assert (a - b).abs().mean() > 0.01
    G.set_noise("none")
    a, b = G(G.draw(2), labels)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("words", [["--seeds", "1,2"], ["--count", "4"]])
def test_nothing_flickers_in_an_animation(file, tmp_path, words):
    """Its noise is constant, unless another is asked for."""
    for name in ("default", "const", "random"):
        noise = [] if name == "default" else ["--noise", name]
        assert sample(file, *words, "--interpolate", 3, *noise, "--out", tmp_path / f"{name}.gif") == 0
    default, const, random = ((tmp_path / f"{name}.gif").read_bytes() for name in ("default", "const", "random"))
    assert default == const != random


def test_w_plus_of_a_file(file, tmp_path):
    G = distgan.load(file)
    w = torch.randn(2, 6, 16)
    np.savez(tmp_path / "w.npz", w=w.numpy(), noise=np.array("const"))
    assert sample(file, "--latents", tmp_path / "w.npz", "--out", tmp_path / "a.npz") == 0
    found = np.load(tmp_path / "a.npz")
    G.set_noise("const")
    np.testing.assert_array_equal(found["images"], to_stored(G.synthesis(w), G.spec).numpy())
    assert str(found["noise"]) == "const"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mix", "1"], "mix: '1' is not A,B; give a seed or a range for each, 0-3,10-15, or 1+5+9,20"),
        (["--mix", "1,x"], "mix: 'x' is neither a seed nor a range; write 6600-6625 or 1+5"),
        (["--mix", "1,2", "--mix_layers", "fine"], "mix_layers: the generator has the layers 0 to 5, and fine is not"),
        (["--mix", "1,2", "--mix_layers", "4-6"], "mix_layers: the generator has the layers 0 to 5, and 4-6 is not"),
        (["--mix", "1,2", "--mix_layers", "some"], "mix_layers: 'some' is none of coarse, middle, fine, and no range"),
        (["--mix", "1,2", "--label", "a,b"], "label: the images of --mix are of one class; give one"),
        (["--noise", "some"], "noise: expected one of 'random', 'const', 'none', got some"),
    ],
)
def test_refusals(file, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert sample(file, "--out", "a.png", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distgan: {message}"), error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())
