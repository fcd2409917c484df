"""report.html: what it shows of a run folder, whole or not, and that it asks for nothing and runs no name's content."""

import base64
import gzip
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from run_folders import HOSTILE, Page, make_run, page_of

from alexnet_dist.errors import UserError
from alexnet_dist.report import charts
from alexnet_dist.report import page as report
from alexnet_dist.text import NOTHING

WORDS = [
    *("run-7", "finished", "53.00 %", "epoch 3", "3 of 3", "30 steps", "1 m 15 s", "1,234", "MFU 12.3 %", "1.25 GiB"),
    *("cifar10", "bf16", "CPU", "256", "0123abc", "torch 2.10", "Worst errors", "First training batch"),
    "25 images, 72.00 % on the diagonal, after epoch 3",
    *("dog (2, 22.22 %)", "taken for dog 98.0 %, loss 6.25"),
]  # fmt: skip


def test_rate_above_the_measured_peak_is_shown_with_the_reason(tmp_path):
    folder = make_run(tmp_path / "run-7")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    (folder / "summary.json").write_text(json.dumps({**summary, "peak_tflops": 1.0}), encoding="utf-8")
    assert "MFU 123.4 % (the peak measured at the start is too low)" in page_of(folder).text


def test_the_page_of_a_run(tmp_path):
    path = report.write(make_run(tmp_path / "run-7"))
    page = Page(path)
    assert path == tmp_path / "run-7/report.html"
    assert sorted(p.name for p in path.parent.iterdir() if p.name.startswith(".")) == []
    for words in WORDS:
        assert words in page.text, words
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in next(m["content"] for m in page.all("meta") if m.get("name") == "viewport")
    assert len(page.ids()) == len(set(page.ids()))
    assert {tag for tag, _ in page.tags} >= {"header", "nav", "main", "footer", "h1", "h2", "h3"}
    targets = {a["href"].removeprefix("#") for a in page.all("a") if a["href"].startswith("#")}
    assert targets <= set(page.ids())


def test_the_policy_allows_the_two_scripts_and_no_request(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    plotly = gzip.decompress(base64.b64decode(re.search(r'id="plotly">(.*?)</script>', page.source)[1])).decode()
    assert plotly.count("plotly.js v") == 1
    digests = [hashlib.sha256(text.encode()).digest() for text in (plotly, script)]
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert rules["script-src"].split() == [f"'sha256-{base64.b64encode(each).decode()}'" for each in digests]
    assert page.source.index("Content-Security-Policy") < page.source.index("<style")
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "audio", "video")
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes[name][:80])
        assert not [name for name in attributes if name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "showSendToCloud: false" in script, "plotly 7 offers to send a chart to its servers, if not told otherwise"


def test_names_stay_text(tmp_path):
    classes = [HOSTILE, "dog", "${7*7}"]
    folder = make_run(
        tmp_path / "<b>run", classes=classes, dataset=HOSTILE, device=HOSTILE, status=HOSTILE, git_commit=HOSTILE
    )
    other = make_run(tmp_path / "<i>other", lr=1e-3, fallback_for=HOSTILE)
    report.main([str(folder), str(other), "--out", str(tmp_path / "both.html")])
    for page in (page_of(folder), Page(tmp_path / "both.html")):
        assert [script.get("type") for script in page.all("script")] == ["application/json", "text/plain", None]
        assert "b" not in [tag for tag, attributes in page.tags if attributes.get("src") == "x"]
        assert all(image["src"].startswith("data:") for image in page.all("img"))
        assert "<img src=x" not in page.source
        assert "{{ 7 * 7 }}" in page.text
        for trace in [trace for key in page.data["figures"] if key != "confusion" for trace in page.traces(key)]:
            hover = trace.get("hovertemplate", "").replace("<extra>", "").replace("</extra>", "")
            assert "<" not in trace["name"] + hover, "plotly reads a little HTML"
    page = page_of(folder)
    assert page.layout("confusion")["xaxis"]["ticktext"][0] == "&lt;/script&gt;&lt;img..."
    escaped = html.escape(HOSTILE, quote=False)
    assert page.traces("confusion")[0]["customdata"][0][1].startswith(f"true {escaped}, predicted dog<br>")


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    folder = make_run(tmp_path / os.fsdecode(b"caf\xe9"), dataset=os.fsdecode(b"data/caf\xe9"))
    page = page_of(folder)
    assert r"caf\xe9" in page.text


def test_paths_of_the_machine_stay_there(tmp_path):
    folder = make_run(tmp_path / "run", dataset="/home/somebody/data/cats", fallback_for="C:\\Users\\somebody\\dogs")
    page = page_of(folder)
    assert str(tmp_path) not in page.source
    assert "somebody" not in page.source
    assert ".../this" in page.text
    assert ".../cats" in page.text
    assert ".../dogs could not be had" in page.text


def commands_of(page):
    return re.findall(r"<code>(alexnet-dist .*)</code>", page.source)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("run-7", "run-7"), ("my run", "'my run'"), ("it's $HOME", "'it'\"'\"'s $HOME'"), ("-rf", "./-rf")],
)
def test_the_commands_of_the_run(tmp_path, name, quoted):
    page = page_of(make_run(tmp_path / name, epochs=1))
    assert [html.unescape(line) for line in commands_of(page)] == [
        f"alexnet-dist evaluate {quoted}",
        f"alexnet-dist predict {quoted} FILE",
        f"alexnet-dist features {quoted} FILE",
        f"alexnet-dist export {quoted} --format onnx",
        f"alexnet-dist publish {quoted} owner/name",
    ]
    words = ["sh", "-c", f"printf %s {html.unescape(commands_of(page)[0]).removeprefix('alexnet-dist evaluate ')}"]
    assert Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout) == Path(name)
    assert f"in the folder that holds {name} ." in page.text


def test_the_commands_have_the_path_from_where_the_page_was_written(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "my runs" / "run", epochs=1)
    monkeypatch.chdir(tmp_path)
    page = page_of(folder)
    assert html.unescape(commands_of(page)[0]) == "alexnet-dist evaluate 'my runs/run'"
    assert "in the folder that holds my runs ." in page.text
    monkeypatch.chdir(folder)
    assert commands_of(page_of(folder))[0] == "alexnet-dist evaluate run"


def test_there_are_no_commands_before_the_first_evaluation_and_for_several_runs(tmp_path):
    folder, other = (make_run(tmp_path / name, epochs=1) for name in "ab")
    report.main([str(folder), str(other), "--out", str(tmp_path / "both.html")])
    assert commands_of(Page(tmp_path / "both.html")) == []
    (folder / "metrics.jsonl").write_text('{"global_step": 1, "epoch": 1, "train/loss": 2.0}\n')
    assert commands_of(page_of(folder)) == []


def test_several_runs(tmp_path):
    folders = [make_run(tmp_path / "a", epochs=2), make_run(tmp_path / "b", epochs=4, lr=1e-3, status="stopped")]
    namesake = make_run(tmp_path / "deep" / "a", dataset="digits", fallback_for="cifar10")
    for epoch in (1, 2):
        shutil.rmtree(namesake / f"figures/epoch_{epoch:04d}")
    assert report.main([*map(str, folders), str(namesake), "--out", str(tmp_path / "out.html")]) == 0
    page = Page(tmp_path / "out.html")
    assert "3 runs compared" in page.text
    for words in ("b (best)", "a (2)", "52.00 %", "54.00 %", "b: stopped", "a (2) trained on digits instead"):
        assert words in page.text, words
    assert "--optim.lr 0.0005 0.001 0.0005" in page.text
    assert "--epochs 2 4 3" in page.text
    assert "--seed" not in page.text
    assert "--out-dir" not in page.text
    top1 = [trace for trace in page.traces("accuracy") if trace["line"]["dash"] == "solid"]
    colours = [(trace["name"], trace["line"]["color"]) for trace in top1]
    assert colours == [("a", "--colour-0"), ("b", "--colour-1"), ("a (2)", "--colour-2")]
    assert [trace["showlegend"] for trace in page.traces("accuracy")] == [True, False] * 3 + [True], "one entry a run"
    assert "Accuracy in evaluation % solid: top-1; dashed: top-5" in page.text
    frames = page.data["player"]["frames"]
    assert [frame["value"] for frame in frames] == [f"epoch {epoch} of 4" for epoch in (1, 2, 3, 4)]
    assert frames[3]["images"]["0-conv1_now"] == frames[1]["images"]["0-conv1_now"], "a ended at 2"
    epochs = [[frame["texts"][f"{run}-conv1"].partition(",")[0] for frame in frames] for run in range(3)]
    assert epochs[0] == ["epoch 1", "epoch 2", "epoch 2", "epoch 2"]
    assert epochs[1] == ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]
    assert epochs[2] == ["epoch 3"] * 4, "all that it has"
    assert [image["data-slot"] for image in page.all("img")][:3] == [f"{run}-conv1_before" for run in range(3)]
    assert "epoch a, top-1 a, top-5 b, top-1 b, top-5" in page.text
    assert "3 - - 53 90 53 90 4 - - 54 90 - -" in page.text.replace(NOTHING, "-"), "below the accuracy's chart"


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", epochs=1)
    make_run(tmp_path / "b", epochs=1)
    assert report.main(["a"]) == 0
    assert capsys.readouterr().out.startswith("a/report.html (")
    assert report.main(["a", "b"]) == 0
    assert Path("report.html").exists()
    assert report.main(["b", "--out", "other.html"]) == 0
    assert not Path("b/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "missing: there is no such folder"),
        (["empty"], "empty holds no metrics.jsonl"),
        (["file"], "file: there is no such folder"),
        ([], "RUN"),
        (["a", "--port", "80"], "--port"),
        (["a", "--out", "no/such/folder.html"], "no/such/folder.html cannot be written"),
        (["a", "--out", "empty"], "empty cannot be written"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", epochs=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


def test_the_module_runs_without_torch(tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    code = (
        "import runpy, sys; sys.argv = ['report', sys.argv[1]]\n"
        "try: runpy.run_module('alexnet_dist.report', run_name='__main__')\n"
        "except SystemExit as stop: print(stop.code, {'torch', 'accelerate', 'wandb', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.endswith("0 set()\n")
    assert result.stderr == ""


def test_write_raises_for_its_caller(tmp_path):
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        report.write(tmp_path)


def contrast(one, other):
    """Return WCAG's ratio of two colours such as #1f5fa8."""

    def luminance(colour):
        values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_told_from_their_ground():
    style = (ROOT / "alexnet_dist/report/templates/report.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in style.split("(prefers-color-scheme: dark)")
    )
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for ground in ("page", "panel"):
            for name in ("text", "quiet", "accent", "good", "bad"):
                assert contrast(scheme[name], scheme[ground]) >= 4.5, name
            for name in [*(name for name in scheme if name.startswith("colour-")), "faint", "chance"]:
                least = 3 if name != "faint" else 2.5
                assert contrast(scheme[name], scheme[ground]) >= least, name
        assert contrast(scheme["warn-text"], scheme["warn-page"]) >= 4.5
        for percentage in range(101):
            empty, heat = (
                np.array([int(scheme[name][at : at + 2], 16) for at in (1, 3, 5)]) for name in ("empty", "heat")
            )
            shade = np.round(empty + percentage / 100 * (heat - empty)).astype(int)
            number = charts._number_colour(percentage / 100).removeprefix("--")
            assert contrast(scheme[number], "#" + bytes(shade.tolist()).hex()) >= 4.5, (number, percentage)
