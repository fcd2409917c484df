"""What a run is made of, as its configuration says."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exhibits import dataset

from alexnet_dist.commands import train_setup
from alexnet_dist.config import Config, DataConfig, parse
from alexnet_dist.data import GlobalBatches
from alexnet_dist.distributed import accelerator as processes
from alexnet_dist.distributed.precision import Precision
from alexnet_dist.models import StartingWeights

DATA = dataset()
OWN = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))  # mean and standard deviation of starting weights


def inputs_of(start=None, **data):
    return train_setup.make_inputs(Config(data=DataConfig(image_size=64, **data)), DATA, start, torch.float32)


@pytest.mark.parametrize(
    ("statistics", "normalize", "expected"),
    [
        (None, True, (DATA.mean, DATA.std)),
        (OWN, True, OWN),
        (OWN, False, ((0, 0, 0), (1, 1, 1))),
    ],
    ids=["the data set's", "the starting weights'", "none"],
)
def test_inputs_are_normalised_by_the_statistics_that_the_network_expects(statistics, normalize, expected):
    spec = inputs_of(StartingWeights({}, "a file", statistics), normalize=normalize).spec
    assert (spec.mean, spec.std) == expected
    assert (spec.image_size, spec.stored_size) == (64, 32)


def test_without_starting_weights_the_data_sets_statistics_serve():
    assert inputs_of().spec.mean == DATA.mean


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"mix": None, "mix_alpha": 1.0}),
        ({"cutout": 0.25}, {"cutout": 0.25}),
        ({"mixup": 0.2}, {"mix": "mixup", "mix_alpha": 0.2}),
        ({"cutmix": 0.5}, {"mix": "cutmix", "mix_alpha": 0.5}),
        ({"normalize": False}, {"fill": (0, 0, 0)}),
        ({"normalize": True}, {"fill": tuple(round(255 * value) for value in DATA.mean)}),
    ],
    ids=str,
)
def test_augmentation_is_the_configured_one(options, expected):
    made = inputs_of(**options).augment
    assert (made.source_size, made.num_images, made.flips) == (32, 40, DATA.flips)
    assert {name: getattr(made, name) for name in expected} == expected


def test_images_stay_as_stored_where_augmentation_is_off():
    assert inputs_of(augment=False).augment is None


class Tiny(torch.nn.Module):
    """A network that makes three numbers of an image."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 3)

    def forward(self, images):
        return self.head(images.mean(dim=(2, 3)))


@pytest.fixture
def prepared(monkeypatch):
    """Prepare a run of 40 images and return its context, loaders and plan."""
    monkeypatch.setattr(train_setup.alexnet, "training_flops", lambda _, size: 1000 * size)
    threads = torch.get_num_threads()  # which `make_accelerator` chooses for the whole process

    def prepare(*flags):
        config = parse(
            ["--data.dataset", "synthetic", "--data.batch-size", "16", "--runtime.precision", "fp32", *flags]
        )
        accelerator, _ = processes.make_accelerator(config)
        hardware = SimpleNamespace(peak_flops=7e12, precision=Precision("fp32", "asked for"))
        inputs = train_setup.make_inputs(config, DATA, None, torch.float32)
        return train_setup.prepare(config, DATA, Tiny(), accelerator, hardware, inputs, lambda: None)

    yield prepare
    torch.set_num_threads(threads)


def test_a_run_ends_after_its_epochs_or_its_steps(prepared):
    plan = prepared("--epochs", "5", "--log.every-steps", "7", "--checkpoint.every-steps", "3")[2]
    assert (plan.steps_per_epoch, plan.last_step) == (2, 10), "8 of 40 images fill no batch of 16"
    assert (plan.record_every, plan.save_every) == (7, 3)
    assert prepared("--epochs", "5", "--max-steps", "3")[2].last_step == 3
    assert prepared("--epochs", "5", "--max-steps", "30")[2].last_step == 10


def test_training_drops_the_last_partial_batch_and_evaluation_has_every_image(prepared):
    _, loaders, _ = prepared("--seed", "4")
    loaders.order.set_position(epoch=0)
    expected = list(GlobalBatches(40, 16, seed=4, drop_last=True))
    assert [batch["ids"].tolist() for batch in loaders.train] == expected
    assert [len(batch["ids"]) for batch in loaders.test] == [16, 16, 8]
    assert loaders.num_eval_batches == 3
    seen = np.concatenate([batch["ids"].numpy() for batch in loaders.test])
    assert seen.tolist() == [*range(40)]


def test_partners_are_drawn_where_images_are_mixed(prepared):
    assert prepared("--data.cutmix", "1")[1].order.partners
    assert not prepared()[1].order.partners


def test_the_context_has_what_steps_need(prepared):
    context = prepared("--optim.lr", "0.25", "--optim.schedule", "constant", "--optim.ema", "0.5", "--seed", "4")[0]
    assert context.learning_rate(0) == 0.25
    assert context.ema is not None
    assert (context.seed, context.peak_flops, context.config.ema) == (4, 7e12, 0.5)
    assert context.flops_per_image == 1000 * 224
    assert prepared()[0].ema is None


def test_network_is_compiled_if_asked(prepared, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, mode: modes.append(mode))
    for flags in ([], ["--runtime.compile"], ["--runtime.cuda-graphs"]):
        prepared(*flags)
    assert modes == ["default", "reduce-overhead"]


def test_the_average_is_a_copy_that_takes_no_gradient(prepared):
    context = prepared("--optim.ema", "0.5")[0]
    average, own = list(context.ema.parameters()), list(context.network.parameters())
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(average, own, strict=True))
    assert not any(parameter.requires_grad for parameter in average)
    assert all(parameter.requires_grad for parameter in own)
