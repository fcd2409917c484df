"""The interface to trackers: what all of them can be told, and that a tracker need not have all of it."""

import inspect

import numpy as np
import pytest

from alexnet_dist.tracking import tensorboard_tracker, wandb_tracker
from alexnet_dist.tracking.tracker import Media, Tracker

CALLS = {name: method for name, method in inspect.getmembers(Tracker, inspect.isfunction) if not name.startswith("_")}
RECORD = {"global_step": 1, "epoch": 1}
VALUES = {
    "records": [RECORD],
    "record": RECORD,
    "media": Media(),
    "counts": np.eye(2, dtype=np.int64),
    "class_names": ("cat", "dog"),
    "name": "errors",
    "rows": [],
    "title": "Nothing learned",
    "text": "",
    "level": "WARN",
    "weights": None,
    "summary": {},
    "exit_code": 0,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_tracker_that_does_nothing_can_be_told_everything(name):
    arguments = [VALUES[parameter] for parameter in inspect.signature(CALLS[name]).parameters if parameter != "self"]
    assert getattr(Tracker(), name)(*arguments) is None


@pytest.mark.parametrize("kind", [wandb_tracker.WandbTracker, tensorboard_tracker.TensorBoardTracker])
def test_trackers_answer_the_calls_of_the_interface(kind):
    assert issubclass(kind, Tracker)
    for name, method in CALLS.items():
        ours, theirs = (list(inspect.signature(one).parameters) for one in (getattr(kind, name), method))
        assert ours == theirs, name
    strangers = {name for name in vars(kind) if not name.startswith("_")} - vars(Tracker).keys()
    assert not strangers, "RunLogger calls what the interface has, and nothing else"


def test_a_tracker_says_nothing_of_itself_by_default():
    assert (Tracker.where, Tracker.resend, Tracker.shared_id) == ("", "", None)
