"""Fixtures of all tests."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers import TINY, make_bands, make_dataset, make_dinov2, make_latents, make_vae, noise, train


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> Iterator[None]:
    """What a process on a terminal has, and the processes that tests start inherit.

    A background job of a script ignores SIGINT, and one under nohup or some CI runners other signals.
    """
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGUSR1: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def seed() -> None:
    """A test that draws random tensors draws the same ones in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """80 images of 8x8 pixels in 8 shards of 10."""
    return make_dataset(tmp_path_factory.mktemp("tiny") / "set", noise(80))


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory) -> Path:
    """A random AutoencoderKL of half the resolution and 4 channels, whose latents are shifted."""
    return make_vae(tmp_path_factory.mktemp("vae") / "vae", scaling_factor=0.5, shift_factor=0.25)


@pytest.fixture(scope="session")
def tiny_dinov2(tmp_path_factory) -> Path:
    """A random DINOv2 of 16 features, which was trained on 4x4 patches of 2x2 pixels."""
    return make_dinov2(tmp_path_factory.mktemp("dinov2") / "dinov2")


@pytest.fixture(scope="session")
def latents(tmp_path_factory, tiny, tiny_vae) -> Path:
    """The latents 4x4x4 of `tiny`, with those of the flipped images and with the images."""
    folder = tmp_path_factory.mktemp("latents") / "set"
    return make_latents(folder, tiny, tiny_vae, "--flips", "--keep_images")


@pytest.fixture(scope="session")
def bands(tmp_path_factory) -> Path:
    """80 float16 images of 24x40 pixels and 5 bands with a class, a number and a flag, in 8 shards."""
    return make_bands(tmp_path_factory.mktemp("bands") / "set")


@pytest.fixture
def folder_of_images(tmp_path) -> Path:
    """Two class folders of five PNG each."""
    for i, image in enumerate(noise(10)):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MB in memory."""
    disk = tmp_path / "small"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def trained(tiny, tmp_path) -> Callable[..., Path]:
    """Trains a tiny run, once a call, with more words for the command line; returns its folder."""

    def run(*words: object, name: str = "run") -> Path:
        assert train("--data.shards", tiny, "--run_dir", tmp_path / name, *TINY, *words) == 0
        return tmp_path / name

    return run
