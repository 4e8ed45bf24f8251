"""The dataset of a run, and this process's part of it."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from distgan.config.keys import Config, default_lanes
from distgan.data.decode import check_decoder
from distgan.data.order import Lanes, rank_rows
from distgan.data.remote.ahead import check_cache
from distgan.data.remote.cache import open_storage
from distgan.data.shardset import ShardSet, open_shardset
from distgan.data.stream import Reader, images_in_flight
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.frozen.vae import open_decoder
from distgan.frozen.vision import FrozenNetwork
from distgan.samples import SampleSpec
from distgan.training.frozen_features import (
    check_images,
    open_network,
    reads_pixels,
)
from distgan.training.noise_checks import check_shares


@dataclass(frozen=True)
class Data:
    """The dataset of a run, as one of its processes reads it."""

    dataset: ShardSet
    reader: Reader
    order: Lanes
    spec: SampleSpec
    """Of the images; without classes unless G and D are conditioned on them."""
    decoder: nn.Module = nn.Identity()
    """Makes images of samples as networks see them: `distgan.frozen.vae.open_decoder`."""
    network: FrozenNetwork | None = None
    """That of a term, which sees the real images."""

    @property
    def networks(self) -> dict[str, str]:
        """The sha256 of the weights of frozen networks, by the key of the configuration that names them."""
        return {} if self.network is None else {self.network.key: self.network.sha256}

    @property
    def class_names(self) -> list[str]:
        """Of the classes that G and D are conditioned on; [] without."""
        return [each.name for each in self.dataset.classes] if self.spec.num_classes else []

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint's weights say of the samples that G makes."""
        kind = {name: value for name, value in asdict(self.spec).items() if name != "num_classes"}
        if kind["latents"] is None:  # as in the files of versions without latents
            del kind["latents"]
        return {"classes": self.class_names, **kind}


def open_data(config: Config, processes: Distributed) -> Data:
    """The dataset, and this process's lanes of it. Raises UsageError."""
    dataset, order = processes.run_on_all(lambda: open_lanes(config, processes.rank, processes.world_size))
    processes.check_same_on_all_ranks(f"the manifest of {config.data.shards}", dataset.digest)
    pin = processes.device.type == "cuda"
    reader = Reader(
        dataset,
        decoder=config.data.decoder,
        skip_bad=config.data.skip_bad,
        allocate=lambda shape, dtype: torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=pin),
        images=reads_pixels(config, dataset.spec),
    )
    spec = dataset.spec if config.data.labels else dataset.spec.unconditional()
    decoder = processes.run_on_all(lambda: open_decoder(spec, config.data.vae, processes.device))
    network = processes.run_on_all(lambda: open_network(config, processes.device))
    if network is not None:
        processes.check_same_on_all_ranks(f"the weights at {network.key}", network.sha256)
    return Data(dataset, reader, order, spec, decoder, network)


def open_lanes(config: Config, rank: int, world_size: int) -> tuple[ShardSet, Lanes]:
    """The dataset, and the lanes of a process. Raises UsageError."""
    data = config.data
    share = config.batch // world_size
    if config.micro_batch and share % config.micro_batch:
        raise UsageError(f"micro_batch: {config.micro_batch} does not divide the {share} images of a process")
    storage = open_storage(data.shards, data.cache_dir, data.cache_gb, data.fetch_ahead, data.fetch_threads)
    dataset = open_shardset(storage, data.shards)
    if rank == 0:
        check_complete(dataset, data.shards)
    if data.labels and len(dataset.classes) < 2 and not dataset.spec.conditions:
        found = f"{len(dataset.classes)} class" if dataset.classes else "no labels"
        raise UsageError(
            f"data.labels: {data.shards} has {found}; set data.labels false, or make a dataset with labels"
        )
    check_decoder(data.decoder, dataset.encoding)
    latents = dataset.spec.latents
    if data.flip and latents is not None and not latents.flips:
        fix = "encode the dataset again with --flips, or set data.flip false"
        raise UsageError(f"data.flip: {data.shards} has no latents of flipped images; {fix}")
    check_images(config, dataset)
    lanes = data.lanes or default_lanes(config.batch, int(dataset.counts.sum()))
    rank_rows(config.batch, lanes, rank, world_size)  # raises UsageError if the processes do not divide the lanes
    check_shares(config, lanes, world_size)
    order = Lanes(dataset.counts, config.seed, lanes, rank * lanes // world_size, (rank + 1) * lanes // world_size)
    check_cache(dataset, order, images_in_flight(config.batch, data.threads))
    return dataset, order


def check_complete(dataset: ShardSet, address: str) -> None:
    """Raises UsageError unless all files of the dataset are there."""
    dataset.check_index()
    if missing := dataset.missing():
        more = f" and {len(missing) - 1} more shards" if len(missing) > 1 else ""
        raise UsageError(
            f"data.shards: {address} lacks {missing[0]}{more}; restore the missing files, or re-create the dataset"
        )
