"""The commit that a run records."""

import subprocess

from alexnet_dist.tracking import code_version


def test_code_version_is_a_commit_of_this_checkout(tmp_path, monkeypatch):
    source = tmp_path / "checkout" / "alexnet_dist" / "runlog.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    monkeypatch.setattr(code_version, "__file__", str(source))

    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path / "checkout"), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert code_version.git_commit() is None, "no checkout"
    git("init")
    assert code_version.git_commit() is None, "installed within somebody else's checkout"
    git("add", ".")
    git("commit", "-m", "all")
    commit = git("rev-parse", "HEAD")
    assert code_version.git_commit() == commit
    source.write_text("changed")
    assert code_version.git_commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert code_version.git_commit() is None, "no git"
