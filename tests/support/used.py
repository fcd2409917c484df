"""Commands that use a trained network, on the CPU, and the logits that evaluation computes."""

import pytest

from alexnet_dist.commands import main
from alexnet_dist.training.metrics import EvalCounts


def command(name, *arguments):
    """Return a command's exit code."""
    with pytest.raises(SystemExit) as ended:
        main.main([name, *map(str, arguments), "--runtime.cpu"])
    return ended.value.code


def logits_of_evaluation(monkeypatch, folder, *flags):
    """Return the logits of each test image, by id, as the evaluate command computes them."""
    found = {}
    add = EvalCounts.add

    def spy(self, logits, labels, losses, ids, **keywords):
        found.update(zip(ids.tolist(), logits.tolist(), strict=True))
        return add(self, logits, labels, losses, ids, **keywords)

    monkeypatch.setattr(EvalCounts, "add", spy)
    assert command("evaluate", folder, *flags) == 0
    return [found[k] for k in range(len(found))]
