"""Versions of dependencies: constraints-oldest.txt has the oldest allowed, constraints.txt those of `make install`."""

import sys

from packaging.requirements import Requirement
from packaging.version import Version
from places import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(lines):
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def pinned(name):
    """Return the versions that a file of constraints has, by the packages' names."""
    found = requirements((ROOT / name).read_text(encoding="utf-8").splitlines())
    return {one.name: Version(next(iter(one.specifier)).version) for one in found}


def floors(lines):
    """Return the oldest versions that requirements allow, by the packages' names."""
    allowed = {
        one.name: [spec.version for spec in one.specifier if spec.operator == ">="] for one in requirements(lines)
    }
    return {name: Version(versions[0]) for name, versions in allowed.items() if versions}


def test_the_oldest_versions_that_are_tried_are_the_oldest_allowed():
    oldest, tried = pinned("constraints-oldest.txt"), pinned("constraints.txt")
    needed = floors([*PROJECT["dependencies"], *EXTRAS["demo"], *EXTRAS["tensorboard"]])
    tools = floors(line for line in EXTRAS["dev"] if line.startswith(("pytest", "hypothesis")))
    torch = {name: tried[name] for name in ("torch", "torchvision")}  # large, and made for each other
    assert oldest == needed | tools | torch


def test_what_make_installs_is_allowed():
    allowed = {one.name: one.specifier for one in requirements(PROJECT["dependencies"])}
    tried = pinned("constraints.txt")
    assert all(tried[name] in specifier for name, specifier in allowed.items() if name in tried)
    assert tried["pillow"] >= Version("13"), "from which on its resize differs"
