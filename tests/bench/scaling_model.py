"""The time of one iteration on N GPUs, on paper: constants with their sources, and the formulae."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

US = 1e-6
"""Seconds of a microsecond."""
GB = 1e9
"""Bytes of a gigabyte."""

PEAK_FLOPS = 989e12
"""FLOP/s of an H100 SXM in dense bf16 (NVIDIA's data sheet: 1,979 with sparsity)."""
SUSTAINED = 0.15
"""Assumed share of the peak. The times published for R3GAN (configs/) imply 0.02 of an A6000's on FFHQ-64, 0.1 on
FFHQ-256, and 0.19 of an H100's on ImageNet-64, whose GPU the paper does not name. A larger share: less efficiency."""
HOST_PER_OPERATION = 10 * US
"""Assumed: Python, dispatcher, autograd and launch of an operation in eager mode; 5 to 25 us are reported."""
DEVICE_PER_OPERATION = 2 * US
"""Assumed: least time between the starts of two kernels, also of a captured graph."""

GPUS_PER_NODE = 8
NODE_BANDWIDTH = 0.8 * 450 * GB
"""Bytes/s of a GPU within a node: NVLink 4 has 450 GB/s each way (data sheet); assumed 0.8 of it."""
NETWORK_BANDWIDTH = 8 * 46 * GB
"""Bytes/s of rings through nodes with a NIC of 400 Gb/s for each GPU (DGX H100), of which 46 to 48 GB/s are reached
(github.com/NVIDIA/nccl-tests/issues/290)."""
LL_BANDWIDTH = 20 * GB
"""Bytes/s of NCCL's protocol LL between nodes (the same file, `llMaxBws`)."""
LL128_SHARE = 0.92
"""Of the links' bandwidth, for NCCL's protocol LL128: 120 of 128 bytes are data."""

BACKWARD_SHARE = 0.5
"""Assumed share of an eager iteration in which DDP can reduce gradients while backward goes on."""
FIRST_BUCKET_BYTES = 2**20
"""Of DDP's buckets of gradients, so that the first all-reduce starts early."""
BUCKET_BYTES = 25 * 2**20
"""Of DDP's other buckets."""

CORE_SECONDS = 1 / 171_926 + 291 * US / 64
"""Of a core for an image of 64 pixels: reading it raw, and drawing its random numbers (README.md, Reading images; The
host's work for an iteration)."""
CORES_PER_GPU = 14
"""A DGX H100 has 112 cores for 8 GPUs."""


@dataclass(frozen=True)
class Protocol:
    """What an all-reduce costs: seconds, and bytes/s of each process's link."""

    start: float
    hop: float
    """To the next process of the same node."""
    node_hop: float
    """To another node."""
    bandwidth: float
    node_bandwidth: float
    """Between nodes."""


@dataclass(frozen=True)
class Network:
    """Links between processes, and the protocols over them."""

    protocols: tuple[Protocol, ...]
    processes_per_node: int


NCCL = Network(
    # latencies of NCCL's own cost model, for trees (github.com/NVIDIA/nccl, src/graph/tuning.cc, 2026)
    (
        Protocol(6.8 * US, 0.6 * US, 5.0 * US, LL_BANDWIDTH, LL_BANDWIDTH),
        Protocol(14.0 * US, 1.25 * US, 8.5 * US, LL128_SHARE * NODE_BANDWIDTH, LL128_SHARE * NETWORK_BANDWIDTH),
    ),
    GPUS_PER_NODE,
)


def all_reduce_seconds(network: Network, processes: int, size: int) -> float:
    """Time of an all-reduce of `size` bytes, by the protocol that takes least; 0 for one process.

    Latency as NCCL models its trees: up and down, a chain within a node and a binary tree of nodes. Bandwidth of a
    ring: each process sends 2 (n - 1) / n times `size`; a binary tree, two of which NCCL pairs, sends about as much.
    """
    if processes == 1:
        return 0.0
    nodes = -(-processes // network.processes_per_node)
    local = processes // nodes
    sent = 2 * (processes - 1) / processes * size
    return min(
        each.start
        + 2 * ((local - 1) * each.hop + int(log2(nodes)) * each.node_hop)
        + sent / (each.node_bandwidth if nodes > 1 else each.bandwidth)
        for each in network.protocols
    )


@dataclass(frozen=True)
class Work:
    """One iteration of one process."""

    images: int
    flops: int
    operations: int
    """Those that start a kernel."""
    operations_of_collectives: int = 0
    """In addition, where there are other processes."""
    batchnorm: Sequence[int] = ()
    """Bytes of each all-reduce of BatchNorm."""
    batchnorm_in_backward: bool = False
    """Whether some of them are in backward, among the gradients'."""
    gradients: Sequence[Sequence[int]] = ()
    """Bytes of DDP's buckets, in the order they are reduced, by network."""


@dataclass(frozen=True)
class Iteration:
    """Seconds."""

    host: float
    """To start all operations; 0 for a captured graph."""
    compute: float
    """Of the device, without waiting for others."""
    batchnorm: float
    """Of its all-reduces, which the device waits for."""
    gradients: float
    """Of their all-reduces, as far as the device waits for them."""

    @property
    def seconds(self) -> float:
        """The host runs ahead of the device: the slower of the two counts."""
        return max(self.host, self.compute + self.batchnorm + self.gradients)


def iteration(work: Work, gpus: int, *, captured: bool) -> Iteration:
    """The iteration on `gpus`: eager with DDP, or `captured`: one graph, and one flat all-reduce of each network."""
    operations = work.operations + (work.operations_of_collectives if gpus > 1 else 0)
    compute = max(work.flops / (SUSTAINED * PEAK_FLOPS), operations * DEVICE_PER_OPERATION)
    host = 0.0 if captured else operations * HOST_PER_OPERATION
    networks = [[sum(buckets)] for buckets in work.gradients] if captured else work.gradients
    times = [[all_reduce_seconds(NCCL, gpus, size) for size in buckets] for buckets in networks]
    # all-reduces of a process group run one after another: those of BatchNorm wait for the bucket before them
    overlap = 0.0 if captured or work.batchnorm_in_backward else BACKWARD_SHARE * compute
    batchnorm = sum(all_reduce_seconds(NCCL, gpus, size) for size in work.batchnorm)
    return Iteration(host, compute, batchnorm, exposed_seconds(times, overlap))


def exposed_seconds(networks: Sequence[Sequence[float]], overlap: float) -> float:
    """What backward does not hide of the all-reduces of each network's buckets (seconds), if it can hide `overlap`.

    The last bucket of a network has the gradients with which its backward ends.
    """
    total = sum(sum(buckets) for buckets in networks)
    last = sum(buckets[-1] for buckets in networks)
    return max(last, total - overlap)
