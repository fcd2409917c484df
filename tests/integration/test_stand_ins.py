"""Stand-ins of sets that people use are prepared and give inputs, and train."""

import pytest
import stand_ins
import torch
from tiny import run, summary

from alexnet_dist.commands import train_setup
from alexnet_dist.config import Config, DataConfig
from alexnet_dist.data import load

SETS = [each for each in stand_ins.ALL if each.layout != "script"]


@pytest.mark.parametrize("each", SETS, ids=lambda each: each.name)
def test_a_set_is_prepared_and_gives_inputs(tmp_path, each):
    folder = stand_ins.make(each, tmp_path)
    data = DataConfig(
        dataset=str(folder), cache_dir=tmp_path / "cache", batch_size=2, image_size=64, threads=1, **each.options
    )
    found = load(data)
    assert len(found.class_names) == each.expected_classes
    assert found.evaluated_on == (each.evaluated_on or "held-out")
    assert len(found.train) + (0 if each.evaluated_on else len(found.test)) == 16
    config = Config(data=data)
    inputs = train_setup.make_inputs(config, found, None, torch.float32)
    batch = train_setup.gather(config, found, [0, 3], epoch=0)
    made = inputs.augmented(batch, inputs.draws(0, torch.device("cpu")))
    assert torch.isfinite(made).all()
    assert batch["labels"].tolist() == found.train.labels[[0, 3]].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("each", SETS, ids=lambda each: each.name)
def test_a_set_trains(tmp_path, each):
    options = [f"--data.{name.replace('_', '-')}={value}" for name, value in each.options.items()]
    flags = ["--data.dataset", str(stand_ins.make(each, tmp_path)), "--data.cache-dir", str(tmp_path / "cache")]
    few = ["--data.limit", "16", "--data.batch-size", "4", "--epochs", "1"]
    found = summary(run(tmp_path / "run", *flags, *few, *options))
    assert found["status"] == "finished"
    assert found["num_classes"] == each.expected_classes
    assert 0 <= found["final_top1"] <= 1
