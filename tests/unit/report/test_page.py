"""report.html: what it shows of a run folder, whole or not, and that it asks for nothing and runs no name's content."""

import base64
import html.parser
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from alexnet_dist.config import Config, to_dict
from alexnet_dist.errors import UserError
from alexnet_dist.report import charts
from alexnet_dist.report import page as report
from alexnet_dist.text import NBSP, NOTHING

ROOT = Path(__file__).parents[3]
HOSTILE = "</script><img src=x onerror=\"document.title='run'\"><b>bold</b>{{ 7 * 7 }}"
CLASSES = ["cat", "dog", "frog"]
STEPS = 10
LAYERS = ("conv1", "conv2")
WHICH = ("before", "now", "diff")
EPOCH_PICTURES = [f"{layer}_{which}" for layer in (*LAYERS, "conv1_seen", "conv2_overview") for which in WHICH]


WORDS = [
    *("run-7", "finished", "53.00 %", "epoch 3", "3 of 3", "30 steps", "1 m 15 s", "1,234", "MFU 12.3 %", "1.25 GiB"),
    *("cifar10", "bf16", "CPU", "256", "0123abc", "torch 2.10", "Worst errors", "First training batch"),
    "25 images, 72.00 % on the diagonal, after epoch 3",
    *("dog (2, 22.22 %)", "taken for dog 98.0 %, loss 6.25"),
]  # fmt: skip


def save(path, *, colour, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def records_of(epochs, *, classes=CLASSES):
    records = []
    for epoch in range(1, epochs + 1):
        for step in range((epoch - 1) * STEPS + 1, epoch * STEPS + 1):
            record = {"global_step": step, "epoch": epoch, "samples_seen": 8 * step, "train/loss": 2 / step}
            record |= {"train/lr": 5e-4, "train/grad_norm": 0.5, "optim/weight_norm": 60.0 + step, "perf/mfu": 0.41}
            record |= {"perf/images_per_second": 2000.0, "perf/step_ms": 4.0, "perf/step_ms_p50": 3.5}
            records.append(record | {"perf/step_ms_p95": 5.0, "perf/memory_gib": 1.25})
        top1 = 0.5 + 0.01 * epoch
        ended = {"global_step": epoch * STEPS, "epoch": epoch, "train/epoch_loss": 2 / epoch, "val/loss": 2.2 / epoch}
        ended |= {"val/top1": top1, "val/top5": 0.9, "best/top1": top1}
        ended |= {f"per_class/{name}": top1 for name in classes}
        for layer in LAYERS:
            ended |= {f"kernels/{layer}_rel_change": 0.1 * epoch, f"kernels/{layer}_cosine": 0.99}
            ended |= {f"kernels/{layer}_dead": 3, f"kernels/{layer}_norm_min": 0.25}
            ended |= {f"kernels/{layer}_norm_median": 0.5, f"kernels/{layer}_norm_max": 0.75}
        records.append(ended)
    return records


def make_run(folder, *, epochs=3, classes=CLASSES, lr=5e-4, newer=True, **summary):
    """Write a run folder; without its newer files it is one of an older version."""
    folder.mkdir(parents=True)
    config = to_dict(Config())
    config |= {"epochs": epochs, "out_dir": "/home/somebody/runs/this"}
    config["optim"]["lr"] = lr
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    lines = [json.dumps(record) for record in records_of(epochs, classes=classes)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    known = {"status": "finished", "global_step": epochs * STEPS, "best_top1": 0.5 + 0.01 * epochs, "epochs": epochs}
    known |= {"final_top1": 0.5 + 0.01 * epochs, "best_epoch": epochs, "wall_seconds": 75.0, "steps_per_epoch": STEPS}
    known |= {"images_per_second": 1234.0, "flops_per_image": 1e9, "peak_tflops": 10.0, "num_classes": len(classes)}
    known |= {"dataset": "cifar10", "fallback_for": None, "device": "CPU", "world_size": 2, "precision": "bf16"}
    known |= {"versions": {"torch": "2.10"}, "git_commit": "0123abc", "num_train_images": 80, "num_eval_images": 24}
    (folder / "summary.json").write_text(json.dumps(known | summary))
    for place, name in enumerate(EPOCH_PICTURES[:6]):
        save(folder / "figures" / f"{name}.png", colour=(place, 0, 200))
    save(folder / "figures/confusion.png", colour=(1, 2, 3))
    if newer:
        add_newer_files(folder, epochs=epochs, classes=classes)
    return folder


def add_newer_files(folder, *, epochs, classes):
    for epoch in range(1, epochs + 1):
        for place, name in enumerate(EPOCH_PICTURES):
            colour = (place, epoch, 100) if not name.endswith("before") else (place, 0, 100)
            save(folder / f"figures/epoch_{epoch:04d}/{name}.png", colour=colour)
    save(folder / "figures/first_batch.png", colour=(9, 9, 9))
    sheet = Image.new("RGB", (512, 128), (255, 255, 255))
    worst = []
    for index in range(10):
        sheet.paste(
            (index + 1, 50, 60), (64 * (index % 8), 64 * (index // 8), 64 * (index % 8) + 64, 64 * (index // 8) + 64)
        )
        worst.append({"id": 17 + index, "label": 0, "predicted": 1, "probability": 0.98, "loss": 6.25})
    sheet.save(folder / "figures/errors.png")
    confusion = np.full((len(classes), len(classes)), 1) + 5 * np.eye(len(classes), dtype=int)
    confusion[0, 1] = 2
    evaluation = {"epoch": epochs, "global_step": epochs * STEPS, "class_names": list(classes)}
    evaluation |= {"confusion": confusion.tolist(), "worst": worst}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


class Page(html.parser.HTMLParser):
    """A page's tags with their attributes, its visible text, and its data."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self._script = [], [], False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', self.source, re.DOTALL)
        self.data = json.loads(found[1])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._script = self._script and tag not in ("script", "style")

    def handle_data(self, data):
        if not self._script:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace(NBSP, " ").split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def chart(self, key):
        return next(chart for chart in self.data["charts"] if chart["key"] == key)


def page_of(folder):
    return Page(report.write(folder))


def pixel(uri):
    """Return the first pixel of a picture in the page."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))) as image:
        return image.convert("RGB").getpixel((0, 0)), image.size


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
    assert page.source.count("plotly.js v") == 1
    targets = {a["href"].removeprefix("#") for a in page.all("a") if a["href"].startswith("#")}
    assert targets <= set(page.ids())


def test_every_chart_holds_its_numbers(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    charts = {chart["key"]: [trace["name"] for trace in chart["traces"]] for chart in page.data["charts"]}
    assert charts == {
        "loss": ["training, steps", "training, mean of the epoch", "evaluation", "chance, ln 3 = 1.099 nats"],
        "accuracy": ["top-1", "top-5", "chance, 1 of 3 = 33.33 %"],
        "lr": ["learning rate"],
        "kernels": ["conv1", "conv2"],
        "gradient": ["gradient norm"],
        "weights": ["weight norm"],
        "speed": ["images per second"],
        "step": ["mean", "median", "95th percentile"],
        "classes": CLASSES,
    }
    loss = page.chart("loss")["traces"]
    assert loss[0]["x"] == pytest.approx([step / STEPS for step in range(1, 31)])
    assert loss[2]["x"] == [1, 2, 3]
    assert loss[2]["y"] == pytest.approx([2.2, 1.1, 2.2 / 3], rel=1e-4)
    assert loss[3]["y"] == pytest.approx([math.log(3)] * 2)
    assert page.chart("accuracy")["traces"][0]["y"] == pytest.approx([51, 52, 53])
    for key in charts:
        assert f"chart-{key}" in page.ids()
    assert page.text.count("as a table") == len(charts) + 1, "one below each, and the confusion matrix"
    lines = "training, steps training, mean of the epoch evaluation"
    assert f"Loss (nats) epoch {lines} 1 0.2 2 2.2 2 0.1 1 1.1" in page.text


def test_the_slider_has_a_frame_for_each_epoch(tmp_path):
    page = page_of(make_run(tmp_path / "run", epochs=4))
    frames, pictures = page.data["player"]["frames"], page.data["player"]["pictures"]
    assert [frame["value"] for frame in frames] == [f"epoch {epoch} of 4" for epoch in range(1, 5)]
    assert frames[1]["caption"] == f"epoch 2 of 4, step 20, top-1 52.00{NBSP}%"
    text = "relative change 0.2000, cosine to the start 0.9900, 3 dead kernels, kernel norms 0.25 / 0.5 / 0.75"
    assert frames[1]["texts"]["0-conv2"] == f"{text} (least / median / most)"
    for epoch, frame in enumerate(frames, 1):
        assert set(frame["images"]) == {f"0-{name}" for name in EPOCH_PICTURES}
        for place, name in enumerate(EPOCH_PICTURES):
            shown = (place, 0, 100) if name.endswith("before") else (place, epoch, 100)
            assert pixel(pictures[frame["images"][f"0-{name}"]]) == (shown, (16, 16)), "the same picture to the bit"
    assert len(pictures) == 4 + 8 * 4, "what does not change is held once"
    slider = next(a for a in page.all("input") if a["type"] == "range")
    assert slider | {"min": "0", "max": "3", "value": "3", "aria-valuetext": "epoch 4 of 4"} == slider
    assert [label["for"] for label in page.all("label")] == [slider["id"]]
    slots = {image["data-slot"]: image for image in page.all("img") if "data-slot" in image}
    assert set(slots) == set(frames[-1]["images"])
    for slot, image in slots.items():
        assert image["src"] == pictures[frames[-1]["images"][slot]], "without scripts, the last epoch"
        assert image["alt"]


def test_many_epochs_are_thinned_and_said_to_be(tmp_path):
    page = page_of(make_run(tmp_path / "run", epochs=75))
    shown = [int(frame["value"].split()[1]) for frame in page.data["player"]["frames"]]
    assert len(shown) == 60
    assert (shown[0], shown[-1]) == (1, 75)
    assert set(np.diff(shown)) == {1, 2}
    assert "60 of 75 epochs with pictures are shown, evenly spaced" in page.text
    assert len(page.chart("accuracy")["traces"][0]["x"]) == 75, "the curves have all"
    assert "25 of 75 places" in page.text


def test_long_curves_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "MOST_POINTS", 7)
    xs = page_of(make_run(tmp_path / "run")).chart("loss")["traces"][0]["x"]
    assert len(xs) == 7
    assert (xs[0], xs[-1]) == (0.1, 3)


def test_pictures_of_epochs_that_a_resumed_run_has_not_reached_again(tmp_path):
    folder = make_run(tmp_path / "run", epochs=4)
    lines = [json.dumps(record) for record in records_of(2)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    assert len(page_of(folder).data["player"]["frames"]) == 2


def test_thumbnails_are_cut_in_order(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    thumbnails = [image for image in page.all("img") if image["alt"].startswith("test image")]
    assert [image["alt"] for image in thumbnails] == [f"test image {17 + index}" for index in range(10)]
    assert [pixel(image["src"]) for image in thumbnails] == [((index + 1, 50, 60), (64, 64)) for index in range(10)]


def test_the_policy_allows_the_two_scripts_and_no_request(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    scripts = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert rules["script-src"].split() == [f"'sha256-{report._hash(script)}'" for script in scripts]
    assert len(scripts) == 2
    assert page.source.index("Content-Security-Policy") < page.source.index("<style")
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "audio", "video")
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes[name][:80])
        assert not [name for name in attributes if name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    script = scripts[1]
    assert "showSendToCloud: false" in script, "plotly 7 offers to send a chart to its servers, if not told otherwise"


def test_names_stay_text(tmp_path):
    classes = [HOSTILE, "dog", "${7*7}"]
    folder = make_run(
        tmp_path / "<b>run", classes=classes, dataset=HOSTILE, device=HOSTILE, status=HOSTILE, git_commit=HOSTILE
    )
    other = make_run(tmp_path / "<i>other", lr=1e-3, fallback_for=HOSTILE)
    report.main([str(folder), str(other), "--out", str(tmp_path / "both.html")])
    for page in (page_of(folder), Page(tmp_path / "both.html")):
        assert [script.get("type") for script in page.all("script")] == ["application/json", None, None]
        assert "b" not in [tag for tag, attributes in page.tags if attributes.get("src") == "x"]
        assert all(image["src"].startswith("data:") for image in page.all("img"))
        assert "<img src=x" not in page.source
        assert "{{ 7 * 7 }}" in page.text
        for trace in [trace for chart in page.data["charts"] for trace in chart["traces"]]:
            assert "<" not in trace["name"] + trace.get("label", ""), "plotly reads a little HTML"
    labels = page_of(folder).data["confusion"]["labels"]
    assert labels[0].startswith("&lt;/script&gt;&lt;img")


def test_paths_of_the_machine_stay_there(tmp_path):
    folder = make_run(tmp_path / "run", dataset="/home/somebody/data/cats", fallback_for="C:\\Users\\somebody\\dogs")
    page = page_of(folder)
    assert str(tmp_path) not in page.source
    assert "somebody" not in page.source
    assert ".../this" in page.text
    assert ".../cats" in page.text
    assert ".../dogs could not be had" in page.text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("stopped", "stopped; the same command continues it"),
        ("max_steps", "ended early, at --max-steps"),
        ("non-finite", "ended by a NaN"),
        ("failed", "failed"),
    ],
)
def test_a_run_that_is_not_finished_says_so(status, words, tmp_path):
    page = page_of(make_run(tmp_path / "run", status=status))
    assert words in page.text
    assert "status unfinished" in [p.get("class") for p in page.all("p")]
    assert "status unfinished" not in [p.get("class") for p in page_of(make_run(tmp_path / "fine")).all("p")]


def test_a_fallback_is_announced(tmp_path):
    page = page_of(make_run(tmp_path / "run", dataset="digits", fallback_for="cifar10"))
    assert "cifar10 could not be had: this run trained on digits instead" in page.text
    assert "could not be had" not in page_of(make_run(tmp_path / "fine")).text


def test_what_differs_from_the_defaults_is_marked(tmp_path):
    source = page_of(make_run(tmp_path / "run", epochs=3)).source
    rows = re.findall(r"<tr([^>]*)><th scope=\"row\"><code>(--[\w.-]+)</code>", source)
    assert {name for mark, name in rows if "changed" in mark} == {"--epochs", "--out-dir"}
    assert {"--optim.lr", "--data.batch-size", "--wandb.tags"} <= {name for _, name in rows}


def test_a_run_in_its_first_epoch(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [json.dumps(record) for record in records_of(1)[:4]]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"global_step": 5, "epo')
    page = page_of(folder)
    assert "no summary yet" in page.text
    assert page.chart("loss")["axis"] == "step"
    assert page.chart("loss")["traces"][0]["x"] == [1, 2, 3, 4]
    assert page.data["player"] is None
    assert page.data["confusion"] is None
    for words in ("Kernels", "Worst errors", "Configuration", "First training batch"):
        assert words not in [*page.text.split("Curves"), page.text]


def test_a_folder_without_a_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert "Nothing is recorded yet" in page_of(tmp_path).text


def test_a_resumed_run_is_not_taken_for_finished(tmp_path):
    folder = make_run(tmp_path / "run", status="stopped", global_step=20)
    assert "in an earlier part of the run" in page_of(folder).text


def test_an_older_run(tmp_path):
    page = page_of(make_run(tmp_path / "run", newer=False))
    assert len(page.data["player"]["frames"]) == 1
    assert page.all("input") == []
    assert {image["data-slot"] for image in page.all("img") if "data-slot" in image} == {
        f"0-{name}" for name in EPOCH_PICTURES[:6]
    }
    assert "Confusion matrix of the test images" in [i["alt"].partition(",")[0] for i in page.all("img")]
    assert "Worst errors" not in page.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "[1, 2]"),
        ("summary.json", '{"best_top1": "<b>", "images_per_second": true, "versions": 3, "world_size": {}}'),
        ("summary.json", '{"steps_per_epoch": 1e999, "global_step": %s}' % ("9" * 500)),
        ("config.yaml", "epochs: [1, {a: 2}]\n7: x\nout_dir: {1: 2}"),
        ("config.yaml", "epochs: ]["),
        ("evaluation.json", '{"class_names": ["a"], "confusion": [[1, 2]]}'),
        ("evaluation.json", '{"class_names": ["a", 7], "confusion": [[1, 2], [0, 0]], "worst": [{"label": 9}, 3]}'),
        ("evaluation.json", '{"class_names": ["a"], "confusion": [["<b>"]]}'),
        ("figures/errors.png", "no picture"),
        ("figures/epoch_0002/conv1_now.png", "\x89PNG\r\n\x1a\ntorn"),
        ("figures/first_batch.png", ""),
        ("metrics.jsonl", '7\n[]\n{"global_step": "x", "epoch": 1}\n{"global_step": 1, "epoch": 1, "val/top1": NaN}'),
        ("metrics.jsonl", '{"global_step": 0, "epoch": 0, "val/loss": 1, "val/top1": null, "per_class/": "x"}'),
    ],
)
def test_damaged_files_cost_their_part_alone(name, content, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(content, encoding="utf-8")
    page = page_of(folder)
    assert page.all("h1")
    assert "NaN" not in json.dumps(page.data)


def test_several_runs(tmp_path):
    folders = [make_run(tmp_path / "a", epochs=2), make_run(tmp_path / "b", epochs=4, lr=1e-3, status="stopped")]
    old = make_run(tmp_path / "deep" / "a", newer=False, dataset="digits", fallback_for="cifar10")
    assert report.main([*map(str, folders), str(old), "--out", str(tmp_path / "out.html")]) == 0
    page = Page(tmp_path / "out.html")
    assert "3 runs compared" in page.text
    for words in ("b (best)", "a (2)", "52.00 %", "54.00 %", "b: stopped", "a (2) trained on digits instead"):
        assert words in page.text, words
    assert "--optim.lr 0.0005 0.001 0.0005" in page.text
    assert "--epochs 2 4 3" in page.text
    assert "--seed" not in page.text
    assert "--out-dir" not in page.text
    top1 = [trace for trace in page.chart("accuracy")["traces"] if trace.get("line") == "top-1"]
    assert [(trace["name"], trace["colour"]) for trace in top1] == [("a", 0), ("b", 1), ("a (2)", 2)]
    assert page.chart("accuracy")["note"] == "solid: top-1; dashed: top-5"
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
