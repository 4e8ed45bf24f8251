"""What changes with the images seen: the values of schedules, in tensors that stay the same ones during a run."""

import pytest
import torch

from distgan import models
from distgan.config.keys import Config, ModelConfig, OptimizerConfig
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN
from distgan.gan.schedules import iterations_averaged
from distgan.samples import SampleSpec
from distgan.training.optimizers import adam
from distgan.training.scheduled import ScheduledValues

RISING = {"from": 0.1, "to": 0.5, "images": 64, "shape": "linear"}


def build(**keys) -> ScheduledValues:
    config = Config(batch=16, model=ModelConfig(latent=8, options={"width": 4, "norm": "none"}), **keys)
    G, D = models.build("dcgan", SampleSpec(16, 16, 1), z_dim=8, options=config.model.options, seed=0)
    gan = GAN(G, D, G, D, adam(G, config.g_optimizer), adam(D, config.d_optimizer), LOSSES[config.loss])
    return ScheduledValues(config, gan, torch.device("cpu"))


def test_tensors_stay_the_same_and_their_values_change():
    """One compiled or captured iteration then serves the whole run."""
    optimizer = OptimizerConfig(lr=RISING)
    scheduled = build(
        g_optimizer=optimizer, d_optimizer=optimizer, penalties={"r1": RISING}, augment=["color"], augment_p=RISING
    )
    scheduled.set(0)
    optimizers = (scheduled.gan.g_optimizer, scheduled.gan.d_optimizer)

    def tensors() -> list[torch.Tensor]:
        weight = scheduled.penalties_due(0)["r1"].weight
        assert isinstance(weight, torch.Tensor)
        return [*(optimizer.param_groups[0]["lr"] for optimizer in optimizers), weight, scheduled.p]

    before = tensors()
    assert [round(float(value), 6) for value in before] == [0.1] * 4
    for optimizer in optimizers:
        optimizer.load_state_dict(optimizer.state_dict())  # which copies the learning rate
    scheduled.set(32)
    assert all(now is then for now, then in zip(tensors(), before, strict=True))
    assert [round(float(value), 6) for value in before] == [0.3] * 4
    assert scheduled.logged(32) == pytest.approx({"r1_weight": 0.3, "augment_p": 0.3})


@pytest.mark.parametrize("graph", [False, True])
def test_schedules_are_corrected_for_updates_for_penalties_alone(graph):
    """c = 4 / 5 of G, every 4 iterations, and 2 / 3 of D; in a captured iteration beta2 is a tensor."""
    keys = OptimizerConfig(lr=RISING, betas=(0.9, RISING))
    lazy = {"weight": 1, "every": 4, "separate": True}
    penalties = {"r1": {**lazy, "every": 2}, "r2": {"weight": 1, "every": 8}}
    scheduled = build(
        g_optimizer=keys, d_optimizer=keys, penalties=penalties, g_penalties={"path_length": lazy}, n_critic=2
    )
    gan = scheduled.gan
    optimizers = {"g": adam(gan.raw_G, keys, graph), "d": adam(gan.raw_D, keys, graph)}
    for name, c in (("g", 4 / 5), ("d", 2 / 3)):
        scheduled.set_optimizer(name, optimizers[name], keys, 32)
        (group,) = optimizers[name].param_groups
        assert isinstance(group["betas"][1], torch.Tensor) == graph
        values = float(group["lr"]), *(float(beta) for beta in group["betas"])
        assert values == pytest.approx((0.3 * c, 0.9**c, 0.3**c), rel=1e-6)
    # D is updated twice an iteration of 32 images, for its r1 in every second, G for its path length in every fourth
    assert [scheduled.updates(32 * i) for i in range(5)] == [6, 3, 5, 3, 6]


def test_constants_are_filled_once():
    """In an iteration on a GPU each fill is a kernel; a restored state leaves them as they are."""
    scheduled = build(penalties={"r1": 0.5}, augment=["color"], augment_p=0.3)
    weight = scheduled.penalties["r1"].weight
    assert isinstance(weight, torch.Tensor)
    tensors = [scheduled.g_lr, scheduled.d_lr, weight, scheduled.p]
    scheduled.set(0)
    versions = [tensor._version for tensor in tensors]
    scheduled.load_state(**scheduled.state())
    scheduled.set(32)
    assert [tensor._version for tensor in tensors] == versions
    assert [float(tensor) for tensor in tensors] == pytest.approx([2e-4, 2e-4, 0.5, 0.3])


def test_an_adaptive_probability_goes_on_where_its_state_was_saved():
    keys = {"augment": ["color"], "augment_p": {"target": 0.2, "images": 1000}}
    averaged = iterations_averaged(16)
    whole = build(**keys)
    first = build(**keys)
    signs = torch.rand(3 * averaged)  # their mean is above the target: p rises
    half = averaged + averaged // 2
    probabilities = []
    for i, sign in enumerate(signs):
        whole.adapt(sign, 16 * i)
        probabilities.append(float(whole.p))
    for i in range(half):
        first.adapt(signs[i], 16 * i)
    resumed = build(**keys)
    resumed.load_state(**first.state())
    for i in range(half, len(signs)):
        resumed.adapt(signs[i], 16 * i)
    assert len(set(probabilities)) == 4  # 0, and a value after each of three changes
    assert float(resumed.p) == float(whole.p) != 0
