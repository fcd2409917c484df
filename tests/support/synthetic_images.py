"""The synthetic images, drawn once in a process: with them begins nearly every short run, and 5,000 take a while."""

import copy

from alexnet_dist.data import built_in
from alexnet_dist.data.image_data import ImageData

DRAWN = built_in.synthetic()


def drawn() -> ImageData:
    """Return the images of `built_in.synthetic()`, for whom it stands in; the arrays are the caller's own."""
    return copy.deepcopy(DRAWN)
