"""The export command: a trained network with its preprocessing as ONNX or as torch.export's pt2, run before it counts.

The file needs nothing of this package. It is compared with the network in float32 on random images, as a wrong
enlargement or normalisation would go unnoticed: accuracy falls by some percent and nothing fails.
"""

import importlib.util
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from alexnet_dist import atomic_files, rng
from alexnet_dist.commands.inference import open_network
from alexnet_dist.commands.main import fail
from alexnet_dist.config.cli import parse_options
from alexnet_dist.config.commands import ExportOptions, InputKind
from alexnet_dist.data.resize import enlarge_fixed_point
from alexnet_dist.errors import EXIT_DONE, EXIT_FAILED, UserError, first_line
from alexnet_dist.models import weights
from alexnet_dist.tracking import Console
from alexnet_dist.training.classifier import Classifier

EXTRA = ("onnx", "onnxscript", "onnxruntime")
"""What ONNX files are written and run with: the extra `export`."""
TOLERANCE = 5e-5
"""Largest difference of two logits, over the largest logit or 1. Measured on trained networks: rounding makes 1e-6,
float32 interpolation in the place of the exact enlargement 3e-3."""


@torch.no_grad()
def main(argv: Sequence[str], *, prog: str) -> int:
    """Export the network that the command line names, and return the exit code.

    Raises:
        UserError: the command line is wrong, the network cannot be had, or the file cannot be written.
        SystemExit: with code 1, the file's answers are not those of the network; no file is left then.
    """
    options = parse_options(argv, ExportOptions(), prog=prog)
    source, out = _checked(options)
    write, run = (to_onnx, run_onnx) if options.format == "onnx" else (to_pt2, run_pt2)
    classifier = open_network(source, options)
    program = trace(classifier, options.input)
    metadata = described(classifier, options.input)
    try:
        with atomic_files.whole(out) as scratch:
            scratch.write_bytes(write(program, metadata))
            atomic_files.set_mode(scratch, weights.FOR_ALL)
            probes = [example(classifier, options.input, batch=batch) for batch in (1, 5)]
            off = max(difference(run(scratch, images), classifier.network(inputs)) for images, inputs in probes)
            if off > TOLERANCE:
                fail(
                    f"{out} is removed: its logits are off the network's by {off:.1e} of the largest", code=EXIT_FAILED
                )
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {first_line(error)}") from None
    images = metadata["export"]
    rows = {
        "file": f"{out}, {out.stat().st_size / 1e6:,.1f} MB, of {classifier.path}",
        "images": f"{options.input}, {images['dtype']} ({', '.join(map(str, images['shape']))})",
        "logits": f"float32 (B, {len(classifier.class_names)}), as the network's to {off:.1e} of the largest",
    }
    Console(enabled=True).card("exported", rows)
    return EXIT_DONE


def _checked(options: ExportOptions) -> tuple[str, Path]:
    """Return the network's name and the new file, before anything is loaded.

    Raises:
        UserError: an option is missing or wrong, or the extra is not installed.
    """
    out, suffix = options.out, f".{options.format}"
    if len(options.paths) != 1:
        raise UserError(f"name one network, RUN: {len(options.paths)} are named")
    if out is None or out.suffix != suffix:
        raise UserError(f"--out {out or 'FILE'} has to end in {suffix}, or choose another --format")
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists and is not overwritten: name another file, or remove this one")
    if missing := [name for name in EXTRA if options.format == "onnx" and importlib.util.find_spec(name) is None]:
        raise UserError(f"--format onnx needs {', '.join(missing)}: pip install 'alexnet_dist[export]'")
    return options.paths[0], out


# ---- what is exported ------------------------------------------------------------------------------------------------


class WithPreprocessing(nn.Module):
    """A network and the steps before it, made of operations that torch.export and ONNX have; `Inputs` to the bit.

    Args:
        classifier: has the network, and size, mean and standard deviation of its inputs.
        kind: of images.
    """

    def __init__(self, classifier: Classifier, kind: InputKind) -> None:
        super().__init__()
        self.network, self.kind, self.size = classifier.network, kind, classifier.inputs.spec.image_size
        self.mean = nn.Buffer(torch.tensor(classifier.inputs.spec.mean).mul(255).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(classifier.inputs.spec.std).mul(255).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, (B, C) float32, for images as `example` makes them."""
        if self.kind == "stored" and images.shape[-1] != self.size:
            images = enlarge_fixed_point(images, self.size)
        if self.kind != "normalised":
            images = (images.float() - self.mean) / self.std
        return cast("torch.Tensor", self.network(images))


def trace(classifier: Classifier, kind: InputKind) -> torch.export.ExportedProgram:
    """Return the network with its preprocessing as a graph, for any batch size.

    Raises:
        UserError: the network's images are not enlarged from a stored size.
    """
    if kind == "stored" and classifier.inputs.spec.fit != "enlarge":
        raise UserError(f"--input stored: {classifier.path} takes cropped photographs: choose --input pixels")
    module = WithPreprocessing(classifier, kind).eval()
    images, _ = example(classifier, kind, batch=2)
    module(images)  # data/resize.py keeps weights that it has made: while a graph is traced, they would be no numbers
    program = torch.export.export(module, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def described(classifier: Classifier, kind: InputKind) -> dict[str, Any]:
    """Return the exported file's metadata: those of the network's file, and what images it takes."""
    images, _ = example(classifier, kind, batch=1)
    dtype = str(images.dtype).removeprefix("torch.")
    return {
        "schema": weights.SCHEMA,
        "architecture": "torchvision.models.alexnet",
        **(classifier.metadata or {}),
        "class_names": list(classifier.class_names),
        "input": classifier.inputs.spec.to_json(),
        "export": {"input": kind, "shape": ["B", *images.shape[1:]], "dtype": dtype, "torch": torch.__version__},
    }


def example(classifier: Classifier, kind: InputKind, *, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images as the exported file takes them, and the network's inputs for them.

    Returns:
        `stored`: (B, 3, s, s) uint8, s the stored size; `pixels`: (B, 3, S, S) uint8; `normalised`: the inputs.
        (B, 3, S, S) float32.
    """
    spec = classifier.inputs.spec
    side = spec.loaded_size if kind == "stored" else spec.image_size
    shape = (batch, 3, side, side)
    images = torch.from_numpy(rng.generator(0, "export", batch).integers(0, 256, shape, dtype=np.uint8))
    inputs = classifier.inputs(images).contiguous()
    return (inputs if kind == "normalised" else images), inputs


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of logits from those expected, over the largest of these or 1.

    It is infinite for another shape, NaN and infinity.
    """
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


# ---- the two formats -------------------------------------------------------------------------------------------------


def to_onnx(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """Return an ONNX file, weights inside."""
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "batch"},)}
    exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert exported is not None
    texts = {weights.METADATA_KEY: json.dumps(metadata), "class_names": json.dumps(metadata["class_names"])}
    exported.model.metadata_props.update(texts)
    return bytes(exported.model_proto.SerializeToString())


def run_onnx(path: Path, images: torch.Tensor) -> torch.Tensor:
    """Return the logits that ONNX Runtime computes by a file, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def to_pt2(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """Return a pt2 archive. It is made in memory: torch aborts the process when a disk is full."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{weights.METADATA_KEY}.json": json.dumps(metadata)})
    return file.getvalue()


def run_pt2(path: Path, images: torch.Tensor) -> torch.Tensor:
    """Return the logits that torch computes by a file, on the CPU."""
    return cast("torch.Tensor", torch.export.load(io.BytesIO(path.read_bytes())).module()(images))
