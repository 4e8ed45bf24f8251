"""The step with a G of several outputs and a D of several logits: what each sees, and that micro-batches add up."""

import copy

import pytest
import torch
from torch import Tensor, nn

from distgan.gan.augment import Pipeline
from distgan.gan.finite_difference import FiniteDifference, LogitChange, squared_slope
from distgan.gan.levels import View
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch, WeightedPenalty
from distgan.gan.penalties import PENALTIES
from distgan.gan.step import generate, train_step
from distgan.gan.terms import TERMS, WeightedTerm

K = 3


class StagesG(nn.Module):
    """z [N, 4] -> three stages of images [N, 2, 8, 8], which accumulate."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(4, 128) for _ in range(K)])

    def forward(self, z: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        stages = torch.stack([head(z).unflatten(1, (2, 8, 8)) for head in self.heads], 1).cumsum(1)
        return {"images": stages[:, -1], "stages": stages}


class ScalesD(nn.Module):
    """Images or stages -> logits [N, 3] and features [N, 2, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(128, 16), nn.Tanh(), nn.Linear(16, 1)) for _ in range(K)])
        self.features = nn.Linear(128, 10)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        stages = x if x.ndim == 5 else x.unsqueeze(1).expand(-1, K, -1, -1, -1)
        logits = [layer(stages[:, k].flatten(1)) for k, layer in enumerate(self.layers)]
        features = self.features(stages[:, -1].flatten(1)).unflatten(1, (2, 5))
        return {"logits": torch.cat(logits, 1), "features": features}


def make(loss: str = "rpgan", terms: tuple[str, ...] = ("align", "consistency")) -> GAN:
    torch.manual_seed(0)
    G, D = StagesG().double(), ScalesD().double()
    adam = [torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.99)) for network in (G, D)]
    view = View(Pipeline([("translation", 1.0), ("color", 1.0)]), (0.8, 0.5, 0.1))
    weighted = {name: WeightedTerm(TERMS[name], 0.5) for name in terms}

    def frozen_features(batch: Minibatch, p: Tensor | float) -> Tensor:
        return batch.real.flatten(1)[:, :10].unflatten(1, (2, 5))

    return GAN(G, D, G, D, adam[0], adam[1], LOSSES[loss], view, terms=weighted, frozen_features=frozen_features)


def minibatch(n: int = 8, seed: int = 1) -> Minibatch:
    torch.manual_seed(seed)
    real, z = (torch.rand(n, 2, 8, 8) * 2 - 1).double(), torch.randn(n, 4).double()
    u, v, w = torch.rand(3, n, 3 + 4 + 2)
    keys = torch.randint(2**62, (2, n))
    return Minibatch(real, z, None, None, u, v, w, torch.rand(n).double(), *keys)


PENALTY_SETS = {
    "none": (),
    "exact": ("r1", "r2"),
    "wgan_gp": ("wgan_gp",),
    "finite differences": ("r1_fd", "r2_fd"),
}


def weighted(names: tuple[str, ...]) -> dict[str, WeightedPenalty]:
    return {name: WeightedPenalty(PENALTIES[name], 0.5, difference=FiniteDifference(0.01, 2)) for name in names}


@pytest.mark.parametrize("names", PENALTY_SETS.values(), ids=PENALTY_SETS.keys())
@pytest.mark.parametrize("loss", ["bce", "rpgan"])
def test_micro_batches_add_up_to_the_minibatch(loss, names):
    whole, parts = make(loss), make(loss)
    batch = minibatch()
    columns = [column.chunk(2) if column is not None else [None] * 2 for column in batch]
    micro = [Minibatch(*rows) for rows in zip(*columns, strict=True)]
    first = train_step(whole, Batches([[batch]]), weighted(names), 0.7)
    second = train_step(parts, Batches([micro]), weighted(names), 0.7)
    assert first.keys() == second.keys() and {"align", "consistency"} <= first.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-8)
    for network, other in ((whole.raw_G, parts.raw_G), (whole.raw_D, parts.raw_D)):
        for parameter, again in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, again.grad, rtol=1e-6, atol=1e-9)


def test_the_losses_are_means_over_images_and_logits():
    """An iteration without penalties, written out."""
    gan = make("rpgan", ("consistency",))
    G, D = copy.deepcopy(gan.raw_G), copy.deepcopy(gan.raw_D)
    batch = minibatch()
    scalars = train_step(gan, Batches([[batch]]), {}, 1.0)
    assert batch.u_real is not None and batch.u_fake is not None and batch.u_g is not None
    real = D(gan.augment(batch.real, batch.u_real, 1.0))["logits"]
    fake = D(gan.augment(G(batch.z)["stages"], batch.u_fake, 1.0))["logits"]
    assert real.shape == (8, K)
    torch.testing.assert_close(scalars["d_loss"], nn.functional.softplus(fake - real).sum() / (8 * K))
    updated = gan.raw_D  # G is updated through it
    real = updated(gan.augment(batch.real, batch.u_real, 1.0))["logits"]
    fake = updated(gan.augment(G(batch.z)["stages"], batch.u_g, 1.0))["logits"]
    torch.testing.assert_close(scalars["g_loss"], nn.functional.softplus(real - fake).sum() / (8 * K))
    h = G(batch.z)["stages"]
    distances = [(h[:, k] - h[:, 2]).square().mean() for k in range(2)]
    torch.testing.assert_close(scalars["consistency"], 0.5 * (distances[0] / 2 + distances[1]) / 2)


def test_terms_are_of_one_network():
    gans = [make("bce", terms) for terms in ((), ("align",), ("consistency",))]
    for gan in gans:
        train_step(gan, Batches([[minibatch()]]), {}, 1.0)
    plain, aligned, consistent = ([p.grad for p in (*gan.raw_D.parameters(), *gan.raw_G.parameters())] for gan in gans)
    of_d = len(list(gans[0].raw_D.parameters()))
    # D's gradients are those of its update: G's term changes none of them
    assert all(torch.equal(a, b) for a, b in zip(plain[: of_d - 2], consistent[: of_d - 2], strict=True))  # type: ignore
    assert plain[of_d - 1] is None and aligned[of_d - 1] is not None  # the features are of the term alone
    assert any(not torch.equal(a, b) for a, b in zip(plain[of_d:], consistent[of_d:], strict=True))  # type: ignore


def test_a_penalty_takes_the_sum_of_the_logits():
    gan = make("bce", ())
    batch = minibatch()
    scalars = train_step(gan, Batches([[batch]]), weighted(("r1",)), 1.0)
    D = make("bce", ()).raw_D
    x = batch.real.clone().requires_grad_(True)
    assert batch.u_real is not None
    (gradient,) = torch.autograd.grad(D(gan.augment(x, batch.u_real, 1.0))["logits"].sum(), x)
    expected = 0.5 * gradient.float().square().sum((1, 2, 3)).mean() / 2
    torch.testing.assert_close(scalars["r1"], expected)


def test_samples_are_the_last_stage():
    G = StagesG()
    z = torch.randn(5, 4)
    torch.testing.assert_close(generate(G, z, None, 2), G(z)["images"].detach())


def test_a_finite_difference_is_that_of_the_sum_of_the_logits():
    before, after = torch.randn(2, 5, K, dtype=torch.float64)
    slope = squared_slope(LogitChange(before, after, 0.1))
    torch.testing.assert_close(slope, ((after.sum(1) - before.sum(1)) / 0.1) ** 2)
