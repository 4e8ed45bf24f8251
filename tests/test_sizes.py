"""Image sizes of networks: which are taken, and that the nearest are named."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgan.sizes import DCGAN_HALVINGS, LARGEST, SNGAN_HALVINGS, Size, halvings, is_taken, nearest_sizes


@pytest.mark.parametrize(
    ("size", "n", "dcgan", "sngan"),
    [
        ((8, 8), 1, True, False),
        ((28, 28), 2, True, False),
        ((48, 48), 3, True, True),
        ((32, 1024), 3, True, True),
        ((36, 52), 3, False, False),
        ((40, 48), 3, True, True),
        ((224, 160), 5, True, True),
        ((256, 256), 6, True, False),
        ((768, 1024), 7, True, False),
        ((1024, 1024), 8, True, False),
        ((1024, 1032), 8, False, False),
        ((7, 8), 0, False, False),
        ((1, 1), -2, False, False),
    ],
)
def test_sizes_are_bases_of_4_to_7_pixels_doubled(size, n, dcgan, sngan):
    size = Size(*size)
    assert halvings(size) == n
    assert is_taken(size, DCGAN_HALVINGS) == is_taken(Size(*size[::-1]), DCGAN_HALVINGS) == dcgan
    assert is_taken(size, SNGAN_HALVINGS) == sngan
    if dcgan:
        assert min(size) >> n in (4, 5, 6, 7) and size == tuple(side >> n << n for side in size)


@pytest.mark.parametrize(
    ("size", "allowed", "names"),
    [
        ((30, 30), DCGAN_HALVINGS, "28x28 32x32"),
        ((50, 75), DCGAN_HALVINGS, "48x72 56x80"),
        ((6, 6), DCGAN_HALVINGS, "8x8"),
        ((300, 300), DCGAN_HALVINGS, "256x256 320x320"),
        ((1100, 1100), DCGAN_HALVINGS, "1024x1024"),
        ((6, 2000), DCGAN_HALVINGS, "8x1024"),
        ((512, 512), SNGAN_HALVINGS, "224x224"),  # keeps the aspect ratio, which 224x512 would not
        ((28, 20), SNGAN_HALVINGS, "32x32"),
    ],
)
def test_nearest_sizes(size, allowed, names):
    assert " ".join(map(str, nearest_sizes(Size(*size), allowed))) == names


TAKEN = {
    allowed: [Size(h, w) for h in range(8, 257) for w in range(8, 257) if is_taken(Size(h, w), allowed)]
    for allowed in (SNGAN_HALVINGS, (1, 2))
}


@pytest.mark.parametrize("allowed", TAKEN)
@settings(deadline=None, max_examples=50)
@given(st.integers(1, 250), st.integers(1, 250))
def test_no_size_is_nearer_than_those_named(allowed, height, width):
    def change(other: Size) -> float:
        return max(abs(math.log(other.height / height)), abs(math.log(other.width / width)))

    near = nearest_sizes(Size(height, width), allowed)
    assert near and all(is_taken(size, allowed) and max(size) <= LARGEST for size in near)
    for sign in (-1, 1):

        def is_there(other: Size, sign: int = sign) -> bool:
            return sign * other.height >= sign * height and sign * other.width >= sign * width

        best = min(filter(is_there, TAKEN[allowed]), key=change, default=None)
        named = list(filter(is_there, near))
        assert best is None or change(named[0]) <= change(best) + 1e-12
