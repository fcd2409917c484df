"""Stand-ins of 44 sets that people use are listed, or get the right message."""

import io

import numpy as np
import pytest
import stand_ins
from class_folders import listed
from PIL import Image

LISTED = [each for each in stand_ins.ALL if each.layout != "script"]
NOTED = {
    "cifar100": "labels are those of the column fine_label, not coarse_label (--data.label-column)",
    "wikiart": "labels are those of the column artist, not genre, style (--data.label-column)",
    "oxford-iiit-pet": "labels are those of the column label, not label_cat_dog (--data.label-column)",
    "skin_cancer": "labels are those of the column dx (--data.label-column)",
    "imagenet-1k": "the split test has no labels and is passed over",
    "aiornot": "the split test has no labels and is passed over",
    "stanford_cars": "left aside: contrast, gaussian_noise",
    "svhn": "left aside: extra",
    "flower_photos": "class folders without splits",
}


def test_there_are_44_of_as_many_names():
    assert len({each.name for each in stand_ins.ALL}) == len(stand_ins.ALL) == 44


@pytest.mark.parametrize("each", LISTED, ids=lambda each: each.name)
def test_a_set_is_listed(tmp_path, each):
    found = listed(stand_ins.make(each, tmp_path), **each.options)
    assert len(found.class_names) == each.expected_classes
    assert found.evaluated_on == each.evaluated_on
    assert len(found.train) == 16
    assert (len(found.test) if found.test else None) == (8 if each.evaluated_on else None)
    for images in (found.train, *([found.test] if found.test else [])):
        assert images.labels.dtype == np.int64
        assert 0 <= images.labels.min() <= images.labels.max() < each.expected_classes
    assert (NOTED.get(each.name) is None) or any(NOTED[each.name] in note for note in found.notes), found.notes
    if each.layout == "npz":
        assert found.train.images.shape == (16, 28, 28, 3)
        return
    for k in range(16):
        image = Image.open(io.BytesIO(found.train.read(k)))
        image.load()
        assert image.size in each.sizes
        assert found.train.where(k)


@pytest.mark.parametrize("each", stand_ins.SCRIPTS, ids=lambda each: each.name)
def test_a_set_of_a_script_alone_is_refused_with_its_branch(tmp_path, refusal, each):
    message = refusal(stand_ins.make(each, tmp_path))
    assert f"{each.name}.py is a loading script, which cannot be run" in message
    assert "--data.revision refs/convert/parquet" in message


@pytest.mark.parametrize("name", ["svhn", "PlantVillage"])
def test_a_set_of_several_configurations_lists_them(tmp_path, refusal, name):
    (each,) = (each for each in stand_ins.ALL if each.name == name)
    folder = stand_ins.make(each, tmp_path)
    listing = f"choose a configuration by --data.config: {', '.join(each.configs)}"
    assert listing in refusal(folder)
    assert listing in refusal(folder, config="none of them")


def test_a_label_column_that_cannot_be_guessed_is_asked_for(tmp_path, refusal):
    (each,) = (each for each in stand_ins.ALL if each.name.startswith("fashion-product"))
    message = refusal(stand_ins.make(each, tmp_path))
    assert "name the label by --data.label-column" in message
    assert "articleType (string)" in message
