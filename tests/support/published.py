"""A run whose networks are published, and the publish command called in this process."""

from pathlib import Path

from tiny import run

from alexnet_dist.commands import publish

NAME = "ada/alexnet-patterns"
FILES = {"model.safetensors", "config.json", "README.md", "kernels.png"}
CLASSES = ("cat", "dog", "frog")


def train(folder: Path) -> Path:
    """Train three epochs with an average of the weights; each epoch is kept, and step 4, in mid-epoch."""
    flags = ["--epochs", "3", "--checkpoint.keep", "9", "--checkpoint.every-steps", "4", "--optim.ema", "0.5"]
    return run(folder, *flags, "--optim.lr", "3e-3")


def dry_run(source: Path, folder: Path, *flags: str) -> Path:
    """Make the folder that would be published, and return it."""
    assert publish.main([str(source), NAME, "--dry-run", str(folder), *flags], prog="publish") == 0
    return folder


def names(folder: Path) -> set[str]:
    """Return the names of a folder's files."""
    return {path.name for path in folder.iterdir()}
