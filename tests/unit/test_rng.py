"""Random numbers as a function of (seed, purpose, position)."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alexnet_dist import rng

ORDER = [0, 7, 1, 3, 4, 2, 6, 5]
INTEGER = 2_439_878_303_561_045_691
POSITIONS = [(0, "order", 1), (1, "order", 0), (0, "order", 0), (0, "augment", 0), (0, "order", 0, 1)]


def test_the_same_question_has_the_same_answer():
    first, second = (rng.generator(3, "order", 2).permutation(100) for _ in range(2))
    assert np.array_equal(first, second)
    assert rng.integer(3, "dropout", 7) == rng.integer(3, "dropout", 7)


def test_every_part_of_the_question_counts():
    assert len({rng.integer(*position) for position in POSITIONS}) == len(POSITIONS)
    assert len({rng.generator(*position).random() for position in POSITIONS}) == len(POSITIONS)


def test_numbers_are_the_same_on_every_machine_and_in_every_version():
    """Runs of earlier versions continue by these."""
    assert rng.generator(0, "order", 0).permutation(8).tolist() == ORDER
    assert rng.integer(0, "dropout", 0) == INTEGER


@given(seed=st.integers(0, 2**63), step=st.integers(0, 2**40))
def test_integers_are_seeds_of_torch(seed, step):
    assert 0 <= rng.integer(seed, "dropout", step) < 2**63
