"""Loading with a cache of the test's own."""

import pytest
from image_sets import hub_folder, pets, pngs

from alexnet_dist.config import DataConfig
from alexnet_dist.data import sources
from alexnet_dist.errors import UserError


@pytest.fixture
def good(tmp_path):
    """A small data set in Hub layout without fault: 5 training and 3 test images."""
    return hub_folder(tmp_path / "good", train=pets(pngs(5)), test=pets(pngs(3, seed=1)))


@pytest.fixture
def load(tmp_path):
    """Load with a cache of the test's own."""

    def load_from(dataset, **options):
        settings = {"cache_dir": tmp_path / "cache", "batch_size": 1} | options
        return sources.load(DataConfig(dataset=str(dataset), **settings))

    return load_from


@pytest.fixture
def complaint(load):
    """Load what cannot be loaded and return the message, less the folder's name, which may hold any word."""

    def load_badly(dataset, **options):
        with pytest.raises(UserError) as caught:
            load(dataset, **options)
        message = str(caught.value)
        assert "\n" not in message, "a user's error is one line"
        assert not isinstance(caught.value, sources.HubUnreachableError)
        return message.replace(str(dataset), "FOLDER")

    return load_badly
