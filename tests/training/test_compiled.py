"""Compiled iterations equal eager ones, are compiled once, and what a compiler cannot do or gets wrong is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from distgan import models
from distgan.config.keys import OptimizerConfig
from distgan.distributed.batchnorm import TensorMomentumBatchNorm2d, convert, use_tensor_momentum
from distgan.errors import RunError, UsageError
from distgan.gan.augment import AUGMENTATIONS, Pipeline
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch, WeightedPenalty, unaugmented
from distgan.gan.penalties import PENALTIES, DForward, Penalty
from distgan.gan.step import train_step
from distgan.samples import SampleSpec
from distgan.training.compiled import check_gradients, compiler
from distgan.training.optimizers import adam
from helpers import weights

ITERATIONS = 20
LR = 1e-3
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mlp": ("mlp", 8, {"width": 8}),
    "dcgan": ("dcgan", 16, {"width": 4}),
    "dcgan group": ("dcgan", 16, {"width": 4, "norm": "group"}),
    "dcgan none": ("dcgan", 16, {"width": 4, "norm": "none", "init": "he"}),
    "dcgan spectral": ("dcgan", 16, {"width": 4, "d_norm": "spectral"}),
    "sngan": ("sngan", 32, {"width": 4}),
    "r3gan": ("r3gan", 8, {"widths": [8, 8], "group_width": 4}),
}


def build(network: str, *, loss: str = "bce", classes: int = 3, augment: tuple[str, ...] = (), compiled: bool) -> GAN:
    """A GAN in float64."""
    name, size, options = NETWORKS[network]
    spec = SampleSpec(size, size, 3, classes)
    G, D = (network.double() for network in models.build(name, spec, z_dim=4, options=options, seed=0))
    for each in (G, D):
        convert(each, TensorMomentumBatchNorm2d)
        use_tensor_momentum(each, torch.device("cpu"))
    pipeline = Pipeline([(name, 1.0) for name in augment])
    optimizers = adam(G, OptimizerConfig(lr=LR)), adam(D, OptimizerConfig(lr=LR))
    gan = GAN(G, D, G, D, *optimizers, LOSSES[loss], pipeline if augment else unaugmented)
    return replace(gan, compile=compiler(deterministic=True)) if compiled else gan


def minibatch(network: str, *, classes: int, columns: int, seed: int, n: int = 4) -> Minibatch:
    size = NETWORKS[network][1]
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(classes, (n,), generator=generator) if classes else None
    u = [uniform(n, columns) if columns else None for _ in range(3)]
    return Minibatch(uniform(n, 3, size, size) * 2 - 1, uniform(n, 4) * 2 - 1, labels, labels, *u, mix=uniform(n))


def penalties(names: tuple[str, ...]) -> dict[str, WeightedPenalty]:
    return {name: WeightedPenalty(PENALTIES[name], torch.tensor(0.5, dtype=torch.float64)) for name in names}


def largest_difference(network: str, loss: str, names: tuple[str, ...], augment: tuple[str, ...] = ()) -> float:
    """Between weights and buffers after 20 compiled and 20 eager iterations, relative to the largest of each tensor.

    Biases before BatchNorm, whose gradients are rounding, stay near 0: a tensor counts as at least one learning rate.
    """
    gans = [build(network, loss=loss, augment=augment, compiled=compiled) for compiled in (False, True)]
    columns = sum(AUGMENTATIONS[name].columns for name in augment)
    p = torch.tensor(0.7, dtype=torch.float64)
    for gan in gans:
        for i in range(ITERATIONS):
            batch = minibatch(network, classes=3, columns=columns, seed=i)
            fresh = [minibatch(network, classes=3, columns=columns, seed=-i - 1)] if gan.loss.paired else None
            train_step(gan, Batches([[batch]], fresh), penalties(names), p)
    states = [{**gan.raw_G.state_dict(), **{f"D.{k}": v for k, v in gan.raw_D.state_dict().items()}} for gan in gans]
    differences = [
        float((states[1][name] - expected).abs().max() / expected.abs().max().clamp(min=LR))
        for name, expected in states[0].items()
    ]
    return max(differences)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "loss", "names", "augment"),
    [("dcgan", "bce", (), ()), ("mlp", "rpgan", ("r1",), ("color",))],
)
def test_compiled_equals_eager(network, loss, names, augment):
    assert largest_difference(network, loss, names, augment) < 1e-8


TABLE = [
    *((network, "rpgan", ("r1", "r2")) for network in NETWORKS if network != "dcgan"),
    *(("mlp", loss, ("wgan_gp",)) for loss in LOSSES),
]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "loss", "names"), TABLE)
def test_table_of_compiled_combinations(network, loss, names):
    assert largest_difference(network, loss, names) < 1e-5


SCHEDULE = "{from: 0.01, to: 0.0001, images: 100}"
EVERYTHING = [
    *("--model.options.norm", "group", "--loss", "rpgan", "--data.labels", "true", "--micro_batch", "8"),
    *("--penalties", f"{{r1: {SCHEDULE}, r2: {{weight: 0.1, every: 3}}}}", "--compile", "true"),
    *("--g_optimizer.lr", SCHEDULE, "--d_optimizer.betas", "[0, {from: 0.9, to: 0.99, images: 100}]"),
    *("--augment", "[color, cutout]", "--augment_p", "{from: 0.0, to: 1.0, images: 100}"),
]


def test_a_run_is_compiled_once_and_resumes_bit_for_bit(trained, graphs, capsys):
    """With schedules, a lazy penalty, micro-batches and a resume; compiled again only for a resumed run."""
    undisturbed = trained(*EVERYTHING, "--epochs", 2, name="undisturbed")
    # G with and without a graph, D with r2 and without, the objective of G
    assert graphs == [4, *[5] * 9]
    assert "compiled in" in capsys.readouterr().out
    trained(*EVERYTHING, "--epochs", 1, name="resumed")
    resumed = trained(*EVERYTHING, "--epochs", 2, name="resumed")
    assert weights(resumed) == weights(undisturbed)
    assert graphs[10:] == [9, *[10] * 4, 14, *[15] * 4]


def with_penalty(compute: Any) -> dict[str, WeightedPenalty]:
    return {"planted": WeightedPenalty(Penalty(compute), torch.tensor(1.0, dtype=torch.float64))}


def test_a_graph_break_is_refused():
    """The host would wait for the value at each iteration."""

    def reads_a_value(forward: DForward) -> Tensor:
        return forward.real_logits if forward.real_logits.sum() > 0 else -forward.real_logits

    gan = build("mlp", compiled=True)
    batch = minibatch("mlp", classes=3, columns=0, seed=0)
    with pytest.raises(UsageError, match="compile: torch cannot compile d_objective: .*; set compile to false"):
        train_step(gan, Batches([[batch]]), with_penalty(reads_a_value))


@pytest.mark.slow
def test_a_recompile_is_noticed():
    """A number in place of a 0-dim tensor is compiled anew for each value."""
    gan = build("mlp", augment=("color",), compiled=True)
    batch = minibatch("mlp", classes=3, columns=AUGMENTATIONS["color"].columns, seed=0)
    graphs = []
    counters.clear()
    for p in (0.1, 0.2):
        train_step(gan, Batches([[batch]]), {}, p)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [3, 5]  # G, and both objectives; both again


class Twice(torch.autograd.Function):
    """2 x, with a derivative that another Function computes: torch 2.15 compiles its derivative as 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Twice.apply(gradient)  # pyright: ignore[reportReturnType]


def test_a_wrong_derivative_is_noticed():
    def squared_gradient(forward: DForward) -> Tensor:
        (gradient,) = torch.autograd.grad(forward.real_logits.sum(), forward.real, create_graph=True)
        return gradient.square().sum((1, 2, 3))

    def D(self: Any, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return plain(Twice.apply(images), labels)

    gan = build("mlp", compiled=True)
    plain = gan.raw_D.forward
    gan.raw_D.forward = D.__get__(gan.raw_D)
    batch = minibatch("mlp", classes=3, columns=0, seed=0)
    before = {name: tensor.clone() for name, tensor in gan.raw_D.state_dict().items()}
    with pytest.raises(RunError, match="compile: the compiled gradient of D"):
        check_gradients(gan, Batches([[batch]]), with_penalty(squared_gradient), 1.0, "no")
    assert all(torch.equal(tensor, before[name]) for name, tensor in gan.raw_D.state_dict().items())
