"""The training step: what it updates, in which direction, and that micro-batches add up to the minibatch."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from distgan import models
from distgan.gan.augment import Pipeline
from distgan.gan.finite_difference import FiniteDifference
from distgan.gan.losses import LOSSES, Loss
from distgan.gan.parts import GAN, Batches, Minibatch, WeightedPenalty, unaugmented
from distgan.gan.penalties import PENALTIES, Penalty
from distgan.gan.step import train_step, update_d, update_g
from distgan.samples import Condition, SampleSpec

PIPELINE = Pipeline([("color", 1.0), ("translation", 1.0), ("cutout", 0.5), ("ada_geometry", 0.5)])
WEIGHTED = {name: WeightedPenalty(penalty, 0.5) for name, penalty in PENALTIES.items()}
PENALTY_SETS = {
    "none": {},
    "r1+r2": {k: WEIGHTED[k] for k in ("r1", "r2")},
    "wgan_gp": {"wgan_gp": WEIGHTED["wgan_gp"]},
    "r1_fd+r2_fd": {
        "r1_fd": WEIGHTED["r1_fd"]._replace(difference=FiniteDifference(0.1, 2)),
        "r2_fd": WEIGHTED["r2_fd"]._replace(difference=FiniteDifference(0.1)),
    },
}
PAIRED = LOSSES["rpgan"]  # G's loss sees real logits
RECTANGLES = SampleSpec(16, 24, 2, conditions=(Condition("energy"), Condition("tagged", "flag")))


def make(
    loss: Loss = LOSSES["bce"],
    norm: str = "batch",
    classes: int = 0,
    lr: float = 2e-4,
    augment: bool = False,
    spec: SampleSpec | None = None,
) -> GAN:
    options = {"width": 4, "norm": norm}
    G, D = models.build("dcgan", spec or SampleSpec(16, 16, 3, classes), z_dim=8, options=options, seed=0)
    adam = [torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999)) for network in (G, D)]
    return GAN(G, D, G, D, *adam, loss=loss, augment=PIPELINE if augment else unaugmented)


def minibatch(n: int = 8, classes: int = 0, seed: int = 1) -> Minibatch:
    torch.manual_seed(seed)
    labels = torch.arange(n) % classes if classes else None
    real, z = torch.rand(n, 3, 16, 16) * 2 - 1, torch.randn(n, 8)
    u, v, w = torch.rand(3, n, PIPELINE.columns)
    keys = torch.randint(2**62, (2, n))
    return Minibatch(real, z, labels, labels, u, v, w, torch.rand(n), *keys)


def split(batch: Minibatch, count: int) -> list[Minibatch]:
    columns = [c.chunk(count) if c is not None else [None] * count for c in batch]
    return [Minibatch(*rows) for rows in zip(*columns, strict=True)]


def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(network.named_parameters()))


def grad(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def equal(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


def test_step_equals_the_textbook_loop():
    """Against the loop of the DCGAN tutorial: two backwards for D, D not frozen in the G update."""
    ours, textbook, batch = make(), make(), minibatch()
    for _ in range(3):
        train_step(ours, Batches([[batch]]))
        textbook.d_optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(textbook.D(batch.real), torch.ones(8)).backward()
        fake = textbook.G(batch.z)
        F.binary_cross_entropy_with_logits(textbook.D(fake.detach()), torch.zeros(8)).backward()
        textbook.d_optimizer.step()
        textbook.g_optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(textbook.D(fake), torch.ones(8)).backward()
        textbook.g_optimizer.step()
    for network, reference in ((ours.G, textbook.G), (ours.D, textbook.D)):
        for a, b in zip(network.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_scalars():
    """d_loss is the sum of D's two errors, d_real and d_fake the means of sigmoid(logits) before the update of D."""
    gan, batch = make(), minibatch()
    real, fake = (copy.deepcopy(gan.D)(images) for images in (batch.real, copy.deepcopy(gan.G)(batch.z)))
    scalars = train_step(gan, Batches([[batch]]))
    torch.testing.assert_close(scalars["d_real"], real.sigmoid().mean().detach())
    torch.testing.assert_close(scalars["d_fake"], fake.sigmoid().mean().detach(), rtol=1e-3, atol=1e-4)
    errors = F.binary_cross_entropy_with_logits(real, torch.ones(8)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros(8)
    )
    torch.testing.assert_close(scalars["d_loss"], errors.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("penalties", PENALTY_SETS.values(), ids=PENALTY_SETS.keys())
@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
def test_each_update_changes_one_network_only(loss, penalties, augment):
    gan, batch = make(loss, "group" if penalties else "batch", augment=augment), minibatch()
    G, D = state(gan.G), state(gan.D)
    fakes = [gan.G(batch.z)]
    update_d(gan, [batch], fakes, penalties)
    assert equal(G, state(gan.G)) and not equal(D, state(gan.D))
    assert all(p.grad is None for p in gan.G.parameters()) and batch.real.grad is None
    D = state(gan.D)
    gradients = {name: grad(p).clone() for name, p in gan.D.named_parameters()}
    update_g(gan, [batch], fakes=fakes)
    assert equal(D, state(gan.D)) and not equal(G, state(gan.G))
    assert all(torch.equal(gradients[name], grad(p)) for name, p in gan.D.named_parameters())


def raises_logits(loss: Loss) -> tuple[bool, bool]:
    """Whether updates of D move real logits above fake ones, and an update of G raises the logits of its fakes."""
    gan, batch = make(loss, norm="none", lr=1e-3), minibatch()
    for _ in range(20):
        update_d(gan, [batch], [gan.G(batch.z).detach()], {})
    with torch.no_grad():
        fake_before = gan.D(gan.G(batch.z)).mean()
        d_rises = bool(gan.D(batch.real).mean() > fake_before)
    update_g(gan, [batch])
    with torch.no_grad():
        return d_rises, bool(gan.D(gan.G(batch.z)).mean() > fake_before)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_targets_have_the_right_sign(loss):
    assert raises_logits(loss) == (True, True)


def test_swapped_targets_are_detected():
    bce = LOSSES["bce"]
    swapped = Loss(d=lambda real, fake: bce.d(fake, real), g=lambda fake, real: bce.g(-fake, real))
    assert raises_logits(swapped) == (False, False)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("penalties", PENALTY_SETS.values(), ids=PENALTY_SETS.keys())
@pytest.mark.parametrize("classes", [0, 3])
def test_micro_batches_add_up_to_the_minibatch(loss, penalties, classes):
    """Gradient accumulation: two and four micro-batches give the update of the minibatch (no BatchNorm)."""
    batches = [minibatch(classes=classes, seed=seed) for seed in (1, 2, 3)]
    results = []
    for count in (1, 2, 4):
        gan = make(loss, norm="group", classes=classes, augment=True)
        *d, g = [split(batch, count) for batch in batches]
        scalars = train_step(gan, Batches(d, g if loss.paired else None), penalties, p=0.7)
        results.append((scalars, state(gan.G), state(gan.D)))
    for scalars, G, D in results[1:]:
        for name, value in results[0][0].items():
            torch.testing.assert_close(scalars[name], value, rtol=1e-4, atol=1e-5)
        for accumulated, single in ((G, results[0][1]), (D, results[0][2])):
            for name in single:
                torch.testing.assert_close(accumulated[name], single[name], rtol=1e-3, atol=4e-5)


@pytest.mark.parametrize("penalties", PENALTY_SETS.values(), ids=PENALTY_SETS.keys())
def test_micro_batches_of_rectangles_with_numbers_add_up_too(penalties):
    numbers = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0]) + 1
    batches = [
        minibatch(seed=seed)._replace(
            real=torch.rand(8, *RECTANGLES.shape) * 2 - 1, labels=numbers, fake_labels=numbers
        )
        for seed in (1, 2)
    ]
    results = []
    for count in (1, 4):
        gan = make(PAIRED, norm="group", augment=True, spec=RECTANGLES)
        d, g = [split(batch, count) for batch in batches]
        train_step(gan, Batches([d], g), penalties, p=0.7)
        results.append({"G": state(gan.G), "D": state(gan.D)})
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=4e-5)
    trained = results[0]["D"]
    embedding = [name for name in trained if name.startswith("embed.")]
    start = state(make(norm="group", spec=RECTANGLES).D)
    assert len(embedding) == 5 and not any(torch.equal(trained[name], start[name]) for name in embedding)


def test_label_weights_are_trained():
    gan, batch = make(classes=3), minibatch(classes=3)
    before = state(gan.G), state(gan.D)
    train_step(gan, Batches([[batch]]))
    of_labels = [weights["layers.0.weight"][-3:] for weights in (before[0], state(gan.G))]
    assert not torch.equal(*of_labels)
    assert not torch.equal(before[1]["embed.weight"], gan.D.get_parameter("embed.weight"))


def test_a_paired_loss_sees_the_real_logits_of_the_same_row():
    """G's gradient is that of the loss written out, and none reaches D."""
    gan, batch = make(PAIRED, norm="none"), minibatch()
    reference = copy.deepcopy(gan)
    update_g(gan, [batch])
    loss = F.softplus(reference.D(batch.real) - reference.D(reference.G(batch.z))).mean()
    expected = torch.autograd.grad(loss, list(reference.G.parameters()))
    for parameter, gradient in zip(gan.G.parameters(), expected, strict=True):
        torch.testing.assert_close(grad(parameter), gradient)
    assert all(parameter.grad is None for parameter in gan.D.parameters())


def test_the_order_of_the_scalars():
    """The check for NaN and Inf takes the first non-finite one for the cause."""
    assert list(train_step(make(), Batches([[minibatch()]]))) == ["d_real", "d_fake", "d_loss", "d_sign", "g_loss"]


def test_the_iteration_of_r3gan_written_out():
    """RpGAN with R1 and R2 (arXiv 2501.05441, section 2), D then G on fresh latents and real images, n_critic 2."""
    gan, reference = make(PAIRED, norm="none"), make(PAIRED, norm="none")
    gamma, batches = 0.5, [minibatch(seed=seed) for seed in (1, 2, 3)]
    for _ in range(2):
        train_step(gan, Batches([[batches[0]], [batches[1]]], [batches[2]]), PENALTY_SETS["r1+r2"])
        G, D = reference.G, reference.D
        for batch in batches[:2]:
            x, fake = batch.real.clone().requires_grad_(), G(batch.z).detach().requires_grad_()
            real_logits, fake_logits = D(x), D(fake)
            penalty = 0.0
            for logits, images in ((real_logits, x), (fake_logits, fake)):
                (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
                penalty = penalty + gamma / 2 * gradient.square().sum((1, 2, 3)).mean()
            D.zero_grad()
            (torch.log(1 + torch.exp(fake_logits - real_logits)).mean() + penalty).backward()
            reference.d_optimizer.step()
        G.zero_grad()
        torch.log(1 + torch.exp(D(batches[2].real) - D(G(batches[2].z)))).mean().backward()
        reference.g_optimizer.step()
    for network, expected in ((gan.G, reference.G), (gan.D, reference.D)):
        for a, b in zip(network.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_penalty_sees_through_the_augmentation():
    """R1's gradient is that with respect to the images before augmentation: half an image cut out has none there."""
    real = torch.rand(4, 3, 16, 16)
    halved = replace(make(norm="none"), augment=lambda images, u, p: images * torch.arange(16).lt(8))
    batch = minibatch(4)._replace(real=real)
    seen = {}

    def record(forward):
        (seen["gradient"],) = torch.autograd.grad(forward.real_logits.sum(), forward.real, create_graph=True)
        return seen["gradient"].square().sum((1, 2, 3))

    update_d(halved, [batch], [real], {"record": WeightedPenalty(Penalty(record), 1.0)})
    assert seen["gradient"].shape == real.shape
    assert (seen["gradient"][..., 8:] == 0).all() and (seen["gradient"][..., :8] != 0).any()


def test_each_noise_has_keys_of_its_own():
    """r1_fd takes those of the real images, r2_fd those of the fakes."""
    batch, other = minibatch(), torch.arange(8)
    found = {}
    for name, keys in {"both": {}, "real": {"noise_real": other}, "fake": {"noise_fake": other}}.items():
        scalars = train_step(make(norm="none"), Batches([[batch._replace(**keys)]]), PENALTY_SETS["r1_fd+r2_fd"])
        found[name] = float(scalars["r1_fd"]), float(scalars["r2_fd"])
    assert found["real"][0] != found["both"][0] and found["real"][1] == found["both"][1]
    assert found["fake"][0] == found["both"][0] and found["fake"][1] != found["both"][1]


def test_a_lazy_penalty_counts_as_often_as_it_is_left_out():
    """Every iteration equals the plain one; every k iterations, its gradient has k times the weight."""
    batch, gradients = minibatch(), {}
    for name, row in {
        "none": {},
        "plain": {"r1": WeightedPenalty(PENALTIES["r1"], 0.5)},
        "every 1": {"r1": WeightedPenalty(PENALTIES["r1"], 0.5, every=1)},
        "every 4": {"r1": WeightedPenalty(PENALTIES["r1"], 0.5, every=4)},
    }.items():
        gan = make(norm="group")
        scalars = train_step(gan, Batches([[batch]]), row)
        gradients[name] = torch.cat([grad(p).flatten() for p in gan.D.parameters()])
        assert ("r1" in scalars) == (name != "none")
    assert torch.equal(gradients["plain"], gradients["every 1"])
    penalty, lazy = (gradients[name] - gradients["none"] for name in ("plain", "every 4"))
    torch.testing.assert_close(lazy, 4 * penalty, rtol=1e-3, atol=1e-6)


def test_n_critic_reports_the_mean_of_its_updates():
    batches, single = [minibatch(seed=seed) for seed in (1, 2)], make(norm="group")
    scalars = [update_d(single, [batch], [single.G(batch.z).detach()], {}) for batch in batches]
    both = train_step(make(norm="group"), Batches([[batch] for batch in batches]))
    for name in scalars[0]:
        torch.testing.assert_close(both[name], (scalars[0][name] + scalars[1][name]) / 2)


@pytest.mark.parametrize("penalties", PENALTY_SETS.values(), ids=PENALTY_SETS.keys())
def test_bf16_keeps_the_direction_of_the_gradient(penalties):
    """D's and G's gradients under bf16 autocast: within 5 % of those in float32 in norm, cosine above 0.995."""
    gradients = {}
    for bf16 in (False, True):
        gan, batch = make(PAIRED if penalties else LOSSES["bce"], norm="group", augment=True), minibatch(32)
        if bf16:
            for network in (gan.G, gan.D):
                network.forward = torch.autocast("cpu", torch.bfloat16)(network.forward)
        scalars = train_step(gan, Batches([[batch]]), penalties)
        assert all(value.dtype == torch.float32 for value in scalars.values())
        gradients[bf16] = [torch.cat([grad(p).flatten() for p in network.parameters()]) for network in (gan.G, gan.D)]
    for exact, rounded in zip(gradients[False], gradients[True], strict=True):
        assert F.cosine_similarity(exact, rounded, dim=0) > 0.995
        assert abs(rounded.norm() / exact.norm() - 1) < 0.05
