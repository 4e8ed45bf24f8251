"""`shards encode`: what is in a dataset of latents, on several processes, in parts, after a kill; what is refused."""

import filecmp
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file
from webdataset.tariterators import group_by_keys, tar_file_expander

import distgan.commands.shards
import distgan.dataset_tool.encode
from distgan.data.shardset import LocalStorage, ShardSet, open_shardset
from distgan.data.stream import Reader
from distgan.dataset_tool.encoder import Encoder
from distgan.errors import CorruptDataError, RunError
from distgan.frozen.vae import Autoencoder, load_vae
from distgan.frozen.vae_files import CONFIG, WEIGHTS
from helpers import launch, make_arrays, make_dataset, make_latents, make_vae, noise, reset_accelerate


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("distgan.frozen.vae.cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def shards(*words: object) -> int:
    reset_accelerate()
    return distgan.commands.shards.main([str(word) for word in words])


def opened(folder: Path) -> ShardSet:
    return open_shardset(LocalStorage(folder), str(folder))


def images_of(folder: Path) -> np.ndarray:
    dataset = opened(folder)
    return np.asarray(Reader(dataset).read(np.arange(dataset.manifest.samples)).images)


def read_tars(folder: Path) -> list[dict]:
    """The samples of a dataset, by webdataset's reader."""
    samples: list[dict] = []
    for path in sorted(folder.glob("*.tar")):
        with open(path, "rb") as file:
            samples += group_by_keys(tar_file_expander([{"url": str(path), "stream": file}]))
    return samples


def encode_by_hand(vae: Autoencoder, images: np.ndarray) -> np.ndarray:
    """Moments [N, 2, 2C, h, w] of uint8 images [N, H, W, 3] and of them flipped."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    return torch.stack([vae.encode(x), vae.encode(x.flip(3))], 1).numpy()


def same_files(left: Path, right: Path) -> bool:
    names = sorted(path.name for path in left.iterdir())
    same = filecmp.cmpfiles(left, right, names, shallow=False)[0]
    return names == sorted(path.name for path in right.iterdir()) == sorted(same)


def test_samples_have_the_moments_of_the_image_and_of_its_flip(tiny, latents, tiny_vae):
    images = images_of(tiny)
    expected = encode_by_hand(load_vae(tiny_vae), images)
    samples = read_tars(latents)
    stored = np.stack([np.load(io.BytesIO(sample["latents.npy"])) for sample in samples])
    assert stored.dtype == np.float16 and stored.shape == (80, 2, 8, 4, 4)
    np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-3)
    assert not np.allclose(expected[:, 1], expected[:, 0, ..., ::-1], atol=1e-2), "or a flip needs no encoding"
    assert np.array_equal(images_of(latents), stored)
    originals = read_tars(tiny)
    for name in ("__key__", "cls", "npy"):
        assert [sample[name] for sample in samples] == [sample[name] for sample in originals]


def test_the_manifest_says_what_was_encoded_and_by_what(tiny, latents, tiny_vae):
    source = opened(tiny)
    dataset = opened(latents)
    manifest = dataset.manifest
    assert manifest.source == {"name": str(tiny), "images": 80, "manifest": source.digest}
    assert manifest.options == {"keep_images": True, "flips": True, "batch": 16}
    assert manifest.classes == source.manifest.classes
    assert [shard.samples for shard in manifest.shards] == source.counts.tolist()
    spec = dataset.spec
    assert spec.shape == (4, 4, 4) and spec.stored_shape == (2, 8, 4, 4) and spec.dtype == "float16"
    assert spec.range == (0.25 - 2, 0.25 + 2) and spec.pixels == source.spec
    assert spec.latents is not None and spec.latents.vae == load_vae(tiny_vae).sha256
    mean, std = np.split(images_of(latents)[:, 0].astype(np.float64), 2, axis=1)
    assert manifest.mean is not None and manifest.std is not None
    drawn = mean + std * np.random.default_rng(0).standard_normal((400, *mean.shape))
    np.testing.assert_allclose(manifest.mean, mean.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(manifest.std, drawn.std((0, 1, 3, 4)), rtol=5e-3)


def test_the_images_beside_them_are_a_dataset(tiny, latents):
    source = opened(tiny)
    images = opened(latents).images
    assert images is not None and images.spec == source.spec and images.digest != opened(latents).digest
    assert np.array_equal(Reader(images).read(np.arange(80)).images, images_of(tiny))
    assert np.array_equal(images.columns["label"], source.columns["label"])
    assert source.images is None


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tiny, latents, tiny_vae, tmp_path):
    words = "encode", tiny, tmp_path / "two", "--vae", tiny_vae, "--flips", "--keep_images"
    done = launch(2, *words, script="shards.py", HOME=str(tmp_path / "home"))
    assert same_files(tmp_path / "two", latents)
    assert done.stdout.count("images/s") == 1 and "PSNR" in done.stdout
    kept = tmp_path / "home" / ".cache" / "distgan" / "vae" / load_vae(tiny_vae).sha256
    assert sorted(path.name for path in kept.iterdir()) == [CONFIG, WEIGHTS]


def test_parts_are_joined_to_the_same_bytes(tiny, latents, tiny_vae, tmp_path, capsys):
    words = "encode", tiny, tmp_path / "set", "--vae", tiny_vae, "--flips", "--keep_images"
    assert shards(*words, "--part", "2/2") == 0
    assert "part 2/2 is written" in capsys.readouterr().out
    assert shards("join", tmp_path / "set") == 2
    assert "4 of 8 shards are missing (shard-000000.tar" in capsys.readouterr().err
    assert shards(*words, "--part", "1/2") == 0
    assert shards("join", tmp_path / "set") == 0
    assert "80 images 4x4x4 latents of 8x8x3 npy, 3 classes, 8 shards" in capsys.readouterr().out
    assert same_files(tmp_path / "set", latents)


def test_what_was_written_before_a_kill_is_kept(tiny, latents, tiny_vae, tmp_path, monkeypatch, capsys):
    class KilledError(BaseException):
        pass

    whole = Encoder.sample

    def sample(self, samples, id, *rest):
        if id == 25:
            raise KilledError
        return whole(self, samples, id, *rest)

    monkeypatch.setattr(Encoder, "sample", sample)
    words = "encode", tiny, tmp_path / "set", "--vae", tiny_vae, "--flips", "--keep_images"
    with pytest.raises(KilledError):
        shards(*words)
    monkeypatch.undo()
    monkeypatch.setattr("distgan.frozen.vae.cache_folder", lambda: tmp_path / "cache")
    first = tmp_path / "set" / "shard-000000.tar"
    inode = first.stat().st_ino
    assert not (tmp_path / "set" / "manifest.json").exists() and list((tmp_path / "set").glob(".shard*.tmp"))
    assert shards(*words) == 0
    assert "encoded 60 images in" in capsys.readouterr().out
    assert first.stat().st_ino == inode
    assert same_files(tmp_path / "set", latents)


def test_a_finished_dataset_is_recognized_and_another_refused(tiny, tiny_vae, tmp_path, cache, capsys):
    words = ["encode", tiny, tmp_path / "set", "--vae", tiny_vae]
    assert shards(*words) == 0 and (cache / "vae").exists()
    before = (tmp_path / "set" / "shard-000000.tar").stat()
    assert shards(*words) == 0
    assert (tmp_path / "set" / "shard-000000.tar").stat() == before and "images/s" not in capsys.readouterr().out[-200:]
    other = make_vae(tmp_path / "other", seed=1)
    others = make_dataset(tmp_path / "rgb", noise(80, seed=1))
    for changed in ([*words, "--flips"], [*words, "--batch", 8], [*words[:4], other], ["encode", others, *words[2:]]):
        assert shards(*changed) == 2
        assert f"{tmp_path}/set holds another dataset; use another folder" in capsys.readouterr().err


def test_an_unfinished_dataset_of_another_vae_is_refused(tiny, tiny_vae, tmp_path, capsys):
    assert shards("encode", tiny, tmp_path / "set", "--vae", tiny_vae, "--part", "1/2") == 0
    other = make_vae(tmp_path / "other", seed=1)
    assert shards("encode", tiny, tmp_path / "set", "--vae", other, "--part", "2/2") == 2
    assert "set holds an unfinished dataset of another source or other options" in capsys.readouterr().err


def test_the_error_is_that_of_the_decoded_means(tiny, latents, tiny_vae, tmp_path, capsys):
    make_latents(tmp_path / "set", tiny, tiny_vae, "--flips")
    printed = re.search(r"decoded 64 images .*PSNR ([\d.]+) dB, mean absolute error ([\d.]+)", capsys.readouterr().out)
    assert printed
    rows = np.linspace(0, 79, 64).astype(int)
    mean = torch.from_numpy(images_of(latents)[rows, :, :4]).float()
    images = images_of(tiny)[rows].astype(np.float64)
    expected = np.stack([images, images[:, :, ::-1]], 1).transpose(0, 1, 4, 2, 3)
    decoded = load_vae(tiny_vae).decode((mean.flatten(0, 1) - 0.25) * 0.5).reshape(64, 2, 3, 8, 8)
    steps = np.round((decoded.numpy().clip(-1, 1) + 1) * 127.5) - expected
    assert float(printed[1]) == pytest.approx(10 * math.log10(255**2 / (steps**2).mean()), abs=0.02)
    assert float(printed[2]) == pytest.approx(np.abs(steps).mean(), abs=0.02)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["npy", "png", "jpg"])
def test_images_are_kept_as_rgb_in_their_encoding(format, channels, tiny_vae, tmp_path):
    source = make_dataset(tmp_path / "source", noise(6, channels=channels), shards=2, format=format)
    dataset = opened(make_latents(tmp_path / "set", source, tiny_vae, "--keep_images", "--batch", 2))
    assert dataset.images is not None and dataset.images.encoding == format
    batch = Reader(dataset, images=True).read(np.arange(6))
    rgb = np.broadcast_to(images_of(source), (6, 8, 8, 3))
    assert np.array_equal(batch.pixels, rgb)
    expected = encode_by_hand(load_vae(tiny_vae), rgb.copy())[:, :1]
    np.testing.assert_allclose(batch.images, expected, rtol=1e-3, atol=1e-3)


def test_conditions_and_sources_are_kept(tiny_vae, tmp_path):
    numbers = {"energy": np.linspace(1, 9, 12), "lit": np.arange(12) % 2}
    source = make_arrays(tmp_path / "source", noise(12), labels=np.arange(12) % 2, numbers=numbers)
    dataset = opened(make_latents(tmp_path / "set", tmp_path / "source", tiny_vae))
    assert dataset.manifest.conditions == source.manifest.conditions and dataset.images is None
    assert np.array_equal(dataset.labels(np.arange(12)), source.labels(np.arange(12)))
    assert [sample["json"] for sample in read_tars(tmp_path / "set")] == [
        sample["json"] for sample in read_tars(tmp_path / "source")
    ]


def test_the_paths_of_the_images_are_kept(folder_of_images, tiny_vae, tmp_path):
    assert shards("make", folder_of_images, tmp_path / "source", "--jobs", 1) == 0
    make_latents(tmp_path / "set", tmp_path / "source", tiny_vae)
    assert (tmp_path / "set" / "sources.txt").read_bytes() == (tmp_path / "source" / "sources.txt").read_bytes()
    assert opened(tmp_path / "set").sources() == opened(tmp_path / "source").sources()


def test_corrupt_latents_and_images_are_found(tiny, tiny_vae, tmp_path, capsys):
    folder = make_latents(tmp_path / "set", tiny, tiny_vae, "--keep_images")
    assert shards("verify", folder) == 0
    dataset = opened(folder)
    assert dataset.images is not None
    for place, columns in ((3, dataset.columns), (12, dataset.images.columns)):
        path = folder / f"shard-{place // 10:06d}.tar"
        with open(path, "r+b") as file:
            file.seek(int(columns["offset"][place]))
            file.write(b"\xff\xfe")
    capsys.readouterr()
    assert shards("verify", folder) == 1
    errors = capsys.readouterr().err
    keys = [sample["__key__"] for sample in read_tars(folder)]
    assert f"key {keys[3]}: the image's bytes do not match the index" in errors and keys[12] in errors
    batch = Reader(dataset, images=True, skip_bad=2).read(np.array([3, 12, 20]))
    good = Reader(dataset, images=True).read(np.array([4, 13, 20]))
    assert np.array_equal(batch.images, good.images) and np.array_equal(batch.pixels, good.pixels)
    assert np.array_equal(batch.labels, good.labels) and len(batch.corrupt) == 2
    with pytest.raises(CorruptDataError, match=keys[12]):
        Reader(dataset, images=True).read(np.array([12]))
    Reader(dataset).read(np.array([12]))


@pytest.mark.parametrize("value", [math.nan, 1e6])
def test_latents_that_float16_cannot_hold_are_refused_by_name(value, tiny, tmp_path, capsys):
    vae = make_vae(tmp_path / "vae")
    tensors = load((vae / WEIGHTS).read_bytes())
    tensors["quant_conv.bias"][0] = value
    save_file(tensors, vae / WEIGHTS, {"format": "pt"})
    assert shards("encode", tiny, tmp_path / "set", "--vae", vae) == 1
    key = read_tars(tiny)[0]["__key__"]
    assert f"distgan: {key}: its latents are NaN or exceed float16 (65,504)" in capsys.readouterr().err
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_sources_that_a_vae_cannot_encode_are_refused(tiny, latents, bands, tiny_vae, tmp_path, capsys):
    odd = make_dataset(tmp_path / "odd", noise(4, size=9), shards=1)
    for source, message in (
        (latents, f"SRC: {latents} holds latents already"),
        (bands, f"SRC: {bands} has images 24x40x5 float16 in [-144.875, 164.75]; a VAE encodes 8-bit RGB or grey"),
        (odd, f"SRC: {odd} has images of 9x9; the VAE takes multiples of 2"),
        (tmp_path, f"{tmp_path} has no manifest.json"),
    ):
        assert shards("encode", source, tmp_path / "set", "--vae", tiny_vae) == 2
        assert message.split(" in [")[0] in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    assert shards("encode", tiny, tmp_path / "set") == 2
    assert "--vae: give the folder of an AutoencoderKL" in capsys.readouterr().err
    assert shards("encode", tiny, tmp_path / "set", "--vae", tmp_path) == 2
    assert f"--vae: {tmp_path}/config.json: No such file" in capsys.readouterr().err
    assert shards("encode", tiny, tmp_path / "set", "--vae", tiny_vae, "--batch", 0) == 2
    assert "--batch: 0 is too small" in capsys.readouterr().err


def test_index_and_stats_of_latents(latents, tiny_vae, tmp_path, capsys):
    assert shards("index", latents) == 2
    assert f"{latents} holds latents, which `shards index` does not read" in capsys.readouterr().err
    assert shards("stats", latents, "--out", tmp_path / "grid.png", "--vae", tiny_vae) == 0
    printed = capsys.readouterr().out
    manifest = json.loads((latents / "manifest.json").read_text())
    assert f"mean: {manifest['mean']}" in printed and f"std: {manifest['std']}" in printed
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (82, 82)
    assert shards("stats", latents, "--out", tmp_path / "grid.png") == 2
    assert "--vae: the VAE" in capsys.readouterr().err


def test_the_main_process_does_not_wait_for_ever(tiny, tiny_vae, tmp_path, monkeypatch):
    from distgan.dataset_tool.latent_writer import EncodeOptions, open_writer

    writer = open_writer(tmp_path / "set", opened(tiny), str(tiny), load_vae(tiny_vae), EncodeOptions())
    with pytest.raises(RunError, match=r"no process has written shard-000003.tar; run the same command again"):
        distgan.dataset_tool.encode.wait_for(writer, [3], 0.2)
