"""File and class names outside of ASCII, from the listing to W&B and the report, in a locale that has ASCII alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from class_folders import picture, plant
from places import ROOT, SUPPORT
from tiny import FLAGS

NAMES = ["caf\u00e9", "\u65e5\u672c"]
COMMANDS = """
import json, sys
sys.path[:0] = {paths!r}
import tiny, torchvision
from alexnet_dist.commands.main import main
from alexnet_dist.distributed import hardware
torchvision.models.alexnet = tiny.tiny_alexnet
hardware.matmul_flops = lambda *_: 1e12
assert sys.getfilesystemencoding() == "ascii"
for words in json.loads(sys.argv[1]):
    try:
        main([word.encode().decode("ascii", "surrogateescape") for word in words])
    except SystemExit as end:
        print(words[0], "exits with", end.code, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["enlarge", "crop"])
def test_a_locale_of_ascii_alone(tmp_path, fit):
    """One process runs all commands, as each would import torch for seconds."""
    data, run = tmp_path / NAMES[0], tmp_path / "run"
    pictures = [f"{split}/{name}/{name}{k}.png" for split in ("train", "test") for name in NAMES for k in range(9)]
    for number, path in enumerate(pictures):
        plant(data, path, content=picture(number, size=(8, 8)))
    one = str(data / pictures[0])
    shutil.make_archive(str(data), "zip", data)
    train = ["train", *FLAGS, "--data.dataset", str(data), "--data.fit", fit, "--out-dir", str(run)]
    train += ["--data.cache-dir", str(tmp_path / "cache"), "--log.trackers", "wandb", "--wandb.mode", "offline"]
    commands = [
        train,
        ["evaluate", str(run)],
        ["predict", str(run), one, "--format", "jsonl", "--out", str(tmp_path / f"{NAMES[1]}.jsonl")],
        ["features", str(run), one, "--out", str(tmp_path / "features.safetensors")],
        ["train", *FLAGS, "--data.dataset", f"{data}.zip", "--data.fit", fit, "--max-steps", "1"],
        ["train", *FLAGS, "--data.dataset", str(data) + "-none"],
        ["train", *FLAGS, "--data.dataset", str(data), "--out-dir", str(tmp_path / NAMES[1])],
    ]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "WANDB_ERROR_REPORTING": "false"}
    environment.pop("WANDB_MODE", None)
    code = COMMANDS.format(paths=[str(ROOT), str(SUPPORT)])
    words = [sys.executable, "-c", code, json.dumps(commands)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    told = [line for line in ended.stdout.splitlines() if " exits with " in line]
    assert told == [
        f"{words[0]} exits with {code}" for words, code in zip(commands, (0, 0, 0, 0, 0, 2, 2), strict=True)
    ], ended.stderr
    assert "Traceback" not in ended.stderr
    assert "left out" not in ended.stderr
    assert "error: --out-dir " in ended.stderr
    assert json.loads((run / "evaluation.json").read_text())["class_names"] == NAMES
    assert NAMES[0] in (run / "report.html").read_text(encoding="utf-8")
    assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith(r"caf\xe9.zip-")
    (row,) = map(json.loads, (tmp_path / f"{NAMES[1]}.jsonl").read_text().splitlines())
    assert Path(row["file"]) == Path(one)
    assert {found["name"] for found in row["classes"]} == set(NAMES)
