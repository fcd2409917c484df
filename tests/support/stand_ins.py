"""Small stand-ins of image classification sets: real columns, splits, kinds of labels and modes; sizes an eighth.

Schemas are those of 44 sets that people use. ClassLabel columns keep their number of classes; where each class needs a
folder or a value of its own, there are at most eight.
"""

import io
import json
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature
from image_sets import file_content, write_parquet
from PIL import Image

MOST_VALUES = 8
IMAGES = {"train": 16, "": 16}  # of a split; others have 8
TYPICAL = (("image", "Image"), ("label", "ClassLabel"))


@dataclass(frozen=True)
class StandIn:
    """A set's schema."""

    name: str
    layout: str
    """parquet, configs, folder, flat, wds, zip, npz, or script."""
    splits: tuple[str, ...]
    classes: int
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of the images, in turn, pixels."""
    columns: tuple[tuple[str, str], ...] = TYPICAL
    """Names and kinds: Image, ClassLabel, ClassLabel:K with K classes, or a type of values."""
    label: str = "label"
    modes: tuple[str, ...] = ("RGB",)
    unlabelled: tuple[str, ...] = ()
    """Splits whose labels are all -1."""
    configs: tuple[str, ...] = ()
    evaluated_on: str = ""
    options: dict[str, str] = field(default_factory=dict)
    """What a user must name."""

    @property
    def expected_classes(self) -> int:
        """Return the number of classes of the small copy."""
        kind = dict(self.columns)[self.label] if self.layout in ("parquet", "configs") else "folder"
        return self.classes if kind.startswith("ClassLabel") else min(self.classes, MOST_VALUES)


def _one(side, height=None):
    return ((side, height or side),)


def _between(low, high):
    """Return sizes between two sides, an eighth of them."""
    low, high = low // 8, high // 8
    return ((low, high), (high, low), ((low + high) // 2, high), (high, high), (low, low))


def _set(name, layout, splits, classes, sizes, **more):
    splits = tuple(splits.split()) if splits else ()
    labelled = [
        s for s in ("test", "validation", "valid", "val") if s in splits and s not in more.get("unlabelled", ())
    ]
    return StandIn(name, layout, splits, classes, sizes, evaluated_on=labelled[0] if labelled else "", **more)


def _columns(text):
    return tuple(tuple(part.split("=")) for part in text.split())


GREY = {"modes": ("L",)}
WITH_ID = {"columns": _columns("image=Image label=ClassLabel image_id=string")}
PARQUET = [
    _set("cifar10", "parquet", "train test", 10, _one(32), columns=_columns("img=Image label=ClassLabel")),
    _set(
        *("cifar100", "parquet", "train test", 100, _one(32)),
        columns=_columns("img=Image fine_label=ClassLabel coarse_label=ClassLabel:20"),
        label="fine_label",
    ),
    _set("mnist", "parquet", "train test", 10, _one(28), **GREY),
    _set("fashion_mnist", "parquet", "train test", 10, _one(28), **GREY),
    _set(
        *("svhn", "configs", "train test extra", 10, _one(32)),
        configs=("full_numbers", "cropped_digits"),
        options={"config": "cropped_digits"},
    ),
    _set(
        *("imagenet-1k", "parquet", "train validation test", 1000, _between(250, 560)),
        unlabelled=("test",),
        modes=("RGB", "L", "CMYK"),
    ),
    _set("mini-imagenet", "parquet", "train validation test", 100, _between(250, 560)),
    _set("tiny-imagenet", "parquet", "train valid", 200, _one(64), modes=("RGB", "L")),
    _set("emnist-byclass", "parquet", "train test", 62, _one(28), **GREY),
    _set("food101", "parquet", "train validation", 101, _between(384, 512)),
    _set(
        *("oxford-iiit-pet", "parquet", "train test", 37, _between(200, 560)),
        columns=_columns("image=Image label=ClassLabel image_id=string label_cat_dog=ClassLabel:2"),
    ),
    _set("oxford-flowers", "parquet", "train test", 102, _between(500, 700)),
    _set("stanford_cars", "parquet", "train test contrast gaussian_noise", 196, _between(200, 900)),
    _set("dtd", "parquet", "train test", 47, _between(300, 640)),
    _set(
        *("Caltech-256", "parquet", "train validation test", 257, _between(150, 500)),
        columns=_columns("image=Image label=int64 text=string"),
    ),
    _set(
        "cats_vs_dogs",
        "parquet",
        "train",
        2,
        _between(120, 500),
        columns=_columns("image=Image labels=ClassLabel"),
        label="labels",
    ),
    _set(
        *("beans", "parquet", "train validation test", 3, _one(62)),
        columns=_columns("image_file_path=string image=Image labels=ClassLabel"),
        label="labels",
    ),
    _set("eurosat-rgb", "parquet", "train validation test", 10, _one(64), **WITH_ID),
    _set("timm-resisc45", "parquet", "train validation test", 45, _one(32), **WITH_ID),
    _set(
        *("skin_cancer", "parquet", "train validation test", 7, _one(75, 56)),
        columns=_columns(
            "image=Image image_id=string lesion_id=string dx=string dx_type=string age=float64 sex=string"
        ),
        label="dx",
    ),
    _set("Alzheimer_MRI", "parquet", "train test", 4, _one(16), **GREY),
    _set(
        *("PlantVillage", "configs", "train test", 38, _one(32)),
        configs=("color", "grayscale", "segmented"),
        options={"config": "color"},
    ),
    _set("galaxy10_decals", "parquet", "train test", 10, _one(32), columns=_columns("image=Image label=uint8")),
    _set("rendered-sst2", "parquet", "train validation test", 2, _one(56)),
    _set(
        *("aiornot", "parquet", "train test", 2, _one(64)),
        columns=_columns("id=string image=Image label=int64"),
        unlabelled=("test",),
    ),
    _set(
        *("wikiart", "parquet", "train", 129, _between(500, 1300)),
        columns=_columns("image=Image artist=ClassLabel genre=ClassLabel:11 style=ClassLabel:27"),
        label="artist",
    ),
    _set(
        *("fashion-product-images-small", "parquet", "train", 45, _one(60, 80)),
        columns=_columns(
            "id=int64 gender=string masterCategory=string articleType=string baseColour=string image=Image"
        ),
        label="articleType",
        options={"label_column": "articleType"},
    ),
]
OTHERS = [
    _set("imagenette2-160", "folder", "train val", 10, _between(160, 240), modes=("RGB", "L")),
    _set("places365_small", "folder", "train val", 365, _one(32)),
    _set("fer2013-msambare", "folder", "train test", 7, _one(48), **GREY),
    _set("CIFAKE", "folder", "train test", 2, _one(32)),
    _set("flower_photos", "flat", "", 5, _between(180, 500)),
    _set("wds_vtab-resisc45", "wds", "train test", 45, _one(32)),
    _set("pathmnist", "npz", "train val test", 9, _one(28)),
    _set("trashnet", "zip", "", 6, _one(64, 48)),
]
SCRIPTS = [
    _set(name, "script", "", classes, ())
    for name, classes in {
        "imagenette": 10,
        "imagewoof": 10,
        "FGVC-Aircraft": 100,
        "Caltech-101": 102,
        "ecoset": 565,
        "medmnist-v2": 9,
        "rvl_cdip": 16,
        "fer-2013": 7,
        "pokemon-classification": 110,
    }.items()
]
ALL = [*PARQUET, *OTHERS, *SCRIPTS]


def images(stand_in, count, seed, kind="PNG"):
    """Return encoded images of a set's sizes and modes in turn."""
    drawn = np.random.default_rng(seed)
    made = []
    for k in range(count):
        width, height = stand_in.sizes[k % len(stand_in.sizes)]
        pixels = drawn.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mode = stand_in.modes[k % len(stand_in.modes)]
        made.append(file_content(Image.fromarray(pixels).convert(mode), "JPEG" if mode == "CMYK" else kind))
    return made


def make(stand_in, folder):
    """Write a stand-in and return what `--data.dataset` names: a folder or a file."""
    return {
        "parquet": _parquet,
        "configs": _configs,
        "folder": _folders,
        "flat": _folders,
        "wds": _tars,
        "zip": _zip,
        "npz": _npz,
        "script": _script,
    }[stand_in.layout](stand_in, Path(folder) / stand_in.name)


def _count(split):
    return IMAGES.get(split, 8)


def _values(stand_in, name, kind, split, count):
    """Return a column: labels go through all classes in turn, through eight of them where one split is all there is."""
    if kind.startswith("ClassLabel"):
        own = int(kind.partition(":")[2] or stand_in.classes)
        own = own if stand_in.evaluated_on else min(own, MOST_VALUES)
        return [-1 if split in stand_in.unlabelled else k * 7 % own for k in range(count)]
    if name == stand_in.label:
        values = [k % stand_in.expected_classes for k in range(count)]
        values = [-1] * count if split in stand_in.unlabelled else values
        return [f"class {v}" for v in values] if kind == "string" else values
    return [f"{name} {k}" if kind == "string" else k for k in range(count)]


def _features(stand_in):
    made = {}
    for name, kind in stand_in.columns:
        own = int(kind.partition(":")[2] or stand_in.classes)
        is_class = kind.startswith("ClassLabel")
        made[name] = ImageFeature() if kind == "Image" else None
        made[name] = made[name] or (ClassLabel(names=[f"c{k}" for k in range(own)]) if is_class else Value(kind))
    return Features(made)


def _parquet(stand_in, folder, below="data"):
    for seed, split in enumerate(stand_in.splits):
        count = _count(split)
        rows = {
            name: images(stand_in, count, seed) if kind == "Image" else _values(stand_in, name, kind, split, count)
            for name, kind in stand_in.columns
        }
        write_parquet(folder / below / f"{split}-00000-of-00001.parquet", _features(stand_in), rows)
    return folder


def _configs(stand_in, folder):
    lines = ["---", "configs:"]
    for config in stand_in.configs:
        _parquet(stand_in, folder, below=config)
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in stand_in.splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder


def _members(stand_in):
    """Return the path and content of each file of a set of class folders."""
    for seed, split in enumerate(stand_in.splits or ("",)):
        for k, content in enumerate(images(stand_in, _count(split), seed, "JPEG")):
            yield f"{split}/class {k % stand_in.expected_classes}/{k}.jpg".lstrip("/"), content


def _folders(stand_in, folder):
    for path, content in _members(stand_in):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def _zip(stand_in, folder):
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in _members(stand_in):
            archive.writestr(f"{stand_in.name}/{path}", content)
    return file


def add(archive, name, content):
    """Add a member to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _tars(stand_in, folder):
    for seed, split in enumerate(stand_in.splits):
        (folder / split).mkdir(parents=True)
        with tarfile.open(folder / split / "0.tar", "w") as archive:
            for k, content in enumerate(images(stand_in, _count(split), seed, "WEBP")):
                label = k % stand_in.expected_classes
                add(archive, f"s{k:07d}.cls", str(label).encode())
                add(archive, f"s{k:07d}.webp", content)
                add(archive, f"s{k:07d}.json", json.dumps({"width": 32}).encode())
    return folder


def _npz(stand_in, folder):
    arrays = {}
    for seed, split in enumerate(stand_in.splits):
        count = _count(split)
        width, height = stand_in.sizes[0]
        drawn = np.random.default_rng(seed)
        arrays[f"{split}_images"] = drawn.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % stand_in.expected_classes)[:, None]
    file = folder.with_suffix(".npz")
    np.savez_compressed(file, **arrays)
    return file


def _script(stand_in, folder):
    folder.mkdir()
    (folder / f"{stand_in.name}.py").write_text("import datasets\n", encoding="utf-8")
    return folder
