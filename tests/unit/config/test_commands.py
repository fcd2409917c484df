"""Options of the commands that use a trained network: positionals, ranges, and the option that was meant."""

import pytest

from alexnet_dist.config import DataConfig
from alexnet_dist.config.cli import parse_options
from alexnet_dist.config.commands import EvaluateOptions, PredictOptions
from alexnet_dist.errors import UserError


def test_words_come_before_options():
    found = parse_options(["RUN", "a.png", "-", "--top", "3", "--runtime.cpu"], PredictOptions(), prog="predict")
    assert found.paths == ("RUN", "a.png", "-")
    assert (found.top, found.runtime.cpu, found.runtime.precision) == (3, True, "run")


def test_defaults_may_be_those_of_a_run():
    run = EvaluateOptions(data=DataConfig(dataset="digits", batch_size=8))
    found = parse_options(["RUN", "--data.batch-size", "4"], run, prog="evaluate")
    assert (found.data.dataset, found.data.batch_size) == ("digits", 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "--tpo", "3"], "did you mean --top"),
        (["RUN", "--top", "0"], "--top must be at least 1"),
        (["RUN", "--format", "xml"], "--format"),
        (["RUN", "--mean", "0.5"], "--mean"),
    ],
)
def test_mistakes_are_one_line_that_helps(arguments, words):
    with pytest.raises(UserError, match=words) as refusal:
        parse_options(arguments, PredictOptions(), prog="alexnet-dist predict")
    assert "\n" not in str(refusal.value)
    assert "alexnet-dist predict --help" in str(refusal.value)
