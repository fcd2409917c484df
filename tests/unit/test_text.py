"""Words for numbers."""

import pytest

from alexnet_dist.text import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.44, "3.4 s"),
        (59.94, "59.9 s"),
        (59.96, "1 m 00 s"),
        (60, "1 m 00 s"),
        (125.4, "2 m 05 s"),
        (3599.4, "59 m 59 s"),
        (3599.6, "1 h 00 m"),
        (3720, "1 h 02 m"),
        (90_000, "25 h 00 m"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
