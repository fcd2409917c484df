"""Break the code on purpose, one promise at a time, and see the test that holds the promise fail.

    python tests/mutations.py            # all; some ten minutes
    python tests/mutations.py R7 R17     # those whose name begins so

Works on a copy, prints the rows of the table in docs/reliability.md, and ends with 1 if a mutation was not caught. The
long proofs of `make test-long` are not repeated here.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutation:
    """One way to break a promise."""

    name: str
    words: str
    where: str
    """`training/checkpoint.py: Saver.save`, below alexnet_dist/; a path alone is the whole file."""
    old: str
    """Text that occurs once there, and"""
    new: str
    """what takes its place."""
    test: str


MUTATIONS = [
    Mutation(
        "R1",
        "a resumed epoch begins at its first batch",
        "data/sampler.py: GlobalBatches.set_position",
        "self.first_batch = batch",
        "self.first_batch = 0",
        "integration/test_train.py::test_stopped_and_resumed_run_equals_an_undisturbed_one",
    ),
    Mutation(
        "R1 background",
        "the saver's thread writes the live weights instead of copies",
        "training/checkpoint.py: _copied",
        "        copies[name].copy_(tensor)\n",
        "        copies[name] = tensor\n",
        "unit/training/test_checkpoint.py::test_training_goes_on_while_the_saver_writes_and_does_not_change_what_it_writes",
    ),
    Mutation(
        "R1 mid-save",
        "files are written under the final name",
        "training/checkpoint.py: save",
        '    scratch = folder / f"{SCRATCH}{final.name}"\n',
        "    scratch = final\n",
        "faults/test_killed_saves.py::test_a_kill_at_any_moment_of_a_save_leaves_the_earlier_one",
    ),
    Mutation(
        "R1 replace",
        "an old checkpoint is deleted before the new one has its name",
        "training/checkpoint.py: save",
        "            final.rename(replaced)\n",
        "            shutil.rmtree(final)\n",
        "faults/test_killed_saves.py::test_a_kill_while_a_checkpoint_is_replaced_leaves_one",
    ),
    Mutation(
        "R2",
        "the order of images forgets the epoch",
        "data/sampler.py: GlobalBatches.__iter__",
        'generator(self.seed, "order", self.epoch)',
        'generator(self.seed, "order", self.first_batch)',
        "integration/test_train.py::test_a_resumed_run_sees_each_image_as_the_undisturbed_one_does",
    ),
    Mutation(
        "R2 records",
        "records beyond the checkpoint stay",
        "tracking/run_dir.py: read_records",
        'record.get("global_step", last_step + 1) <= last_step',
        "True",
        "unit/tracking/test_run_logger.py::test_resuming_cuts_later_records_and_a_torn_line",
    ),
    Mutation(
        "R3",
        "a failed collective is not explained",
        "distributed/watchdog.py: Watchdog.watching",
        "if not COLLECTIVE.search(str(error)):",
        "if True:",
        "faults/test_watchdog.py::test_a_killed_rank_is_named_and_ends_the_other",
    ),
    Mutation(
        "R3 restarts",
        "restarts without a folder are let through",
        "distributed/launch_checks.py: check_processes",
        'if config.out_dir is None and environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":',
        "if False:",
        "unit/distributed/test_launch_checks.py::test_restarts_without_a_folder_to_find_again_are_refused",
    ),
    Mutation(
        "R4 stopped",
        "silence is never noticed",
        "distributed/watchdog.py: Watchdog._finding",
        "if age > SILENCE * self._period]",
        "if age > 1e9]",
        "faults/test_watchdog.py::test_a_stopped_rank_is_named_and_ends_the_other",
    ),
    Mutation(
        "R4 hanging",
        "the thread beats although its rank does not move",
        "distributed/watchdog.py: Watchdog._tell",
        'f"{self._told} {self._progress}"',
        'f"{self._told} {self._told}"',
        "faults/test_watchdog.py::test_a_rank_that_hangs_in_its_own_code_is_named_by_itself_and_the_other",
    ),
    Mutation(
        "R5",
        "only gloo's own errors count, not a reset connection",
        "distributed/watchdog.py",
        '"gloo|nccl|connection (closed|reset)|timed out"',
        '"never"',
        "faults/test_watchdog.py::test_a_failing_exchange_ends_all_ranks_and_the_run_continues_to_the_bit",
    ),
    Mutation(
        "R6",
        "a rank acts on its own signal without agreement",
        "distributed/signals.py: Requests.sync",
        "self.agreed = max(self.agreed, Request(int(largest)))",
        "self.agreed = max(self.agreed, asked)",
        "faults/test_interrupts.py::test_a_signal_to_one_rank_stops_both_at_the_same_step",
    ),
    Mutation(
        "R6 again",
        "the second signal only asks again",
        "distributed/signals.py: Requests._take",
        "if number in self._seen and now",
        "if number is None and now",
        "faults/test_interrupts.py::test_the_same_signal_again_ends_at_once",
    ),
    Mutation(
        "R7",
        "sums are not compared",
        "training/checkpoint.py: find_fault",
        "if _describe(path / name) != expected:",
        "if not (path / name).exists():",
        "unit/training/test_checkpoint.py::test_damage_falls_back_loudly_and_never_to_a_fresh_start",
    ),
    Mutation(
        "R7 prune",
        "a damaged later checkpoint counts as the newest",
        "training/checkpoint.py: prune",
        "<= last_step]",
        ">= 0]",
        "unit/training/test_checkpoint.py::test_prune_never_counts_a_damaged_checkpoint_that_the_run_was_continued_from_before",
    ),
    Mutation(
        "R8",
        "nobody is told of a failed background save",
        "training/checkpoint.py: Saver._write",
        "            self._failed()\n",
        "            pass\n",
        "faults/test_disk.py::test_a_save_that_fails_in_the_background_ends_the_run_soon",
    ),
    Mutation(
        "R8 room",
        "room is not looked for",
        "training/checkpoint.py: _check_space",
        "    if free < needed:",
        "    if free < 0:",
        "faults/test_disk.py::test_room_is_looked_for_before_anything_is_written",
    ),
    Mutation(
        "R9",
        "the optimizer is not blocked",
        "training/train_loop.py: _clip",
        "        torch.maximum(blocked, (~torch.isfinite(norm)).float(), out=blocked)\n",
        "        pass\n",
        "integration/test_train.py::test_non_finite_step_is_never_taken",
    ),
    Mutation(
        "R9 ranks",
        "each rank looks at its own images only",
        "training/train_loop.py: _check_finite",
        "images = gather_object(window.images(index))",
        "images = window.images(index)",
        "ranks/test_ddp.py::test_nan_on_one_rank_stops_both_with_the_same_words",
    ),
    Mutation(
        "R10",
        "augmentation depends on the batch's split over ranks",
        "data/inputs.py: Inputs.augmented",
        'own = draws[batch["ids"]]',
        'own = draws[: len(batch["ids"])]',
        "ranks/test_ddp.py::test_two_ranks_have_the_same_losses_and_gradients",
    ),
    Mutation(
        "R11",
        "the last evaluation batch is filled up with images seen before",
        "distributed/accelerator.py: _form",
        "even_batches=False",
        "even_batches=True",
        "ranks/test_ddp.py::test_evaluation_counts_every_image_once_at_an_indivisible_size",
    ),
    Mutation(
        "R12",
        "label smoothing of 0.001 slips in",
        "training/train_loop.py: train_step",
        "context.config.label_smoothing)",
        "1e-3)",
        "unit/training/test_train_loop.py::test_golden_losses",
    ),
    Mutation(
        "R15",
        "a file's damage escapes as the reader's own error",
        "training/checkpoint.py: load",
        "except (*DAMAGED, RuntimeError, safetensors.SafetensorError) as error:",
        "except OSError as error:",
        "faults/test_fuzz.py::test_any_sealed_safetensors_file_loads_or_is_refused",
    ),
    Mutation(
        "R15 state",
        "progress is taken as it comes",
        "training/progress.py: Progress.of",
        "        if wrong or not all(",
        "        if False and not all(",
        "faults/test_fuzz.py::test_a_run_does_not_continue_from_a_sealed_state_that_is_nonsense",
    ),
    Mutation(
        "R13 start",
        "a server that cannot be reached ends W&B for the run",
        "tracking/wandb_tracker.py: WandbTracker.__init__",
        'if mode != "online":\n                raise',
        "if True:\n                raise",
        "unit/tracking/test_run_logger.py::test_an_unreachable_server_means_offline",
    ),
    Mutation(
        "R13 hang",
        "trackers are called where training waits for them",
        "tracking/run_logger.py: Worker.do",
        "            self._jobs.put(job, block=wait)\n",
        "            job()\n",
        "unit/tracking/test_run_logger.py::test_trackers_are_called_on_a_thread_of_their_own_that_ends",
    ),
    Mutation(
        "R13 end",
        "the end waits for a tracker that hangs",
        "tracking/run_logger.py: Worker.finish",
        "        self._thread.join(seconds)\n",
        "        self._thread.join(10 + seconds)\n",
        "unit/tracking/test_run_logger.py::test_a_tracker_that_hangs_holds_nobody",
    ),
    Mutation(
        "R13 kill",
        "what a kill took from wandb's memory is not sent again",
        "tracking/wandb_tracker.py: WandbTracker.__init__",
        "self._was_killed = self._marker.exists()",
        "self._was_killed = False",
        "unit/tracking/test_wandb_tracker.py::test_a_run_that_was_killed_sends_its_records_again",
    ),
    Mutation(
        "R14",
        "a connection that breaks is no reason for the fallback",
        "sources/hub.py: list_hub",
        'unreachable = (OSError, getattr(huggingface_hub.errors, "HTTPError", OSError))',
        "unreachable = (OSError,)",
        "unit/sources/test_hub.py::test_a_hub_that_cannot_be_reached",
    ),
    Mutation(
        "R14 race",
        "every process decodes",
        "data/load.py: _prepared",
        "if (data := _opened(folder, source.name, config)) is not None:",
        "if (data := None) is not None:",
        "ranks/test_cache.py::test_of_two_processes_one_decodes",
    ),
    Mutation(
        "R15 YAML",
        "lists of lists are expanded",
        "config/cli.py: _flatten",
        "if any(isinstance(item, dict | list | tuple | set) for item in value):",
        "if False:",
        "faults/test_fuzz.py::test_aliases_that_multiply_are_refused_at_once",
    ),
    Mutation(
        "R16",
        "chance counts as learning",
        "training/metrics.py: Evaluation.collapse",
        "if self.top1 == 1:",
        "if True:",
        "integration/test_train.py::test_collapse_is_reported",
    ),
    Mutation(
        "R16 nothing moved",
        "an optimizer of other parameters is not told from bad luck",
        "visualization/kernel_images.py: moved",
        "return any(not torch.equal(start, now[layer]) for layer, start in before.items())",
        "return True",
        "integration/test_train.py::test_an_optimizer_of_other_parameters_is_diagnosed",
    ),
    Mutation(
        "recipe partners",
        "partners are augmented by the numbers of others",
        "data/inputs.py: Inputs.augmented",
        'draws[batch["partner_ids"]])',
        'draws[batch["ids"]])',
        "unit/training/test_train_loop.py::test_mixed_images_count_for_both_labels",
    ),
    Mutation(
        "recipe shares",
        "a mixture's loss has its shares the wrong way round",
        "training/train_loop.py: _losses",
        "partners.lerp(losses,",
        "losses.lerp(partners,",
        "unit/training/test_train_loop.py::test_mixed_images_count_for_both_labels",
    ),
    Mutation(
        "recipe held out",
        "held-out images are trained on too",
        "data/image_data.py: divided",
        "return split.take(~drawn), split.take(drawn)",
        "return split.take(drawn | True), split.take(drawn)",
        "unit/data/test_load.py::test_held_out_images_are_of_the_training_split_and_no_longer_in_it",
    ),
    Mutation(
        "recipe flips",
        "flips are drawn anew in each epoch",
        "data/augment.py: Augment.draws",
        'rng.generator(self.seed, "flip").integers(0, 2, count) + epoch',
        'rng.generator(self.seed, "flip", epoch).integers(0, 2, count)',
        "unit/data/test_augment.py::test_each_image_is_mirrored_every_second_epoch",
    ),
    Mutation(
        "recipe mirror",
        "the mirrored evaluation looks at the same image twice",
        "training/eval_loop.py: evaluate",
        "images.flip(-1)",
        "images",
        "unit/training/test_eval_loop.py::test_flip_tta_averages_both_sides",
    ),
    Mutation(
        "recipe trust",
        "LARS decays twice",
        "training/optimizer.py: Lars.step",
        'group["weight_decay"] = 0.0  # it is in the gradients now',
        "pass",
        "unit/training/test_optimizer.py::test_lars_by_hand",
    ),
    Mutation(
        "R17",
        "the lock is not taken",
        "tracking/run_dir.py: RunDirLock.take",
        "            self._lock.acquire(timeout=0)\n",
        "            pass\n",
        "faults/test_interrupts.py::test_two_runs_cannot_write_into_one_folder",
    ),
    Mutation(
        "R17 done",
        "a finished run is continued",
        "commands/train.py: train_network",
        "    if plan.is_done(progress):",
        "    if False:",
        "integration/test_train.py::test_finished_run_trains_nothing_more",
    ),
    Mutation(
        "R20",
        "the format's number goes up without a reader for the old one",
        "training/checkpoint.py",
        "FORMAT = 1\n",
        "FORMAT = 2\n",
        "unit/training/test_checkpoint.py::test_the_previous_releases_checkpoint_continues",
    ),
    Mutation(
        "H1",
        "gloo listens on the address of the host's name",
        "distributed/topology.py: gloo_interface",
        "return None if found == _loopback() else found",
        "return None",
        "ranks/test_hosts.py::test_hosts_compute_what_one_process_does",
    ),
    Mutation(
        "H1 meeting",
        "the machine of RDZV has to find out by its name that it is",
        "../launch/multinode.sh",
        '"is_host=true" if own == target[0] else ""',
        '""',
        "ranks/test_hosts.py::test_hosts_compute_what_one_process_does",
    ),
    Mutation(
        "H2",
        "a refused process is started again",
        "distributed/launch_checks.py: check_launch",
        "            atexit.register(os.kill, ",
        "            _ = (os.kill, ",
        "ranks/test_hosts.py::test_a_mistake_is_one_line_on_each_host_and_ends_all_without_restarts",
    ),
    Mutation(
        "H3",
        "launchers keep one store for all restarts",
        "../launch/multinode.sh",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=0",
        "ranks/test_hosts.py::test_a_host_dies_and_comes_back",
    ),
    Mutation(
        "H4",
        "ranks look for each other under their own launcher's number of restarts",
        "distributed/watchdog.py: Watchdog.__init__",
        "run = from_main(accelerator, lambda: secrets.token_hex(8))",
        "run = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')",
        "faults/test_watchdog.py::test_a_killed_rank_is_named_and_ends_the_other",
    ),
    Mutation(
        "H5",
        "SIGTERM from a scheduler and from the launcher are two",
        "distributed/signals.py: Requests._take",
        "patience = REPEAT_SECONDS if number == signal.SIGTERM else 0.0",
        "patience = 0.0",
        "faults/test_interrupts.py::test_sigterm_from_a_scheduler_and_once_more_from_the_launcher_is_one",
    ),
    Mutation(
        "H6",
        "the marker of an earlier turn stays",
        "../launch/slurm.sbatch",
        'rm -f "$out/PREEMPTED"',
        ': "$out/PREEMPTED"',
        "integration/test_launch.py::test_slurm_does_not_repeat_what_fails",
    ),
    Mutation(
        "H7",
        "scancel's signal is taken for the time limit's",
        "../launch/slurm.sbatch",
        "trap 'ended=1' TERM",
        "trap : TERM",
        "integration/test_launch.py::test_slurm_ends_what_scancel_ends",
    ),
    Mutation(
        "H8",
        "one process in place of several is let through",
        "distributed/launch_checks.py: check_processes",
        'if {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= environment.keys() and',
        "if False and",
        "ranks/test_traps.py::test_g3_one_process_in_place_of_two_is_refused",
    ),
    Mutation(
        "H9",
        "a configuration file that nobody named is read",
        "../launch/node.sh",
        'exec accelerate launch --config_file "$here/accelerate_config.yaml" --num_processes "$ranks"',
        'exec accelerate launch --multi_gpu --num_machines 1 --num_processes "$ranks"',
        "ranks/test_traps.py::test_g5_and_g6_cores_are_shared_and_a_file_that_nobody_named_is_not_read",
    ),
    Mutation(
        "S10",
        "a manifest may name any file",
        "training/checkpoint.py: find_fault",
        'if "/" in name or name == ".." or (path / name).is_symlink():',
        "if False:",
        "faults/test_fuzz.py::test_a_manifest_cannot_name_files_elsewhere",
    ),
    Mutation(
        "doctor GPUs",
        "more processes than GPUs pass",
        "doctor/checks_hardware.py: gpus",
        "if count and processes > count:",
        "if False:",
        "unit/doctor/test_checks_hardware.py::test_gpus",
    ),
    Mutation(
        "doctor driver",
        "a driver without torch's GPUs passes",
        "doctor/checks_hardware.py: gpus",
        "    if found.driver:",
        "    if False:",
        "unit/doctor/test_checks_hardware.py::test_gpus",
    ),
    Mutation(
        "doctor bf16",
        "fp16 on a CPU passes",
        "doctor/checks_hardware.py: precision",
        'return error("precision", str(fault))',
        'return ok("precision", str(fault))',
        "unit/doctor/test_checks_hardware.py::test_precision",
    ),
    Mutation(
        "doctor threads",
        "any number passes",
        "doctor/checks_hardware.py: threads",
        "if each * processes <= usable:",
        "if True:",
        "unit/doctor/test_checks_hardware.py::test_threads",
    ),
    Mutation(
        "doctor quota",
        "a container's share is not read",
        "doctor/checks_hardware.py: cpu_quota",
        "float(quota) / float(period)",
        "None",
        "unit/doctor/test_checks_hardware.py::test_a_containers_share_of_the_cores",
    ),
    Mutation(
        "doctor shm",
        "any size passes",
        "doctor/checks_hardware.py: shared_memory",
        ".total) < SMALL_SHM:",
        ".total) < 0:",
        "unit/doctor/test_checks_hardware.py::test_shared_memory_matters_between_the_gpus_of_a_node",
    ),
    Mutation(
        "doctor world",
        "G3: fewer than asked for pass",
        "doctor/checks_hardware.py: world",
        "if asked is not None and formed != asked:",
        "if False:",
        "unit/doctor/test_checks_hardware.py::test_world_formed_against_world_asked_for",
    ),
    Mutation(
        "doctor leftover",
        "WORLD_SIZE alone passes",
        "doctor/checks_hardware.py: world",
        "if started is not None and not",
        "if False and not",
        "unit/doctor/test_checks_hardware.py::test_world_formed_against_world_asked_for",
    ),
    Mutation(
        "doctor launch",
        "train.py's own refusals are not asked for",
        "doctor/checks_hardware.py: world",
        "        launch_checks.check_processes(",
        "        (lambda *_, **__: None)(",
        "unit/doctor/test_checks_hardware.py::test_world_formed_against_world_asked_for",
    ),
    Mutation(
        "doctor elastic",
        "fewer nodes are not thought of",
        "doctor/checks_hardware.py: fewer_nodes",
        "if not stuck:",
        "if True:",
        "unit/doctor/test_checks_hardware.py::test_a_batch_that_fewer_nodes_could_not_share",
    ),
    Mutation(
        "doctor SLURM",
        "a launcher per task passes",
        "doctor/checks_hardware.py: slurm",
        "if tasks > allotted:",
        "if False:",
        "unit/doctor/test_checks_hardware.py::test_slurm",
    ),
    Mutation(
        "doctor G1",
        "num_processes may be missing",
        "doctor/checks_hardware.py: _fault_in_kind",
        'if processes is None and kind != "NO":',
        "if False:",
        "unit/doctor/test_checks_hardware.py::test_accelerates_configuration",
    ),
    Mutation(
        "doctor G2",
        "MULTI_GPU without GPUs passes",
        "doctor/checks_hardware.py: _fault_in_kind",
        'if kind == "MULTI_GPU" and',
        "if False and",
        "unit/doctor/test_checks_hardware.py::test_accelerates_configuration",
    ),
    Mutation(
        "doctor G3",
        "MULTI_CPU passes",
        "doctor/checks_hardware.py: _fault_in_kind",
        'if kind == "MULTI_CPU" or',
        "if False or",
        "unit/doctor/test_checks_hardware.py::test_accelerates_configuration",
    ),
    Mutation(
        "doctor G4",
        "an unquoted no passes",
        "doctor/checks_hardware.py: _fault_in_launcher",
        "if isinstance(content.get(word), bool)), None):",
        "if False), None):",
        "unit/doctor/test_checks_hardware.py::test_accelerates_configuration",
    ),
    Mutation(
        "doctor G6",
        "the hidden file is not looked for",
        "doctor/checks_hardware.py: accelerate_file",
        "if path is None and not default.is_file():",
        "if path is None:",
        "unit/doctor/test_checks_hardware.py::test_the_hidden_configuration_is_named",
    ),
    Mutation(
        "doctor name",
        "a name without address passes",
        "doctor/checks_network.py: address",
        "if not (found := addresses(nodes.host)):",
        "if (found := addresses(nodes.host)) is None:",
        "unit/doctor/test_checks_network.py::test_address",
    ),
    Mutation(
        "doctor elsewhere",
        "node 0 may be elsewhere",
        "doctor/checks_network.py: address",
        "if not any(port_is_free(0,",
        "if False and not any(port_is_free(0,",
        "unit/doctor/test_checks_network.py::test_address",
    ),
    Mutation(
        "doctor taken",
        "a taken port passes",
        "doctor/checks_network.py: address",
        "if not port_is_free(nodes.port):",
        "if False:",
        "unit/doctor/test_checks_network.py::test_address",
    ),
    Mutation(
        "doctor port",
        "a single node's port is not tried",
        "doctor/checks_network.py: launcher_port",
        "if port_is_free(ACCELERATE_PORT):",
        "if True:",
        "unit/doctor/test_checks_network.py::test_the_port_of_a_single_node",
    ),
    Mutation(
        "doctor interface",
        "a host to which nothing leads passes",
        "doctor/checks_network.py: interface",
        "    if name := interface_towards(nodes.host):\n",
        '    if name := "eth0":\n',
        "unit/doctor/test_checks_network.py::test_interface",
    ),
    Mutation(
        "doctor deadline",
        "a host that lets nobody in is tried for longer",
        "doctor/checks_network.py: connect",
        "if left <= 0:",
        "if left <= -20:",
        "unit/doctor/test_checks_network.py::test_a_host_that_lets_nobody_in",
    ),
    Mutation(
        "doctor resolver",
        "a silent name server is waited for",
        "doctor/checks_network.py: addresses",
        "within(seconds, lambda:",
        "within(20, lambda:",
        "unit/doctor/test_checks_network.py::test_a_name_server_that_is_silent_is_left",
    ),
    Mutation(
        "doctor folder",
        "a file passes for a folder",
        "doctor/checks_storage.py: _write_fault",
        "if not place.is_dir():",
        "if False:",
        "unit/doctor/test_checks_storage.py::test_a_run_folder_that_is_a_file_or_below_one",
    ),
    Mutation(
        "doctor full disk",
        "nothing is written",
        "doctor/checks_storage.py: _write_fault",
        "file.write(bytes(4096))",
        'file.write(b"")',
        "unit/doctor/test_checks_storage.py::test_a_run_folder_on_a_full_disk",
    ),
    Mutation(
        "doctor another run",
        "what is in the folder is not read",
        "doctor/checks_storage.py: run_folder",
        "        run_dir.check_run_dir(",
        "        (lambda _: None)(",
        "unit/doctor/test_checks_storage.py::test_a_run_folder_that_holds_another_run",
    ),
    Mutation(
        "doctor room",
        "no room for one passes",
        "doctor/checks_storage.py: disk",
        "if free < size:",
        "if False:",
        "unit/doctor/test_checks_storage.py::test_no_room_for_a_checkpoint",
    ),
    Mutation(
        "doctor some room",
        "those that are there count as lost",
        "doctor/checks_storage.py: disk",
        "if free + held < most * size:",
        "if free < most * size:",
        "unit/doctor/test_checks_storage.py::test_room_for_some_checkpoints",
    ),
    Mutation(
        "doctor cache",
        "another revision's name is looked for",
        "doctor/checks_storage.py: _hub_data",
        "hub.hub_key(hub_name, options)",
        "hub.hub_key(hub_name, SourceOptions(cache=options.cache))",
        "unit/doctor/test_checks_storage.py::test_images_that_were_decoded_before_are_found_where_the_run_finds_them",
    ),
    Mutation(
        "doctor images",
        "an empty folder passes",
        "doctor/checks_storage.py: _local_data",
        'return error("data", str(refusal))',
        'return ok("data", str(refusal))',
        "unit/doctor/test_checks_storage.py::test_images_that_are_not_there",
    ),
    Mutation(
        "doctor Hub",
        "the Hub is not asked",
        "doctor/checks_storage.py: _hub_data",
        "if url and answers(url):",
        "if url:",
        "unit/doctor/test_checks_storage.py::test_a_hub_that_cannot_be_reached",
    ),
    Mutation(
        "doctor secret",
        "an address is shown with its key",
        "doctor/checks_storage.py: _hub_data",
        '{urlsplit(url).hostname} does not answer" if url',
        '{urlsplit(url).netloc} does not answer" if url',
        "unit/doctor/test_checks_storage.py::test_a_hub_that_cannot_be_reached",
    ),
    Mutation(
        "doctor W&B",
        "its server is not asked",
        "doctor/checks_storage.py: wandb",
        "if not answers(url):",
        "if False:",
        "unit/doctor/test_checks_storage.py::test_wandb",
    ),
    Mutation(
        "doctor login",
        "a missing login passes",
        "doctor/checks_storage.py: wandb",
        'return error("W&B", str(fault))',
        'return ok("W&B", "")',
        "unit/doctor/test_checks_storage.py::test_wandb",
    ),
    Mutation(
        "doctor silent host",
        "it is waited for without end",
        "doctor/compare_nodes.py: join",
        "except (RuntimeError, TimeoutError):",
        "except RuntimeError:",
        "unit/doctor/test_compare_nodes.py::test_a_host_that_accepts_and_is_silent",
    ),
    Mutation(
        "doctor under way",
        "a launcher's store is taken for node 0",
        "doctor/compare_nodes.py: join",
        "seconds=STORE_SECONDS)) is None:",
        "seconds=STORE_SECONDS)) is ...:",
        "unit/doctor/test_compare_nodes.py::test_a_launch_that_is_under_way",
    ),
    Mutation(
        "doctor missing",
        "a missing node passes",
        "doctor/compare_nodes.py: presence",
        "if len(ranks) < nodes.least:",
        "if False:",
        "unit/doctor/test_compare_nodes.py::test_a_node_that_does_not_come",
    ),
    Mutation(
        "doctor twice",
        "two nodes of one rank pass",
        "doctor/compare_nodes.py: presence",
        "ranks.count(rank) > 1]",
        "ranks.count(rank) > 2]",
        "unit/doctor/test_compare_nodes.py::test_two_nodes_of_one_rank",
    ),
    Mutation(
        "doctor shared",
        "a folder of its own passes",
        "doctor/compare_nodes.py: _probe",
        "sees_token=seen",
        "sees_token=True",
        "integration/test_doctor.py::test_a_run_folder_that_is_not_shared_and_options_that_differ",
    ),
    Mutation(
        "doctor options",
        "other options pass",
        "doctor/compare_nodes.py: options",
        "if report.command != head.command), None)",
        "if False), None)",
        "unit/doctor/test_compare_nodes.py::test_nodes_are_compared",
    ),
    Mutation(
        "doctor versions",
        "other versions pass",
        "doctor/compare_nodes.py: versions",
        'if other is None or key == "commit":',
        "if True:",
        "unit/doctor/test_compare_nodes.py::test_nodes_are_compared",
    ),
    Mutation(
        "doctor ports",
        "closed ports pass",
        "doctor/compare_nodes.py: ports",
        "if report.unreachable), None)",
        "if False), None)",
        "unit/doctor/test_compare_nodes.py::test_nodes_are_compared",
    ),
    Mutation(
        "doctor clocks",
        "clocks are not read",
        "doctor/compare_nodes.py: serve",
        'received["time"] - time.time()',
        "0.0",
        "unit/doctor/test_compare_nodes.py::test_clocks_that_are_apart",
    ),
    Mutation(
        "doctor leaving",
        "a node goes while the store is open",
        "doctor/compare_nodes.py: join",
        '            store.wait(["closed"], timedelta(seconds=LEAVE_SECONDS))',
        "            pass",
        "unit/doctor/test_compare_nodes.py::test_a_node_leaves_when_the_port_is_free_again",
    ),
    Mutation(
        "doctor token",
        "the file stays",
        "doctor/cli.py: _compare",
        "            token.unlink()",
        "            pass",
        "integration/test_doctor.py::test_a_doctor_that_is_told_to_stop_leaves_no_file",
    ),
    Mutation(
        "doctor exit",
        "Python's own exit meets a waiting thread",
        "doctor/cli.py: command",
        "os._exit(code)",
        "sys.exit(code)",
        "integration/test_doctor.py::test_a_doctor_that_is_told_to_stop_leaves_no_file",
    ),
    Mutation(
        "doctor others",
        "faults of other nodes are not told",
        "doctor/compare_nodes.py: compare",
        "if report is not reports[own])",
        "if False)",
        "unit/doctor/test_compare_nodes.py::test_nodes_report_to_each_other_what_is_wrong",
    ),
    Mutation(
        "doctor code",
        "errors end with 0",
        "doctor/cli.py: main",
        "return EXIT_USER if errors else EXIT_DONE",
        "return EXIT_DONE",
        "unit/doctor/test_cli.py::test_quiet_prints_what_is_wrong_alone_and_to_stderr",
    ),
    Mutation(
        "N1",
        "a network that was not evaluated claims the accuracy of the epoch before",
        "commands/network_file.py: result",
        "if progress.top1 is None or progress.evaluated != progress.step:",
        "if progress.top1 is None:",
        "unit/commands/test_load.py::test_only_what_was_evaluated_claims_a_result",
    ),
    Mutation(
        "N1 average",
        "the weights that were not evaluated claim the average's result",
        "training/checkpoint.py: save",
        '{**metadata, "result": None}',
        "metadata",
        "unit/commands/test_load.py::test_only_what_was_evaluated_claims_a_result",
    ),
    Mutation(
        "N2",
        "starting weights forget their mean and standard deviation",
        "models/weights.py: starting_weights",
        "statistics = _recorded_statistics(file.metadata, config.weights)",
        "statistics = None",
        "unit/commands/test_load.py::test_weights_of_a_run_bring_their_statistics_to_the_next",
    ),
    Mutation(
        "N2 NaN",
        "weights with a NaN are read",
        "models/weights.py: read",
        "if not bool(torch.isfinite(tensor).all()):",
        "if False:",
        "unit/models/test_weights.py::test_weights_that_no_network_could_have_are_refused",
    ),
    Mutation(
        "N3",
        "a checkpoint in mid-epoch counts with the accuracy of the epoch before",
        "training/checkpoint.py: _top1",
        'evaluated = progress["evaluated"] == progress["step"]',
        "evaluated = True",
        "unit/training/test_checkpoint.py::test_prune_keeps_the_newest_and_the_best",
    ),
    Mutation(
        "N4",
        "a network file has the mode of the umask",
        "models/weights.py: write",
        "    atomic_files.set_mode(path, FOR_ALL)\n",
        "    pass\n",
        "unit/models/test_weights.py::test_colleagues_may_read_it_whatever_the_umask",
    ),
    Mutation(
        "L1",
        "an evaluation goes on although all agreed to stop",
        "distributed/signals.py: RunControl.interruptible",
        "if self.after_step() is Request.STOP:",
        "if self.after_step() is None:",
        "unit/distributed/test_signals.py::test_a_stop_ends_an_evaluation_after_the_same_batch_on_every_rank",
    ),
    Mutation(
        "L2",
        "an epoch goes on beyond the run's last step",
        "training/progress.py: Plan.epoch_end",
        "min(self.steps_per_epoch, progress.batch + self.last_step - progress.step)",
        "self.steps_per_epoch",
        "unit/training/test_progress.py::test_an_epoch_ends_with_its_last_batch_or_with_the_run",
    ),
    Mutation(
        "P1 boxes",
        "a crop depends on the image's place in the batch",
        "data/photo_loader.py: PhotoLoader._begin",
        "else boxes[flat]",
        "else boxes[: ids.size]",
        "ranks/test_photographs.py::test_ranks_share_each_batch_of_photographs_of_one",
    ),
    Mutation(
        "P1 shares",
        "the last evaluation batch of photographs is filled up with images seen before",
        "commands/train_setup.py: make_loaders",
        "even_batches=False",
        "even_batches=True",
        "ranks/test_photographs.py::test_ranks_share_each_batch_of_photographs_of_one",
    ),
    Mutation(
        "P2",
        "epochs of crops are counted from the process's start",
        "commands/train_setup.py: make_loaders",
        "epoch=lambda: order.epoch",
        "epoch=iter(range(1000)).__next__",
        "integration/test_photographs.py::test_killed_and_resumed_equals_undisturbed",
    ),
    Mutation(
        "P3",
        "the batch that was begun last is yielded first",
        "data/photo_loader.py: PhotoLoader.__iter__",
        "                if len(begun) > self.ahead:\n                    yield self._finished(begun.popleft()",
        "                if len(begun) > self.ahead:\n                    yield self._finished(begun.pop()",
        "unit/data/test_photo_loader.py::test_evaluation_images_are_those_of_torchvision_each_once",
    ),
    Mutation(
        "P3 device",
        "the device rounds down where the CPU rounds to the nearest level",
        "data/device_crops.py: _weighed",
        " + (1 << (shift - 1))",
        "",
        "unit/data/test_photo_loader.py::test_images_resized_on_the_device_are_those_of_the_threads",
    ),
    Mutation(
        "P4",
        "an image of another size is left out",
        "data/decode.py: decode_all",
        'raise SizesDifferError(f"{where} is {sizes}: all images must have one size")',
        "return",
        "unit/data/test_load.py::test_one_image_of_another_size_makes_photographs_of_all",
    ),
    Mutation(
        "P5",
        "the EXIF orientation is ignored",
        "data/decode.py: _orientation",
        "return orientation if orientation in range(1, 9) else 1",
        "return 1",
        "unit/data/test_decode.py::test_orientation_is_applied_as_pillow_does",
    ),
    Mutation(
        "P5 region",
        "a decoder of regions is used without a look at its pixels",
        "data/decode.py: region",
        " and region_decoder_agrees()",
        "",
        "unit/data/test_decode.py::test_a_library_that_gives_other_pixels_is_not_used",
    ),
    Mutation(
        "P6",
        "a link to a class is not followed",
        "sources/folders.py: _scan",
        "elif entry.is_dir():",
        "elif entry.is_dir(follow_symlinks=False):",
        "unit/sources/test_folders.py::test_links_to_classes_are_followed",
    ),
    Mutation(
        "P7",
        "a test split without labels is evaluated on",
        "sources/splits.py: choose",
        "            if has_labels(name):",
        "            if True:",
        "unit/data/test_load.py::test_a_test_split_without_labels_evaluates_nothing",
    ),
    Mutation(
        "P8",
        "the decoder is no part of the fingerprint",
        "data/photographs.py: _fingerprint",
        ' | {"decoder": decoder}',
        "",
        "unit/data/test_photographs.py::test_another_decoder_changes_originals_and_not_stored_pixels",
    ),
    Mutation(
        "P9",
        "a preparation that was killed begins again",
        "data/photographs.py: _prepare",
        "if _request_of(work) != request:",
        "if True:",
        "unit/data/test_photographs.py::test_a_killed_preparation_goes_on",
    ),
    Mutation(
        "P10",
        "--data.verify compares nothing",
        "data/photographs.py: _verify",
        "if digest != recorded[index].tobytes():",
        "if False:",
        "integration/test_photographs.py::test_verify_finds_a_changed_original",
    ),
    Mutation(
        "P10 array",
        "--data.verify does not hash an array",
        "data/cache.py: read",
        "not verify or fingerprint(train, test, names) == data.fingerprint",
        "True",
        "unit/data/test_cache.py::test_a_damaged_cache_is_decoded_again",
    ),
    Mutation(
        "P11",
        "nobody is told that images are held out",
        "data/load.py: load",
        'logger.warning("%s HAS NO EVALUATION SPLIT',
        'logger.debug("%s HAS NO EVALUATION SPLIT',
        "unit/data/test_load.py::test_without_evaluation_split_a_tenth_is_held_out_loudly",
    ),
]


def cut_out(text: str, function: str) -> tuple[str, str, str]:
    """Return the text before a function or class, its own, and the text behind it; all of it where none is named."""
    if not function:
        return "", text, ""
    node: ast.AST = ast.parse(text)
    for name in function.split("."):
        found = (n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)
        node = next(found)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    lines = text.splitlines(keepends=True)
    start, end = node.lineno - 1, node.end_lineno
    return "".join(lines[:start]), "".join(lines[start:end]), "".join(lines[end:])


def caught(mutation: Mutation, copy: Path) -> bool:
    """Apply a mutation to the copy, run its test, and undo it."""
    name, _, function = mutation.where.partition(": ")
    path = (copy / "alexnet_dist" / name).resolve()
    text = path.read_text(encoding="utf-8")
    before, source, behind = cut_out(text, function)
    assert source.count(mutation.old) == 1, f"{mutation.name}: {source.count(mutation.old)} such places"
    path.write_text(before + source.replace(mutation.old, mutation.new) + behind, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{mutation.test}"]
    command.append(f"--basetemp={copy.parent / 'tmp'}")  # the usual place is taken from other sessions of pytest
    try:
        ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, env=os.environ)
    finally:
        path.write_text(text, encoding="utf-8")
    assert ended.returncode in (0, 1), ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.returncode == 1


def main() -> None:
    """Try all mutations, or those that are named."""
    wanted = tuple(sys.argv[1:]) or ("",)
    survived = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "results", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for mutation in MUTATIONS:
            if mutation.name.startswith(wanted):
                found = caught(mutation, copy)
                survived += [] if found else [mutation.name]
                test = mutation.test.replace("::", "`: `").replace(".py", "")
                mark = "" if found else " **SURVIVED**"
                print(f"| {mutation.name} | `{test}` | {mutation.words}{mark} |", flush=True)
    sys.exit(f"not caught: {', '.join(survived)}" if survived else 0)


if __name__ == "__main__":
    main()
