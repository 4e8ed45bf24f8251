"""Reading images: distgan, ImageFolder, WebDataset's own pipeline, mosaicml-streaming and litdata, interleaved.

    .venv/bin/python tests/bench/data.py            # installs the others into --root/env; takes ~15 minutes

Data: crops of scikit-learn's two photographs with exposure jitter and sensor noise, 12,000 of 64 pixels and 1,500 of
256, as JPEG (quality 95) and raw. Each variant runs in its own process and delivers shuffled uint8 minibatches of 64
with 2 workers (threads in distgan). Reported are medians over rounds of images per second of CPU time, summed over all
its processes, which varies little on a busy machine, and of wall-clock images per second.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PEERS = ["torch==2.15.0", "torchvision", "webdataset==1.0.2", "mosaicml-streaming==0.13.0", "litdata==0.2.76"]
COUNT = {64: 12_000, 256: 1_500}
BATCH = 64


def crops(size: int) -> Iterator[tuple[bytes, Any]]:
    """JPEG bytes and uint8 pixels [size, size, 3] of each image."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(size)
    photos = list(load_sample_images().images)
    for _ in range(COUNT[size]):
        photo = photos[rng.integers(2)]
        y, x = (rng.integers(limit - size) for limit in photo.shape[:2])
        crop = photo[y : y + size, x : x + size] * rng.uniform(0.7, 1.2) + rng.normal(0, 3, (size, size, 3))
        pixels = np.clip(crop, 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=95, subsampling=0)
        yield out.getvalue(), pixels


def prepare_ours(root: Path, size: int) -> None:
    """Write the JPEG folder for ImageFolder, distgan's shards of it, and the raw pixels for `prepare_peers`."""
    import numpy as np

    from distgan.dataset_tool import make
    from distgan.dataset_tool.sources import open_source
    from distgan.dataset_tool.sources.source import from_arrays

    folder = root / f"images{size}" / "all"
    folder.mkdir(parents=True)
    pixels = []
    for i, (data, image) in enumerate(crops(size)):
        (folder / f"{i:06d}.jpg").write_bytes(data)
        pixels.append(image)
    np.save(root / f"pixels{size}.npy", np.stack(pixels))
    raw = from_arrays("bench", np.stack(pixels), np.zeros(len(pixels), np.int64), ["all"])
    make.make(raw, root / f"ours{size}-raw", make.Options(shard_mb=16), 2)
    source = open_source(str(folder.parent), split="train", files=None, labels="none", samples=1, seed=0)
    make.make(source, root / f"ours{size}-jpeg", make.Options(shard_mb=16, format="jpg"), 2)


def prepare_peers(root: Path, size: int) -> None:
    """Write the datasets of the other libraries."""
    import litdata
    import numpy as np
    import webdataset as wds
    from streaming import MDSWriter

    pixels = np.load(root / f"pixels{size}.npy")
    files = sorted((root / f"images{size}" / "all").iterdir())
    for kind in ("jpeg", "raw"):
        items = [path.read_bytes() for path in files] if kind == "jpeg" else [image.tobytes() for image in pixels]
        with MDSWriter(out=str(root / f"mosaic{size}-{kind}"), columns={"x": "bytes"}, size_limit=1 << 24) as writer:
            for item in items:
                writer.write({"x": item})
        inputs = [(item,) for item in items]
        litdata.optimize(identity, inputs, str(root / f"litdata{size}-{kind}"), chunk_bytes="16MB", num_workers=1)
    (root / f"wds{size}").mkdir()
    with wds.ShardWriter(str(root / f"wds{size}" / "%06d.tar"), maxcount=1000) as writer:
        for i, path in enumerate(files):
            writer.write({"__key__": f"{i:06d}", "jpg": path.read_bytes(), "cls": 0})


def identity(item: tuple[bytes]) -> bytes:
    return item[0]


def decode(data: bytes, size: int, kind: str) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    if kind == "raw":
        return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(size, size, 3).copy())
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def image_folder(root: Path, size: int, kind: str) -> Iterable:
    import torch
    from torchvision import datasets, transforms

    dataset = datasets.ImageFolder(str(root / f"images{size}"), transforms.PILToTensor())
    return torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=2)


def webdataset(root: Path, size: int, kind: str) -> Iterable:
    import torch
    import webdataset as wds

    shards = [str(path) for path in sorted((root / f"wds{size}").glob("*.tar"))]
    dataset: Any = wds.WebDataset(shards, shardshuffle=100).shuffle(1000).decode("rgb8").to_tuple("jpg", "cls")
    return torch.utils.data.DataLoader(dataset.batched(BATCH), batch_size=None, num_workers=2)


def mosaic(root: Path, size: int, kind: str) -> Iterable:
    import torch
    from streaming import StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return decode(super().__getitem__(index)["x"], size, kind)

    dataset = Images(local=str(root / f"mosaic{size}-{kind}"), shuffle=True, batch_size=BATCH)
    return torch.utils.data.DataLoader(dataset, BATCH, num_workers=2)


def litdata_(root: Path, size: int, kind: str) -> Iterable:
    from litdata import StreamingDataLoader, StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return decode(super().__getitem__(index), size, kind)

    dataset = Images(str(root / f"litdata{size}-{kind}"), shuffle=True)
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=2)


def ours(root: Path, size: int, kind: str, decoder: str = "pillow", threads: int = 2) -> Iterable:
    from itertools import islice

    import torch

    torch.set_num_threads(1)
    from distgan.data.order import Lanes
    from distgan.data.shardset import LocalStorage, open_shardset
    from distgan.data.stream import Reader, Stream

    shards = open_shardset(LocalStorage(root / f"ours{size}-{kind}"), "bench")
    order, reader = Lanes(shards.counts, 0, BATCH), Reader(shards, decoder=decoder)
    batches = Stream(order, reader, lambda position: {}, batch=BATCH, position=0, threads=threads)
    return islice(batches, order.epoch_images // BATCH)


VARIANTS: dict[str, tuple[str, Callable[..., Iterable]]] = {
    "ImageFolder": ("peers", image_folder),
    "webdataset": ("peers", webdataset),
    "mosaicml-streaming": ("peers", mosaic),
    "litdata": ("peers", litdata_),
    "distgan": ("ours", ours),
    "distgan, simplejpeg": ("ours", lambda root, size, kind: ours(root, size, kind, "simplejpeg")),
    "distgan, 0 threads": ("ours", lambda root, size, kind: ours(root, size, kind, threads=0)),
    "distgan, simplejpeg, 0 threads": ("ours", lambda root, size, kind: ours(root, size, kind, "simplejpeg", 0)),
}
ONLY_JPEG = {"webdataset", "ImageFolder", "distgan, simplejpeg", "distgan, simplejpeg, 0 threads"}


def measure(name: str, root: Path, size: int, kind: str, epochs: int) -> dict[str, float]:
    """Images per second of CPU time and of wall-clock time over `epochs`, worker start-up and shutdown included."""

    def cpu() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    read, images = VARIANTS[name][1], 0
    for _ in read(root, size, kind):  # warm-up: imports, page cache
        pass
    start, cpu_start = time.perf_counter(), cpu()
    for _ in range(epochs):
        for batch in read(root, size, kind):
            batch = batch[0] if isinstance(batch, (tuple, list)) else batch
            images += len(batch)
    return {"cpu": images / (cpu() - cpu_start), "wall": images / (time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/tmp/distgan-bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("NAME", "SIZE", "KIND"))
    parser.add_argument("--only", metavar="64-raw")
    parser.add_argument("--prepare", choices=["ours", "peers"])
    args = parser.parse_args()
    if args.prepare:
        for size in COUNT:
            (prepare_ours if args.prepare == "ours" else prepare_peers)(args.root, size)
        return
    if args.one:
        name, size, kind = args.one
        epochs = {("raw", 64): 5, ("jpeg", 64): 1, ("raw", 256): 3, ("jpeg", 256): 1}[kind, int(size)]
        print(json.dumps(measure(name, args.root, int(size), kind, epochs)))
        return
    pythons = {"ours": sys.executable, "peers": str(args.root / "env" / "bin" / "python")}
    if not Path(pythons["peers"]).exists():
        args.root.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", args.root / "env"], check=True)
        subprocess.run([pythons["peers"], "-m", "pip", "install", "-q", *PEERS], check=True)
    if not (args.root / "wds256").exists():
        for which, python in pythons.items():
            subprocess.run([python, __file__, "--root", args.root, "--prepare", which], check=True)
    report(args, pythons)


def report(args: argparse.Namespace, pythons: dict[str, str]) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, medians of {args.rounds} rounds; {', '.join(PEERS)}")
    for size, kind in ((64, "raw"), (64, "jpeg"), (256, "jpeg"), (256, "raw")):
        if args.only not in (None, f"{size}-{kind}"):
            continue
        names = [name for name in VARIANTS if kind == "jpeg" or name not in ONLY_JPEG or name == "ImageFolder"]
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name in names:
                stored = "jpeg" if name == "ImageFolder" else kind
                command = [pythons[VARIANTS[name][0]], "-W", "ignore", __file__, "--root", str(args.root)]
                done = subprocess.run([*command, "--one", name, str(size), stored], capture_output=True, text=True)
                if done.returncode:
                    print(f"{name}: failed: {done.stderr.strip().splitlines()[-1]}")
                    continue
                rates[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
        base = rates["ImageFolder"]
        print(f"\n| {size} px {kind} | images/CPU-s | ratio to ImageFolder (JPEG) | images/s |\n|---|---|---|---|")
        for name, values in rates.items():
            if values:
                cpu, wall = (statistics.median(value[key] for value in values) for key in ("cpu", "wall"))
                ratio = statistics.median(v["cpu"] / b["cpu"] for v, b in zip(values, base, strict=False))
                print(f"| {name} | {cpu:,.0f} | {ratio:.1f} | {wall:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
