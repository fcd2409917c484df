"""What GitHub and package indexes read: workflows, the citation, the changelog and the one place of the version."""

import re
import subprocess
import sys

import pytest
import yaml
from places import ROOT

import alexnet_dist

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def steps():
    return [step for workflow in WORKFLOWS.values() for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_version_is_written_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert re.search(r"^## (\S+)", CHANGELOG, re.MULTILINE)[1] == alexnet_dist.__version__


def test_the_citation_names_the_licence_of_the_package():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == PROJECT["license"]


def test_every_python_that_the_package_claims_is_tested():
    matrix = WORKFLOWS["checks"]["jobs"]["test"]["strategy"]["matrix"]
    claimed = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", name)]
    assert matrix["python"] == claimed
    assert {pair["dependencies"] for pair in matrix["include"]} | set(matrix["dependencies"]) == {
        "oldest",
        "pinned",
        "newest",
    }


def test_actions_are_pinned_and_tokens_are_no_wider_than_needed():
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in used)
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}
    jobs = WORKFLOWS["release"]["jobs"]
    wider = {name: job["permissions"] for name, job in jobs.items() if "permissions" in job}
    assert wider == {"pypi": {"id-token": "write"}, "github": {"contents": "write"}}


@pytest.mark.parametrize(
    ("tag", "says"),
    [("v1.2.3", None), ("v1.2.4", "the tag is v1.2.4"), ("v2.0.0", "has no line '## 2.0.0 (YYYY-MM-DD)'")],
)
def test_a_release_needs_the_tag_of_its_version_and_a_dated_part_of_the_changelog(tmp_path, tag, says):
    (tmp_path / "alexnet_dist").mkdir()
    version = "2.0.0" if tag == "v2.0.0" else "1.2.3"
    (tmp_path / "alexnet_dist" / "__init__.py").write_text(f'__version__ = "{version}"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## 2.0.0 (unreleased)\n\n* no\n\n## 1.2.3 (2026-11-27)\n\n* yes\n\n## 1.2.2\n\n* old\n"
    )
    (script,) = [step["run"] for step in steps() if step.get("name", "").startswith("Compare the tag")]
    environment = {"GITHUB_REF_NAME": tag, "PATH": f"{sys.exec_prefix}/bin:/usr/bin:/bin"}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if says is None:
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert (tmp_path / "notes.md").read_text().strip() == "* yes"
    else:
        assert ended.returncode == 1
        assert says in ended.stdout
