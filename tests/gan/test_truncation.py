"""G as images are sampled from it: truncated in w, decoded, with outputs of any kind."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.gan import truncation
from distgan.gan.image_generator import ImageGenerator
from distgan.gan.step import generate
from distgan.gan.truncation import TruncatedGenerator, check_truncation, truncate
from distgan.rng import rng


class MappedG(nn.Module):
    """z [N, 4] and labels of three classes, or [N, 2] -> w [N, 5] -> {"images": [N, 1, 2, 2], "stages": ...}."""

    def __init__(self, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.layer = nn.Linear(4, 5)
        self.image = nn.Linear(5, 4)

    def mapping(self, z: Tensor, labels: Tensor | None) -> Tensor:
        w = self.layer(z).relu()
        return w if self.embedding is None else w + self.embedding(labels)

    def synthesis(self, w: Tensor) -> dict[str, Tensor]:
        images = self.image(w).tanh().view(-1, 1, 2, 2)
        return {"images": images, "stages": torch.stack([images / 2, images], 1)}

    def forward(self, z: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return self.synthesis(self.mapping(z, labels))


CASES = [
    (None, None, [None] * 6),
    (nn.Embedding(3, 5), torch.tensor([2, 0, 2, 1, 0, 2]), [2, 0, 2, 1, 0, 2]),
    (nn.Linear(2, 5), torch.tensor([[0.0, 1.0], [0.5, 1.0]] * 3), [[0.0, 1.0], [0.5, 1.0]] * 3),
]


@pytest.mark.parametrize(("embedding", "labels", "rows"), CASES, ids=["none", "classes", "conditions"])
@torch.no_grad()
def test_w_goes_towards_the_mean_of_its_label(embedding, labels, rows):
    G = MappedG(embedding)
    z = torch.randn(6, 4)
    many = torch.from_numpy(rng(0, "mean of w").standard_normal((1024, 4), np.float32))
    expected = []
    for i, row in enumerate(rows):
        repeated = None if row is None else torch.tensor(row).expand(1024, *torch.tensor(row).shape)
        w_mean = G.mapping(many, repeated).mean(0)
        w = G.mapping(z[i : i + 1], None if labels is None else labels[i : i + 1])
        expected.append(G.synthesis(w_mean + 0.7 * (w - w_mean))["images"])
    found = TruncatedGenerator(G, 0.7, 4)(z, labels)
    torch.testing.assert_close(found["images"], torch.cat(expected))
    assert found["stages"].shape == (6, 2, 1, 2, 2)


@torch.no_grad()
def test_psi_0_gives_one_image_of_each_class_and_psi_1_the_network_itself():
    G = MappedG(nn.Embedding(3, 5))
    labels = torch.tensor([0, 0, 1, 1])
    images = TruncatedGenerator(G, 0.0, 4)(torch.randn(4, 4), labels)["images"]
    torch.testing.assert_close(images[0::2], images[1::2])
    assert (images[1] - images[2]).abs().max() > 0.01
    assert truncate(G, 1.0, 4) is G and isinstance(truncate(G, 0.5, 4), TruncatedGenerator)


@torch.no_grad()
def test_means_are_computed_once_and_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(truncation, "MOST_MEANS", 2)
    G = TruncatedGenerator(MappedG(nn.Embedding(3, 5)), 0.5, 4)
    calls = []
    mapping = G.G.mapping
    monkeypatch.setattr(G.G, "mapping", lambda z, labels: calls.append(labels) or mapping(z, labels))
    first = G.w_mean(torch.tensor([1, 0, 1]))
    assert len(calls) == 2 and torch.equal(G.w_mean(torch.tensor([0])), first[1:2]) and len(calls) == 2
    G.w_mean(torch.tensor([2]))
    assert len(calls) == 3 and len(G.means) == 2


def test_a_network_without_mapping_is_refused():
    check_truncation(nn.Linear(2, 2), 1.0, "truncation_psi")
    check_truncation(MappedG(), 0.5, "truncation_psi")
    with pytest.raises(UsageError, match="^evaluate.truncation_psi: G has no w to truncate"):
        check_truncation(nn.Linear(2, 2), 0.5, "evaluate.truncation_psi")


@pytest.mark.parametrize("psi", [1.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
def test_images_are_decoded_and_the_mode_of_g_stays(psi, training):
    G = MappedG().train(training)
    modes = []
    G.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    z = torch.randn(70, 4)
    sampler = ImageGenerator(truncate(G, psi, 4), nn.Upsample(scale_factor=3))
    images = generate(sampler, z, None)
    assert images.shape == (70, 1, 6, 6)
    assert G.training == training and not any(modes)
    expected = truncate(G, psi, 4)(z)["images"]
    torch.testing.assert_close(images[:, :, ::3, ::3], expected)


def test_generate_takes_the_images_of_several_outputs():
    G = MappedG()
    z = torch.randn(5, 4)
    torch.testing.assert_close(generate(G, z, None), G(z)["images"])
