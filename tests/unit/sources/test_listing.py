"""The contract of sources: names that can be printed, options, images by extents."""

from pathlib import Path

import numpy as np
import pytest

from alexnet_dist.sources.listing import ArrayImages, EncodedImages, SourceOptions


def test_options_that_change_what_is_listed():
    plain = SourceOptions(cache=Path("a"))
    assert not any(plain.choices())
    assert SourceOptions(cache=Path("b")).choices() == plain.choices()
    for name in ("config", "train_split", "eval_split", "image_column", "label_column"):
        assert SourceOptions(cache=Path("a"), **{name: "x"}).choices() != plain.choices()


def test_images_need_methods_and_have_no_extents_by_default():
    with pytest.raises(TypeError):
        EncodedImages(np.zeros(3, np.int64))

    class Images(EncodedImages):
        def read(self, index):
            return bytes(index)

        def where(self, index):
            return str(index)

    images = Images(np.zeros(3, np.int64))
    assert (len(images), images.extents()) == (3, None)
    assert len(ArrayImages(np.zeros((3, 2, 2), np.uint8), np.zeros(3, np.int64))) == 3
