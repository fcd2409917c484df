"""The options that there are, and which of them a resumed run must not change."""

import dataclasses

from options import OPTIONS

from alexnet_dist.config import Config, changed_fields, flat, parse, to_dict


def test_options_are_the_known_ones():
    assert sorted(flat(to_dict(Config()))) == sorted(OPTIONS)


def test_changed_fields_names_what_a_resume_must_not_change():
    config = Config()
    recorded = to_dict(dataclasses.replace(config, epochs=3, seed=9))
    recorded["log"]["every_steps"] = 1
    recorded["optim"]["lr"] = 0.1
    assert changed_fields(recorded, config) == ["optim.lr: 0.1 -> 0.0005", "seed: 9 -> 0"]
    assert changed_fields(to_dict(config), config) == []


def test_a_field_that_an_older_version_did_not_have_counts_as_its_default():
    recorded = to_dict(parse([]))
    del recorded["optim"]["ema"]
    assert changed_fields(recorded, parse([])) == []
    assert changed_fields(recorded, parse(["--optim.ema", "0.9"])) == ["optim.ema: None -> 0.9"]


def test_a_run_of_version_0_1_continues_with_the_initial_weights_that_it_drew():
    recorded = to_dict(parse([]))
    del recorded["model"]["conv1_init_scale"]
    assert changed_fields(recorded, parse(["--model.conv1-init-scale", "1"])) == []
    assert changed_fields(recorded, parse([])) == ["model.conv1_init_scale: 1.0 -> 0.1"]
