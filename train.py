"""Train AlexNet: the run from top to bottom. `train.py --help` explains every option.

accelerate launch train.py --config recipes/lecture.yaml
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from alexnet_dist.config import Config, parse, to_dict
from alexnet_dist.errors import UserError

logger = logging.getLogger(__name__)

EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130
WAIT_FOR_FIRST = 10.0  # seconds; the launcher cuts them short once the first has ended


def fail(message: str, *, code: int, common: bool = True) -> NoReturn:
    """End with one line, printed once per host where every rank comes here with the same fault."""
    if not common or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr, flush=True)
    elif code == EXIT_USER:
        time.sleep(WAIT_FOR_FIRST)  # a launcher that sees this one end ends the first, which may not have printed yet
    sys.exit(code)


if __name__ == "__main__":  # before torch, which takes seconds: --help and typing errors are answered at once
    try:
        COMMAND_LINE = parse()
    except UserError as mistake:
        fail(str(mistake), code=EXIT_USER)

import torch

from alexnet_dist.commands import media, run_summary
from alexnet_dist.data import augment, sampler, sources
from alexnet_dist.data import inputs as inputs_module
from alexnet_dist.data import loader as loader_module
from alexnet_dist.distributed import accelerator as accelerator_module
from alexnet_dist.distributed import hardware as hardware_module
from alexnet_dist.distributed import launch_checks, signals, topology, watchdog
from alexnet_dist.distributed import precision as precision_module
from alexnet_dist.models import alexnet, fast_layers
from alexnet_dist.report import page
from alexnet_dist.tracking import code_version as code_version_module
from alexnet_dist.tracking import run_dir, run_logger
from alexnet_dist.tracking.console import Console
from alexnet_dist.training import checkpoint, eval_loop, lr_schedule, metrics, profiler, train_loop
from alexnet_dist.training import ema as ema_module
from alexnet_dist.training import optimizer as optimizer_module
from alexnet_dist.training import progress as progress_module
from alexnet_dist.visualization import kernel_images, plots

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from torch import nn

    from alexnet_dist.data.image_data import ImageData


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run is made of."""

    config: Config
    dataset: ImageData
    network: nn.Module
    """The raw module, which `job.model` wraps."""
    kernels_before: kernel_images.Weights
    job: train_loop.Job
    facts: run_summary.Facts
    log: run_logger.RunLog
    saver: checkpoint.Saver
    console: Console
    tracer: profiler.Tracer


def main(config: Config) -> None:
    """Refuse what cannot work, then form the process group and run. Every rank calls it."""
    launch_checks.check_launch(config)
    run_dir.check(config)
    dataset = sources.load(config.data)
    network = alexnet.build(config.model, num_classes=len(dataset.class_names), seed=config.seed)
    before = kernel_images.snapshot(network)
    accelerator, precision = accelerator_module.make_accelerator(config)
    lock = run_dir.Lock()
    try:
        folder = accelerator_module.from_main(
            accelerator, lambda: run_dir.choose_folder(config, data_name=dataset.name)
        )
        config = dataclasses.replace(config, out_dir=folder)
        console = Console(enabled=accelerator.is_main_process)
        accelerator_module.from_main(accelerator, lambda: lock.take(folder))
        job = prepare(config, dataset, network, accelerator, hardware_module.survey(accelerator, precision))
        progress = resume(config, dataset, network, job)
        if job.is_done(progress):
            console.print(f"{folder} has its {progress.step} steps already: nothing to train")
            return
        num_parameters = alexnet.num_parameters(network)
        places = topology.survey(accelerator, num_parameters=num_parameters, probe=config.runtime.probe_network)
        facts = (
            run_summary.facts(config, dataset, network, job)
            | places
            | {"git_commit": code_version_module.code_version()}
        )
        log = run_logger.RunLog(
            config,
            facts=facts,
            tags=run_summary.tags(facts),
            enabled=accelerator.is_main_process,
            step=progress.step,
            stop=job.interrupts.stop,
        )
        accelerator_module.from_main(accelerator, log.open)
        shared_id = accelerator_module.from_main(accelerator, log.shared_id)
        if shared_id and not log.enabled:
            log.join(shared_id, rank=accelerator.process_index)
        tracer = profiler.Tracer(folder / "profile" if config.profile and accelerator.is_main_process else None)
        saver = checkpoint.Saver(
            folder / "checkpoints",
            keep=config.checkpoint.keep,
            failed=lambda: job.interrupts.ask(signals.Wish.SAVE),  # whose first act is to say so on all ranks
            written=lambda path: publish_epoch(run, path),
        )
        run = Run(config, dataset, network, before, job, facts, log, saver, console, tracer)
        train(run, progress)
    finally:
        lock.release()
        accelerator.end_training()


def prepare(
    config: Config,
    dataset: ImageData,
    network: nn.Module,
    accelerator: Accelerator,
    hardware: hardware_module.Hardware,
) -> train_loop.Job:
    """Put the network on its device and make all that the loops need. Every rank calls it."""
    network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in the stubs
    ema = ema_module.Ema(network, decay=config.optim.ema) if config.optim.ema else None
    if config.runtime.compile:
        network.compile()
    mixes = config.data.mixup is not None or config.data.cutmix is not None
    order = sampler.GlobalBatches(
        len(dataset.train), config.data.batch_size, seed=config.seed, drop_last=True, partners=mixes
    )
    in_turn = sampler.GlobalBatches(len(dataset.test), config.data.batch_size, seed=None, drop_last=False)
    on_gpu = accelerator.device.type == "cuda"
    prepared, optimizer, train_loader, eval_loader = accelerator.prepare(
        network,
        optimizer_module.build(network, config.optim),
        loader_module.loader(dataset.train.images, dataset.train.labels, order, pin_memory=on_gpu),
        loader_module.loader(dataset.test.images, dataset.test.labels, in_turn, pin_memory=on_gpu),
    )
    assert config.out_dir is not None
    total_steps = config.epochs * order.num_batches
    rates = dataclasses.replace(config.optim, lr=lr_schedule.peak(config.optim, batch_size=config.data.batch_size))
    timeout = timedelta(seconds=config.runtime.timeout_seconds)
    return train_loop.Job(
        accelerator=accelerator,
        hardware=hardware,
        model=prepared,
        optimizer=optimizer,
        ema=ema,
        train_loader=train_loader,
        order=order,
        eval_loader=eval_loader,
        num_eval_images=len(dataset.test),
        num_eval_batches=in_turn.num_batches,
        num_classes=len(dataset.class_names),
        preprocess=preprocessing(config, dataset, hardware.precision),
        learning_rate=lambda step: lr_schedule.learning_rate(
            step, rates, steps_per_epoch=order.num_batches, total_steps=total_steps
        ),
        optim=config.optim,
        seed=config.seed,
        log_every=config.log.every_steps,
        save_every=config.checkpoint.every_steps,
        last_step=min(total_steps, config.max_steps or total_steps),
        flops_per_image=alexnet.training_flops(network, config.data.image_size),
        interrupts=signals.Interrupts(accelerator, config.out_dir, timeout=timeout),
        heartbeat=watchdog.Heartbeat(accelerator, timeout=timeout),
        blocked=torch.zeros((), device=accelerator.device),
    )


def preprocessing(
    config: Config, dataset: ImageData, precision: precision_module.Precision
) -> inputs_module.Preprocess:
    """Return the way from a stored image to what conv1 reads."""
    mean, std = alexnet.input_statistics(config.model) or (dataset.mean, dataset.std)
    return inputs_module.Preprocess(
        image_size=config.data.image_size,
        source_size=dataset.train.images.shape[-1],
        mean=mean if config.data.normalize else (0.0, 0.0, 0.0),
        std=std if config.data.normalize else (1.0, 1.0, 1.0),
        margin=fast_layers.margin(config.data.image_size),
        dtype=precision.dtype,
        augment=augmentation(config, dataset) if config.data.augment else None,
    )


def augmentation(config: Config, dataset: ImageData) -> augment.Augment:
    """Return what happens to training images before they are enlarged."""
    red, green, blue = dataset.mean if config.data.normalize else (0.0, 0.0, 0.0)  # what becomes 0 in the input
    return augment.Augment(
        source_size=dataset.train.images.shape[-1],
        num_images=len(dataset.train),
        seed=config.seed,
        flips=dataset.flips,
        cutout=config.data.cutout,
        mix="mixup" if config.data.mixup else "cutmix" if config.data.cutmix else None,
        mix_alpha=config.data.mixup or config.data.cutmix or 1.0,
        fill=(round(255 * red), round(255 * green), round(255 * blue)),
    )


def resume(config: Config, dataset: ImageData, network: nn.Module, job: train_loop.Job) -> progress_module.Progress:
    """Continue from the newest good checkpoint, or begin. Every rank calls it."""
    assert config.out_dir is not None
    folder = config.out_dir / "checkpoints"
    found = accelerator_module.from_main(job.accelerator, lambda: checkpoint.newest(folder))
    if found is None:
        return progress_module.Progress()
    path, state = found
    if state.get("fingerprint") != dataset.fingerprint:
        raise UserError(f"{path} was trained on other images: name the same data set, or choose another --out-dir")
    ema = job.ema.model if job.ema else None
    accelerator_module.on_all(lambda: checkpoint.load(path, model=network, optimizer=job.optimizer.optimizer, ema=ema))
    if job.accelerator.scaler is not None and state.get("scaler"):  # another precision has none
        job.accelerator.scaler.load_state_dict(state["scaler"])
    return progress_module.Progress.of(state.get("progress"))


def train(run: Run, progress: progress_module.Progress) -> None:
    """Train epoch by epoch, evaluate and save each, and sum up. Every rank calls it."""
    config, job, console = run.config, run.job, run.console
    console.print(alexnet.parameter_table(run.network))
    console.card("run", run_summary.run_card(config, run.facts, job, progress, run.log.tracking))
    if run.dataset.fallback_for:
        console.warn(f"{run.dataset.fallback_for} CANNOT BE HAD: THIS RUN TRAINS ON {run.dataset.name} INSTEAD")
    if progress.step == 0 and run.log.enabled:
        batch = media.first_batch(job, run.dataset)
        run.log.show({"global_step": 0, "epoch": 0}, lambda: batch)
    started = time.perf_counter() - progress.wall_seconds
    status, exit_code = "failed", EXIT_FAILED
    try:
        with job.interrupts.listening(), job.heartbeat.watching():
            while not job.is_done(progress):
                train_one_epoch(run, progress, started=started)
        status, exit_code = "finished" if progress.epoch == config.epochs else "max_steps", 0
    except metrics.NonFiniteError as error:
        status = "non-finite"
        run.log.alert("Not a number", str(error), level="ERROR")
        keep_evidence(run, progress, error)
        raise
    except signals.StoppedError as stop:
        status, exit_code = "stopped", stop.exit_code
        run.log.mark_preempted(f"{stop} after step {progress.step}", requeue=stop.signal == signal.SIGTERM)
        raise
    finally:
        console.end_epoch()
        run.tracer.close()
        run.saver.close()
        summary = run_summary.summary(run.facts, progress, status=status)
        finish(run, summary, exit_code=exit_code)
    console.card("result", run_summary.result_card(summary, progress, config, run.log.tracking))


def finish(run: Run, summary: train_loop.Record, *, exit_code: int) -> None:
    """Record how the run ended, send what waits, and write the report, whatever happened before."""
    log = run.log
    if log.enabled and exit_code == 0:
        log.alert("Finished", run_summary.finding(summary), level="INFO")
        if run.config.wandb.artifacts == "final":
            publish_best_and_last(run)
    log.write_summary(summary)
    log.close(exit_code)
    if log.enabled:
        try:
            page.write(log.folder)
        except Exception as error:  # noqa: BLE001 - a page is not worth a run
            logger.warning("report.html cannot be written: %s", error)


def publish_best_and_last(run: Run) -> None:
    """Send the weights of the best checkpoint and of the last one to the trackers."""
    found = checkpoint.checkpoints(run.log.folder / "checkpoints")
    best, last = checkpoint.best_of(found), found[-1]
    for path in dict.fromkeys([best or last, last]):
        aliases = [alias for alias, one in (("best", best), ("latest", last)) if one == path]
        run.log.publish(media.weights(path, run.config, run.dataset, run.job, aliases=aliases))


def publish_epoch(run: Run, path: Path) -> None:
    """Send the weights of a checkpoint that was written at an epoch's end, if all are to be sent."""
    if run.config.wandb.artifacts != "all":
        return
    progress = checkpoint.read_state(path)["progress"]
    if progress["batch"] == 0:
        aliases = ["latest", *["best"] * (progress["best_epoch"] == progress["epoch"])]
        run.log.publish(media.weights(path, run.config, run.dataset, run.job, aliases=aliases))


def train_one_epoch(run: Run, progress: progress_module.Progress, *, started: float) -> None:
    """Take the current epoch's steps, or what is left of them, evaluate and save. Every rank calls it.

    Raises:
        StoppedError: the run was asked to end; its state is saved.
    """
    config, job, console = run.config, run.job, run.console
    console.start_epoch(progress.epoch + 1, config.epochs, steps=job.order.num_batches, done=progress.batch)
    for record in train_loop.train_epoch(job, progress):
        run.tracer.step()
        run.log.log(record)
        console.step(record, step=progress.step, last_step=job.last_step)
        progress.wall_seconds = time.perf_counter() - started
        if job.saves_at(progress) or job.interrupts.wish:
            save(run, progress)
            job.interrupts.answered()
    console.end_epoch()
    evaluation_started = time.perf_counter()
    is_last = progress.step == job.last_step
    evaluation = eval_loop.evaluate(job, mirrored=is_last and run.dataset.flips)
    if evaluation is not None:
        record = progress.end_epoch(job, evaluation, seconds=time.perf_counter() - evaluation_started)
        report_epoch(run, record, evaluation)
        progress.wall_seconds = time.perf_counter() - started
    due = is_last or progress.epoch % config.checkpoint.every_epochs == 0
    if due or job.interrupts.wish:
        save(run, progress)
    if evaluation is not None and job.is_done(progress):
        draw_results(run, evaluation)
    else:
        job.interrupts.answered()


def report_epoch(run: Run, record: train_loop.Record, evaluation: metrics.Evaluation) -> None:
    """Record an epoch's results and, when they are due, its pictures and tables."""
    log, names = run.log, run.dataset.class_names
    record |= media.per_class(evaluation, names)
    is_last = record["global_step"] == run.job.last_step
    if log.enabled and (is_last or record["epoch"] % run.config.log.kernels_every_epochs == 0):
        before, now = run.kernels_before, kernel_images.snapshot(run.network)
        record |= {f"kernels/{name}": number for name, number in kernel_images.numbers(before, now).items()}
        chosen, inputs = run.config.log.conv2_kernel, run.job.preprocess
        enlargement = inputs.image_size / inputs.source_size
        log.show(
            record,
            lambda: media.kernel_media(before, now, record, conv2_kernel=chosen, enlargement=enlargement),
        )
        log.confusion(record, evaluation.confusion, names)
        log.write("evaluation.json", media.evaluation_file(record, evaluation, names))
        log.show(record, lambda: media.mistakes_sheet(run.dataset, evaluation), send=False)
        if is_last:
            log.table(record, "errors", lambda: media.mistakes_table(run.dataset, evaluation))
    log.log(record)
    run.console.print(run_summary.epoch_line(record, epochs=run.config.epochs, split=run.dataset.evaluated_on))
    if log.enabled and (collapse := evaluation.collapse()):
        moved = kernel_images.moved(run.kernels_before, kernel_images.snapshot(run.network))
        words = run_summary.collapse_words(collapse, record, num_classes=len(names), moved=moved)
        log.alert("Nothing learned", words, level="WARN")
        run.console.warn(f"THE NETWORK HAS LEARNED NOTHING: {words}")


def save(run: Run, progress: progress_module.Progress) -> None:
    """Save a checkpoint from rank 0 in the background. Every rank calls it.

    Raises:
        UserError: on every rank: this one, where it is waited for, or the one before it could not be written.
    """
    job = run.job
    scaler = job.accelerator.scaler
    state = {
        "progress": dataclasses.asdict(progress),
        "top1": progress.top1,
        "fingerprint": run.dataset.fingerprint,
        "config": to_dict(run.config),
        "facts": run.facts,
        "scaler": scaler.state_dict() if scaler else None,
    }

    def write() -> None:
        run.saver.save(
            step=progress.step,
            model=run.network,
            optimizer=job.optimizer.optimizer,
            ema=job.ema.model if job.ema else None,
            state=state,
        )
        if job.interrupts.wish or job.is_done(progress):  # somebody waits for it
            run.saver.wait()

    accelerator_module.from_main(job.accelerator, write)


def keep_evidence(run: Run, progress: progress_module.Progress, error: metrics.NonFiniteError) -> None:
    """Leave in the run folder what is needed to compute a non-finite step again."""
    if not run.log.enabled:
        return
    job, split = run.job, run.dataset.train
    ids, losses = (list(column) for column in zip(*error.images, strict=True))
    partner = job.order.partner_table()
    indices = ids if partner is None else [[image, int(partner[image])] for image in ids]
    batch: dict[str, Any] = {**loader_module.gather(split.images, split.labels, indices)}
    batch["losses"] = torch.tensor(losses)
    draws = job.preprocess.draws(progress.epoch)
    if draws is not None:
        batch["draws"] = draws[batch["ids"]]
        if partner is not None:
            batch["partner_draws"] = draws[batch["partner_ids"]]
    report = {
        "error": str(error),
        "step": error.step,
        "epoch": progress.epoch + 1,
        "learning_rate": job.learning_rate(error.step - 1),
        "world_size": job.accelerator.num_processes,
        "config": to_dict(run.config),
    }
    checkpoint.save_evidence(
        run.log.folder / "non_finite" / f"step_{error.step:08d}",
        model=run.network,
        batch=batch,
        report=report,
    )


def draw_results(run: Run, evaluation: metrics.Evaluation) -> None:
    """Draw the curves and the confusion matrix."""
    if run.log.enabled:
        folder, split = run.log.folder / "figures", run.dataset.evaluated_on
        plots.save_curves(run.log.records, folder, num_classes=run.job.num_classes, split=split)
        plots.save_confusion(evaluation.confusion, run.dataset.class_names, folder / "confusion.png")


def command() -> NoReturn:
    """Run the command line's configuration and turn every ending into an exit code."""
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING if is_main else logging.ERROR, format="%(levelname)s: %(message)s")
    try:
        main(COMMAND_LINE)
    except UserError as error:
        fail(str(error), code=EXIT_USER)
    except metrics.NonFiniteError as error:
        fail(str(error), code=EXIT_FAILED)
    except watchdog.LostRankError as error:
        fail(f"{error}. The same command with the same --out-dir continues", code=EXIT_FAILED, common=False)
    except signals.StoppedError as stop:
        fail(
            f"stopped by {stop}, its state is saved; the same command with the same --out-dir continues",
            code=stop.exit_code,
        )
    except KeyboardInterrupt:
        fail("interrupted; the same command with the same --out-dir continues", code=EXIT_INTERRUPTED)
    sys.exit(0)


if __name__ == "__main__":
    command()
