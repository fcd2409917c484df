"""The shipped recipes: all of them load, and hold what their names promise."""

import pytest
import yaml
from places import ROOT

from alexnet_dist.config import Config, flat, parse, to_dict
from alexnet_dist.errors import UserError


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_load(recipe):
    config = parse(["--config", str(recipe)])
    assert isinstance(config, Config)
    assert config.wandb.group == recipe.stem, "W&B's view groups runs by it"
    named = flat(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    names = {"optim.name", "model.conv1_init_scale", *(["optim.muon_layers"] if config.optim.name == "muon" else [])}
    assert names <= named.keys(), "so that they do not change with the defaults"


def test_lecture_recipe_is_the_lecture():
    config = parse(["--config", str(ROOT / "recipes/lecture.yaml")])
    assert (config.epochs, config.data.dataset, config.data.batch_size, config.data.image_size) == (
        2,
        "cifar10",
        512,
        224,
    )
    assert (config.data.augment, config.data.normalize) == (False, False)
    assert (config.optim.name, config.optim.lr, config.optim.schedule) == ("adam", 1e-4, "constant")
    assert (config.optim.weight_decay, config.optim.label_smoothing, config.optim.scale_lr) == (0, 0, "none")
    assert (config.model.init, config.model.dropout, config.data.mixup, config.data.cutmix) == (
        "torch",
        0.5,
        None,
        None,
    )


def test_the_reference_recipe_is_the_default():
    written, default = (
        flat(to_dict(parse(flags))) for flags in (["--config", str(ROOT / "recipes/reference.yaml")], [])
    )
    changed = {key: written[key] for key in written if written[key] != default[key]}
    assert changed == {"optim.weight_decay": 0.5, "wandb.group": "reference"}
    assert default["optim.weight_decay"] is None, (
        "which is Muon's 0.5 (test_optimizer), and right for other optimizers too"
    )


def test_a_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["--config", "lecture"]) == parse(["--config", str(ROOT / "recipes/lecture.yaml")])


def test_a_file_that_exists_wins_over_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lecture").write_text("epochs: 77")
    assert parse(["--config", "lecture"]).epochs == 77
    (tmp_path / "quick").mkdir()
    assert parse(["--config", "quick"]) == parse(["--config", str(ROOT / "recipes/quick.yaml")]), "a folder is no file"


def test_a_name_that_is_no_recipe_lists_them():
    with pytest.raises(UserError, match=r"--config lectur: there is no such file, and the recipes are .*lecture, long"):
        parse(["--config", "lectur"])


@pytest.mark.parametrize("name", ["./lecture", "../recipes/lecture", "recipes/nothing.yaml"])
def test_a_path_is_not_taken_for_a_recipe(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no such file"):
        parse(["--config", name])
