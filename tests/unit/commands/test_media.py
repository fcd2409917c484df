"""What a run shows: its first batch, its mistakes, its counts."""

import json

import numpy as np
import pytest
import torch
from exhibits import NAMES, dataset
from PIL import Image

from alexnet_dist.commands import media as exhibits
from alexnet_dist.data.augment import Augment
from alexnet_dist.data.inputs import Inputs, InputSpec
from alexnet_dist.data.loader import gather
from alexnet_dist.data.sampler import GlobalBatches
from alexnet_dist.training import metrics
from alexnet_dist.training.metrics import Answer, Mistake
from alexnet_dist.visualization import plots


def evaluation(*worst, best=()):
    confusion = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 3]])
    return metrics.Evaluation(loss_sum=1.0, confusion=confusion, num_top5=8, worst=worst, best=best)


def make_inputs(source=32, *, image_size=224, **changes):
    spec = InputSpec(image_size, stored_size=source, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1))
    augment = Augment(source, 40, seed=3, flips=True, cutout=0.25, mix=None, mix_alpha=1.0, fill=(9, 8, 7))
    return Inputs(spec, **{"margin": (2, 5), "augment": augment, **changes})


# ---- the first batch ------------------------------------------------------------------------------------------------


def test_first_batch_is_what_training_begins_with():
    images, make = dataset(), make_inputs()
    order = GlobalBatches(40, 36, seed=3, drop_last=True)
    media = exhibits.first_batch(
        gather(images.train.images, images.train.labels, next(iter(order))[: exhibits.MOST_SHOWN]), make, NAMES
    )
    picture = media.pictures["inputs/first_batch"]
    assert picture.shape == (4 * 112, 8 * 112, 3), "32 of 36 images"
    ids = next(iter(order))
    batch = {"images": torch.from_numpy(images.train.images[ids]), "ids": torch.tensor(ids)}
    inputs = make.augmented(batch, make.draws(0, torch.device("cpu")))
    inner = inputs[:, :, 2:226, 2:226] * torch.tensor(make.spec.std)[:, None, None]
    inner = (inner + torch.tensor(make.spec.mean)[:, None, None]).mul(255).round().byte().numpy()
    for place in (0, 9, 31):
        top, left = (112 * index for index in divmod(place, 8))
        expected = Image.fromarray(inner[place].transpose(1, 2, 0)).resize((112, 112), Image.Resampling.BILINEAR)
        assert np.array_equal(picture[top : top + 112, left : left + 112], np.array(expected))
    assert ", ".join(NAMES[images.train.labels[i]] for i in ids[:8]) in media.captions["inputs/first_batch"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_become_the_pictures_they_were_made_of(dtype):
    images = torch.from_numpy(dataset(size=64).train.images)
    make = make_inputs(64, image_size=64, dtype=dtype, augment=None)
    shown = make.pictures(make(images))
    assert shown.dtype == torch.uint8
    difference = (shown.int() - images.int()).abs().max()
    assert difference == 0 if dtype is torch.float32 else difference <= 2  # bf16 keeps 8 bits


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_mistakes_are_shown_in_their_order():
    images = dataset()
    worst = [Mistake(7, 0, 2, 0.9, 5.0), Mistake(3, 2, 0, 0.8, 4.0)]
    sheet = exhibits.answer_sheets(images, evaluation(*worst)).pictures["errors"]
    for place, mistake in enumerate(worst):
        expected = plots.thumbnail(images.test.picture(mistake.id))
        assert np.array_equal(sheet[:64, 64 * place : 64 * place + 64], expected)
    rows = exhibits.mistakes_table(images, evaluation(*worst))
    assert [(row["id"], row["true class"], row["predicted class"]) for row in rows] == [
        (7, "cat", "</script>"),
        (3, "</script>", "cat"),
    ]
    assert np.array_equal(rows[1]["image"], plots.thumbnail(images.test.picture(3)))
    assert exhibits.answer_sheets(images, evaluation()).pictures == {}


def test_right_answers_are_shown_in_their_order():
    images = dataset()
    best = [Answer(index, index % 3, index % 3, 0.9, 0.1) for index in (30, 3, 7, 1, 4, 10, 2, 5, 8)]
    (name,), (sheet,) = zip(*exhibits.answer_sheets(images, evaluation(best=best)).pictures.items(), strict=True)
    assert (name, sheet.shape) == ("right", (128, 512, 3))
    for place, answer in enumerate(best):
        top, left = (64 * index for index in divmod(place, 8))
        expected = plots.thumbnail(images.test.picture(answer.id))
        assert np.array_equal(sheet[top : top + 64, left : left + 64], expected)


def test_evaluation_file_holds_the_exact_counts():
    record = {"epoch": 7, "global_step": 686, "val/top1": 0.5}
    counted = evaluation(Mistake(7, 0, 2, 0.9, 5.0), best=(Answer(2, 2, 2, 0.8, 0.25),))
    content = exhibits.evaluation_file(record, counted, NAMES)
    assert json.loads(json.dumps(content)) == {
        "epoch": 7,
        "global_step": 686,
        "class_names": list(NAMES),
        "confusion": [[3, 1, 0], [0, 0, 0], [1, 0, 3]],
        "worst": [{"id": 7, "label": 0, "predicted": 2, "probability": 0.9, "loss": 5.0}],
        "best": [{"id": 2, "label": 2, "predicted": 2, "probability": 0.8, "loss": 0.25}],
    }


def test_accuracy_of_each_class_under_its_name():
    found = exhibits.per_class(evaluation(), NAMES)
    assert found == {"per_class/cat": 0.75, "per_class/<_script>": 0.75}, "and none for a class without images"
