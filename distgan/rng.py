"""Random numbers as pure functions of (seed, purpose, position): no RNG state to save or restore."""

import hashlib

import numpy as np


def rng(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """An independent random number generator for each (seed, purpose, position), the same on every machine.

    Philox is counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so that creating one
    costs microseconds. Its 128-bit key is a hash of the arguments.
    """
    name = f"{seed}/{purpose}/" + "/".join(map(str, position))
    key = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """A seed in [0, 2**63) for another library's generator."""
    return int(rng(seed, purpose, *position).integers(2**63))
