"""Random numbers as pure functions of (seed, purpose, position): no RNG state to save or restore."""

import hashlib

import numpy as np

BLOCK = 4  # 64-bit words that Philox makes from one value of its counter


def philox(seed: int, purpose: str, *position: int) -> np.random.Philox:
    """An independent stream of bits for each (seed, purpose, position), the same on every machine.

    Philox is counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): creating one costs
    microseconds, and so does going to any place in it. Its 128-bit key is a hash of the arguments.
    """
    name = f"{seed}/{purpose}/" + "/".join(map(str, position))
    key = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(key, dtype=np.uint64))


def rng(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A random number generator on the stream of `philox`."""
    return np.random.Generator(philox(seed, purpose, *position))


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """A seed in [0, 2**63) for another library's generator."""
    return int(rng(seed, purpose, *position).integers(2**63))


def random_rows(stream: np.random.Philox, first: int, count: int, words: int) -> np.ndarray:
    """Rows [first, first + count) of a table of random 64-bit words, uint64 [count, words]; `stream` must be new.

    Every row begins at a block of its own: the cost does not depend on `first`.
    """
    blocks = -(-words // BLOCK)  # per row
    stream.advance(first * blocks)
    return stream.random_raw(count * blocks * BLOCK).reshape(count, -1)[:, :words]


def uniform_rows(stream: np.random.Philox, first: int, count: int, columns: int) -> np.ndarray:
    """Rows of a table of numbers in (0, 1), float64 [count, columns]; see `random_rows`."""
    return ((random_rows(stream, first, count, columns) >> np.uint64(12)) + 0.5) * 2.0**-52


def normal_rows(stream: np.random.Philox, first: int, count: int, columns: int) -> np.ndarray:
    """Rows of a table of N(0, 1) numbers, float32 [count, columns]; see `random_rows`.

    By Box and Muller 1958, which takes the same number of words for every number.
    """
    uniform = uniform_rows(stream, first, count, columns + columns % 2)
    radius, angle = np.sqrt(-2 * np.log(uniform[:, 0::2])), 2 * np.pi * uniform[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(count, -1)[:, :columns].astype(np.float32)
