"""Where a run stands: read from a checkpoint, and moved on by an evaluation."""

import dataclasses
import json

import numpy as np
import pytest

from alexnet_dist.errors import UserError
from alexnet_dist.training.metrics import Evaluation
from alexnet_dist.training.progress import Progress


def evaluation(correct, wrong):
    return Evaluation(0.5, np.array([[correct, wrong], [0, 0]], dtype=np.int64), num_top5=0, worst=())


def ended(progress, found, steps_per_epoch=10):
    return progress.end_epoch(found, seconds=2.0, batch_size=4, steps_per_epoch=steps_per_epoch)


def test_the_end_of_an_epoch():
    progress = Progress(step=10, batch=10, loss_sum=80.0, samples_seen=40, epoch_seconds=3.0)
    record = ended(progress, evaluation(3, 1))
    assert (record["epoch"], record["train/epoch_loss"], record["val/top1"]) == (1, 2.0, 0.75)
    assert record["perf/epoch_seconds"] == 5.0
    assert (progress.epoch, progress.batch, progress.loss_sum, progress.epoch_seconds) == (1, 0, 0.0, 0.0)
    assert (progress.best_top1, progress.best_epoch, progress.evaluated) == (0.75, 1, 10)
    assert progress.is_evaluated


def test_an_epoch_cut_short_stays_the_current_one():
    progress = Progress(step=13, epoch=1, batch=3, loss_sum=24.0)
    assert ended(progress, evaluation(1, 1))["train/epoch_loss"] == 2.0
    assert (progress.epoch, progress.batch, progress.loss_sum) == (1, 3, 24.0)


def test_the_first_of_equal_accuracies_is_the_best():
    progress = Progress()
    for epoch, correct in enumerate((1, 3, 2, 3), start=1):
        progress.step, progress.batch = 10 * epoch, 10
        ended(progress, evaluation(correct, 4 - correct))
    assert (progress.best_top1, progress.best_epoch, progress.top1) == (0.75, 2, 0.75)


def test_weights_that_moved_on_are_not_evaluated():
    progress = Progress(step=10, batch=10)
    assert not progress.is_evaluated
    ended(progress, evaluation(1, 1))
    progress.step += 1
    assert not progress.is_evaluated


def test_a_checkpoint_gives_it_back():
    progress = Progress(step=3, top1=0.5, best_epoch=1, evaluated=3)
    assert Progress.of(json.loads(json.dumps(dataclasses.asdict(progress)))) == progress
    assert Progress.of({"step": 3}) == Progress(step=3), "a later version may have added the rest"


@pytest.mark.parametrize("recorded", [None, [], 7, {"step": "3"}, {"steps": 3}, {"top1": "high"}])
def test_what_is_no_progress_is_refused(recorded):
    with pytest.raises(UserError, match=r"state\.json does not say where its run stood"):
        Progress.of(recorded)
