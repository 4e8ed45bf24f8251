"""One process of a pretended world of up to 1,024: its collectives, their bytes, and its share of the host's work."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from gpu import pretend
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from distgan.config.keys import Config, DataConfig
from distgan.config.read import read_config
from distgan.data import order
from distgan.distributed.batchnorm import GlobalBatchNorm2d
from distgan.distributed.processes import Distributed
from distgan.gan.parts import GAN
from distgan.logs.log import Terminal
from distgan.rng import philox, rng
from distgan.runs.checkpoint import Checkpoints
from distgan.training import batches
from distgan.training.build import build
from distgan.training.due import Actions
from distgan.training.loop import Trainer
from helpers import TINY, make_dataset, noise

WORLDS = (8, 64, 1024)
IMAGES = 2  # of each process in a minibatch
NEVER = ("--report.every_images", "1000000", "--samples.every_epochs", "1000", "--checkpoint.every_epochs", "1000")


@pytest.fixture(scope="module")
def images16(tmp_path_factory) -> Path:
    """1,024 images of 16x16 pixels: one for each lane of the largest world."""
    return make_dataset(tmp_path_factory.mktemp("world") / "set", noise(1024, size=16))


@dataclass
class Traffic:
    """What one process exchanges with the others: (kind, bytes) of each collective, by iteration.

    Kinds are "gradients" (DDP's), "host" (over gloo), and else the operation of torch's c10d.
    """

    gan: GAN
    iterations: list[list[tuple[str, int]]] = field(default_factory=list)

    def summary(self) -> dict[str, tuple[int, int]]:
        """Number and bytes of each kind in an iteration."""
        first, *others = self.iterations
        # DDP puts its gradients into new buckets once, after the dummy backward of `prepare_ddp`
        assert [call for call in first if call[0] != "broadcast_"] == others[0]
        assert len(others) == 2 and others[0] == others[1]  # in this order
        counts = Counter(kind for kind, _ in others[0])
        return {kind: (n, sum(size for k, size in others[0] if k == kind)) for kind, n in counts.items()}


class Collectives(pretend.TorchDispatchMode):
    """Records the collectives that torch calls, also from C++."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in pretend.tree_leaves(args) if isinstance(leaf, Tensor)]
            groups = [dist.ProcessGroup.unbox(arg) for arg in args if "ProcessGroup" in str(arg)]
            kind = func.__name__.split(".")[0]
            self.record(kind if groups == [dist.group.WORLD] else "host", *tensors)
        return func(*args, **(kwargs or {}))

    def record(self, kind: str, *tensors: Tensor) -> None:
        self.calls.append((kind, sum(tensor.numel() * tensor.element_size() for tensor in tensors)))


class NeverStop:
    reason = None

    def requested(self) -> bool:
        return False


@contextlib.contextmanager
def process_group(world: int, patches: pytest.MonkeyPatch) -> Iterator[Collectives]:
    """Makes this process number 0 of a world whose other processes do not exist; records its collectives."""
    new_group, initialize, collectives = dist.new_group, DistributedDataParallel.__init__, Collectives()

    def reduce_bucket(state, bucket):  # torch checks annotations, if there are any
        collectives.record("gradients", bucket.buffer())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def initialize_ddp(self: DistributedDataParallel, *words: Any, **options: Any) -> None:
        initialize(self, *words, **options)
        self.register_comm_hook(None, reduce_bucket)  # DDP's own needs a result, and the fake group returns none

    def all_gather_object(self: Distributed, value: Any) -> list[Any]:
        collectives.record("objects")
        return [value] * self.world_size

    AcceleratorState._reset_state(reset_partial_state=True)
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world))
    env = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "OMP_NUM_THREADS": "1"}
    for name, value in (env | sizes | {"ACCELERATE_USE_CPU": "1"}).items():
        patches.setenv(name, value)
    patches.setattr(dist, "new_group", lambda *words, backend, **options: new_group(*words, backend="fake", **options))
    patches.setattr(DistributedDataParallel, "__init__", initialize_ddp)
    patches.setattr(Distributed, "all_gather_object", all_gather_object)
    dist.init_process_group("fake", rank=0, world_size=world, store=pretend.FakeStore())
    try:
        with collectives:
            yield collectives
    finally:
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def exchange(world: int, images: Path, run_dir: Path, *words: str) -> Traffic:
    """Three iterations in a pretended world, with more words for the command line."""
    batch = IMAGES * world
    paths = ["--data.shards", str(images), "--run_dir", str(run_dir)]
    sizes = ["--batch", str(batch), "--data.lanes", str(world), "--images", str(3 * batch)]
    config, _ = read_config([*TINY, *NEVER, *words, *paths, *sizes], prog="", description="")
    with (
        pytest.MonkeyPatch.context() as patches,
        process_group(world, patches) as collectives,
        contextlib.closing(Checkpoints(run_dir / "checkpoints")) as checkpoints,
    ):
        processes = Distributed(config)
        stop: Any = NeverStop()
        places = {"terminal": Terminal(True), "checkpoints": checkpoints, "stop": stop}
        trainer = Trainer(config, processes, *build(config, processes), **places)
        assert processes.world_size == world and isinstance(trainer.gan.D, DistributedDataParallel)
        result = Traffic(trainer.gan)
        actions_due = Trainer.actions_due

        def between(self: Trainer) -> Actions:
            result.iterations.append(collectives.calls[:])
            collectives.calls.clear()
            if self.state.images_seen == 3 * batch:
                raise EndOfTest
            return actions_due(self)

        patches.setattr(Trainer, "actions_due", between)
        trainer.start()
        with pytest.raises(EndOfTest):
            trainer.loop()
        del result.iterations[0]  # what was called before the first iteration
    return result


@pytest.fixture
def traffic(images16, tmp_path) -> Callable[..., Traffic]:
    """`exchange` in a world of so many processes, with more words for the command line."""
    return lambda world, *words: exchange(world, images16, tmp_path, *words)


class EndOfTest(Exception):
    """Ends the loop before its last log and checkpoint."""


def gradient_bytes(gan: GAN) -> int:
    return sum(4 * p.numel() for network in (gan.raw_G, gan.raw_D) for p in network.parameters())


CASES = {
    "batchnorm": [],
    "micro-batches": ["--micro_batch", "1"],
    "local batchnorm": ["--sync_batchnorm", "false"],
    "no norm": ["--model.options.norm", "none"],
}


@pytest.mark.parametrize("case", CASES)
def test_collectives_of_an_iteration(traffic, case):
    """Their number, and that it and the bytes are the same for every number of processes."""
    results = [traffic(world, *CASES[case]) for world in WORLDS]
    summaries = [result.summary() for result in results]
    assert summaries[0] == summaries[1] == summaries[2]
    gan = results[0].gan
    summary = summaries[0]
    assert summary.pop("gradients") == (2, gradient_bytes(gan))  # those of each network once, in one bucket
    assert summary.pop("host") == (1, 8)  # the flags of what is due
    if case == "no norm":
        assert summary == {}
    elif case == "local batchnorm":
        buffers = [b for network in (gan.raw_G, gan.raw_D) for b in network.buffers() if b.dtype == torch.float32]
        assert len(buffers) == 6 and summary == {"allreduce_": (1, sum(4 * b.numel() for b in buffers))}
    else:
        modules = [m for n in (gan.raw_G, *3 * [gan.raw_D]) for m in n.modules() if type(m) is GlobalBatchNorm2d]
        assert len(modules) == 2 + 3 * 1  # G has one forward, D three: real, fakes, fakes in the update of G
        parts = 2 if case == "micro-batches" else 1
        again = [m for m in gan.raw_G.modules() if type(m) is GlobalBatchNorm2d] * 2 if parts == 2 else []
        forward, backward = parts * modules + again, parts * modules  # G's forwards for D come without a graph
        # float64 mean and mean square; float32 sums of dy and of dy * (x - mean)
        sizes = [m.num_features * 2 * 8 for m in forward] + [m.num_features * 2 * 4 for m in backward]
        assert summary == {"allreduce_": (len(sizes), sum(sizes))}


@pytest.mark.parametrize(("processes", "lanes"), [(1, 64), (1024, 1024), (1024, 65536)])
def test_a_process_computes_its_share_of_the_data_order_only(monkeypatch, processes, lanes):
    """64 images in each of 1,024 iterations: 65,536 sample ids are computed, and no other."""
    computed = []

    class Generator:
        def __init__(self, *key: Any) -> None:
            self.rng, self.purpose = rng(*key), key[1]

        def permutation(self, values: Any) -> np.ndarray:
            computed.extend([len(values)] if self.purpose == "window" else [])
            return self.rng.permutation(values)

        def integers(self, high: int) -> int:
            return int(self.rng.integers(high))

    monkeypatch.setattr(order, "rng", Generator)
    rank, local, batch = processes // 2, lanes // processes, 64 * processes
    lanes_of_rank = order.Lanes(np.full(70_000, 1000), 0, lanes, rank * local, (rank + 1) * local)
    drawn = [lanes_of_rank.ids(i * batch, batch) for i in range(1024)]
    assert all(len(ids) == 64 for ids in drawn) and len(np.unique(drawn)) == sum(computed) == 65_536


@pytest.mark.parametrize(("processes", "lanes"), [(1, 64), (1024, 1024), (1024, 65536)])
def test_a_process_draws_its_own_random_numbers_only(monkeypatch, processes, lanes):
    """64 images: latents of 100, a label and a flip of 64-bit words, in blocks of four."""
    words = []

    class Stream:
        def __init__(self, *key: Any) -> None:
            self.philox = philox(*key)
            self.advance = self.philox.advance

        def random_raw(self, count: int) -> np.ndarray:
            words.append(count)
            return self.philox.random_raw(count)

    monkeypatch.setattr(batches, "philox", Stream)
    config = Config(batch=64 * processes, data=DataConfig(labels=True, flip=True, lanes=lanes))
    local = lanes // processes
    middle = range(processes // 2 * local, (processes // 2 + 1) * local)
    order: Any = SimpleNamespace(lanes=lanes, local_lanes=middle)
    drawn = batches.Draws(config, order, lambda shares: shares, batches.Needs())(config.batch * 7)
    assert {name: list(values.shape) for name, values in drawn.items()} == {
        "z": [64, 100],
        "fake_labels": [64],
        "flip": [64],
    }
    assert sum(words) == 64 * (100 + 4 + 4)
