"""The features command: what layers return for pictures, or for a split of a data set, written to safetensors files."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from alexnet_dist import atomic_files
from alexnet_dist.commands import feature_files, inference
from alexnet_dist.commands.feature_files import Columns, FeatureFiles
from alexnet_dist.config.cli import parse_options
from alexnet_dist.config.commands import FeaturesOptions
from alexnet_dist.data import InputSpec, decode, load_any, threads_of
from alexnet_dist.data.image_data import Images, Labels
from alexnet_dist.distributed import accelerator as processes
from alexnet_dist.errors import EXIT_DONE, EXIT_FAILED, UserError
from alexnet_dist.tracking import Console
from alexnet_dist.training.classifier import Classifier, activations

logger = logging.getLogger(__name__)

AHEAD = 2  # batches that are read while the network computes
DTYPES = {"fp32": np.float32, "fp16": np.float16}


@dataclass(frozen=True)
class Pictures:
    """Pictures by their ids, which count from 0."""

    count: int
    read: Callable[[int], Images]
    """Returns a picture, (H, W, 3) uint8; raises UserError where it cannot be read."""
    labels: Labels | None = None
    """(N,) int64; None for files."""
    names: Sequence[str] | None = None
    """Paths of files; None for a data set."""
    data: dict[str, Any] | None = None
    """Name, split, fingerprint and class names of a data set; None for files."""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Write what layers return for the pictures that a command line names; return the exit code.

    Every rank must call it.

    Raises:
        UserError: the command line is wrong, or the network, the pictures or the files cannot be had.
    """
    # ---- what is asked for
    options = parse_options(argv, FeaturesOptions(), prog=prog)
    run, *words = inference.words(options.paths, least=1, meaning="a network, RUN, and pictures or --data.dataset")
    layers = [*dict.fromkeys(options.layers.split(","))]
    if options.out is None or options.out.suffix != ".safetensors":
        raise UserError("name the file that is to be written: --out FILE.safetensors")
    if bool(words) == (options.data.dataset != "none"):
        raise UserError("name either pictures (FILE, FOLDER, or - for a list on stdin) or --data.dataset")
    classifier = inference.open_network(run, options)
    shapes = layer_shapes(classifier, layers)

    # ---- pictures, files, work
    accelerator, precision = inference.start(classifier, options.runtime)
    try:
        pictures = named(words, options, accelerator, classifier.inputs.spec)
        labels: Columns = {} if pictures.labels is None else {"labels": np.dtype(np.int64)}
        of_layers = {name: np.dtype((DTYPES[options.dtype], shape)) for name, shape in shapes.items()}
        facts = {"layers": layers, "precision": precision.name, "data": pictures.data}
        facts["network_sha256"] = atomic_files.sha256(classifier.path)
        files = feature_files.plan(
            options.out, {"ids": np.dtype(np.int64)} | labels | of_layers, pictures.count, pictures.labels,
            pictures.names, facts, rows=options.shard_images,
        )  # fmt: skip
        processes.from_main(accelerator, files.reserve)
        try:
            broken = compute(classifier, layers, pictures, files, options, accelerator)
            processes.from_main(accelerator, lambda: files.finish(broken))
        finally:
            if accelerator.is_main_process:
                files.clear()
    finally:
        processes.end(accelerator)
    left_out = f", {len(broken):,} left out" if broken else ""
    written = f"{options.out}: {', '.join(layers)} of {pictures.count - len(broken):,} pictures{left_out}"
    Console(enabled=accelerator.is_main_process).print(written)
    return EXIT_FAILED if broken else EXIT_DONE


@torch.no_grad()
def layer_shapes(classifier: Classifier, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each layer returns for one picture.

    Raises:
        UserError: there is no such layer.
    """
    size = classifier.inputs.spec.image_size
    probe = activations(classifier.network, torch.zeros(1, 3, size, size, device=classifier.device), layers)
    return {name: tuple(found.shape[1:]) for name, found in probe.items()}


def named(words: Sequence[str], options: FeaturesOptions, accelerator: Accelerator, spec: InputSpec) -> Pictures:
    """Return the pictures of the words, or of the data set where there are none. Every rank must call it.

    Raises:
        UserError: there are no pictures.
    """
    if words:
        paths = processes.from_main(accelerator, lambda: inference.picture_files(words))  # stdin is rank 0's
        if not paths:
            raise UserError("no picture is named: stdin is empty")
        return Pictures(len(paths), lambda index: decode.picture(paths[index]), names=paths)
    data = load_any(replace(options.data, image_size=spec.image_size))
    split, name = (data.train, "train") if options.split == "train" else (data.test, data.evaluated_on)
    facts = {"name": data.name, "split": name, "fingerprint": data.fingerprint, "class_names": data.class_names}
    return Pictures(len(split), split.picture, labels=split.labels, data=facts)


@torch.no_grad()
def compute(  # noqa: PLR0917 - each has a type of its own
    classifier: Classifier,
    layers: Sequence[str],
    pictures: Pictures,
    files: FeatureFiles,
    options: FeaturesOptions,
    accelerator: Accelerator,
) -> set[int]:
    """Write the rows of this rank's batches, every n-th of n ranks; return the ids of all that cannot be read.

    Batches are the same at any world size. Every rank must call it.

    Raises:
        UserError: on every rank, where one cannot write.
    """
    network = classifier.network.to(accelerator.device)
    own = files.batches(options.batch_size)[accelerator.process_index :: accelerator.num_processes]
    broken: list[int] = []

    def work() -> None:
        read = loaded(pictures, [ids for _, ids in own], classifier.inputs.spec, threads_of(options.data), broken)
        for (file, ids), images in zip(own, read, strict=True):
            with accelerator.autocast():
                found = activations(network, classifier.inputs(images.to(accelerator.device)), layers)
            with files.telling():
                file.write(ids, found)

    processes.on_all(work)
    return set(gather_object(broken))


def loaded(
    pictures: Pictures, batches: Sequence[range], spec: InputSpec, threads: int, broken: list[int]
) -> Iterator[torch.Tensor]:
    """Yield batches of pictures as the loaders of training give them, (B, 3, S, S) uint8.

    Args:
        pictures: of any size.
        batches: ids of each batch.
        spec: of the network's input.
        threads: that read, decode and resize.
        broken: gets the ids of pictures that cannot be read, in whose place the batch has black ones.
    """

    def fitted(index: int) -> torch.Tensor:
        try:
            return spec.fitted(pictures.read(index))
        except UserError as error:
            logger.error("%s: left out", error)
            broken.append(index)
            return torch.zeros((3, spec.loaded_size, spec.loaded_size), dtype=torch.uint8)

    with ThreadPoolExecutor(threads) as pool:
        begun = deque([pool.submit(fitted, index) for index in ids] for ids in batches[:AHEAD])
        for number in range(len(batches)):
            if number + AHEAD < len(batches):
                begun.append([pool.submit(fitted, index) for index in batches[number + AHEAD]])
            yield torch.stack([task.result() for task in begun.popleft()])
