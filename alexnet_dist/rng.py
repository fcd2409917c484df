"""Randomness as arithmetic: every random number is a function of (seed, purpose, position).

No generator's state is ever saved: a resumed run asks for the same position and gets the same numbers. `SeedSequence`
hashes its words (O'Neill's seed_seq), so seed 1 at epoch 0 shares nothing with seed 0 at epoch 1.
"""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """Return the generator that belongs to a purpose ("order", "augment") at a position (epoch, step, rank)."""
    return np.random.default_rng(_sequence(seed, purpose, *position))


def integer(seed: int, purpose: str, *position: int) -> int:
    """Return a number in [0, 2**63) to seed another library's generator with."""
    return int(_sequence(seed, purpose, *position).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sequence(seed: int, purpose: str, *position: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *position])
