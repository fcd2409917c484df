"""What TensorBoard gets."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from run_logs import record, show, start

from alexnet_dist.config import LogConfig
from alexnet_dist.errors import UserError


def read_events(folder):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def with_tensorboard(folder, **changes):
    pytest.importorskip("tensorboard")
    return start(folder, log=LogConfig(trackers=("tensorboard",)), **changes)


def scalars(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_events(tmp_path):
    log = with_tensorboard(tmp_path / "run")
    assert str(tmp_path / "run" / "tensorboard") in log.tracking
    log.log(record(1, **{"train/loss": 2.0}))
    log.log(record(3, **{"train/loss": 1.5, "val/top1": 0.25, "note": "words"}))
    picture = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    show(log, record(3), {"kernels/a": picture}, {"kernels/a": "caption"}, **{"kernels/norms": np.arange(5.0)})
    log.confusion(record(3), np.eye(2), ("a", "b"))  # nothing of it is for TensorBoard
    log.write_summary({"status": "finished"})
    log.close()
    events = read_events(tmp_path / "run")
    assert scalars(events, "train/loss") == [(1, 2.0), (3, 1.5)]
    assert scalars(events, "val/top1") == [(3, 0.25)]
    assert scalars(events, "epoch") == [(1, 1.0), (3, 1.0)]
    assert set(events.Tags()["scalars"]) == {"epoch", "train/loss", "val/top1"}
    assert events.Histograms("kernels/norms")[0].histogram_value.num == 5
    (image,) = events.Images("kernels/a")
    assert (image.step, image.width, image.height) == (3, 4, 6)
    (tmp_path / "shown.png").write_bytes(image.encoded_image_string)
    with Image.open(tmp_path / "shown.png") as shown:
        assert np.array_equal(np.array(shown), picture)


def test_tensorboard_hides_what_was_cut_by_a_resume(tmp_path):
    first = with_tensorboard(tmp_path / "run")
    for step in (1, 2, 3):
        first.log(record(step, **{"train/loss": float(step)}))
    first.close()
    again = with_tensorboard(tmp_path / "run", step=2)
    again.log(record(3, **{"train/loss": 33.0}))
    again.close()
    assert scalars(read_events(tmp_path / "run"), "train/loss") == [(1, 1.0), (2, 2.0), (3, 33.0)]


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    with pytest.raises(UserError, match="pip install"):
        start(tmp_path / "run", log=LogConfig(trackers=("tensorboard",)))
