"""Run folders as train.py leaves them, made up, and the page that is written of one."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import yaml
from PIL import Image

from alexnet_dist.config import Config, to_dict
from alexnet_dist.report import page as report
from alexnet_dist.text import NBSP

HOSTILE = "</script><img src=x onerror=\"document.title='run'\"><b>bold</b>{{ 7 * 7 }}"
CLASSES = ["cat", "dog", "frog"]
STEPS = 10
LAYERS = ("conv1", "conv2")
WHICH = ("before", "now", "diff")
EPOCH_PICTURES = [f"{layer}_{which}" for layer in (*LAYERS, "conv2_overview") for which in WHICH]


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
            ended |= {f"kernels/{layer}_dead": 3, f"kernels/{layer}_signal": 0.25}
            ended |= {f"kernels/{layer}_norm_min": 0.25}
            ended |= {f"kernels/{layer}_norm_median": 0.5, f"kernels/{layer}_norm_max": 0.75}
        records.append(ended)
    return records


def make_run(folder, *, epochs=3, classes=CLASSES, lr=5e-4, **summary):
    """Write the folder of a finished run."""
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
    add_pictures(folder, epochs=epochs)
    add_evaluation(folder, epochs=epochs, classes=classes)
    return folder


def add_pictures(folder, *, epochs):
    for epoch in range(1, epochs + 1):
        for place, name in enumerate(EPOCH_PICTURES):
            colour = (place, epoch, 100) if not name.endswith("before") else (place, 0, 100)
            save(folder / f"figures/epoch_{epoch:04d}/{name}.png", colour=colour)
    save(folder / "figures/first_batch.png", colour=(9, 9, 9))


def add_evaluation(folder, *, epochs, classes):
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


def add_right_answers(folder, *, num=9):
    """Add a sheet of right answers, each of another colour, and what evaluation.json says of them."""
    sheet = Image.new("RGB", (512, 64 * -(-num // 8)), (255, 255, 255))
    for index in range(num):
        top, left = (64 * place for place in divmod(index, 8))
        sheet.paste((70, index + 1, 80), (left, top, left + 64, top + 64))
    sheet.save(folder / "figures/right.png")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    best = [{"id": 40 + i, "label": i % 3, "predicted": i % 3, "probability": 0.875, "loss": 0.13} for i in range(num)]
    (folder / "evaluation.json").write_text(json.dumps(evaluation | {"best": best}))


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

    def traces(self, key):
        return self.data["figures"][key]["data"]

    def layout(self, key):
        return self.data["figures"][key]["layout"]


def page_of(folder):
    return Page(report.write(folder))


def pixel(uri):
    """Return the first pixel of a picture in the page."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))) as image:
        return image.convert("RGB").getpixel((0, 0)), image.size
