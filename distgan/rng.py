"""Random numbers as pure functions of (seed, purpose, position): nothing to store, nothing to restore."""

import hashlib

import numpy as np


def rng(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A generator of its own for each (seed, purpose, position); the same on every machine.

    Philox is counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so a fresh
    generator costs microseconds. Its 128-bit key is a hash of the arguments: no two of them share a stream.
    """
    name = f"{seed}/{purpose}/" + "/".join(map(str, position))
    key = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """One number in [0, 2**63), to seed a generator of another library."""
    return int(rng(seed, purpose, *position).integers(2**63))
