"""Checkpoints and resuming: written whole or not at all, verified when read, and no pickle anywhere.

`checkpoints/step_00000098/` holds `model.safetensors` (a network file), `ema.safetensors` where there is an average of
the weights, `config.json` (the metadata of the one that evaluation measures), `optimizer.safetensors`, `state.json`,
and `MANIFEST.json` (sizes and SHA-256), written last. A folder is made under a temporary name, flushed to the disk and
renamed. Others may read the network; the optimizer's state and `state.json`, which has the configuration, are private.
Only rank 0 saves; every rank loads.
"""

import errno
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import nn

from alexnet_dist import atomic_files
from alexnet_dist.errors import UserError
from alexnet_dist.models import weights
from alexnet_dist.models.weights import Tensors

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of state.json and of the optimizer's key names."""
CONFIG = "config.json"
FOLDER_MODE, PRIVATE_MODE = 0o755, 0o600
MANIFEST = "MANIFEST.json"
SPARE_BYTES = 1 << 20
"""Room for state, manifest and headers."""
NAME = re.compile(r"step_(\d{8,})")
SCRATCH = ".writing-"
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What damaged files make their readers raise."""

State = dict[str, Any]


class Saver:
    """Saves a run's checkpoints on a thread of its own, one at a time, while training goes on. Rank 0 alone has one.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many of the newest stay, besides the best.
        failed: called on that thread when a checkpoint could not be written; `wait` then raises the reason.
        written: called on that thread with the path and the state of each checkpoint that was written.
    """

    def __init__(
        self, folder: Path, *, keep: int, failed: Callable[[], None], written: Callable[[Path, State], None]
    ) -> None:
        self._folder, self._keep, self._failed, self._written = folder, keep, failed, written
        self._copies: dict[str, Tensors] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None

    def save(
        self,
        *,
        step: int,
        tensors: dict[str, Tensors],
        state: State,
        metadata: State,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Copy the tensors, and on the thread write the checkpoint, then call `then`; all else is as of `save` below.

        Raises:
            UserError: the checkpoint before this one could not be written.
        """
        self.wait()
        self._copies = {name: _copied(part, self._copies.get(name, {})) for name, part in tensors.items()}
        self._saving = self._thread.submit(self._write, step, state, metadata, then)

    def wait(self) -> None:
        """Wait until all is on the disk.

        Raises:
            UserError: it could not be written; earlier checkpoints are intact.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Wait too, where another fault ends the run: a failure here is only logged."""
        try:
            self.wait()
        except UserError as error:
            logger.warning("%s", error)

    def _write(self, step: int, state: State, metadata: State, then: Callable[[], None] | None) -> None:
        try:
            path = save(self._folder, step=step, tensors=self._copies, state=state, metadata=metadata)
            prune(self._folder, keep=self._keep, last_step=step)
            self._written(path, state)
            if then is not None:
                then()
        except UserError:
            self._failed()
            raise


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None) -> dict[str, Tensors]:
    """Return the tensors of a checkpoint's safetensors files, by the files' names.

    Args:
        model: the raw module, not a DDP wrapper.
        optimizer: a torch optimizer over the model's parameters.
        ema: the averaged model, if there is one.
    """
    tensors = {"model": model.state_dict(), "optimizer": _optimizer_tensors(model, optimizer)}
    return tensors if ema is None else {**tensors, "ema": ema.state_dict()}


def save(folder: Path, *, step: int, tensors: dict[str, Tensors], state: State, metadata: State) -> Path:
    """Write `folder/step_<step>` and return its path; one that exists already is replaced. Rank 0 alone calls it.

    Args:
        folder: the run's `checkpoints/`.
        step: optimizer steps taken.
        tensors: of `tensors_of`.
        state: what JSON can hold, under `progress` a `Progress`.
        metadata: of the network file that evaluation measures, the average where there is one. The other file has the
            same without `result`.

    Raises:
        UserError: the disk is full or the folder cannot be written; the checkpoints that stand are untouched.
    """
    final = folder / f"step_{step:08d}"
    scratch = folder / f"{SCRATCH}{final.name}"
    try:
        for leftover in folder.glob(f"{SCRATCH}*"):  # of a killed process: the run folder's lock keeps others away
            shutil.rmtree(leftover)
        for made in [path for path in (folder, scratch) if not path.exists()]:
            made.mkdir(parents=True)
            atomic_files.set_mode(made, FOLDER_MODE)
        _check_space(scratch, tensors)
        claim = {**metadata, "result": None} if "ema" in tensors else metadata
        weights.write(scratch / "model.safetensors", tensors["model"], claim)
        _save_tensors(tensors["optimizer"], scratch / "optimizer.safetensors")
        if "ema" in tensors:
            weights.write(scratch / "ema.safetensors", tensors["ema"], metadata)
        _write_json(scratch / CONFIG, metadata, mode=weights.FOR_ALL)
        _write_json(scratch / "state.json", {"format": FORMAT, **state})
        manifest = {path.name: _describe(path) for path in sorted(scratch.iterdir())}
        _write_json(scratch / MANIFEST, manifest, mode=weights.FOR_ALL)
        atomic_files.flush(scratch)
        replaced = folder / f"{SCRATCH}over-{final.name}"
        if final.exists():
            final.rename(replaced)
        scratch.rename(final)  # a crash between the two loses nothing: `newest`
        atomic_files.flush(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise UserError(f"the checkpoint {final} cannot be written: {error}. Earlier checkpoints are intact") from None
    return final


def save_evidence(folder: Path, *, model: nn.Module, batch: Tensors, report: State) -> None:
    """Write what a step that went wrong can be computed again from; a failure is only logged. Rank 0 alone calls it.

    Args:
        folder: a new one.
        model: the raw module, with the weights before that step.
        batch: its images and what is known of them.
        report: anything JSON can hold.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # images of the data: for their owner alone
        folder.mkdir(exist_ok=True)
        _save_tensors(model.state_dict(), folder / "model.safetensors")
        _save_tensors(batch, folder / "batch.safetensors")
        _write_json(folder / "report.json", report)
    except (OSError, safetensors.SafetensorError) as error:
        logger.warning("%s cannot be written: %s", folder, error)


def load(path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None) -> None:
    """Restore a checkpoint that `newest` verified. Every rank calls it.

    Raises:
        UserError: it does not fit this model or optimizer.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(path / "model.safetensors"))
        _restore_optimizer(model, optimizer, safetensors.torch.load_file(path / "optimizer.safetensors"))
        if ema is not None:
            ema.load_state_dict(safetensors.torch.load_file(path / "ema.safetensors"))
    except (*DAMAGED, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"the checkpoint {path} does not fit this run: {error}") from None


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint whose manifest holds, with its state; None where there are no checkpoints at all.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    for scratch in folder.glob(f"{SCRATCH}step_*"):  # complete ones, that a crash left under the temporary name
        final = folder / scratch.name.removeprefix(SCRATCH)
        if not final.exists() and find_fault(scratch) is None:
            scratch.rename(final)
    found = checkpoints(folder)
    for path in reversed(found):
        fault = find_fault(path)
        if fault is None:
            return path, read_state(path)
        logger.warning("THE CHECKPOINT %s IS DAMAGED (%s): falling back to the one before it.", path, fault)
    if found:
        raise UserError(f"all {len(found)} checkpoints in {folder} are damaged: start afresh in another --out-dir")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Return the folder's checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    named = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def find_fault(path: Path) -> str | None:
    """Compare a checkpoint with its manifest; return what is wrong, or None. 685 MB take 0.4 s."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if not {"model.safetensors", "optimizer.safetensors", "state.json"} <= manifest.keys():
            return "its manifest lacks files"
        for name, expected in manifest.items():
            if "/" in name or name == ".." or (path / name).is_symlink():
                return f"its manifest names {name}, which is no file of its own"
            if _describe(path / name) != expected:
                return f"{name} is not what was written"
        if (found := read_state(path)["format"]) != FORMAT:
            return f"its format is {found}, and this version reads {FORMAT}"
    except DAMAGED as error:
        return f"{type(error).__name__}: {error}"
    return None


def prune(folder: Path, *, keep: int, last_step: int) -> None:
    """Remove all but the `keep` newest checkpoints and the best of all. Rank 0 alone calls it, after a save.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many.
        last_step: of the one just saved. Later ones are damaged, as the run continued from before them: they count as
            none and are replaced when the run gets there.
    """
    found = [path for path in checkpoints(folder) if int(path.name.partition("_")[2]) <= last_step]
    for path in sorted(set(found[:-keep]) - {best_of(found)}):
        shutil.rmtree(path, ignore_errors=True)


def best_of(found: Sequence[Path]) -> Path | None:
    """Return the checkpoint with the highest accuracy, the first of several; None where there are no checkpoints."""
    return max(found, key=_top1, default=None)


def read_state(path: Path) -> State:
    """Return a checkpoint's state; the caller knows that it is whole."""
    return cast("State", json.loads((path / "state.json").read_text(encoding="utf-8")))


def evaluated_weights(path: Path) -> Path:
    """Return the file with the weights that the checkpoint's accuracy is of: the average's where there is one."""
    average = path / "ema.safetensors"
    return average if average.exists() else path / "model.safetensors"


def _top1(path: Path) -> float:
    """Return the top-1 of a checkpoint's weights; -1 where they were saved without evaluation."""
    try:
        progress = read_state(path)["progress"]
        evaluated = progress["evaluated"] == progress["step"]
    except DAMAGED:
        return -1.0
    return progress["top1"] if evaluated and isinstance(progress.get("top1"), float) else -1.0


def _copied(tensors: Tensors, copies: Tensors) -> Tensors:
    """Copy to the CPU, into the last save's copies where there are any: fresh memory takes twice as long."""
    for name, tensor in tensors.items():
        if name not in copies:
            copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name].copy_(tensor)
    return copies


def _save_tensors(tensors: Tensors, path: Path) -> None:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    atomic_files.set_mode(path, PRIVATE_MODE)


def _write_json(path: Path, content: State, *, mode: int = PRIVATE_MODE) -> None:
    atomic_files.write_text(path, json.dumps(content, indent=1), mode=mode)


def _check_space(folder: Path, tensors: dict[str, Tensors]) -> None:
    needed = SPARE_BYTES + sum(tensor.nbytes for part in tensors.values() for tensor in part.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"it needs {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB left")


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": atomic_files.sha256(path)}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Name the optimizer's state after the parameters: `exp_avg:features.0.weight`."""
    return {
        f"{kind}:{name}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
        if value is not None
    }


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    parameters = dict(model.named_parameters())
    expected: set[str] = set()
    for group in optimizer.param_groups:  # each has state of its own kinds
        names = {name for name, parameter in parameters.items() if any(parameter is one for one in group["params"])}
        kinds = {kind for kind, _, name in (key.partition(":") for key in tensors) if name in names}
        expected |= {f"{kind}:{name}" for kind in kinds for name in names}
    if odd := tensors.keys() ^ expected:
        raise KeyError(f"the optimizer's state has too little or too much: {min(odd)}")
    positions = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(":")
        parameter = parameters[name]
        if value.shape not in (parameter.shape, torch.Size()) or value.dtype != parameter.dtype:
            raise ValueError(f"the optimizer's {key} has the shape {tuple(value.shape)} and the type {value.dtype}")
        # Fused optimizers walk parameter and state as flat memory: the state must have the parameter's strides.
        fitted = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        state.setdefault(positions[parameter], {})[kind] = fitted
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
