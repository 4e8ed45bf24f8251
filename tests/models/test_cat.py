"""CAT: the pyramid of scales, D's logits scale by scale, published numbers of weights and of operations."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from distgan import models
from distgan.errors import UsageError
from distgan.models.cat import scale_count, shrink
from distgan.models.tokens import patchify, rope_table, sincos_table
from distgan.models.transformer import twice_differentiable
from distgan.samples import SampleSpec
from distgan.sizes import Size

TINY: dict[str, Any] = {"width": 16, "depth": 3, "heads": 2, "d_width": 16, "d_depth": 2, "d_heads": 2, "embedding": 8}
SPEC = SampleSpec(16, 24, 3, 3)
LATENTS = SampleSpec(32, 32, 4, 1000)


def build(spec: SampleSpec = SPEC, **options: Any) -> tuple[Any, Any]:
    """In float64, away from the initialization; with three scales, of 2x3, 4x6 and 8x12 patches."""
    networks = models.build("cat", spec, z_dim=6, options=TINY | options, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [p for network in networks for p in network.double().parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.2)
    return networks


def stages_of(n: int, spec: SampleSpec = SPEC, stages: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, stages, *spec.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_shrinking_is_bilinear_interpolation(factor):
    images = stages_of(2)[:, 0].requires_grad_()
    expected = F.interpolate(images, scale_factor=1 / factor, mode="bilinear", align_corners=False, antialias=False)
    torch.testing.assert_close(shrink(images, factor), expected)
    torch.testing.assert_close(
        *[torch.autograd.grad(each.pow(3).sum(), images)[0] for each in (shrink(images, factor), expected)]
    )


@pytest.mark.parametrize(
    ("grid", "most", "count"),
    [
        (Size(16, 16), 4, 4),
        (Size(16, 16), 9, 4),  # 16, 8, 4, 2
        (Size(64, 64), 4, 4),
        (Size(8, 12), 4, 3),  # 8x12, 4x6, 2x3
        (Size(4, 4), 4, 2),  # 8x8 pixels in patches of 2
        (Size(8, 8), 4, 3),  # the same in patches of 1
        (Size(14, 14), 4, 2),  # 28x28 pixels: 14, 7
        (Size(3, 3), 4, 1),
        (Size(2, 2), 4, 1),
        (Size(1, 1), 4, 1),
    ],
)
def test_scales_of_small_images(grid, most, count):
    assert scale_count(grid, most) == count


@pytest.mark.parametrize("rope", [True, False])
def test_each_scale_has_its_logit(rope):
    """Scale by scale, each in a sequence of its own: the patches of its stage, smaller, behind its class token."""
    _, D = build(d_rope=rope)
    stages, labels = stages_of(2), torch.tensor([2, 0])
    logits = D(stages, labels)
    assert logits.shape == (2, 3)
    for k, grid in enumerate((Size(2, 3), Size(4, 6), Size(8, 12))):
        image = F.interpolate(stages[:, k], (2 * grid.height, 2 * grid.width), mode="bilinear")
        x = patchify(image, 2) @ D.from_patches.weight.T + D.from_patches.bias + sincos_table(grid, 16)
        x = torch.cat([D.class_tokens[k].expand(2, -1, -1), x], 1) + D.scales[k]
        for block in D.blocks:
            x = block(x, rope_table(grid, 8, class_tokens=1).double() if rope else None)
        torch.testing.assert_close(logits[:, k], D.head(x[:, :1], labels)[:, 0])


def test_scales_do_not_see_each_other():
    _, D = build()
    stages, labels = stages_of(2), torch.tensor([2, 0])
    before = D(stages, labels)
    stages[:, 1] += 1
    assert (D(stages, labels) != before).tolist() == [[False, True, False]] * 2


def test_an_image_is_seen_at_all_scales():
    _, D = build(features=5)
    image, labels = stages_of(2)[:, 0], torch.tensor([2, 0])
    output = D(image, labels)
    torch.testing.assert_close(output["logits"], D(image[:, None].expand(-1, 3, -1, -1, -1), labels)["logits"])
    x = D.tokens(image)
    for block in D.blocks:
        x = block(x, D.rotation, D.lengths)
    assert D.lengths == [1 + 6, 1 + 24, 1 + 96]
    torch.testing.assert_close(output["features"], D.projector(x[:, -97:]))  # of full size


def test_shifts():
    """Without, blocks and heads have two thirds and a half of the modulation."""
    with_shift, without = (build(shift=shift)[0] for shift in (True, False))
    assert with_shift.blocks[0].modulation.count == 6 and with_shift.heads[0].modulation.count == 2
    assert without.blocks[0].modulation.count == 4 and without.heads[0].modulation.count == 1


def test_stages():
    G, D = build()
    z, labels = torch.randn(2, 6, dtype=torch.float64), torch.tensor([0, 1])
    stages = G(z, labels)["stages"]
    assert stages.shape == (2, 3, 3, 16, 24) and D(stages, labels).shape == (2, 3)
    G, D = build(SampleSpec(3, 5, 1), patch=1)
    assert D(G(z)["stages"]).shape == (2, 1)
    with pytest.raises(UsageError, match=re.escape("model.options.stages: 3 scales of 4x4 patches") + ".*there are 2"):
        build(SampleSpec(8, 8, 1), stages=3)
    with pytest.raises(UsageError, match="model.options.d_rope: 'x' is neither true nor false"):
        build(d_rope="x")
    with pytest.raises(UsageError, match="model.options.d_size: unknown size 'S'; choose from B, M, H"):
        build(d_size="S")


@pytest.mark.parametrize(("size", "millions", "billions"), [("M", 261, 46), ("H", 960, 167)])
def test_published_numbers(size, millions, billions):
    """Weights of G, and the multiplications of one image: published GFLOPs count a multiply-add once."""
    with FakeTensorMode():
        networks: tuple[Any, Any] = models.build("cat", LATENTS, z_dim=64, options={"size": size}, seed=0)
        G, D = networks
        with FlopCounterMode(display=False) as counter:
            twice_differentiable(G)(torch.empty(1, 64), torch.zeros(1, dtype=torch.long))
    assert models.count_parameters(G) / 1e6 == pytest.approx(millions, rel=0.003)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=0.003)
    assert D.width == 768 and len(D.blocks) == 12
    assert D.lengths == [5, 17, 65, 257]
