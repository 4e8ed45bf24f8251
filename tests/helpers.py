"""Helpers of the tests: small datasets, runs in this process, and runs in processes of their own."""

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import distgan.commands.shards
import distgan.commands.train
import distgan.frozen.vae
from distgan import models
from distgan.data.shardset import LocalStorage, ShardSet, open_shardset
from distgan.dataset_tool import make
from distgan.dataset_tool.convert import resolve_options
from distgan.dataset_tool.sources.source import Source, from_arrays
from distgan.files import sha256_file
from distgan.runs.checkpoint import METADATA
from distgan.samples import SampleSpec

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--model.options.width", "4", "--model.latent", "8", "--batch", "16", "--samples.count", "16"]
torch.set_num_threads(1)


def noise(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random images [count, size, size, channels], all different."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def make_dataset(folder: Path, images: np.ndarray, *, shards: int = 8, jobs: int = 1, **changes) -> Path:
    """A dataset of `images` with labels 0, 1, 2, 0, ... in about `shards` shards."""
    source = from_arrays("noise", images, np.arange(len(images)) % 3, ["a", "b", "c"])
    member = images[0].size + 2048
    make.make(source, folder, make.Options(shard_mb=len(images) * member / shards / 1e6, **changes), jobs)
    return folder


def make_vae(folder: Path, *, channels: int = 4, seed: int = 0, **changes) -> Path:
    """A random AutoencoderKL of half the resolution, saved by diffusers; `changes` are keys of its config."""
    diffusers: Any = importlib.import_module("diffusers")  # takes seconds
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "latent_channels": channels,
    }
    torch.manual_seed(seed)
    diffusers.AutoencoderKL(**(config | changes)).save_pretrained(folder)
    return folder


def make_latents(folder: Path, source: Path, vae: Path, *words: object) -> Path:
    """The latents of a dataset by `shards encode`, with more words for the command line."""
    command = ["encode", source, folder, "--vae", vae, *words]
    reset_accelerate()
    with mock.patch.object(distgan.frozen.vae, "cache_folder", lambda: folder.parent / "cache"):
        assert distgan.commands.shards.main([str(word) for word in command]) == 0
    return folder


def make_dinov2(folder: Path, *, seed: int = 0, **changes) -> Path:
    """A random DINOv2 of 16 features and patches of 2x2, saved by transformers; `changes` are keys of its config."""
    transformers: Any = importlib.import_module("transformers")  # takes seconds
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 2, "image_size": 8}
    torch.manual_seed(seed)
    # by default weights start so small that the epsilon of the last norm counts
    config = transformers.Dinov2Config(**{**size, "initializer_range": 0.5, **changes})
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def save_inception(file: Path) -> Path:
    """Weights of the Inception of FID, at random but of its shapes, and of a scale at which images differ."""
    from torch_fidelity import FeatureExtractorInceptionV3

    blank = io.BytesIO()
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None):
        torch.save({}, blank)
        blank.seek(0)
        weights = FeatureExtractorInceptionV3("blank", ["2048"], blank).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if name.endswith(("conv.weight", "fc.weight")):
            torch.nn.init.kaiming_normal_(tensor, generator=generator)
    weights["fc.weight"] *= 30  # else all images have about the same classes
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, file)
    return file


def save_dinov2_file(folder: Path, file: Path) -> Path:
    """The weights of a folder of transformers' Dinov2Model, under the names of facebookresearch/dinov2."""
    places = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
        "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.weights_in": "mlp.w12",
        "mlp.weights_out": "mlp.w3",
    }
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for old, new in places.items():
            name = name.replace(old, new)
        weights[name] = tensor
    for name in [name for name in weights if "attention.query" in name]:
        parts = [weights.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        weights[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    torch.save(weights, file)
    return file


def save_generator(
    path: Path, spec: SampleSpec, classes: Sequence[str] = (), *, model: dict[str, Any] | None = None, **changes
) -> Path:
    """A file of an untrained G of `spec`, as a checkpoint has it; `changes` are keys of its metadata, None: without."""
    model = {"latent": 8} | (model or {"name": "mlp", "options": {"width": 8, "layers": 1}})
    G, _ = models.build(model["name"], spec, z_dim=8, options=model["options"], seed=0)
    kind = {name: value for name, value in asdict(spec).items() if name != "num_classes"}
    keys = {"config": {"model": model}, "classes": list(classes), **kind, **changes}
    metadata = json.dumps({name: value for name, value in keys.items() if value is not None})
    save_file(G.state_dict(), path, metadata={METADATA: metadata})
    return path


def save_gat(path: Path, spec: SampleSpec, classes: Sequence[str] = ()) -> Path:
    """A file of an untrained G with a mapping network, and four outputs, whose images differ."""
    options = {"width": 32, "depth": 4, "heads": 2, "embedding": 32}
    save_generator(path, spec, classes, model={"name": "gat", "options": options})
    # output layers begin at 0: all images would be alike
    return change_weights(path, lambda name, each: each if each.any() else torch.randn_like(each) / 4)


def save_stylegan2(path: Path, spec: SampleSpec, classes: Sequence[str] = ()) -> Path:
    """A file of an untrained G with noise inputs, and a w for each layer; its images are about in [-1, 1]."""
    options = {"mapping_layers": 2, "w_dim": 16, "channel_base": 32 * spec.height, "channel_max": 16}
    save_generator(path, spec, classes, model={"name": "stylegan2", "options": options})

    def change(name: str, each: torch.Tensor) -> torch.Tensor:
        if "noise_strength" in name:  # begins at 0
            return each + 0.2
        return each / 3 if "to_image" in name and each.ndim == 4 else each

    return change_weights(path, change)


def change_weights(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """Replace the weights in a file by what `change` makes of them, by name."""
    torch.manual_seed(0)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: change(name, each) for name, each in load_file(path).items()}, path, metadata=metadata)
    return path


def make_bands(folder: Path, count: int = 80, shards: int = 8) -> Path:
    """A dataset of float16 rectangles of 5 bands, 24x40, each with a class, a number and a flag."""
    rng = np.random.default_rng(0)
    images = rng.normal(10, 30, (count, 24, 40, 5)).astype(np.float16)
    source = Source("bands", [f"{i:06d}" for i in range(count)], images.__getitem__)
    source.labels = np.arange(count) % 3
    source.classes = ["a", "b", "c"]
    source.numbers = np.stack([rng.uniform(1, 100, count), rng.integers(0, 2, count)], axis=1)
    source.number_names = ["energy", "tilted"]
    make.make(source, folder, make.Options(shard_mb=count * (images[0].nbytes + 3072) / shards / 1e6), jobs=1)
    return folder


def make_arrays(
    folder: Path,
    images: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    numbers: dict[str, np.ndarray] | None = None,
    **changes,
) -> ShardSet:
    """A dataset of arrays [N, H, W, C] of any type, with classes 0, 1, ... and numbers by name."""
    names = [f"{i:06d}" for i in range(len(images))]
    source = Source("arrays", names, images.__getitem__)
    if labels is not None:
        source.labels = labels
        source.classes = [f"class{k}" for k in range(labels.max() + 1)]
    if numbers is not None:
        source.numbers = np.stack(list(numbers.values()), axis=1).astype(np.float64)
        source.number_names = list(numbers)
    make.make(source, folder, resolve_options(source, make.Options(**changes)), 1)
    return open_shardset(LocalStorage(folder), str(folder))


def showers(count: int, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A toy calorimeter: float32 [count, 6, 10, 2], and by name the energies, 10 to 100, and a flag.

    The values of an image sum to 0.8 of its energy, give or take 5 %; the flag turns it upside down.
    """
    random = np.random.default_rng(seed)
    energy = random.uniform(10, 100, count)
    flag = random.integers(0, 2, count)
    rows = np.linspace(2, 0.2, 6)[:, None, None]
    shape = np.where(flag[:, None, None, None], rows[::-1], rows) * random.uniform(0.5, 1.5, (count, 6, 10, 2))
    deposited = 0.8 * energy * random.normal(1, 0.05, count)
    images = shape / shape.sum((1, 2, 3), keepdims=True) * deposited[:, None, None, None]
    return images.astype(np.float32), {"energy": energy, "electron": flag}


def fill(disk: Path) -> Path:
    """Use every byte of it; returns the file that does."""
    subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'filler'}", "bs=1M"], capture_output=True)
    return disk / "filler"


def reset_accelerate() -> None:
    """Let another command of this process start Accelerate anew."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def train(*words: object) -> int:
    """`distgan train` in this process; returns the exit code."""
    reset_accelerate()
    return distgan.commands.train.main([str(word) for word in words])


def launch(
    processes: int,
    *words: object,
    timeout: float = 240,
    check: bool = True,
    script: str = "train.py",
    **env: str,
) -> subprocess.CompletedProcess:
    """`distgan/train.py`, or another command, by path, in `processes` processes on the CPU over gloo."""
    done = subprocess.run(
        launch_command(processes, *words, script=script),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=launch_env(**env),
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def start(processes: int, *words: object, script: str = "train.py", **env: str) -> subprocess.Popen:
    """The same, in the background; its output goes to a pipe."""
    command = launch_command(processes, *words, script=script)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=launch_env(**env))


def launch_command(processes: int, *words: object, script: str = "train.py") -> list[str]:
    path = str(ROOT / "distgan" / script)
    if processes == 1:
        return [sys.executable, path, *map(str, words)]
    return [
        *(
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(ROOT / "launch/accelerate/cpu.yaml"),
        ),
        *("--num_processes", str(processes), "--main_process_port", "0", path, *map(str, words)),
    ]


def launch_env(**env: str) -> dict[str, str]:
    # launched runs are compared with each other: on the CPU, also where there is a GPU
    cpu = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "ACCELERATE_USE_CPU": "true"}
    return os.environ | cpu | env


def children(pid: int) -> list[int]:
    asked = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in asked.stdout.split()]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def computed(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without times and memory."""
    waited = {"save_seconds", "data_wait_seconds", "evaluate_seconds", "nearest_seconds"}
    timed = {"images_per_second", "memory_gb", "time"} | waited
    return [{key: value for key, value in row.items() if key not in timed} for row in metrics(run)]


def weights(run: Path) -> dict[str, str]:
    """The sha256 of every file of the newest checkpoint."""
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    state = json.loads((newest / "state.json").read_text())
    return {"images": state["images"]} | state["files"]


def snapshots(run: Path) -> dict[str, str]:
    """The sha256 of every snapshot of averages by power functions, and of whatever else lies there."""
    return {path.name: sha256_file(path) for path in sorted((run / "ema").glob("*"))}
