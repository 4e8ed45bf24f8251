"""Labels in networks: columns, embeddings of classes, flags and numbers, their scale, precision and spectral norm."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distgan import models
from distgan.models.labels import LabelEmbedding, embed_labels, init_constant, init_embedding, label_columns
from distgan.models.layers import spectral_norm
from distgan.samples import Condition, SampleSpec

ENERGY = Condition("energy", mean=50.0, std=20.0)
ANGLE = Condition("angle")
TAGGED = Condition("tagged", "flag")
ROUND = Condition("round", "flag")
CASES = [(0, (ENERGY,)), (0, (TAGGED, ROUND)), (3, (TAGGED,)), (3, (ENERGY, ANGLE)), (2, (ENERGY, TAGGED, ANGLE))]
"""Classes and conditions."""


def make_spec(num_classes: int, conditions: tuple[Condition, ...]) -> SampleSpec:
    return SampleSpec(8, 8, 1, num_classes, conditions)


def embedding(num_classes: int, conditions: tuple[Condition, ...], features: int = 6) -> LabelEmbedding:
    embed = embed_labels(make_spec(num_classes, conditions), features)
    assert isinstance(embed, LabelEmbedding)
    return embed


def test_classes_alone_have_an_embedding_and_nothing_has_none():
    embed = embed_labels(make_spec(3, ()), 6)
    assert type(embed) is nn.Embedding and embed.weight.shape == (3, 6)
    assert embed_labels(make_spec(0, ()), 6) is None


def test_columns_are_the_class_as_a_one_hot_vector_or_the_labels_as_they_are():
    classes = torch.tensor([2, 0])
    assert label_columns(classes, make_spec(3, ())).tolist() == [[0, 0, 1], [1, 0, 0]]
    labels = torch.randn(2, 4)
    assert label_columns(labels, make_spec(3, (ENERGY,))) is labels


def test_an_embedding_is_the_sum_of_those_of_the_class_of_each_flag_and_of_the_numbers():
    embed = embedding(2, (ENERGY, TAGGED, ANGLE, ROUND))
    flags, hidden, numbers = (embed.get_submodule(name) for name in ("flags", "hidden", "numbers"))
    labels = torch.tensor([[0, 1, 0.5, 1, -2, 0], [1, 0, -1.5, 0, 3, 1.0]])
    vectors = flags.get_parameter("weight").T  # [2 classes and 2 flags, features]
    for row, active in zip(labels, ([1, 2], [0, 3]), strict=True):
        values = F.leaky_relu(hidden(row[[2, 4]]), 0.2)
        torch.testing.assert_close(embed(row[None])[0], vectors[active].sum(0) + numbers(values))


def test_the_embedding_of_a_number_is_no_linear_function_of_it():
    embed = embedding(0, (ENERGY,))
    ends = embed(torch.tensor([[-1.5], [1.5]])).mean(0)
    assert (embed(torch.zeros(1, 1))[0] - ends).abs().max() > 0.1


def test_where_no_flag_is_set_the_label_counts_too():
    embed = embedding(0, (TAGGED, ROUND))
    assert embed(torch.zeros(1, 2)).abs().min() > 0
    _, D = models.build(
        "r3gan", SampleSpec(8, 8, 1, conditions=(TAGGED,)), z_dim=4, options={"widths": [16, 16]}, seed=0
    )
    logits = D(torch.randn(2, 1, 8, 8), torch.zeros(2, 1))
    assert logits[0] != logits[1]  # its logit is a product with the embedding alone


@pytest.mark.parametrize(("num_classes", "conditions"), CASES)
def test_initial_vectors_have_the_standard_deviation_asked_for(num_classes, conditions):
    torch.manual_seed(0)
    labels = torch.ones(1, num_classes + len(conditions))
    labels[:, 1:num_classes] = 0
    kinds = [condition.kind for condition in conditions]
    terms = 1 + kinds.count("flag") + ("number" in kinds)  # a class or the bias; each flag; all numbers together
    squares = []
    for _ in range(200):
        embed = embedding(num_classes, conditions, 64)
        init_embedding(embed, 0.3)
        squares.append(embed(labels).detach().square().mean())
    assert torch.stack(squares).mean() == pytest.approx(0.3**2 * terms, rel=0.06)


@pytest.mark.parametrize(("num_classes", "conditions"), CASES)
def test_a_constant_is_the_same_for_every_label_until_it_learns(num_classes, conditions):
    embed = embedding(num_classes, conditions)
    init_constant(embed, 1.0)
    numbers = torch.rand(4, len(conditions))
    classes = F.one_hot(torch.arange(4) % max(num_classes, 1), num_classes) if num_classes else torch.zeros(4, 0)
    labels = torch.cat([classes, numbers], 1)
    assert torch.equal(embed(labels), torch.ones(4, 6))
    embed(labels).square().sum().backward()
    with torch.no_grad():
        for parameter in embed.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1)
    assert not torch.allclose(embed(labels)[0], embed(labels)[3])


def test_numbers_are_embedded_in_float32_under_autocast():
    embed = embedding(2, (ENERGY, TAGGED))
    labels = torch.tensor([[1, 0, 1.0, 1], [1, 0, 1.001, 1]])  # the same number in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        values = embed(labels)
    assert torch.equal(values, embed(labels)) and not torch.equal(values[0], values[1])


def test_spectral_norm_covers_the_embedding_and_keeps_what_it_is_at_initialization():
    torch.manual_seed(0)
    embed = spectral_norm(embedding(2, (ENERGY, ANGLE, TAGGED), 32))
    layers = [module for module in embed.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach(), 2) == pytest.approx(1, abs=0.1)
    # so that normalization hardly changes the weights, and they keep their proportion to the biases
    original = embed.get_parameter("hidden.parametrizations.weight.original")
    assert torch.linalg.matrix_norm(original.detach(), 2) == pytest.approx(1, abs=0.3)
