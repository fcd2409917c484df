"""The model card; that its code answers as the package does is shown in test_publish.py."""

import ast
import dataclasses
import re

import pytest

from alexnet_dist.commands import model_card
from alexnet_dist.data.inputs import InputSpec

SPEC = InputSpec(224, stored_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1))
CLAIM = {"correct": 1234, "total": 2000}


def described(spec=SPEC, result=CLAIM):
    data = {"name": "some/data", "split": "held-out", "num_train_images": 40_000, "num_eval_images": 2_000}
    training, versions = {"epoch": 3, "step": 30}, {"alexnet_dist": "1.2"}
    facts = {"data": data, "training": training, "versions": versions, "result": result}
    return {**facts, "class_names": ["cat", "{dog}"], "input": spec.to_json()}


def code_of(card):
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ast.parse(code)
    return code


def test_a_card_says_what_the_network_is():
    card = model_card.card(described())
    for words in ("AlexNet on some/data", "with 2 classes", "3 epochs (30 steps)", "40,000 images", "224x224"):
        assert words in card, words
    assert "Top-1 on 2,000 held-out images: 61.70% (1,234 right of 2,000)." in card
    assert "not measured" in model_card.card(described(result=None))


def test_the_weights_lie_beside_the_card_or_on_the_hub():
    beside = code_of(model_card.card(described()))
    assert 'file = "model.safetensors"' in beside
    assert "huggingface_hub" not in beside
    there = code_of(model_card.card(described(), repository="ada/net"))
    assert 'file = huggingface_hub.hf_hub_download("ada/net", "model.safetensors")' in there
    assert "import huggingface_hub\n" in there
    branch = code_of(model_card.card(described(), repository="ada/net", revision="v'1"))
    assert """"model.safetensors", revision="v'1")""" in branch


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        ({}, ["[32, 32]", "resize((224, 224)"], ["center_crop"]),
        ({"fit": "crop"}, ["> 32:", "[32]", "[256]", "center_crop(image, [224, 224])"], ["to_pil_image"]),
        ({"fit": "crop", "stored_size": None, "image_size": 63}, ["[72]", "[63, 63]"], ["to_pil_image", " > "]),
    ],
)
def test_the_code_fits_pictures_as_the_evaluation_did(changes, present, absent):
    code = code_of(model_card.card(described(dataclasses.replace(SPEC, **changes))))
    assert [words for words in present if words not in code] == []
    assert [words for words in absent if words in code] == []
    assert "mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1)" in code


@pytest.mark.parametrize("key", ["data", "training", "versions", "result"])
def test_a_card_of_incomplete_metadata_is_refused(key):
    with pytest.raises(KeyError):
        model_card.card({name: value for name, value in described().items() if name != key})
