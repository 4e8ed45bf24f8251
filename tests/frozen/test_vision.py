"""DINOv2 from a local folder: its features, the grids that it is asked for, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from distgan.errors import UsageError
from distgan.files import sha256_file
from distgan.frozen.files import CONFIG
from distgan.frozen.vision import DINOV2, load_dinov2
from distgan.sizes import Size
from helpers import make_dinov2

KEY = "terms.align.path"


def images(n: int = 3, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(n, 3, height, width) * 2 - 1


def by_transformers(folder: Path, pixels: Tensor) -> Tensor:
    """Tokens of pixels in [0, 1], as transformers' own image processor prepares them."""
    import transformers

    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    network: Any = transformers.Dinov2Model.from_pretrained(folder)
    return network.eval()((pixels - mean) / std).last_hidden_state.detach()


def test_features_are_those_of_transformers_after_the_last_norm(tiny_dinov2):
    network = load_dinov2(tiny_dinov2, KEY)
    assert network.features == 16 and network.sha256 == sha256_file(tiny_dinov2 / DINOV2.weights)
    x = images()
    tokens = network(x, Size(4, 4))
    assert tokens.shape == (3, 17, 16) and tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, by_transformers(tiny_dinov2, (x + 1) / 2))
    # at its initialization the last norm neither scales nor shifts
    torch.testing.assert_close(tokens.mean(2), torch.zeros(3, 17), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.var(2, correction=0), torch.ones(3, 17), rtol=0, atol=1e-3)


def test_images_are_resized_to_whole_patches_of_the_grid(tiny_dinov2):
    network = load_dinov2(tiny_dinov2, KEY)
    x = images(2, 24, 16)
    resized = F.interpolate((x + 1) / 2, (6, 4), mode="bicubic")
    torch.testing.assert_close(network(x, Size(3, 2)), by_transformers(tiny_dinov2, resized))


def test_beyond_what_it_was_trained_on_its_features_are_resized(tiny_dinov2):
    network = load_dinov2(tiny_dinov2, KEY)
    x = images()
    tokens = network(x, Size(8, 8))
    own = by_transformers(tiny_dinov2, (x + 1) / 2)
    assert torch.equal(tokens[:, 0], network(x, Size(4, 4))[:, 0])
    for feature in (0, 15):
        expected = F.interpolate(own[:, 1:, feature].view(3, 1, 4, 4), (8, 8), mode="bicubic")
        torch.testing.assert_close(tokens[:, 1:, feature], expected.flatten(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "grid, own", [((4, 4), (4, 4)), ((2, 3), (2, 3)), ((8, 8), (4, 4)), ((8, 4), (4, 2)), ((20, 1), (4, 1))]
)
def test_its_own_grid(tiny_dinov2, grid, own):
    assert load_dinov2(tiny_dinov2, KEY).own_grid(Size(*grid)) == own


def test_the_grid_of_gat_is_224_pixels(tiny_dinov2):
    network = load_dinov2(tiny_dinov2, KEY)
    network.config = network.config.__class__("dinov2", patch_size=14, image_size=518)
    assert network.own_grid(Size(16, 16)) == (16, 16) and 16 * 14 == 224
    assert network.own_grid(Size(64, 32)) == (37, 18)


def test_it_stays_frozen_and_in_eval_mode(tmp_path):
    network = load_dinov2(make_dinov2(tmp_path / "dinov2", hidden_dropout_prob=0.5), KEY).train()
    assert not any(module.training for module in network.modules())
    assert not any(weight.requires_grad for weight in network.parameters())
    x = images().requires_grad_()
    expected = network(x, Size(4, 4))
    assert not expected.requires_grad and torch.equal(network(x, Size(4, 4)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, Size(4, 4))
    assert half.dtype == torch.float32
    assert 1e-4 < (half - expected).abs().mean() < 0.05


def test_a_copy_without_weights_needs_no_data(tiny_dinov2):
    network = load_dinov2(tiny_dinov2, KEY)
    with FakeTensorMode():
        copy = network.without_weights()
        assert copy(torch.empty(2, 3, 8, 8), Size(8, 8)).shape == (2, 65, 16)
    assert copy is not network and network(images(), Size(4, 4)).isfinite().all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "dinov2_with_registers"}, "is of a dinov2_with_registers with 3 channels; give a dinov2"),
        ({"num_channels": 4}, "is of a dinov2 with 4 channels"),
        ({"hidden_size": "many"}, "is not one of Dinov2Model .*hidden_size"),
        ({"num_hidden_layers": 2}, r"does not match config.json \(encoder.layer.1"),
        ({"hidden_size": 32}, "cannot be read"),
    ],
)
def test_what_is_not_its_config_is_refused(changes, message, tmp_path):
    folder = make_dinov2(tmp_path / "dinov2")
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))
    with pytest.raises(UsageError, match=f"^{KEY}: .*{message}"):
        load_dinov2(folder, KEY)


def test_missing_and_unsafe_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match=f"{KEY}: .*config.json: No such file.*; give a folder that transformers'"):
        load_dinov2(tmp_path, KEY)
    folder = make_dinov2(tmp_path / "dinov2")
    tensors = load((folder / DINOV2.weights).read_bytes())
    (folder / DINOV2.weights).write_bytes(b"no tensors")
    with pytest.raises(UsageError, match="cannot be read"):
        load_dinov2(folder, KEY)
    save_file({**tensors, "more": torch.zeros(1)}, folder / DINOV2.weights, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"does not match config.json \(more\); use both of one DINOv2"):
        load_dinov2(folder, KEY)
    (folder / DINOV2.weights).unlink()
    with pytest.raises(UsageError, match="has no model.safetensors; give a folder"):
        load_dinov2(folder, KEY)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(UsageError, match="its .bin is a pickle, which can run code"):
        load_dinov2(folder, KEY)
    with pytest.raises(UsageError, match=f"{KEY}: hf://dinov2: a DINOv2 on the hub is hf://OWNER/NAME"):
        load_dinov2("hf://dinov2", KEY)


def test_a_missing_package_is_named(tiny_dinov2, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"align.path needs transformers, which is not .*; pip .*distgan\[align\]"):
        load_dinov2(tiny_dinov2, KEY)
