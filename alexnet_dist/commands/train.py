"""The train command: a run from top to bottom. Check, build, resume, train epoch by epoch, sum up."""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from alexnet_dist import data, training
from alexnet_dist.commands import media, network_file, results, run_summary, train_setup
from alexnet_dist.commands.train_setup import TrainRun
from alexnet_dist.config import Config, to_dict
from alexnet_dist.data import ImageData, Inputs
from alexnet_dist.distributed import Hardware, Request, RunControl, StoppedError, launch_checks, topology
from alexnet_dist.distributed import accelerator as processes
from alexnet_dist.distributed import hardware as hardware_module
from alexnet_dist.distributed.meeting import meeting
from alexnet_dist.errors import EXIT_DONE, EXIT_FAILED, UserError
from alexnet_dist.models import alexnet, weights
from alexnet_dist.report import page
from alexnet_dist.tracking import Console, Record, RunLogger, run_dir, wandb_tracker
from alexnet_dist.training import NonFiniteError, Progress, TrainContext, checkpoint, eval_loop, profiler, train_loop
from alexnet_dist.visualization import kernel_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    folder: Path
    """The run folder."""
    status: str
    """`finished`, `max_steps`, or `nothing to train` where the folder had all steps already."""
    top1: float | None
    """Of the last evaluation."""
    best_top1: float | None
    best_epoch: int | None


def train(config: Config) -> TrainResult:
    """Train as the configuration says and return the result. Every rank must call it.

    Raises:
        UserError: something the user can put right; nothing is lost.
        NonFiniteError: a step's loss or gradient was NaN or infinite.
        StoppedError: the run was asked to end; its state is saved.
        LostRankError: another rank died or hangs.
    """
    # ---- before a process group exists
    launch_checks.check_launch(config)
    wandb_tracker.check(config)
    run_dir.check_run_dir(config)
    with meeting(timedelta(seconds=config.runtime.timeout_seconds)) as store:
        dataset = data.load(config.data)
        start = weights.starting_weights(config.model)
        num_classes, size = len(dataset.class_names), config.data.image_size
        network = alexnet.build(config.model, num_classes=num_classes, seed=config.seed, start=start, image_size=size)

    # ---- processes and the run folder
    accelerator, precision = processes.make_accelerator(config, store)
    lock = run_dir.RunDirLock()
    try:
        folder = processes.from_main(accelerator, lambda: run_dir.choose_run_dir(config, data_name=dataset.name))
        processes.from_main(accelerator, lambda: lock.take(folder))
        config = dataclasses.replace(config, out_dir=folder)
        inputs = train_setup.make_inputs(config, dataset, start, precision.dtype)
        hardware = hardware_module.survey(accelerator, precision)
        return train_network(config, dataset, network, accelerator, hardware=hardware, inputs=inputs)
    finally:
        lock.release()
        processes.end(accelerator)


def train_network(
    config: Config,
    dataset: ImageData,
    network: nn.Module,
    accelerator: Accelerator,
    *,
    hardware: Hardware,
    inputs: Inputs,
) -> TrainResult:
    """Build the parts of the run, continue from its checkpoint if it has one, and train. Every rank must call it."""
    assert config.out_dir is not None
    folder, before = config.out_dir, kernel_images.snapshot(network)
    console = Console(enabled=accelerator.is_main_process, drop=True)
    control = RunControl(accelerator, folder, timeout=timedelta(seconds=config.runtime.timeout_seconds))
    setup = train_setup.prepare(config, dataset, network, accelerator, hardware, inputs, control.waiting)
    context, loaders, plan = setup
    control.watch(context.model)
    progress = resume(folder, dataset, context)
    if plan.is_done(progress):
        console.print(f"{folder} has its {progress.step} steps already: nothing to train")
        return result_of(folder, progress, status="nothing to train")
    facts = run_summary.facts(config, dataset, context, plan, hardware)
    facts |= topology.survey(accelerator, num_parameters=facts["num_parameters"], probe=config.runtime.probe_network)
    log = open_log(config, facts, accelerator, control, progress.step)
    failed = partial(control.requests.ask, Request.ABORT)
    written = partial(network_file.publish_epoch, config, log)
    saver = checkpoint.Saver(folder / "checkpoints", keep=config.checkpoint.keep, failed=failed, written=written)
    run = TrainRun(config, dataset, before, context, plan, loaders, control, log, saver, console)
    console.print(alexnet.parameter_table(network))
    console.card("run", run_summary.run_card(run, progress, hardware))
    return train_epochs(run, progress)


def resume(folder: Path, dataset: ImageData, context: TrainContext) -> Progress:
    """Restore the newest good checkpoint and return where it stands, or the beginning. Every rank must call it."""
    found = processes.from_main(context.accelerator, lambda: checkpoint.newest(folder / "checkpoints"))
    if found is None:
        return Progress()
    path, state = found
    if state.get("fingerprint") != dataset.fingerprint:
        raise UserError(f"{path} was trained on other images: name the same data set, or choose another --out-dir")
    optimizer = context.optimizer.optimizer
    processes.on_all(lambda: checkpoint.load(path, model=context.network, optimizer=optimizer, ema=context.ema))
    if context.accelerator.scaler is not None and state.get("scaler"):  # another precision has none
        context.accelerator.scaler.load_state_dict(state["scaler"])
    return Progress.of(state.get("progress"))


def open_log(config: Config, facts: Record, accelerator: Accelerator, control: RunControl, step: int) -> RunLogger:
    """Open the run folder's files and the trackers. Every rank must call it."""
    log = RunLogger(config, facts, enabled=accelerator.is_main_process)
    tags = run_summary.tags(facts)
    processes.from_main(accelerator, lambda: log.open(step=step, tags=tags, stop=control.requests.stop))
    shared_id = processes.from_main(accelerator, log.shared_id)
    if shared_id and not log.enabled:
        log.join(shared_id, rank=accelerator.process_index)
    return log


def train_epochs(run: TrainRun, progress: Progress) -> TrainResult:
    """Train and evaluate until all steps are taken, whatever happens record how it ended. Every rank must call it."""
    config, log, console = run.config, run.log, run.console
    if run.dataset.fallback_for:
        console.warn(f"{run.dataset.fallback_for} CANNOT BE HAD: THIS RUN TRAINS ON {run.dataset.name} INSTEAD")
    if progress.step == 0 and log.enabled:
        run.loaders.order.set_position(epoch=0)
        indices = next(iter(run.loaders.order))[: media.MOST_SHOWN]
        images = train_setup.gather(config, run.dataset, indices, epoch=0)
        batch = media.first_batch(images, run.context.inputs, run.dataset.class_names)
        log.show({"global_step": 0, "epoch": 0}, lambda: batch)
    started = time.perf_counter() - progress.wall_seconds
    tracer = profiler.Tracer(log.folder / "profile" if config.profile and log.enabled else None)
    status, exit_code = "failed", EXIT_FAILED
    try:
        with run.control.active():
            while not run.plan.is_done(progress):
                train_one_epoch(run, progress, tracer, started=started)
        status, exit_code = "finished" if progress.epoch == config.epochs else "max_steps", EXIT_DONE
    except NonFiniteError as error:
        status = "non-finite"
        log.alert("Not a number", str(error), level="ERROR")
        results.keep_evidence(run, progress, error)
        raise
    except StoppedError as stop:
        status, exit_code = "stopped", stop.exit_code
        log.mark_preempted(f"{stop} after step {progress.step}", requeue=stop.signal == signal.SIGTERM)
        raise
    finally:
        console.end_epoch()
        tracer.close()
        run.saver.close()
        summary = run_summary.summary(log.facts, progress, status=status)
        finish(run, summary, exit_code=exit_code)
    console.card("result", run_summary.result_card(summary, progress, config, log.tracking))
    return result_of(log.folder, progress, status=status)


def train_one_epoch(run: TrainRun, progress: Progress, tracer: profiler.Tracer, *, started: float) -> None:
    """Take the current epoch's steps, or what is left of them, evaluate and save. Every rank must call it.

    Raises:
        StoppedError: the run was asked to end; its state is saved.
    """
    config, plan, console, requests = run.config, run.plan, run.console, run.control.requests

    # ---- steps
    console.start_epoch(progress.epoch + 1, config.epochs, steps=plan.steps_per_epoch, done=progress.batch)
    run.loaders.order.set_position(epoch=progress.epoch, batch=progress.batch, end=plan.epoch_end(progress))

    def wants_record() -> bool:
        return bool(run.control.after_step()) or plan.saves_at(progress) or plan.records_at(progress)

    for record in train_loop.train_epoch(run.context, run.loaders.train, progress, wants_record=wants_record):
        tracer.step()
        if record is not None:
            run.log.log(record)
        console.step(record, step=progress.step, last_step=plan.last_step)
        progress.wall_seconds = time.perf_counter() - started
        if requests.agreed or plan.saves_at(progress):
            save(run, progress)
            requests.raise_if_stop()
    if requests.agreed:  # while images were waited for
        save(run, progress)
        requests.raise_if_stop()
    console.end_epoch()

    # ---- evaluation
    begun = time.perf_counter()
    evaluation = evaluate(run, progress)
    tell: Callable[[], None] | None = None
    if evaluation is not None:
        seconds = time.perf_counter() - begun
        record = progress.end_epoch(evaluation, plan, seconds=seconds, batch_size=config.data.batch_size)
        tell = results.report_epoch(run, progress, record, evaluation)
        progress.wall_seconds = time.perf_counter() - started

    # ---- checkpoint
    if progress.step == plan.last_step or requests.agreed or progress.epoch % config.checkpoint.every_epochs == 0:
        save(run, progress, then=tell)
    elif tell is not None:
        tell()
    if evaluation is not None and plan.is_done(progress):
        results.draw(run, evaluation)
    else:
        requests.raise_if_stop()


def evaluate(run: TrainRun, progress: Progress) -> training.Evaluation | None:
    """Return the evaluation of the weights, of their average where there is one; None where a stop came meanwhile."""
    context, loaders = run.context, run.loaders
    module = context.network if context.ema is None else context.ema
    shares = run.control.interruptible(loaders.test, num_batches=loaders.num_eval_batches)
    flip_tta = progress.step == run.plan.last_step and run.dataset.flips
    try:
        found = eval_loop.evaluate(module, shares, context.inputs, context.accelerator, flip_tta=flip_tta)
    except StoppedError:  # saved first, then raised again by `Requests.raise_if_stop`
        return None
    assert found.num_images == len(run.dataset.test), "an image was left out or counted twice"
    return found


def save(run: TrainRun, progress: Progress, *, then: Callable[[], None] | None = None) -> None:
    """Save a checkpoint from rank 0 in the background. Every rank must call it.

    Args:
        run: whose state is saved.
        progress: where it stands.
        then: called on rank 0 when the checkpoint is on the disk, on another thread.

    Raises:
        UserError: on every rank: this one, where it is waited for, or the one before it could not be written.
    """
    context, requests = run.context, run.control.requests
    scaler = context.accelerator.scaler
    state: dict[str, Any] = {
        "progress": dataclasses.asdict(progress),
        "fingerprint": run.dataset.fingerprint,
        "config": to_dict(run.config),
        "facts": run.log.facts,
        "scaler": scaler.state_dict() if scaler else None,
    }

    def write() -> None:
        if requests.agreed is Request.ABORT:
            run.saver.wait()  # raises the error of the checkpoint before this one
        tensors = checkpoint.tensors_of(context.network, context.optimizer.optimizer, context.ema)
        metadata = network_file.metadata(run.config, run.dataset, context.inputs.spec, run.log.facts, progress)
        run.saver.save(step=progress.step, tensors=tensors, state=state, metadata=metadata, then=then)
        if requests.agreed or run.plan.is_done(progress):  # somebody waits for it
            run.saver.wait()

    processes.from_main(context.accelerator, write)


def finish(run: TrainRun, summary: Record, *, exit_code: int) -> None:
    """Record how the run ended, send what waits, and write the report, whatever happened before."""
    log = run.log
    if log.enabled and exit_code == EXIT_DONE:
        log.alert("Finished", run_summary.summary_sentence(summary), level="INFO")
        if run.config.wandb.artifacts == "final":
            network_file.publish_best_and_last(log)
    log.write_summary(summary)
    log.close(exit_code)
    if log.enabled:
        try:
            page.write(log.folder)
        except Exception as error:  # noqa: BLE001 - a page is not worth a run
            logger.warning("report.html cannot be written: %s", error)


def result_of(folder: Path, progress: Progress, *, status: str) -> TrainResult:
    """Return a run's result."""
    return TrainResult(folder, status, progress.top1, progress.best_top1, progress.best_epoch)
