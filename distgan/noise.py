"""Random numbers from integer keys: plain tensor operations on any device, without a random number generator."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"): the state advances by GAMMA,
# and a finalizer mixes it. int64 wraps around: the constants are in two's complement.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
HALF = 2**32


def finalize(words: Tensor) -> Tensor:
    """splitmix64's finalizer: int64 words to well mixed ones, one to one."""
    words = (words ^ shift_right(words, 30)) * MULTIPLIERS[0]
    words = (words ^ shift_right(words, 27)) * MULTIPLIERS[1]
    return words ^ shift_right(words, 31)


def shift_right(words: Tensor, bits: int) -> Tensor:
    """The logical shift of int64 words; >> repeats the sign bit."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def gamma_multiples(count: int, device: torch.device) -> Tensor:
    """GAMMA times 1 to `count`, int64 [count], which wraps around.

    As -GAMMA times the complements -1 to -`count` of 0, 1, ...: torch.compile writes a product of `arange` itself into
    the index of a loop in C++, where the overflow is undefined (torch 2.15: wrong numbers, or a loop without an end).
    """
    return ~torch.arange(count, device=device) * -GAMMA


def random_words(keys: Tensor, count: int) -> Tensor:
    """Words 1 to `count` of the splitmix64 sequences that begin at `keys` [N], int64 [N, count]."""
    return finalize(keys[:, None] + gamma_multiples(count, keys.device))


def keys_of(z: Tensor, purpose: int = 0) -> Tensor:
    """Keys [N], int64, of random numbers that go with latents z [N, z_dim], float32; others for another `purpose`.

    A hash of the bits of each row: what a network draws by such keys is a function of z, the same on any number of
    processes. No gradient passes through.
    """
    bits = z.detach().float().contiguous().view(torch.int32).to(torch.int64)
    places = gamma_multiples(z.shape[1], z.device)
    offset = (purpose * GAMMA + 2**63) % 2**64 - 2**63  # as int64 wraps around
    return finalize(finalize(bits + places).sum(1) + offset)


def uniform_numbers(keys: Tensor, count: int) -> Tensor:
    """Uniform in (0, 1), float32 [N, count], of the keys [N]."""
    return (shift_right(random_words(keys, count), 41).float() + 0.5) / 2**23


def normal_noise(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """N(0, 1), float32 [N, *shape], of magnitude below 6.8; `keys` [N] are int64.

    An image's noise is a function of its key and of the shape: it depends neither on the other images nor on their
    number. Both halves of a word become a pair of numbers (Box & Muller 1958).
    """
    count = math.prod(shape)
    words = random_words(keys, -(-count // 2))
    radius = (((shift_right(words, 32)).float() + 0.5) / HALF).log().mul(-2).sqrt()
    angle = ((words & (HALF - 1)).float() + 0.5) * (2 * math.pi / HALF)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return pairs[:, :count].reshape(-1, *shape)
