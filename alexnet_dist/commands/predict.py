"""The predict command: name the likeliest classes of pictures of any size, thousands of them, some of them broken."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import gather_object

from alexnet_dist.commands import inference
from alexnet_dist.config import DataConfig
from alexnet_dist.config.cli import parse_options
from alexnet_dist.config.commands import PredictOptions
from alexnet_dist.data import GlobalBatches, PhotoLoader, decode, threads_of
from alexnet_dist.data.image_data import Images
from alexnet_dist.distributed import accelerator as processes
from alexnet_dist.distributed.precision import Precision
from alexnet_dist.errors import EXIT_DONE, EXIT_FAILED, UserError, printable
from alexnet_dist.training.classifier import Classifier, Prediction, most_likely


@dataclass(frozen=True)
class Row:
    """What was found for a picture."""

    index: int
    """Position among the files."""
    classes: list[Prediction]
    """The likeliest first; none of a file that could not be read."""
    logits: list[float]
    error: str | None = None
    """What is wrong with the file; it names it."""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Predict the classes of pictures as the command line says and return the exit code. Every rank must call it.

    Raises:
        UserError: the network cannot be had, or no picture is named.
    """
    options = parse_options(argv, PredictOptions(), prog=prog)
    run, *named = inference.words(options.paths, least=2, meaning="RUN, then pictures: files, folders, or - for stdin")
    if options.logits and options.format == "text":
        raise UserError("--logits needs --format csv or jsonl")
    classifier = inference.open_network(run, options)
    accelerator, precision = inference.start(classifier, options.runtime)
    try:
        files = processes.from_main(accelerator, lambda: inference.picture_files(named))
        rows: Iterator[Row] = predict(classifier, files, options, accelerator, precision)
        if accelerator.num_processes > 1:
            rows = iter(sorted(gather_object(list(rows)), key=lambda row: row.index))
        return report(rows, files, classifier, options) if accelerator.is_main_process else EXIT_DONE
    finally:
        processes.end(accelerator)


def predict(
    classifier: Classifier, files: list[str], options: PredictOptions, accelerator: Accelerator, precision: Precision
) -> Iterator[Row]:
    """Yield what this rank finds in its share of the files, in their order, as evaluation computes it."""
    network, inputs = inference.as_evaluated(classifier, accelerator, precision)
    pictures, spec = PictureFiles(files), inputs.spec
    order = GlobalBatches(len(files), options.batch_size, seed=None, drop_last=False)
    ranks = {"num_processes": accelerator.num_processes, "process_index": accelerator.process_index}
    loader = PhotoLoader(
        pictures,
        BatchSamplerShard(order, **ranks, split_batches=True, even_batches=False),
        size=spec.loaded_size,
        device=accelerator.device,
        threads=threads_of(DataConfig(threads=options.threads)),
        view=spec.fitted,
    )
    for batch in loader:
        with torch.no_grad(), accelerator.autocast():
            logits = network(inputs(batch["images"])).float()
        found = most_likely(logits, classifier.class_names, top=options.top)
        values = logits.tolist() if options.logits else [[]] * len(found)
        for index, classes, its_logits in zip(batch["ids"].tolist(), found, values, strict=True):
            error = pictures.errors.get(index)
            yield Row(index, classes, its_logits) if error is None else Row(index, [], [], error)


class PictureFiles:
    """Files as the photo loader reads them; one that cannot be read is black, and noted.

    Args:
        paths: of the files.
    """

    store = "encoded"

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self.labels = np.zeros(len(paths), np.int64)
        self.heights = self.widths = np.zeros(len(paths), np.int32)
        self.errors: dict[int, str] = {}
        """What is wrong with files, by their position."""

    def where(self, index: int) -> str:
        """Return a file's path, fit to print."""
        return printable(self.paths[index])

    def picture(self, index: int, box: list[int] | None = None) -> Images:
        """Return a file's pixels, (H, W, 3) uint8."""
        assert box is None, "only evaluation looks at files"
        try:
            return decode.picture(self.paths[index])
        except UserError as error:
            self.errors[index] = printable(str(error))
            return np.zeros((1, 1, 3), np.uint8)


def report(rows: Iterator[Row], files: Sequence[str], classifier: Classifier, options: PredictOptions) -> int:
    """Write the rows as they come, or all into a file at the end, and return the exit code."""
    code = EXIT_DONE
    output = sys.stdout if options.out is None else io.StringIO()
    write = {"text": _write_text, "csv": _write_csv, "jsonl": _write_jsonl}[options.format]
    if options.format == "csv":
        places = range(1, min(options.top, len(classifier.class_names)) + 1)
        names = [f"logit {name}" for name in classifier.class_names] if options.logits else []
        titles = ["file", *(title for k in places for title in (f"class {k}", f"probability {k}")), *names]
        csv.writer(output).writerow(titles)
    for row in rows:
        if row.error is not None:
            print(f"error: {row.error}", file=sys.stderr, flush=True)
            code = EXIT_FAILED
        else:
            write(output, printable(files[row.index]), row)
            output.flush()
    if isinstance(output, io.StringIO) and options.out is not None:
        inference.write(options.out, output.getvalue())
    return code


def _write_text(output: TextIO, file: str, row: Row) -> None:
    output.write(f"{file}: {', '.join(f'{name} {share:.1%}' for name, share in row.classes)}\n")


def _write_csv(output: TextIO, file: str, row: Row) -> None:
    csv.writer(output).writerow([file, *(value for found in row.classes for value in found), *row.logits])


def _write_jsonl(output: TextIO, file: str, row: Row) -> None:
    line = {"file": file, "classes": [found._asdict() for found in row.classes]}
    output.write(json.dumps(line | ({"logits": row.logits} if row.logits else {})) + "\n")
