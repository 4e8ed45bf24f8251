"""`freeze_d`: the first layers of D stay bit for bit, the others train as if nothing were frozen."""

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distgan import models
from distgan.errors import UsageError
from distgan.gan.losses import LOSSES
from distgan.gan.outputs import logits_of
from distgan.gan.step import GAN, Batches, Minibatch, train_step
from distgan.models import MODELS
from distgan.runs.checkpoint import load
from distgan.samples import SampleSpec
from distgan.training.freeze import freeze_layers
from distgan.training.state import get_optimizer_tensors, set_optimizer_tensors
from helpers import TINY, launch, train, weights

TRANSFORMER = {"width": 16, "depth": 4, "heads": 2, "patch": 4, "embedding": 8}
STYLEGAN2 = {"channel_base": 64, "w_dim": 8, "mapping_layers": 2}
SMALL: dict[str, tuple[int, dict[str, Any], list[str]]] = {
    "cat": (8, TRANSFORMER | {"d_width": 16, "d_depth": 2, "d_heads": 2}, ["from_patches", "blocks.0", "blocks.1"]),
    "dcgan": (16, {"width": 4}, ["layers.0", "layers.2", "layers.3"]),
    "gat": (8, TRANSFORMER | {"d_depth": 2}, ["from_patches", "blocks.0", "blocks.1"]),
    "mlp": (8, {"width": 16, "layers": 2}, ["layers.0", "layers.2"]),
    "r3gan": (8, {"widths": [16, 16]}, ["from_images", "stages.0", "lowest"]),
    "sngan": (32, {"width": 4}, ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]),
    "stylegan2": (8, STYLEGAN2, ["from_image", "blocks.0", "conv", "linear"]),
}
"""The side of the images, the options, and the modules of the layers from the image on, of every network."""


def build(name: str, seed: int = 0) -> tuple[Any, Any, SampleSpec]:
    size, options, _ = SMALL[name]
    spec = SampleSpec(size, size, 3)
    return *models.build(name, spec, z_dim=8, options=options, seed=seed), spec


def modules_of(names: list[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def test_every_network_is_tested():
    assert SMALL.keys() == MODELS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_the_layers_of_every_network_from_the_image_on(name):
    """All but the logits, in the order in which images pass them."""
    _, D, spec = build(name)
    called: list[int] = []
    layers = D.layers_from_image
    inner = {id(module): i for i, layer in enumerate(layers) for module in layer.modules()}
    for module in D.modules():
        if id(module) in inner:
            module.register_forward_pre_hook(lambda module, _: called.append(inner[id(module)]))
    D(torch.rand(2, *spec.shape), None)
    assert sorted(set(called)) == list(range(len(layers))) and called == sorted(called)
    freeze_layers(D, len(layers))
    frozen = {key for key, parameter in D.named_parameters() if not parameter.requires_grad}
    assert frozen == {key for key, _ in D.named_parameters() if key.startswith(modules_of(SMALL[name][2]))}


def gradients(D: nn.Module, x: Tensor) -> dict[str, Tensor]:
    D.zero_grad()
    logits_of(D(x, None)).square().sum().backward()
    return {name: each.grad.clone() for name, each in D.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_the_other_layers_do_not_change(name):
    _, D, spec = build(name)
    frozen = copy.deepcopy(D)
    freeze_layers(frozen, 1)
    x = torch.rand(4, *spec.shape)
    expected = gradients(D, x)
    found = gradients(frozen, x)
    first = {key for key in expected if key.startswith(modules_of(SMALL[name][2][:1]))}
    assert first and found.keys() == expected.keys() - first
    assert all(torch.equal(found[key], expected[key]) for key in found)


def adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([each for each in network.parameters() if each.requires_grad], lr=1e-2)


@pytest.mark.parametrize("name", SMALL)
def test_frozen_weights_are_bit_equal_and_g_learns_through_them(name):
    G, D, spec = build(name)
    freeze_layers(D, 1)
    before = {key: tensor.clone() for key, tensor in D.named_parameters()}
    g_before = [tensor.clone() for tensor in G.parameters()]
    gan = GAN(G, D, G, D, adam(G), adam(D), LOSSES["bce"])
    batch = Minibatch(torch.rand(4, *spec.shape), torch.randn(4, 8))
    for _ in range(2):
        train_step(gan, Batches([[batch]]))
    first = modules_of(SMALL[name][2][:1])
    assert all(torch.equal(each, before[key]) for key, each in D.named_parameters() if key.startswith(first))
    assert not all(torch.equal(each, before[key]) for key, each in D.named_parameters())
    assert all((each.grad is None) == key.startswith(first) for key, each in D.named_parameters())
    assert any(not torch.equal(a, b) for a, b in zip(G.parameters(), g_before, strict=True))


def test_the_state_of_an_optimizer_without_frozen_weights_is_saved_and_restored_in_place():
    """As a rollback does it."""
    _, D, spec = build("mlp")
    freeze_layers(D, 1)
    optimizer = adam(D)
    D(torch.rand(4, *spec.shape), None).sum().backward()
    optimizer.step()
    saved = get_optimizer_tensors("D", D, optimizer)
    D(torch.rand(4, *spec.shape), None).sum().backward()
    optimizer.step()
    set_optimizer_tensors(saved, "D", D, optimizer)
    again = get_optimizer_tensors("D", D, optimizer)
    assert again.keys() == saved.keys() and all(torch.equal(again[key], saved[key]) for key in saved)
    assert {key.split(".exp_avg")[0] for key in saved if "exp_avg" in key} == {
        f"D.{name}" for name, each in D.named_parameters() if each.requires_grad
    }


WORDS: dict[str, list[Any]] = {
    "BatchNorm": [],
    "spectral": ["--model.options.d_norm", "spectral"],
    "penalty, clip and decay": [
        *("--model.options.d_norm", "none", "--penalties.r1", 1, "--d_optimizer.clip", 0.1),
        *("--d_optimizer.weight_decay", 0.1, "--d_optimizer.decoupled", "true"),
    ],
    "micro-batches": ["--model.options.d_norm", "group", "--micro_batch", 4],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_run_keeps_the_layer_of_its_source_and_resumes(trained, words):
    """Also stopped and resumed, without the source; the optimizer has no state of it."""
    source = trained("--epochs", 1, *words, name="source")
    files, _ = load(source / "checkpoints" / "80")
    frozen = [*words, "--init_from", source, "--freeze_d", 1, "--seed", 1]
    expected = weights(trained("--epochs", 2, *frozen, name="uninterrupted"))
    trained("--epochs", 1, *frozen, name="resumed")
    shutil.rmtree(source)
    run = trained("--epochs", 2, *frozen, name="resumed")
    assert weights(run) == expected
    after, _ = load(run / "checkpoints" / "160")
    for key, tensor in files["discriminator"].items():
        if not key.endswith(("_u", "_v")):
            assert torch.equal(after["discriminator"][key], tensor) == key.startswith("layers.0."), key
    assert not any(name.startswith("discriminator.layers.0.") for name in after["optimizers"])


def test_buffers_of_a_frozen_batchnorm_go_on():
    """Its running statistics are those of the new images; D does not use them in training."""
    _, D, spec = build("dcgan")
    freeze_layers(D, 2)
    before = D.layers[3].running_mean.clone()
    D(torch.rand(4, *spec.shape), None)
    assert not D.layers[3].weight.requires_grad and not torch.equal(D.layers[3].running_mean, before)


@pytest.mark.slow
def test_two_processes_keep_it_and_compute_what_one_does(trained, tiny, tmp_path):
    source = trained("--epochs", 1, "--model.options.norm", "group", name="source")
    files, _ = load(source / "checkpoints" / "80")
    words = ["--model.options.norm", "group", "--init_from", source, "--freeze_d", 1, "--images", 32, "--seed", 1]
    one = trained(*words, "--micro_batch", 8, name="one")
    launch(2, "--data.shards", tiny, "--run_dir", tmp_path / "two", *TINY, *words)
    found = [load(run / "checkpoints" / "32")[0] for run in (one, tmp_path / "two")]
    for each in found:
        key = "layers.0.weight"
        assert torch.equal(each["discriminator"][key], files["discriminator"][key])
    for name in ("generator", "discriminator", "ema"):
        for key, tensor in found[0][name].items():
            torch.testing.assert_close(found[1][name][key], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_run_keeps_it(trained):
    words = ["--model.options.d_norm", "none", "--penalties.r1", 1]
    source = trained("--images", 32, *words, name="source")
    files, _ = load(source / "checkpoints" / "32")
    run = trained("--images", 32, *words, "--init_from", source, "--freeze_d", 1, "--compile", "true")
    after, _ = load(run / "checkpoints" / "32")
    assert torch.equal(after["discriminator"]["layers.0.weight"], files["discriminator"]["layers.0.weight"])
    assert not torch.equal(after["discriminator"]["head.weight"], files["discriminator"]["head.weight"])


def test_what_cannot_be_frozen_is_refused(trained, tiny, tmp_path, capsys):
    source = trained("--images", 16, name="source")
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY]
    refused = {
        "freeze_d: without init_from the first layers of D would stay random": ["--freeze_d", 1],
        "freeze_d: 2 is more than the 1 layers that D has": ["--freeze_d", 2, "--init_from", source],
        "freeze_d: D begins anew, since": [
            *("--freeze_d", 1, "--init_from", source / "checkpoints" / "16" / "ema.safetensors")
        ],
    }
    for message, more in refused.items():
        capsys.readouterr()
        assert train(*words, *more) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"distgan: {message}") and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)


def test_a_d_without_the_attribute_or_with_nothing_left():
    D: Any = Plain()
    with pytest.raises(UsageError, match="freeze_d: D has no attribute `layers_from_image`"):
        freeze_layers(D, 1)
    D.layers_from_image = [D.layer]
    with pytest.raises(UsageError, match="freeze_d: 1 layers are all that D has; leave some"):
        freeze_layers(D, 1)
