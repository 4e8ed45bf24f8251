"""Autoencoders: what they compute, where they are found, and what is refused."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

import distgan.frozen.vae
from distgan.errors import UsageError
from distgan.frozen.vae import find_vae, keep_vae, kept_folder, load_vae, open_decoder
from distgan.frozen.vae_files import CONFIG, WEIGHTS
from distgan.samples import LatentSpec, SampleSpec
from helpers import make_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_vae(tmp_path_factory.mktemp("vae") / "tiny")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(distgan.frozen.vae, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def diffusers_vae(folder: Path) -> Any:
    diffusers: Any = importlib.import_module("diffusers")
    return diffusers.AutoencoderKL.from_pretrained(folder).eval()


def spec_of_vae(folder: Path) -> SampleSpec:
    vae = load_vae(folder)
    latents = LatentSpec(vae.sha256, vae.scale, vae.shift, 16, 24, 3)
    return SampleSpec(8, 12, vae.channels, dtype="float16", latents=latents)


def test_encode_gives_the_mean_and_std_of_the_posterior_of_diffusers(folder):
    images = torch.rand(3, 3, 16, 24) * 2 - 1
    posterior = diffusers_vae(folder).encode(images).latent_dist
    moments = load_vae(folder).encode(images.double())
    assert moments.shape == (3, 8, 8, 12) and moments.dtype == torch.float32
    torch.testing.assert_close(moments[:, :4], posterior.mean)
    torch.testing.assert_close(moments[:, 4:], posterior.std)


def test_decode_takes_latents_as_networks_see_them(tmp_path):
    shifted = make_vae(tmp_path / "vae", scaling_factor=0.5, shift_factor=0.25)
    latents = torch.randn(2, 4, 8, 12)
    expected = diffusers_vae(shifted).decode(latents).sample
    torch.testing.assert_close(load_vae(shifted).decode((latents - 0.25) * 0.5), expected)


def test_an_image_does_not_depend_on_how_many_are_decoded(folder, monkeypatch):
    monkeypatch.setattr(distgan.frozen.vae, "PIXELS_ON_CPU", 4 * 16 * 24)
    vae = load_vae(folder)
    latents = torch.randn(9, 4, 8, 12)
    images = vae.decode(latents)
    assert images.shape == (9, 3, 16, 24)
    for count in (1, 3, 4, 6):
        assert torch.equal(vae.decode(latents[:count]), images[:count])
    assert vae.decode(latents[:0]).shape == (0, 3, 16, 24)


def test_it_stays_frozen_in_float32_and_in_eval_mode(folder):
    vae = load_vae(folder).train()
    assert not any(module.training for module in vae.modules())
    latents = torch.randn(1, 4, 8, 12, requires_grad=True)
    expected = vae.decode(latents)
    assert not expected.requires_grad and not any(weight.requires_grad for weight in vae.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vae.decode(latents), expected)
        assert vae.encode(expected).dtype == torch.float32


def test_it_is_found_by_its_hash_once_it_is_kept(folder, cache):
    vae = load_vae(folder)
    with pytest.raises(UsageError, match=f"data.vae: the VAE {vae.sha256[:12]} of these latents is not in .*cache"):
        find_vae(vae.sha256)
    with ThreadPool(8) as pool:
        assert set(pool.map(keep_vae, [vae] * 8)) == {kept_folder(vae.sha256)}
    assert [path.name for path in (cache / "vae").iterdir()] == [vae.sha256]
    latents = torch.randn(1, 4, 8, 12)
    assert torch.equal(find_vae(vae.sha256).decode(latents), vae.decode(latents))


def test_another_vae_is_refused(folder, cache, tmp_path):
    other = make_vae(tmp_path / "other", seed=1)
    sha256 = load_vae(folder).sha256
    with pytest.raises(UsageError, match=rf"vae: .*other is the VAE \w{{12}}, not {sha256[:12]}"):
        find_vae(sha256, other, "vae")
    kept_folder(sha256).parent.mkdir(parents=True)
    other.rename(kept_folder(sha256))
    with pytest.raises(UsageError, match="delete .*cache"):
        find_vae(sha256)


def test_the_decoder_of_a_spec(folder, cache):
    spec = spec_of_vae(folder)
    latents = torch.randn(2, 4, 8, 12)
    assert torch.equal(open_decoder(spec, folder, "cpu")(latents), load_vae(folder).decode(latents))
    assert open_decoder(spec.pixels, None, "cpu")(latents) is latents
    assert spec.latents is not None
    for change in ({"scale": 0.3}, {"shift": 1.0}, {"height": 32}):
        with pytest.raises(UsageError, match=r"data.vae: .*config.json is not that of the VAE"):
            open_decoder(replace(spec, latents=replace(spec.latents, **change)), folder, "cpu")


def test_its_weights_do_not_follow_the_file(tmp_path):
    vae = load_vae(make_vae(tmp_path / "vae"))
    latents = torch.randn(1, 4, 8, 12)
    expected = vae.decode(latents)
    with open(tmp_path / "vae" / WEIGHTS, "r+b") as file:
        half = file.seek(0, os.SEEK_END) // 2
        file.seek(half)
        file.write(bytes(half))
    assert torch.equal(vae.decode(latents), expected)
    assert not torch.equal(load_vae(tmp_path / "vae").decode(latents), expected)


def edit_config(folder: Path, **changes) -> None:
    keys = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in keys.items() if value != "without"}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "AutoencoderTiny"}, "is of a AutoencoderTiny; give an AutoencoderKL"),
        ({"in_channels": 1}, "has 1 channels in and 3 out; give one of RGB images"),
        ({"latents_mean": [0.0] * 4}, "has a mean of its latents per channel"),
        ({"scaling_factor": 0}, "is not one of AutoencoderKL .*scaling_factor"),
        ({"block_out_channels": "without"}, "is not one of AutoencoderKL .*block_out_channels"),
        ({"layers_per_block": 2}, "does not match config.json"),
        ({"latent_channels": 8}, "cannot be read"),
    ],
)
def test_what_is_not_its_config_is_refused(changes, message, tmp_path):
    edit_config(make_vae(tmp_path / "vae"), **changes)
    with pytest.raises(UsageError, match=f"^data.vae: .*{message}"):
        load_vae(tmp_path / "vae")


def test_missing_and_unsafe_files_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="data.vae: .*config.json: No such file"):
        load_vae(tmp_path)
    vae = make_vae(tmp_path / "vae")
    tensors = load((vae / WEIGHTS).read_bytes())
    (vae / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(UsageError, match="cannot be read"):
        load_vae(vae)
    save_file({**tensors, "more": torch.zeros(1)}, vae / WEIGHTS)
    with pytest.raises(UsageError, match=r"does not match config.json \(more\)"):
        load_vae(vae)
    (vae / WEIGHTS).unlink()
    with pytest.raises(UsageError, match="has no diffusion_pytorch_model.safetensors; give a folder"):
        load_vae(vae)
    (vae / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(UsageError, match="its .bin is a pickle, which can run code"):
        load_vae(vae)


def test_weights_of_older_versions_of_diffusers_are_read(tmp_path):
    """Those of sd-vae-ft-mse have query, key, value and proj_attn, as 1x1 convolutions or as here linear layers."""
    vae = make_vae(tmp_path / "vae")
    latents = torch.randn(1, 4, 8, 12)
    expected = load_vae(vae).decode(latents)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load((vae / WEIGHTS).read_bytes())
    for new, old in names.items():
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for name, t in tensors.items()}
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, vae / WEIGHTS)
    assert torch.equal(load_vae(vae).decode(latents), expected)


@pytest.mark.slow
def test_the_cache_of_the_hub_works_without_a_network(folder, tmp_path):
    repository = tmp_path / "hub" / "models--owner--vae"
    snapshot = repository / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    snapshot.symlink_to(folder)
    script = "import sys; from distgan.frozen.vae import load_vae; print(load_vae(sys.argv[1]).sha256)"
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = [
        subprocess.run([sys.executable, "-c", script, address], capture_output=True, text=True, env=env)
        for address in ("hf://owner/vae", "hf://owner/missing")
    ]
    assert done[0].stdout.strip() == load_vae(folder).sha256, done[0].stderr
    assert "UsageError: data.vae: hf://owner/missing: LocalEntryNotFoundError" in done[1].stderr
    with pytest.raises(UsageError, match="data.vae: hf://vae: a VAE on the hub is hf://OWNER/NAME"):
        load_vae("hf://vae")


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"data.vae needs diffusers, which is not installed; pip .*distgan\[latents\]"):
        load_vae(folder)
