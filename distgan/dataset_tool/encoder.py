"""Encoding one shard of images: its samples with latents in place of the images, or beside them."""

import contextlib
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distgan.data.index_file import NUMBERS
from distgan.data.parallel import ParallelMap
from distgan.data.shardset import ShardSet
from distgan.data.stream import ImageBatch, Reader
from distgan.data.tar import Member, members, split_key
from distgan.dataset_tool.check import sum_latents
from distgan.dataset_tool.latent_scan import LATENTS, scan_latents
from distgan.dataset_tool.latent_writer import LatentWriter
from distgan.dataset_tool.parts import own_name, shard_name
from distgan.dataset_tool.shard_info import ShardInfo
from distgan.dataset_tool.tar_writer import open_tar
from distgan.errors import CorruptDataError, RunError
from distgan.frozen.vae import Autoencoder
from distgan.pixels import normalize

READ_THREADS = 2


class Encoder:
    """Writes shards of latents of the dataset `shards`."""

    def __init__(self, shards: ShardSet, vae: Autoencoder, writer: LatentWriter, device: torch.device) -> None:
        self.shards = shards
        self.vae = vae.to(device)
        self.writer = writer
        self.device = device
        self.reader = Reader(shards)
        self.sources = shards.sources()
        self.starts = np.concatenate([[0], np.cumsum(shards.counts)])
        self.batch: int = writer.plan.options["batch"]
        self.flips: bool = writer.plan.options["flips"]
        self.keep_images: bool = writer.plan.options["keep_images"]
        self.spec = writer.spec

    def write_shard(self, shard: int) -> None:
        """Encode a shard. Raises CorruptDataError, and RunError for latents that cannot be stored."""
        ids = np.arange(self.starts[shard], self.starts[shard + 1])
        samples = SourceShard(self.shards, shard)
        zeros = [0.0] * self.spec.channels
        info = ShardInfo(self.writer.digest, shard_name(shard), len(ids), sums=zeros, squares=list(zeros))
        temporary = own_name(self.writer.dest / info.name)
        chunks = np.split(ids, range(self.batch, len(ids), self.batch))
        read = ParallelMap(self.reader.read, chunks, READ_THREADS)
        with contextlib.closing(read), contextlib.closing(samples), open_tar(temporary) as tar:
            for chunk, batch in zip(chunks, read, strict=True):
                moments = self.encode(batch)
                self.check(moments, chunk, samples)
                self.add(info, moments)
                for row, (id, image) in enumerate(zip(chunk.tolist(), batch.images, strict=True)):
                    tar.write(self.sample(samples, id, moments[row], image))
        columns = scan_latents(temporary, self.spec, self.keep_images)
        columns["label"] = np.asarray(self.shards.columns["label"][ids])
        if self.writer.plan.numbers:
            columns[NUMBERS] = np.asarray(self.shards.columns[NUMBERS][ids])
        if self.sources is not None:
            info.paths = [self.sources[id] for id in ids]
        self.writer.keep_shard(shard, temporary, info, columns)

    def encode(self, batch: ImageBatch) -> np.ndarray:
        """Moments, float16 [N, encodings, 2C, h, w]."""
        x = self.to_rgb(batch.images)
        encodings = [self.vae.encode(x)]
        if self.flips:
            encodings.append(self.vae.encode(x.flip(3)))
        return torch.stack(encodings, 1).half().cpu().numpy()

    def to_rgb(self, images: np.ndarray) -> Tensor:
        """Stored pixels [N, H, W, 1 or 3] -> float32 [N, 3, H, W] in [-1, 1] on the device; grey is repeated."""
        x = normalize(torch.from_numpy(images).to(self.device), self.shards.spec)
        return x.expand(-1, 3, -1, -1).contiguous()

    def check(self, moments: np.ndarray, ids: np.ndarray, samples: "SourceShard") -> None:
        """Raises RunError, which names the sample, for NaN and for what float16 cannot hold."""
        bad = np.flatnonzero(~np.isfinite(moments).all((1, 2, 3, 4)))
        if len(bad):
            id = int(ids[bad[0]])
            name = samples.key(id) if self.sources is None else self.sources[id]
            raise RunError(f"{name}: its latents are NaN or exceed float16 (65,504); the VAE cannot encode it")

    def add(self, info: ShardInfo, moments: np.ndarray) -> None:
        """Add to the sums of a shard."""
        sums, squares = sum_latents(moments)
        info.sums = (np.array(info.sums) + sums).tolist()
        info.squares = (np.array(info.squares) + squares).tolist()

    def sample(self, samples: "SourceShard", id: int, moments: np.ndarray, image: np.ndarray) -> dict[str, Any]:
        """What is written of a sample."""
        sample = {"__key__": samples.key(id), **samples.labels(id)}
        sample[LATENTS] = npy(moments if self.flips else moments[0])
        if self.keep_images:
            encoding = self.shards.encoding
            rgb = np.broadcast_to(image, (*image.shape[:2], 3))
            sample[encoding] = npy(rgb) if encoding == "npy" else samples.image(id)
        return sample


class SourceShard:
    """The members of a shard of the dataset that is encoded, by sample id. Raises CorruptDataError."""

    def __init__(self, shards: ShardSet, shard: int) -> None:
        self.columns = shards.columns
        self.start = int(shards.counts[:shard].sum())
        self.path = shards.shard_path(shard)
        self.samples: list[tuple[str, dict[str, Member]]] = []
        for member in members(self.path):
            key, extension = split_key(member.name)
            if not self.samples or self.samples[-1][0] != key:
                self.samples.append((key, {}))
            self.samples[-1][1][extension] = member
        if len(self.samples) != shards.counts[shard]:
            raise CorruptDataError(f"{self.path}: {len(self.samples)} samples, {shards.counts[shard]} in the manifest")
        self.file = open(self.path, "rb")

    def close(self) -> None:
        self.file.close()

    def key(self, id: int) -> str:
        return self.samples[id - self.start][0]

    def labels(self, id: int) -> dict[str, bytes]:
        """Its .cls and .json, as they are."""
        found = self.samples[id - self.start][1]
        return {name: self.read(found[name].offset, found[name].size) for name in ("cls", "json") if name in found}

    def image(self, id: int) -> bytes:
        """The file of its image, .png or .jpg."""
        return self.read(int(self.columns["offset"][id]), int(self.columns["size"][id]))

    def read(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)


def npy(array: np.ndarray) -> bytes:
    """An .npy file, in C order."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array))
    return out.getvalue()
