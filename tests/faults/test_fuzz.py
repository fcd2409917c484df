"""Arbitrary input: a configuration or one line that says what is wrong, and no file that is there is changed."""

import json
import string
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from checkpoints import network, save, trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import run

from alexnet_dist.config import Config, OptimConfig, changed_fields, flat, parse, to_dict, to_yaml
from alexnet_dist.errors import UserError
from alexnet_dist.training import checkpoint, progress
from alexnet_dist.training import optimizer as optimizer_module

OPTIONS = ["--" + name.replace("_", "-") for name in flat(to_dict(Config()))]
ODD = [
    "",
    "-",
    "--",
    "=",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-0",
    "0x10",
    "None",
    "null",
    "yes",
    "[]",
    "{}",
    "\0",
    "\n",
    "é",
]
values = st.one_of(st.sampled_from(ODD), st.integers().map(str), st.floats().map(str), st.text(max_size=8))
tokens = st.lists(
    st.one_of(st.sampled_from(OPTIONS), values, st.builds("{}={}".format, st.sampled_from(OPTIONS), values))
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates())
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=12
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def fuzzed(examples: int):
    """The same examples each time, however slow the machine."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )


def refused_or_read(arguments: list[str]) -> None:
    """A configuration, a UserError of one line, or --help."""
    try:
        assert isinstance(parse(arguments), Config)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - as below
    except SystemExit as stop:
        assert stop.code in (0, None)  # noqa: PT017 - the code is what is tested


@fuzzed(150)
@given(arguments=tokens)
def test_any_command_line_is_read_or_refused(arguments):
    refused_or_read(arguments)


@fuzzed(150)
@given(sections=st.dictionaries(st.sampled_from(["data", "optim", "model", "log", "x", ""]), documents), rest=documents)
def test_any_yaml_is_read_or_refused(sections, rest, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    for content in (sections, {**sections, "optim": {"lr": rest}}, rest):
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        refused_or_read(["--config", str(path)])


@fuzzed(100)
@given(content=st.binary(max_size=60))
def test_any_bytes_as_yaml_are_read_or_refused(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    refused_or_read(["--config", str(path)])


def test_aliases_that_multiply_are_refused_at_once(tmp_path):
    """Ten million values in seven lines."""
    for opening, closing in ("[]", "{}"):
        item = "x, " if opening == "[" else ""
        lines = [f"a0: &a0 {opening}{item or 'k: v'}{closing}"]
        for depth in range(1, 7):
            pieces = [f"*a{depth - 1}" if opening == "[" else f"k{i}: *a{depth - 1}" for i in range(10)]
            lines.append(f"a{depth}: &a{depth} {opening}{', '.join(pieces)}{closing}")
        (tmp_path / "bomb.yaml").write_text("\n".join(lines))
        with pytest.raises(UserError, match=r"cannot hold"):
            parse(["--config", str(tmp_path / "bomb.yaml")])


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "!!python/object/apply:os.system ['true']", "optim: !!binary aGk=", "\ta: 1"]
)
def test_yaml_that_is_more_than_data_is_refused(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(UserError):
        parse(["--config", str(tmp_path / "odd.yaml")])


@fuzzed(60)
@given(
    epochs=st.integers(1, 10**9),
    seed=st.integers(0, 2**63 - 1),
    lr=st.floats(1e-300, 1e300),
    name=st.text(string.printable, min_size=1, max_size=12).filter(lambda s: not s.startswith("-")),
    tags=st.lists(st.text(string.ascii_letters + " .:é", min_size=1, max_size=5), max_size=3),
    flag=st.booleans(),
)
def test_what_is_written_reads_back_equal(tmp_path_factory, *, epochs, seed, lr, name, tags, flag):
    augment = "--data.augment" if flag else "--data.no-augment"
    arguments = [f"--epochs={epochs}", f"--seed={seed}", f"--optim.lr={lr!r}", f"--wandb.name={name}", augment]
    try:
        config = parse([*arguments, *(["--wandb.tags", *tags] if tags else [])])
    except UserError:
        return
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert changed_fields(yaml.safe_load(path.read_text(encoding="utf-8")), config) == []
    assert parse(["--config", str(path)]) == config


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def reseal(path: Path) -> None:
    """Write a manifest that holds, over whatever the files are."""
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    (path / "MANIFEST.json").write_text(json.dumps({name: checkpoint._describe(path / name) for name in names}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A good checkpoint and a newer one to spoil."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, step=1)
    return folder, save(folder, step=2)


@fuzzed(100)
@given(manifest=json_values)
def test_any_manifest_falls_back(two, manifest):
    folder, newer = two
    (newer / "MANIFEST.json").write_text(json.dumps(manifest))
    before = contents(folder)
    assert checkpoint.newest(folder)[0].name == "step_00000001"
    assert contents(folder) == before


def test_a_manifest_cannot_name_files_elsewhere(two):
    """S10. They exist and their sums are right."""
    folder, newer = two
    for name in ("../step_00000001/state.json", str(folder / "step_00000001" / "state.json"), "link"):
        (newer / "link").unlink(missing_ok=True)
        (newer / "link").symlink_to(folder / "step_00000001" / "state.json")
        reseal(newer)
        manifest = json.loads((newer / "MANIFEST.json").read_text())
        manifest[name] = checkpoint._describe(newer / name)
        (newer / "MANIFEST.json").write_text(json.dumps(manifest))
        assert "no file of its own" in checkpoint.find_fault(newer)


@fuzzed(100)
@given(state=json_values)
def test_any_sealed_state_falls_back_or_says_nothing_of_a_run(two, state):
    folder, newer = two
    (newer / "state.json").write_text(json.dumps(state))
    reseal(newer)
    assert checkpoint.newest(folder)[0].name == "step_00000001"  # none has this version's format
    with pytest.raises(UserError, match="does not say where its run stood"):
        progress.Progress.of({"step": state, "epoch": "x"})


def test_deep_nesting_falls_back(two):
    folder, newer = two
    (newer / "MANIFEST.json").write_text("[" * 100_000)
    assert checkpoint.newest(folder)[0].name == "step_00000001"


@fuzzed(150)
@given(data=st.data(), name=st.sampled_from(["model.safetensors", "optimizer.safetensors"]))
def test_any_sealed_safetensors_file_loads_or_is_refused(two, data, name):
    """Its manifest holds: somebody sealed the damage. Bytes of the header change, with its length and its JSON."""
    folder, newer = two
    good = (folder / "step_00000001" / name).read_bytes()
    header = int.from_bytes(good[:8], "little")
    spoiled = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        spoiled[data.draw(st.integers(0, 7 + header))] = data.draw(st.integers(0, 255))
    for each in ("model.safetensors", "optimizer.safetensors", "state.json"):
        (newer / each).write_bytes((folder / "step_00000001" / each).read_bytes())
    (newer / name).write_bytes(
        bytes(spoiled[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else spoiled)
    )
    reseal(newer)
    before = contents(folder)
    model = network(seed=1)
    optimizer = optimizer_module.build(model, OptimConfig(lr=0.01))
    try:
        checkpoint.load(newer, model=model, optimizer=optimizer, ema=None)
    except UserError as error:
        assert "does not fit this run" in str(error)  # noqa: PT017 - both outcomes are right
    else:
        trained(steps=1, model=model, optimizer=optimizer)  # what was loaded can be trained
    assert contents(folder) == before


@pytest.mark.parametrize("spoil", ["shape", "type", "missing", "extra"])
def test_an_optimizers_state_of_another_kind_is_refused(tmp_path, spoil):
    """Fused kernels walk it as flat memory: a smaller tensor would be read beyond its end."""
    path = save(tmp_path)
    tensors = safetensors.torch.load_file(path / "optimizer.safetensors")
    if spoil == "missing":
        del tensors["exp_avg:0.weight"]
    else:
        odd = torch.zeros(3) if spoil == "shape" else tensors["exp_avg:0.weight"].half()
        tensors["exp_avg:9.weight" if spoil == "extra" else "exp_avg:0.weight"] = odd
    safetensors.torch.save_file(tensors, path / "optimizer.safetensors")
    model = network()
    with pytest.raises(UserError, match="does not fit this run"):
        checkpoint.load(path, model=model, optimizer=optimizer_module.build(model, OptimConfig(lr=0.01)), ema=None)


@pytest.mark.parametrize("spoil", [{"progress": {"step": "3"}}, {"progress": None}, {"fingerprint": 3}])
def test_a_run_does_not_continue_from_a_sealed_state_that_is_nonsense(tmp_path, spoil):
    folder = run(tmp_path, "--max-steps", "3")
    path = folder / "checkpoints" / "step_00000003"
    state = json.loads((path / "state.json").read_text()) | spoil
    (path / "state.json").write_text(json.dumps(state))
    reseal(path)
    with pytest.raises(UserError, match=r"where its run stood|other images"):
        run(folder)
