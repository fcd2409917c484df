"""The command line and YAML files."""

import re
from typing import get_args, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from options import OPTIONS

from alexnet_dist.config import Config, cli, parse, to_yaml
from alexnet_dist.config.schema import RuntimeConfig, WandbConfig
from alexnet_dist.errors import UserError


def test_flags_win_over_file_and_file_over_default(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "epochs: 3\nseed: 5\noptim: {lr: 1e-3, clip_norm: null}\nruntime: {cpu: true}\nlog: {trackers: []}\n"
    )
    config = parse(["--config", str(file), "--epochs", "4"])
    assert (config.epochs, config.seed, config.optim.lr, config.optim.clip_norm) == (4, 5, 1e-3, None)
    assert config.runtime.cpu is True
    assert config.log.trackers == ()
    assert config.data == Config().data


def test_the_home_is_meant_by_a_tilde_where_no_shell_expands_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    (tmp_path / "a.yaml").write_text("out_dir: ~/runs/a\ndata: {dataset: ~/pets, cache_dir: /x/~/y}\n")
    config = parse(["--config", str(tmp_path / "a.yaml"), "--model.weights=~/a=b.safetensors"])
    paths = (config.out_dir, config.data.dataset, config.data.cache_dir, config.model.weights)
    assert [str(path) for path in paths] == [
        "/home/ada/runs/a",
        "/home/ada/pets",
        "/x/~/y",
        "/home/ada/a=b.safetensors",
    ]
    assert str(parse(["--out-dir", "~/b"]).out_dir) == "/home/ada/b"


def test_later_files_win(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 3\nseed: 1\n")
    (tmp_path / "b.yaml").write_text("epochs: 4\n")
    config = parse(["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")])
    assert (config.epochs, config.seed) == (4, 1)


def test_recorded_configuration_loads_back_equal(tmp_path):
    flags = ["--wandb.tags", "a", "b c", "--out-dir", "a folder/ü", "--data.no-augment"]
    config = parse([*flags, "--optim.ema", "0.999", "--data.limit", "7", "--optim.lr", "1e-3", "--runtime.cpu"])
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert parse(["--config", str(tmp_path / "config.yaml")]) == config
    assert config.wandb.tags == ("a", "b c")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--optim.lrr", "3"], ["--optim.lrr", "did you mean --optim.lr?"]),
        (["--lr", "3"], ["--lr", "did you mean --optim.lr?"]),
        (["--data.batchsize", "3"], ["--data.batchsize", "did you mean --data.batch-size?"]),
        (["--epochs", "two"], ["--epochs", "'two'"]),
        (["--epochs"], ["--epochs"]),
        (["--epochs", "1.5"], ["--epochs", "1.5"]),
        (["--optim.name", "adm"], ["--optim.name", "adamw"]),
        (["--resume", "yes"], ["--resume", "must"]),
        (["stray"], ["stray"]),
        (["--config"], ["--config"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["--epochs", "0"], ["--epochs", "at least 1"]),
        (["--seed", "-1"], ["--seed"]),
        (["--seed", str(2**63)], ["--seed"]),
        (["--optim.lr", "nan"], ["--optim.lr"]),
        (["--optim.lr", "inf"], ["--optim.lr"]),
        (["--optim.ema", "1"], ["--optim.ema"]),
        (["--model.dropout", "1"], ["--model.dropout"]),
        (["--model.conv1-init-scale", "0"], ["--model.conv1-init-scale", "above 0"]),
        (["--optim.beta2", "1"], ["--optim.beta2", "at least 0 and below 1"]),
        (["--data.image-size", "62"], ["--data.image-size", "63"]),
        (["--data.batch-size", "6", "--optim.accumulate", "4"], ["--optim.accumulate 4", "--data.batch-size 6"]),
        (["--model.pretrained", "--model.weights", "w"], ["--model.pretrained", "--model.weights"]),
        (["--log.trackers", "wandb", "wandb"], ["--log.trackers"]),
        (["--log.conv2-kernel", "192"], ["--log.conv2-kernel"]),
        (["--data.val-fraction", "1"], ["--data.val-fraction", "below 1"]),
        (["--data.cutout", "1.5"], ["--data.cutout", "at least 0 and at most 1"]),
        (["--data.resized-crop", "1"], ["--data.resized-crop", "above 0 and below 1"]),
        (["--data.mixup", "0"], ["--data.mixup", "above 0"]),
        (["--data.mixup", "1", "--data.cutmix", "1"], ["--data.mixup", "--data.cutmix", "choose one"]),
        (["--data.no-augment", "--data.mixup", "1"], ["--data.no-augment", "--data.mixup"]),
    ],
)
def test_mistakes_are_one_line_that_helps(flags, words):
    with pytest.raises(UserError) as caught:
        parse(flags)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert "Error parsing Config" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lrr: 1}", ["--optim.lrr", "did you mean --optim.lr?"]),
        ("epochs: two", ["--epochs", "two"]),
        ("- 1", ["mapping", "list"]),
        ("epochs: [1", ["not valid YAML"]),
        ("!!python/object/apply:os.system [true]", ["not valid YAML"]),
        ("optim: 3", ["optim"]),
        ("data: {batch_size: {a: 1}}", ["batch-size", "one level deep"]),
        ("1: 2", ["--1"]),
        ("optim: {lr: 1}\nepochs: 2\noptim: {name: sgd}", ["optim is given twice"]),
        ("data: {batch_size: 4, batch-size: 8}", ["batch_size is given twice"]),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        parse(["--config", str(tmp_path / "bad.yaml")])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ["bad.yaml", *words]), message


def test_binary_file_and_folder_are_refused(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(UserError, match="cannot be read"):
            parse(["--config", str(path)])


_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.text(max_size=3), max_size=2)
)
_sections = st.sampled_from([*(o.split(".")[0] for o in OPTIONS), "other"])
_keys = st.sampled_from([o.split(".")[-1] for o in OPTIONS]) | st.text(max_size=5)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_sections, _leaves | st.dictionaries(_keys, _leaves, max_size=3), max_size=4))
def test_any_mapping_is_a_configuration_or_a_user_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "any.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        assert isinstance(parse(["--config", str(path)]), Config)
    except UserError as error:
        message = str(error)
        assert message
        assert "\n" not in message


def test_help_begins_with_the_ten_options_that_people_use_most(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    most_used, sections = capsys.readouterr().out.split("Most used:\n")[1].split("\n options", 1)
    lines = most_used.strip().splitlines()
    assert len(lines) == 10
    flags = {line.split()[0] for line in lines}
    assert flags - {"--config"} == {flag for flag in flags if f"\n  {flag} " in sections}
    recipes = re.search(r"a recipe \((.*?), \.\.\.\)", most_used)[1].split(", ")
    assert set(recipes) <= {path.stem for path in cli.RECIPES.glob("*.yaml")}
    modes = dict(line.split(None, 2)[::2] for line in lines)
    for flag, choices in (("--wandb.mode", WandbConfig), ("--runtime.precision", RuntimeConfig)):
        known = get_args(get_type_hints(choices)[flag.rpartition(".")[2]])
        assert set(re.split(", | or ", modes[flag])) == set(known) - {"auto"}
