"""Data sets, and loading with a cache of the test's own."""

from image_sets import good, load  # noqa: F401 - fixtures
