"""Where a run stands: read from a checkpoint, and moved on by an evaluation; when it ends, saves and records."""

import dataclasses
import json

import numpy as np
import pytest

from alexnet_dist.errors import UserError
from alexnet_dist.training.metrics import Evaluation
from alexnet_dist.training.progress import Plan, Progress

PLAN = Plan(steps_per_epoch=10, last_step=25, record_every=4, save_every=5)


def evaluation(correct, wrong):
    return Evaluation(2.0, np.array([[correct, wrong], [0, 0]], dtype=np.int64), num_top5=0, worst=())


def ended(progress, found):
    return progress.end_epoch(found, PLAN, seconds=2.0, batch_size=4)


def test_the_end_of_an_epoch():
    progress = Progress(step=10, batch=10, loss_sum=80.0, samples_seen=40, epoch_seconds=3.0)
    record = ended(progress, evaluation(3, 1))
    assert (record["epoch"], record["train/epoch_loss"], record["val/top1"]) == (1, 2.0, 0.75)
    assert record["perf/epoch_seconds"] == 5.0
    assert (progress.epoch, progress.batch, progress.loss_sum, progress.epoch_seconds) == (1, 0, 0.0, 0.0)
    assert (progress.best_top1, progress.best_epoch, progress.evaluated) == (0.75, 1, 10)
    assert (record["val/loss"], record["val/num_images"]) == (0.5, 4)


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


def test_a_checkpoint_gives_it_back():
    progress = Progress(step=3, top1=0.5, best_epoch=1, evaluated=3)
    assert Progress.of(json.loads(json.dumps(dataclasses.asdict(progress)))) == progress
    assert Progress.of({"step": 3}) == Progress(step=3), "a later version may have added the rest"


@pytest.mark.parametrize("recorded", [None, [], 7, {"step": "3"}, {"steps": 3}, {"top1": "high"}])
def test_what_is_no_progress_is_refused(recorded):
    with pytest.raises(UserError, match=r"state\.json does not say where its run stood"):
        Progress.of(recorded)


# ---- when it ends, saves and records --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "batch", "end"),
    [(0, 0, 10), (7, 7, 10), (10, 0, 10), (20, 0, 5), (23, 3, 5), (25, 5, 5)],
)
def test_an_epoch_ends_with_its_last_batch_or_with_the_run(step, batch, end):
    assert PLAN.epoch_end(Progress(step=step, batch=batch)) == end


def test_a_run_is_done_when_its_last_step_is_evaluated():
    assert not PLAN.is_done(Progress(step=24, evaluated=24))
    assert not PLAN.is_done(Progress(step=25, evaluated=20))
    assert PLAN.is_done(Progress(step=25, evaluated=25))


def test_checkpoints_are_saved_in_mid_epoch_and_not_before_an_evaluation():
    saved = [step for step in range(1, 26) if PLAN.saves_at(Progress(step=step, batch=(step - 1) % 10 + 1))]
    assert saved == [5, 15], "10 and 20 end an epoch, 25 ends the run: their checkpoints follow the evaluation"
    never = Plan(steps_per_epoch=10, last_step=25, record_every=4, save_every=None)
    assert not any(never.saves_at(Progress(step=step, batch=step)) for step in range(1, 10))


def test_records_are_due_at_multiples():
    assert [step for step in range(1, 13) if PLAN.records_at(Progress(step=step))] == [4, 8, 12]


# ---- pictures -------------------------------------------------------------------------------------------------------


def drawn(epochs, plan=PLAN):
    return [epoch for epoch in range(1, epochs + 1) if plan.draws_at(epoch)]


def test_every_epoch_has_pictures_while_they_are_few_and_then_ever_fewer():
    assert drawn(30) == list(range(1, 31))
    assert drawn(120) == [*range(1, 31), *range(32, 61, 2), *range(64, 121, 4)]
    assert [len(drawn(epochs)) for epochs in (100, 1_000, 10_000)] == [55, 105, 154]


def test_a_run_of_more_epochs_has_the_same_pictures_so_far():
    longer = dataclasses.replace(PLAN, last_step=100_000)
    assert drawn(1_000, longer)[:55] == drawn(1_000)[:55] == drawn(100)


def test_the_option_decides_where_it_is_given():
    assert drawn(100, dataclasses.replace(PLAN, draw_every=40)) == [40, 80]
