"""Checkpoints are whole or absent, say when they are damaged, and give back every bit."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints import evaluated, network, save, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import deep_network
from places import ROOT
from torch import nn

from alexnet_dist.config import OptimConfig
from alexnet_dist.errors import UserError
from alexnet_dist.training import checkpoint
from alexnet_dist.training import optimizer as optimizer_module
from alexnet_dist.training import progress as progress_module


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_training_goes_on_to_the_bit_after_save_and_load(tmp_path, name):
    """Convolution weights are channels_last, which a careless load turns into a different order of memory."""
    model, optimizer = trained(name)
    path = save(tmp_path, model=model, optimizer=optimizer)
    fresh = network(seed=1)
    fresh_optimizer = optimizer_module.build(fresh, OptimConfig(name=name, lr=0.01))
    checkpoint.load(path, model=fresh, optimizer=fresh_optimizer, ema=None)
    trained(steps=4, model=model, optimizer=optimizer)
    trained(steps=4, model=fresh, optimizer=fresh_optimizer)
    for ours, theirs in zip(fresh.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
    for parameter, state in fresh_optimizer.state.items():
        assert all(value.stride() == parameter.stride() for key, value in state.items() if key.startswith("exp_avg"))


def test_muon_goes_on_to_the_bit_after_save_and_load(tmp_path):
    """Its hidden layers have a momentum, and all else has AdamW's state."""

    def steps(model, optimizer, seed):
        for images in torch.randn(3, 5, 2, 4, 4, generator=torch.Generator().manual_seed(seed)):
            model(images).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    config = OptimConfig(name="muon", muon_layers="hidden", lr=0.01)
    model, fresh = deep_network(), deep_network(seed=1)
    optimizer, fresh_optimizer = optimizer_module.build(model, config), optimizer_module.build(fresh, config)
    steps(model, optimizer, seed=0)
    path = save(tmp_path, model=model, optimizer=optimizer)
    checkpoint.load(path, model=fresh, optimizer=fresh_optimizer, ema=None)
    steps(model, optimizer, seed=1)
    steps(fresh, fresh_optimizer, seed=1)
    assert all(torch.equal(mine, other) for mine, other in zip(model.parameters(), fresh.parameters(), strict=True))
    for mine, other in zip(model.parameters(), fresh.parameters(), strict=True):
        state, again = optimizer.state[mine], fresh_optimizer.state[other]
        assert state.keys() == again.keys()
        assert all(torch.equal(value, again[kind]) for kind, value in state.items())


def test_state_that_lacks_a_parameter_of_a_group_is_refused(tmp_path):
    model = deep_network()
    optimizer = optimizer_module.build(model, OptimConfig(name="muon", muon_layers="hidden"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    del optimizer.state[model[2].weight]["momentum_buffer"]
    path = save(tmp_path, model=model, optimizer=optimizer)
    with pytest.raises(UserError, match=r"momentum_buffer:2\.weight"):
        checkpoint.load(path, model=model, optimizer=optimizer, ema=None)


def test_contents_are_what_the_contract_says(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model=model, optimizer=optimizer, progress={"step": 7})
    assert path.name == "step_00000007"
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest.keys() == {"model.safetensors", "config.json", "optimizer.safetensors", "state.json"}
    assert all((path / name).stat().st_size == entry["bytes"] for name, entry in manifest.items())
    assert safetensors.torch.load_file(path / "model.safetensors").keys() == model.state_dict().keys()
    assert {"exp_avg:0.weight", "exp_avg_sq:3.bias", "step:0.weight"} <= safetensors.torch.load_file(
        path / "optimizer.safetensors"
    ).keys()
    assert json.loads((path / "state.json").read_text())["progress"] == {"step": 7}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000007"]


def test_average_is_saved_and_loaded(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model=model, optimizer=optimizer, ema=network(seed=5))
    average = network(seed=6)
    checkpoint.load(path, model=model, optimizer=optimizer, ema=average)
    assert torch.equal(average[3].weight, network(seed=5)[3].weight)


def test_newest_is_found_by_number_and_unfinished_ones_are_not(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None
    for step in (9, 10, 8):
        save(tmp_path, step=step, progress=step)
    (tmp_path / ".writing-step_00000011").mkdir()
    (tmp_path / "step_best").mkdir()
    path, state = checkpoint.newest(tmp_path)
    assert (path.name, state["progress"]) == ("step_00000010", 10)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "one bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_loudly_and_never_to_a_fresh_start(tmp_path, caplog, name, damage):
    save(tmp_path, step=1)
    DAMAGE[damage](save(tmp_path, step=2) / name)
    if (name, damage) == ("MANIFEST.json", "longer"):
        assert checkpoint.newest(tmp_path)[0].name in ("step_00000001", "step_00000002")
        return
    assert checkpoint.newest(tmp_path)[0].name == "step_00000001"
    assert "IS DAMAGED" in caplog.text
    assert "step_00000002" in caplog.text
    DAMAGE[damage](tmp_path / "step_00000001" / name)
    with pytest.raises(UserError, match="all 2 checkpoints"):
        checkpoint.newest(tmp_path)


def test_manifest_that_leaves_out_the_weights_is_damage(tmp_path):
    path = save(tmp_path)
    (path / "MANIFEST.json").write_text("{}")
    assert "lacks files" in checkpoint.find_fault(path)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


@settings(deadline=None, max_examples=30)
@given(content=st.binary(max_size=40) | _json.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json"])
def test_any_content_is_a_fault_and_never_a_crash(tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "step_00000001"
    path.mkdir()
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        (path / file).write_bytes(b"{}")
    (path / name).write_bytes(content)
    if name == "state.json":
        manifest = {file: checkpoint._describe(path / file) for file in ("model.safetensors", "optimizer.safetensors")}
        manifest["state.json"] = checkpoint._describe(path / "state.json")
        (path / "MANIFEST.json").write_text(json.dumps(manifest))
    assert checkpoint.find_fault(path) is not None


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step, top1 in ((1, 0.3), (2, 0.9), (3, None), (4, 0.5), (5, 0.6)):
        save(tmp_path, step=step, progress=evaluated(step, top1))
    checkpoint.prune(tmp_path, keep=2, last_step=5)
    assert [path.name[-1] for path in checkpoint.checkpoints(tmp_path)] == ["2", "4", "5"]
    checkpoint.prune(tmp_path, keep=1, last_step=5)
    assert [path.name[-1] for path in checkpoint.checkpoints(tmp_path)] == ["2", "5"]
    assert checkpoint.best_of(checkpoint.checkpoints(tmp_path)).name[-1] == "2"


def test_prune_never_counts_a_damaged_checkpoint_that_the_run_was_continued_from_before(tmp_path):
    for step in (5, 9):
        save(tmp_path, step=step)
    flip(tmp_path / "step_00000009" / "model.safetensors")
    assert checkpoint.newest(tmp_path)[0].name == "step_00000005"
    save(tmp_path, step=6)
    checkpoint.prune(tmp_path, keep=1, last_step=6)
    assert checkpoint.newest(tmp_path)[0].name == "step_00000006"


def test_saving_again_replaces(tmp_path):
    save(tmp_path, progress="old")
    save(tmp_path, progress="new")
    assert checkpoint.newest(tmp_path)[1]["progress"] == "new"


def test_full_disk_leaves_earlier_checkpoints_and_no_rubbish(tmp_path, monkeypatch):
    save(tmp_path, step=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match=r"No space left.*Earlier checkpoints are intact"):
        save(tmp_path, step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoint.newest(tmp_path)[0].name == "step_00000001"


def test_files_are_flushed_before_the_rename(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename
    name = lambda fd: str(Path(f"/proc/self/fd/{fd}").readlink())  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(name(fd)), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append("rename"), rename(self, to))[1])
    save(tmp_path)
    before = {Path(name).name for name in events[: events.index("rename")]}
    expected = {"model.safetensors", "config.json", "optimizer.safetensors", "state.json", "MANIFEST.json"}
    expected |= {".writing-step_00000007"}
    assert before == expected
    assert events[-1] == str(tmp_path)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    path = save(tmp_path)
    other = nn.Linear(2, 2)
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load(path, model=other, optimizer=optimizer_module.build(other, OptimConfig()), ema=None)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    path = save(tmp_path)
    for file in path.iterdir():
        assert b"\x80\x04" not in file.read_bytes()[:64]
        assert file.suffix in (".safetensors", ".json")


# ---- in the background ----------------------------------------------------------------------------------------------


def saver(folder: Path, *, keep: int = 2, failed=lambda: None) -> checkpoint.Saver:
    return checkpoint.Saver(folder, keep=keep, failed=failed, written=lambda _path, _state: None)


def test_saver_writes_what_save_writes(tmp_path):
    model, optimizer = trained()
    average = network(seed=5)
    expected = save(tmp_path / "a", model=model, optimizer=optimizer, ema=average, progress={"step": 7})
    background = saver(tmp_path / "b")
    tensors = checkpoint.tensors_of(model, optimizer, average)
    background.save(step=7, tensors=tensors, state={"progress": {"step": 7}}, metadata={})
    background.wait()
    written = tmp_path / "b" / expected.name
    assert sorted(path.name for path in written.iterdir()) == sorted(path.name for path in expected.iterdir())
    assert all((written / path.name).read_bytes() == path.read_bytes() for path in expected.iterdir())


def test_what_follows_a_save_finds_it_on_the_disk(tmp_path):
    model, optimizer = trained()
    background, found = saver(tmp_path), []
    tensors = checkpoint.tensors_of(model, optimizer, None)
    look = lambda: found.append(checkpoint.newest(tmp_path)[0].name)  # noqa: E731 - what is checked
    background.save(step=7, tensors=tensors, state={}, metadata={}, then=look)
    background.wait()
    assert found == ["step_00000007"]


def test_training_goes_on_while_the_saver_writes_and_does_not_change_what_it_writes(tmp_path, monkeypatch):
    model, optimizer = trained()
    expected = save(tmp_path / "now", model=model, optimizer=optimizer)
    moved = threading.Event()
    write = checkpoint._save_tensors
    monkeypatch.setattr(checkpoint, "_save_tensors", lambda *a: (moved.wait(60), write(*a)))
    background = saver(tmp_path / "later")
    background.save(step=7, tensors=checkpoint.tensors_of(model, optimizer, None), state={}, metadata={})
    trained(steps=4, model=model, optimizer=optimizer)  # returns although nothing is written yet
    assert checkpoint.newest(tmp_path / "later") is None
    moved.set()
    background.wait()
    for name in ("model", "optimizer"):
        later = safetensors.torch.load_file(tmp_path / "later" / expected.name / f"{name}.safetensors")
        assert_same(later, safetensors.torch.load_file(expected / f"{name}.safetensors"))


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_saver_takes_one_at_a_time_and_prunes(tmp_path):
    model, optimizer = trained()
    background = saver(tmp_path, keep=1)
    for step in (1, 2, 3):
        tensors = checkpoint.tensors_of(model, optimizer, None)
        background.save(step=step, tensors=tensors, state={"progress": step}, metadata={})
    background.wait()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)][-1] == "step_00000003"
    assert len(checkpoint.checkpoints(tmp_path)) <= 2  # the newest, and the best, all being equally good


def test_what_the_saver_cannot_write_is_told_at_once_and_raised_later(tmp_path, monkeypatch):
    model, optimizer = trained()
    told = threading.Event()
    background = saver(tmp_path, failed=told.set)
    background.save(step=1, tensors=checkpoint.tensors_of(model, optimizer, None), state={}, metadata={})
    background.wait()
    monkeypatch.setattr(checkpoint, "_check_space", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    background.save(step=2, tensors=checkpoint.tensors_of(model, optimizer, None), state={}, metadata={})
    assert told.wait(60)
    with pytest.raises(UserError, match=r"step_00000002 cannot be written: .*full.*Earlier checkpoints are intact"):
        background.save(step=3, tensors=checkpoint.tensors_of(model, optimizer, None), state={}, metadata={})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    background.wait()  # it was said once


def test_closing_logs_a_failure(tmp_path, monkeypatch, caplog):
    model, optimizer = trained()
    background = saver(tmp_path)
    monkeypatch.setattr(checkpoint, "_check_space", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    background.save(step=2, tensors=checkpoint.tensors_of(model, optimizer, None), state={}, metadata={})
    background.close()
    assert "cannot be written" in caplog.text


def test_the_previous_releases_checkpoint_continues(tmp_path):
    """R20. It was written by version 0.1.0, before there was a GradScaler's state; `trained()` is how its run began."""
    shutil.copytree(ROOT / "tests" / "fixtures" / "checkpoints_0.1", tmp_path / "checkpoints")
    path, state = checkpoint.newest(tmp_path / "checkpoints")
    assert progress_module.Progress(**state["progress"]).best_top1 == 0.25
    model = network(seed=1)
    optimizer = optimizer_module.build(model, OptimConfig(name="adam", lr=0.01))
    checkpoint.load(path, model=model, optimizer=optimizer, ema=None)
    assert_same(model.state_dict(), safetensors.torch.load_file(path / "model.safetensors"))
    then, its_optimizer = trained()
    trained(steps=4, model=model, optimizer=optimizer)
    trained(steps=4, model=then, optimizer=its_optimizer)
    for ours, theirs in zip(model.parameters(), then.parameters(), strict=True):  # another machine rounds otherwise
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
