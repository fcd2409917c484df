"""The evaluate command: count a network's right answers again, and compare them with what its file claims."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from torch import nn

from alexnet_dist.commands import inference, train_setup
from alexnet_dist.commands.inference import recorded_precision
from alexnet_dist.config import Config, DataConfig
from alexnet_dist.config.cli import parse_options
from alexnet_dist.config.commands import EvaluateOptions
from alexnet_dist.data import Batch, ImageData, Photographs, PhotoLoader, load_any
from alexnet_dist.distributed import Hardware
from alexnet_dist.distributed import accelerator as processes
from alexnet_dist.distributed.hardware import processor
from alexnet_dist.distributed.precision import Precision
from alexnet_dist.errors import EXIT_DIFFERS, EXIT_DONE, UserError
from alexnet_dist.sources import find
from alexnet_dist.tracking import Console, Record
from alexnet_dist.training import Evaluation, eval_loop
from alexnet_dist.training.classifier import Classifier

ROUNDING = {"fp32": 2**-16, "tf32": 2**-9, "fp16": 2**-9, "bf16": 2**-6}
"""By how much arithmetic may move the difference of two logits, as a share of the image's largest logit.

On 206 photographs of a trained network, two CPU cores: at most 2.6e-7 from fp32 to fp32 of other kernels, and 7.0e-3
from fp32 to bf16. TF32 and fp16 have three bits more than bf16, and an eighth of its bound; neither was measured.
"""


@dataclass(frozen=True)
class Result:
    """What an evaluation came to, and what it says of the file's claim."""

    evaluation: Evaluation
    class_names: tuple[str, ...]
    """Of the network's outputs, which rows and columns of the confusion matrix are."""
    num_close: int
    """Images whose two best logits lie closer than `ROUNDING` allows them to move."""
    verdict: str
    """A sentence."""
    differs: bool
    """Whether counts differ from the claim by more than rounding explains."""

    @property
    def correct(self) -> int:
        """Images whose likeliest class is the true one."""
        return int(np.trace(self.evaluation.confusion))


def main(argv: Sequence[str], *, prog: str) -> int:
    """Evaluate the networks that the command line names and return the exit code. Every rank must call it.

    Raises:
        UserError: a network or the data set cannot be had, or they do not belong together.
    """
    options = parse_options(argv, EvaluateOptions(), prog=prog)
    runs = inference.words(options.runs, least=1, meaning="RUN: a run folder, a checkpoint, a .safetensors, a Hub id")
    console, found, told = Console(enabled=False), [], []
    for run in runs:
        classifier = inference.open_network(run, options)
        config = data_config(argv, run, classifier, prog=prog)
        dataset = for_network(classifier, config)
        accelerator, precision = inference.start(classifier, options.runtime, config)
        try:
            hardware = inference.hardware(accelerator, precision)
            result = evaluate(classifier, dataset, config, accelerator, hardware)
        finally:
            processes.end(accelerator)
        console = Console(enabled=accelerator.is_main_process)
        console.card(run, card(result, dataset, precision))
        found.append(result)
        told.append(as_json(run, result, dataset, hardware))
    if len(found) > 1:
        console.print(table(runs, found))
    if options.out is not None and console.enabled:
        inference.write(options.out, json.dumps(told, indent=1))
    return EXIT_DIFFERS if any(result.differs for result in found) else EXIT_DONE


# ---- data -----------------------------------------------------------------------------------------------------------


def data_config(argv: Sequence[str], run: str, classifier: Classifier, *, prog: str) -> DataConfig:
    """Return the data set to evaluate on: as the command line says, else as the run was, else as the file says.

    Raises:
        UserError: nothing names it.
    """
    recorded = Path(run) / "config.yaml"
    metadata = classifier.metadata or {}
    try:
        base = DataConfig(**_as_fields(yaml.safe_load(recorded.read_text(encoding="utf-8"))["data"]))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError):
        base = _from_metadata(metadata)
    spec = classifier.inputs.spec
    base = dataclasses.replace(base, verify=False, threads=None, image_size=spec.image_size)
    data = parse_options(argv, EvaluateOptions(data=base), prog=prog).data
    if data.dataset == "?":
        name = metadata.get("data", {}).get("name", "unknown")
        raise UserError(f"{run} was trained on {name}: say where that is by --data.dataset")
    return data


def _as_fields(section: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a recorded `data` section that this version has."""
    names = {field.name for field in dataclasses.fields(DataConfig)}
    kept = {key: value for key, value in section.items() if key in names}
    return kept | {"cache_dir": Path(kept["cache_dir"]) if kept.get("cache_dir") else None}


def _from_metadata(metadata: dict[str, Any]) -> DataConfig:
    """Return the data set that a network file names, `?` where only its owner knows where it is."""
    data, spec = metadata.get("data", {}), metadata.get("input", {})
    name = str(data.get("name", "?"))
    has_place = name in (*find.WITHOUT_FILES, "cifar10") or find.hub_id(name)
    photographs = spec.get("fit") == "crop"
    stored = spec.get("stored_size")
    options = dict(data.get("options", {}), revision=data.get("revision"))
    if photographs:
        options |= {"fit": "crop", "store": "encoded"} if stored is None else {"fit": "crop", "store": "pixels"}
        options |= {} if stored is None else {"stored_size": stored}
    batch_size = metadata.get("training", {}).get("batch_size", 256)
    return DataConfig(dataset=name if has_place else "?", batch_size=batch_size, **options)


def for_network(classifier: Classifier, config: DataConfig) -> ImageData:
    """Return the data set, whose labels are this network's outputs.

    Another set than that of the training run is evaluated on as a whole where it has no evaluation split.

    Raises:
        UserError: it has a class that the network does not know.
    """
    dataset = load_any(config)
    if dataset.fingerprint != claimed_fingerprint(classifier) and dataset.evaluated_on == "held-out":
        dataset = dataset if config.val_fraction else load_any(config, whole=True)
    if unknown := [name for name in dataset.class_names if name not in classifier.class_names]:
        known = ", ".join(classifier.class_names[:5])
        raise UserError(f"{dataset.name} has the class {unknown[0]}, which the network does not know ({known}, ...)")
    return dataset


def claimed_fingerprint(classifier: Classifier) -> str | None:
    """Return the fingerprint of the data that a file's claim is about."""
    data = (classifier.metadata or {}).get("data", {})
    return data.get("fingerprint") if isinstance(data, dict) else None


# ---- evaluation -----------------------------------------------------------------------------------------------------


class Relabelled(Collection[Batch]):
    """Batches whose labels are the network's outputs, not the data set's classes.

    Args:
        batches: of a loader.
        outputs: (C,) int64: the network's output for each class of the data set.
    """

    def __init__(self, batches: Collection[Batch], outputs: torch.Tensor) -> None:
        self._batches, self._outputs = batches, outputs

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            yield {**batch, "labels": self._outputs.to(batch["labels"].device)[batch["labels"]]}

    def __len__(self) -> int:
        return len(self._batches)

    def __contains__(self, batch: object) -> bool:
        return any(batch is other for other in self)


class CloseCalls:
    """Counts the images whose two best logits lie close together, as a hook on a network.

    Args:
        bound: as a share of the image's largest logit.
    """

    def __init__(self, bound: float) -> None:
        self.bound, self.count = bound, 0

    def __call__(self, _module: nn.Module, _inputs: object, logits: torch.Tensor) -> None:
        """Count those of a batch, (B, C)."""
        first, second = logits.float().topk(2, dim=1).values.T
        self.count += int((first - second <= self.bound * logits.float().abs().amax(dim=1)).sum())


def evaluate(
    classifier: Classifier, dataset: ImageData, config: DataConfig, accelerator: Accelerator, hardware: Hardware
) -> Result:
    """Return the counts of a network on a data set's evaluation split. Every rank must call it; all get the same."""
    network, inputs = inference.as_evaluated(classifier, accelerator, hardware.precision)
    test = train_setup.make_loaders(Config(data=config), dataset, accelerator).test
    if isinstance(test, PhotoLoader) and inputs.spec.fit == "enlarge":  # photographs for a network of small images
        size, view = inputs.spec.loaded_size, inputs.spec.fitted
        test = PhotoLoader(test.photos, test.batches, size=size, view=view, device=test.device, threads=test.threads)
    outputs = torch.tensor([classifier.class_names.index(name) for name in dataset.class_names])
    theirs = (classifier.metadata or {}).get("hardware", {}).get("device", "CPU")
    close = CloseCalls(
        max(rounding(hardware.precision.name, hardware.device), rounding(recorded_precision(classifier), theirs))
    )
    network.register_forward_hook(close)
    evaluation = eval_loop.evaluate(network, Relabelled(test, outputs), inputs, accelerator)
    num_close = int(accelerator.reduce(torch.tensor(close.count, device=accelerator.device), "sum").item())
    correct = int(np.trace(evaluation.confusion))
    same_data = dataset.fingerprint == claimed_fingerprint(classifier)
    ours = {**inference.arithmetic(hardware), "batch_size": config.batch_size}
    verdict, differs = judge(
        classifier.metadata or {}, correct, evaluation.num_images, num_close, same_data=same_data, ours=ours
    )
    if same_data and dataset.class_names != classifier.class_names:  # the fingerprint is over them too
        verdict, differs = "THE FILE'S CLASS NAMES are not those of the images that it claims to be trained on", True
    return Result(evaluation, classifier.class_names, num_close, verdict, differs)


def rounding(precision: str, device: str) -> float:
    """Return the entry of `ROUNDING` for an arithmetic; GPUs multiply fp32 in TF32."""
    return ROUNDING["tf32" if precision == "fp32" and device != "CPU" else precision]


def judge(
    metadata: dict[str, Any], correct: int, total: int, num_close: int, *, same_data: bool, ours: dict[str, Any]
) -> tuple[str, bool]:
    """Return what counts say of a file's claim, and whether they differ by more than rounding explains.

    Args:
        metadata: of the file.
        correct: images that were recognised.
        total: images.
        num_close: images whose two best logits lie closer than `ROUNDING` allows them to move.
        same_data: whether they are the images of the claim.
        ours: device, processor, threads, ranks, precision, batch_size and torch of these counts.
    """
    claim = metadata.get("result")
    if not claim:
        return "the file claims no result", False
    try:
        told, difference = (
            f"the file claims {claim['correct']:,} of {claim['total']:,}",
            abs(correct - claim["correct"]),
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"the result that the file claims is no pair of numbers: {claim}") from None
    if not same_data:
        return f"{told}, of other images: NOT COMPARED (the fingerprints differ)", False
    if claim["total"] != total:
        return f"{told}: THAT IS WRONG, the split has {total:,} images", True
    theirs = {**metadata.get("hardware", {}), **metadata.get("training", {}), **metadata.get("versions", {})}
    other = [f"{key} {theirs.get(key)}" for key, value in ours.items() if theirs.get(key) != value]
    if not other and not difference:
        words = "repeated exactly, on the same hardware, in the same arithmetic"
    elif not other:
        words = f"{difference:,} IMAGES DIFFER on the same hardware, in the same arithmetic"
    else:
        verb = "IMAGES DIFFER, more than rounding explains" if difference > num_close else "images differ"
        room = f"{num_close:,} have two logits so close that they may, as it was computed with {', '.join(other)}"
        words = f"{difference:,} {verb} ({room})"
    return f"{told}: {words}", difference > (num_close if other else 0)


# ---- output ---------------------------------------------------------------------------------------------------------


def card(result: Result, dataset: ImageData, precision: Precision) -> dict[str, str]:
    """Return the rows that are shown of an evaluation."""
    found, names = result.evaluation, result.class_names
    shares = [(share, name) for share, name in zip(found.per_class, names, strict=True) if share is not None]
    rows = {
        "data": f"{dataset.name}: {found.num_images:,} {dataset.evaluated_on} images, {len(shares)} classes",
        "precision": f"{precision.name} ({precision.reason})",
        "top-1": f"{found.top1:.3%}, {result.correct:,} of {found.num_images:,}",
        **({} if found.top5 is None else {"top-5": f"{found.top5:.3%}"}),
        "loss": f"{found.loss:.4f}",
        "hardest": ", ".join(f"{name} {share:.1%}" for share, name in sorted(shares)[:3]),
    }
    if found.worst:
        worst = found.worst[0]
        rows["worst"] = f"{place(dataset, worst.id)}: {names[worst.label]} taken for {names[worst.predicted]}"
    return rows | {"claim": result.verdict}


def place(dataset: ImageData, index: int) -> str:
    """Return the file of an evaluation image; of an array's image, its number."""
    return dataset.test.where(index) if isinstance(dataset.test, Photographs) else f"image {index}"


def table(runs: Sequence[str], found: Sequence[Result]) -> str:
    """Return a line for each network, and the mean and standard deviation over them."""
    width = max(map(len, runs))
    rows = [f"{run:<{width}}  {result.evaluation.top1:9.3%}" for run, result in zip(runs, found, strict=True)]
    shares = [100 * result.evaluation.top1 for result in found]
    rows += [f"{'mean':<{width}}  {statistics.mean(shares):8.3f} ± {statistics.stdev(shares):.3f} %"]
    return "\n".join(rows)


def as_json(run: str, result: Result, dataset: ImageData, hardware: Hardware) -> Record:
    """Return all that was counted, ready for JSON."""
    found = result.evaluation
    return {
        "run": run,
        "data": {"name": dataset.name, "split": dataset.evaluated_on, "fingerprint": dataset.fingerprint},
        "correct": result.correct,
        "total": found.num_images,
        "top1": found.top1,
        "top5": found.top5,
        "loss": found.loss,
        "verdict": result.verdict,
        "num_close": result.num_close,
        "class_names": list(result.class_names),
        "per_class": dict(zip(result.class_names, found.per_class, strict=True)),
        "confusion": found.confusion.tolist(),
        "worst": [{**asdict(mistake), "image": place(dataset, mistake.id)} for mistake in found.worst],
        "hardware": {**asdict(hardware), "precision": hardware.precision.name, "processor": processor()},
    }
