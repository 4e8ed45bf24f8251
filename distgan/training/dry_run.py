"""The dry run: what a run costs, and two iterations."""

import torch.distributed
from torch import Tensor

from distgan.gan.step import Batches, train_step
from distgan.logs.log import peak_memory
from distgan.training.batches import iterations, join_and_split
from distgan.training.build import Run
from distgan.training.cost import describe_cost, largest_micro_batch
from distgan.training.loop import augment_probability
from distgan.training.state import TrainState


def describe_run(run: Run, state: TrainState) -> None:
    """The dry run: parameters, FLOPs and memory, and two iterations, since the first makes the optimizers' state."""
    config, processes, dataset = run.config, run.processes, run.dataset
    shape = {"size": dataset.size, "channels": dataset.channels, "num_classes": run.num_classes}
    if processes.is_main_process:
        print(f"dry run: parameters: {parameter_counts(run)}", flush=True)
        print(*describe_cost(config, **shape, world_size=processes.world_size), sep="\n", flush=True)
    stream, p = iterations(run, state, on_read=lambda batch: None, count=2), augment_probability(run, state)
    train_step(run.gan, next(stream), run.penalties_due(0), p)
    minibatches = next(stream)
    scalars = train_step(run.gan, minibatches, run.penalties_due(0), p)
    if processes.is_main_process:
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in scalars.items())
        memory = f"{peak_memory(processes.device) / 1e9:.2f} GB"
        if processes.device.type == "cuda":
            memory += f" reserved, {torch.cuda.max_memory_allocated(processes.device) / 1e9:.2f} GB allocated"
        print(f"two iterations of {config.iteration_images} images on {processes.world_size} process(es): {values}")
        print(f"peak memory per process: {memory}; nothing was written", flush=True)
        print(describe_micro_batch(run, minibatches, p), flush=True)
    processes.shutdown()


def describe_micro_batch(run: Run, minibatches: Batches, p: Tensor | float) -> str:
    """The largest micro_batch that fits in the device, found by iterations of a single process on a GPU."""
    if run.processes.device.type != "cuda" or run.processes.world_size > 1:
        return "largest micro_batch that fits: unknown; it is found on one process with a GPU"

    def iterate(size: int) -> None:
        resized = [join_and_split(batch, size) for batch in minibatches.d]
        fresh = join_and_split(minibatches.g, size) if minibatches.g else None
        train_step(run.gan, Batches(resized, fresh), run.penalties_due(0), p)

    size = largest_micro_batch(run.config.batch, iterate)
    return f"largest micro_batch that fits: {size or 'none'} of {run.config.batch} images"


def parameter_counts(run: Run) -> str:
    networks = {"G": run.raw_G, "D": run.gan.raw_D}
    return ", ".join(f"{k} {sum(p.numel() for p in n.parameters()) / 1e6:.2f} M" for k, n in networks.items())
