"""Random numbers from keys: splitmix64's words, and the distribution of what is made of them."""

import pytest
import torch

from distgan.noise import keys_of, normal_noise, random_words, uniform_numbers

KEYS = torch.arange(4000) * 2**51 + torch.arange(4000)  # the largest have 63 bits


def splitmix64(state: int, count: int) -> list[int]:
    """In integers without a limit; Steele, Lea & Flood 2014."""
    words = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        word = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
        words.append(word ^ (word >> 31))
    return words


@pytest.mark.parametrize("key", [0, 1234567, 2**63 - 1])
def test_the_words_are_those_of_splitmix64(key):
    words = random_words(torch.tensor([5, key]), 50)[1]
    assert [word % 2**64 for word in words.tolist()] == splitmix64(key, 50)


def test_compiled_they_are_the_same():
    """A compiler may fold a product of `arange` into an index that overflows."""
    z = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))

    def words_of(z: torch.Tensor) -> torch.Tensor:
        return random_words(keys_of(z[::2], 5), 100)

    assert torch.equal(torch.compile(words_of, fullgraph=True, dynamic=False)(z), words_of(z))


def test_moments():
    noise = normal_noise(KEYS, (3, 8, 8)).double()
    assert abs(noise.mean()) < 4e-3 and abs(noise.std() - 1) < 3e-3
    assert abs((noise**3).mean()) < 1e-2 and abs((noise**4).mean() - 3) < 2e-2  # of N(0, 1): 0 and 3


def test_the_distribution_is_normal():
    """Kolmogorov and Smirnov: the largest distance of the distribution functions, against its 0.1 % quantile."""
    noise = normal_noise(KEYS, (5, 5, 2)).double().flatten().sort().values
    ranks = torch.arange(1, len(noise) + 1) / len(noise)
    assert (torch.special.ndtr(noise) - ranks).abs().max() < 1.95 / len(noise) ** 0.5
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_pixels_and_images_are_uncorrelated():
    """Also the two numbers of a pair, and images of adjacent keys."""
    noise = normal_noise(torch.arange(4000), (2, 3, 3)).double().flatten(1)
    assert (torch.corrcoef(noise.T) - torch.eye(18)).abs().max() < 0.07
    squares = torch.corrcoef(noise.square().T) - torch.eye(18)
    assert squares.abs().max() < 0.07
    images = normal_noise(torch.arange(20), (4000,)).double()
    assert (torch.corrcoef(images) - torch.eye(20)).abs().max() < 0.07


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 3)])
def test_an_image_has_its_noise_in_any_minibatch(shape):
    noise = normal_noise(KEYS[:64], shape)
    assert noise.shape == (64, *shape) and noise.dtype == torch.float32
    assert len(noise.unique()) > 0.999 * noise.numel()
    for first, count in ((0, 1), (5, 3), (63, 1)):
        assert torch.equal(normal_noise(KEYS[first : first + count], shape), noise[first : first + count])


def test_it_is_traced_as_one_graph():
    compiled = torch.compile(normal_noise, fullgraph=True, dynamic=False, backend="aot_eager")
    assert torch.equal(compiled(KEYS[:4], (3, 8, 8)), normal_noise(KEYS[:4], (3, 8, 8)))


def test_keys_of_latents_are_those_of_their_bits():
    z = torch.randn(4000, 6)
    keys = keys_of(z)
    assert torch.equal(keys_of(z[7:9]), keys[7:9]) and keys.unique().numel() == 4000
    for changed in (z.nextafter(torch.tensor(9.0)), z.flip(1), z.roll(1, 1)):
        assert not torch.isin(keys_of(changed), keys).any()
    purposes = torch.stack([keys_of(z, purpose) for purpose in range(9)])
    assert torch.equal(purposes[0], keys) and purposes.unique().numel() == 9 * 4000
    assert not keys_of(z.requires_grad_()).requires_grad


def test_noise_of_latents_is_not_correlated_with_them():
    z = torch.randn(20_000, 2)
    noise = normal_noise(keys_of(z), (3,))
    assert torch.corrcoef(torch.cat([z, noise], 1).T).fill_diagonal_(0).abs().max() < 4 / 20_000**0.5
    nearly_equal = noise, normal_noise(keys_of(z * (1 + 2**-22)), (3,))
    assert torch.corrcoef(torch.cat(nearly_equal, 1).T).fill_diagonal_(0).abs().max() < 4 / 20_000**0.5


def test_uniform_numbers():
    numbers = uniform_numbers(KEYS, 5).double()
    assert 0 < numbers.min() < 1e-3 and 1 - 1e-3 < numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 8e-3 and abs(numbers.var() - 1 / 12) < 3e-3
    assert uniform_numbers(torch.tensor([-1, 2**63 - 1]), 100_000).max() < 1
