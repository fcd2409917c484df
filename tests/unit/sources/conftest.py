"""Listings that are refused."""

import pytest
from class_folders import listed

from alexnet_dist.errors import UserError


@pytest.fixture
def refusal():
    """List what cannot be listed and return the message, with FOLDER for its path."""

    def refuse(dataset, **options):
        with pytest.raises(UserError) as caught:
            listed(dataset, **options)
        message = str(caught.value)
        assert "\n" not in message, "a user's error is one line"
        assert "--data.dataset" in message
        message.encode()  # surrogates cannot be printed
        return message.replace(str(dataset), "FOLDER")

    return refuse
