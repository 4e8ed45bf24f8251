"""The dry run: what a run costs, and two iterations."""

import torch

from distgan.config.keys import Config
from distgan.distributed.processes import Distributed
from distgan.gan.parts import GAN, Batches
from distgan.gan.step import train_step
from distgan.logs.meters import peak_memory
from distgan.training.batches import join_and_split, minibatches_of
from distgan.training.build import build_ema, build_power_emas, parameter_counts
from distgan.training.compiled import eager
from distgan.training.cost import describe_cost, largest_micro_batch
from distgan.training.data import Data
from distgan.training.scheduled import ScheduledValues
from distgan.training.warm_start import WarmStart


def dry_run(config: Config, processes: Distributed, data: Data, gan: GAN, start: WarmStart | None = None) -> None:
    """Print parameters, FLOPs and memory, and run two iterations, since the first makes the optimizers' state.

    And what was copied of the weights that the run would begin with.
    """
    averages = [processes.run_on_all(lambda: build_ema(config, gan, start)), *build_power_emas(config, gan)]
    if processes.is_main_process:
        for line in start.lines if start is not None else ():
            print(line, flush=True)
        print(f"dry run: parameters: {parameter_counts(gan)}", flush=True)
        lines = describe_cost(config, data.spec, processes.world_size, data.network, data.decoder)
        print(*lines, sep="\n", flush=True)
    scheduled = ScheduledValues(config, gan, processes.device)
    scheduled.set(0)
    penalties = scheduled.penalties_due(0)
    g_penalties = scheduled.g_penalties_due(0)
    batches = minibatches_of(config, processes, data, gan).iterations(0, 2, on_read=lambda batch: None)
    train_step(gan, next(batches), penalties, scheduled.p, g_penalties)
    minibatches = next(batches)
    scalars = train_step(gan, minibatches, penalties, scheduled.p, g_penalties)
    if not processes.is_main_process:
        return
    values = ", ".join(f"{name} {float(value):.4f}" for name, value in scalars.items())
    memory = f"{peak_memory(processes.device) / 1e9:.2f} GB"
    if processes.device.type == "cuda":
        memory += f" reserved, {torch.cuda.max_memory_allocated(processes.device) / 1e9:.2f} GB allocated"
    print(f"two iterations of {config.iteration_images} images on {processes.world_size} process(es): {values}")
    print(f"peak memory per process: {memory}; nothing was written", flush=True)

    def iterate(size: int) -> None:
        resized = [join_and_split(batch, size) for batch in minibatches.d]
        fresh = join_and_split(minibatches.g, size) if minibatches.g else None
        # each size would be compiled anew
        train_step(eager(gan), Batches(resized, fresh), penalties, scheduled.p, g_penalties)

    if processes.device.type != "cuda" or processes.world_size > 1:
        print("largest micro_batch that fits: unknown; it is found on one process with a GPU", flush=True)
    else:
        size = largest_micro_batch(config.batch, iterate)
        print(f"largest micro_batch that fits: {size or 'none'} of {config.batch} images", flush=True)
    del averages  # their memory counts until here
