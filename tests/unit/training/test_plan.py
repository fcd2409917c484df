"""When a run ends, saves and records."""

import pytest

from alexnet_dist.training.plan import Plan
from alexnet_dist.training.progress import Progress

PLAN = Plan(steps_per_epoch=10, last_step=25, record_every=4, save_every=5)


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
