"""Break the code on purpose, one promise at a time, and see the test that holds the promise fail.

    python tests/mutations.py            # all; some ten minutes
    python tests/mutations.py R7 R17     # those whose name begins so

Works on a copy, prints the rows of the table in docs/reliability.md, and ends with 1 if a mutation was not caught. The
long proofs of `make test-long` are not repeated here.
"""

from __future__ import annotations

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
    path: str
    old: str
    new: str
    test: str


PACKAGE = "alexnet_dist"
MUTATIONS = [
    Mutation(
        "R1",
        "a resumed epoch begins at its first batch",
        f"{PACKAGE}/data/sampler.py",
        "self.first_batch = batch",
        "self.first_batch = 0",
        "integration/test_train.py::test_stopped_and_resumed_run_equals_an_undisturbed_one",
    ),
    Mutation(
        "R1 background",
        "the saver's thread writes the live weights instead of copies",
        f"{PACKAGE}/training/checkpoint.py",
        "        copies[name].copy_(tensor)\n",
        "        copies[name] = tensor\n",
        "unit/training/test_checkpoint.py::test_training_goes_on_while_the_saver_writes_and_does_not_change_what_it_writes",
    ),
    Mutation(
        "R1 mid-save",
        "files are written under the final name",
        f"{PACKAGE}/training/checkpoint.py",
        '    scratch = folder / f"{SCRATCH}{final.name}"\n',
        "    scratch = final\n",
        "faults/test_killed_saves.py::test_a_kill_at_any_moment_of_a_save_leaves_the_earlier_one",
    ),
    Mutation(
        "R1 replace",
        "an old checkpoint is deleted before the new one has its name",
        f"{PACKAGE}/training/checkpoint.py",
        "            final.rename(replaced)\n",
        "            shutil.rmtree(final)\n",
        "faults/test_killed_saves.py::test_a_kill_while_a_checkpoint_is_replaced_leaves_one",
    ),
    Mutation(
        "R2",
        "the order of images forgets the epoch",
        f"{PACKAGE}/data/sampler.py",
        'generator(self.seed, "order", self.epoch)',
        'generator(self.seed, "order", self.first_batch)',
        "integration/test_train.py::test_a_resumed_run_sees_each_image_as_the_undisturbed_one_does",
    ),
    Mutation(
        "R2 records",
        "records beyond the checkpoint stay",
        f"{PACKAGE}/tracking/run_dir.py",
        'record.get("global_step", last_step + 1) <= last_step',
        "True",
        "unit/tracking/test_run_logger.py::test_resuming_cuts_later_records_and_a_torn_line",
    ),
    Mutation(
        "R3",
        "a failed collective is not explained",
        f"{PACKAGE}/distributed/watchdog.py",
        "if not COLLECTIVE.search(str(error)):",
        "if True:",
        "faults/test_watchdog.py::test_a_killed_rank_is_named_and_ends_the_other",
    ),
    Mutation(
        "R3 restarts",
        "restarts without a folder are let through",
        f"{PACKAGE}/distributed/launch_checks.py",
        'if config.out_dir is None and environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":',
        "if False:",
        "unit/distributed/test_launch_checks.py::test_restarts_without_a_folder_to_find_again_are_refused",
    ),
    Mutation(
        "R4 stopped",
        "silence is never noticed",
        f"{PACKAGE}/distributed/watchdog.py",
        "if age > SILENCE * self._period]",
        "if age > 1e9]",
        "faults/test_watchdog.py::test_a_stopped_rank_is_named_and_ends_the_other",
    ),
    Mutation(
        "R4 hanging",
        "the thread beats although its rank does not move",
        f"{PACKAGE}/distributed/watchdog.py",
        'f"{self._told} {self._progress}"',
        'f"{self._told} {self._told}"',
        "faults/test_watchdog.py::test_a_rank_that_hangs_in_its_own_code_is_named_by_itself_and_the_other",
    ),
    Mutation(
        "R5",
        "only gloo's own errors count, not a reset connection",
        f"{PACKAGE}/distributed/watchdog.py",
        '"gloo|nccl|connection (closed|reset)|timed out"',
        '"never"',
        "faults/test_watchdog.py::test_a_failing_exchange_ends_all_ranks_and_the_run_continues_to_the_bit",
    ),
    Mutation(
        "R6",
        "a rank acts on its own signal without agreement",
        f"{PACKAGE}/distributed/signals.py",
        "self.agreed = max(self.agreed, Request(int(largest)))",
        "self.agreed = max(self.agreed, asked)",
        "faults/test_interrupts.py::test_a_signal_to_one_rank_stops_both_at_the_same_step",
    ),
    Mutation(
        "R6 again",
        "the second signal only asks again",
        f"{PACKAGE}/distributed/signals.py",
        "if number in self._seen and now",
        "if number is None and now",
        "faults/test_interrupts.py::test_the_same_signal_again_ends_at_once",
    ),
    Mutation(
        "R7",
        "sums are not compared",
        f"{PACKAGE}/training/checkpoint.py",
        "if _describe(path / name) != expected:",
        "if not (path / name).exists():",
        "unit/training/test_checkpoint.py::test_damage_falls_back_loudly_and_never_to_a_fresh_start",
    ),
    Mutation(
        "R7 prune",
        "a damaged later checkpoint counts as the newest",
        f"{PACKAGE}/training/checkpoint.py",
        "<= last_step]",
        ">= 0]",
        "unit/training/test_checkpoint.py::test_prune_never_counts_a_damaged_checkpoint_that_the_run_was_continued_from_before",
    ),
    Mutation(
        "R8",
        "nobody is told of a failed background save",
        f"{PACKAGE}/training/checkpoint.py",
        "            self._failed()\n",
        "            pass\n",
        "faults/test_disk.py::test_a_save_that_fails_in_the_background_ends_the_run_soon",
    ),
    Mutation(
        "R8 room",
        "room is not looked for",
        f"{PACKAGE}/training/checkpoint.py",
        "    if free < needed:",
        "    if free < 0:",
        "faults/test_disk.py::test_room_is_looked_for_before_anything_is_written",
    ),
    Mutation(
        "R9",
        "the optimizer is not blocked",
        f"{PACKAGE}/training/train_loop.py",
        "        job.optimizer.optimizer.found_inf = job.blocked\n",
        "        pass\n",
        "integration/test_train.py::test_non_finite_step_is_never_taken",
    ),
    Mutation(
        "R9 ranks",
        "each rank looks at its own images only",
        f"{PACKAGE}/training/train_loop.py",
        "images = gather_object(window.images(index))",
        "images = window.images(index)",
        "ranks/test_ddp.py::test_nan_on_one_rank_stops_both_with_the_same_words",
    ),
    Mutation(
        "R10",
        "augmentation depends on the batch's split over ranks",
        f"{PACKAGE}/training/train_loop.py",
        'return job.preprocess(batch["images"], draws[batch["ids"]])',
        'return job.preprocess(batch["images"], draws[: len(batch["ids"])])',
        "ranks/test_ddp.py::test_two_ranks_have_the_same_losses_and_gradients",
    ),
    Mutation(
        "R11",
        "the last evaluation batch is filled up with images seen before",
        f"{PACKAGE}/distributed/accelerator.py",
        "even_batches=False",
        "even_batches=True",
        "ranks/test_ddp.py::test_evaluation_counts_every_image_once_at_an_indivisible_size",
    ),
    Mutation(
        "R12",
        "label smoothing of 0.001 slips in",
        f"{PACKAGE}/training/train_loop.py",
        "smoothing = job.optim.label_smoothing",
        "smoothing = 1e-3",
        "unit/training/test_train_loop.py::test_golden_losses",
    ),
    Mutation(
        "R15",
        "a file's damage escapes as the reader's own error",
        f"{PACKAGE}/training/checkpoint.py",
        "except (*DAMAGED, RuntimeError, safetensors.SafetensorError) as error:",
        "except OSError as error:",
        "faults/test_fuzz.py::test_any_sealed_safetensors_file_loads_or_is_refused",
    ),
    Mutation(
        "R15 state",
        "progress is taken as it comes",
        f"{PACKAGE}/training/progress.py",
        "            if not wrong:\n",
        "            if True:\n",
        "faults/test_fuzz.py::test_a_run_does_not_continue_from_a_sealed_state_that_is_nonsense",
    ),
    Mutation(
        "R13 start",
        "a server that cannot be reached ends W&B for the run",
        f"{PACKAGE}/tracking/wandb_tracker.py",
        'if mode != "online":\n                raise',
        "if True:\n                raise",
        "unit/tracking/test_run_logger.py::test_an_unreachable_server_means_offline",
    ),
    Mutation(
        "R13 hang",
        "trackers are called where training waits for them",
        f"{PACKAGE}/tracking/worker.py",
        "            self._jobs.put(job, block=wait)\n",
        "            job()\n",
        "unit/tracking/test_run_logger.py::test_trackers_are_called_on_a_thread_of_their_own_that_ends",
    ),
    Mutation(
        "R13 end",
        "the end waits for a tracker that hangs",
        f"{PACKAGE}/tracking/worker.py",
        "        self._thread.join(seconds)\n",
        "        self._thread.join(10 + seconds)\n",
        "unit/tracking/test_run_logger.py::test_a_tracker_that_hangs_holds_nobody",
    ),
    Mutation(
        "R13 kill",
        "what a kill took from wandb's memory is not sent again",
        f"{PACKAGE}/tracking/wandb_tracker.py",
        "self._was_killed = self._marker.exists()",
        "self._was_killed = False",
        "unit/tracking/test_wandb_tracker.py::test_a_run_that_was_killed_sends_its_records_again",
    ),
    Mutation(
        "R14",
        "a connection that breaks is no reason for the fallback",
        f"{PACKAGE}/data/sources.py",
        "except (OSError, http_error) as error:",
        "except OSError as error:",
        "unit/data/test_sources.py::test_a_connection_that_breaks_counts_as_unreachable",
    ),
    Mutation(
        "R14 race",
        "every process decodes",
        f"{PACKAGE}/data/cache.py",
        "            if data is None:\n",
        "            if True:\n",
        "ranks/test_cache.py::test_of_two_processes_one_decodes",
    ),
    Mutation(
        "R15 YAML",
        "lists of lists are expanded",
        f"{PACKAGE}/config/cli.py",
        "if any(isinstance(item, dict | list | tuple | set) for item in value):",
        "if False:",
        "faults/test_fuzz.py::test_aliases_that_multiply_are_refused_at_once",
    ),
    Mutation(
        "R16",
        "chance counts as learning",
        f"{PACKAGE}/training/metrics.py",
        "if self.top1 == 1:",
        "if True:",
        "integration/test_train.py::test_collapse_is_reported",
    ),
    Mutation(
        "R16 nothing moved",
        "an optimizer of other parameters is not told from bad luck",
        f"{PACKAGE}/visualization/kernel_images.py",
        "return any(not torch.equal(start, now[layer]) for layer, start in before.items())",
        "return True",
        "integration/test_train.py::test_an_optimizer_of_other_parameters_is_diagnosed",
    ),
    Mutation(
        "recipe partners",
        "partners are augmented by the numbers of others",
        f"{PACKAGE}/training/train_loop.py",
        'draws[batch["partner_ids"]])',
        'draws[batch["ids"]])',
        "unit/training/test_train_loop.py::test_mixed_images_count_for_both_labels",
    ),
    Mutation(
        "recipe shares",
        "a mixture's loss has its shares the wrong way round",
        f"{PACKAGE}/training/train_loop.py",
        "partners.lerp(losses,",
        "losses.lerp(partners,",
        "unit/training/test_train_loop.py::test_mixed_images_count_for_both_labels",
    ),
    Mutation(
        "recipe held out",
        "held-out images are trained on too",
        f"{PACKAGE}/data/sources.py",
        "return split.take(~drawn), split.take(drawn)",
        "return split.take(drawn | True), split.take(drawn)",
        "unit/data/test_image_data.py::test_held_out_images_are_of_the_training_split_and_no_longer_in_it",
    ),
    Mutation(
        "recipe flips",
        "flips are drawn anew in each epoch",
        f"{PACKAGE}/data/augment.py",
        'rng.generator(self.seed, "flip").integers(0, 2, count) + epoch',
        'rng.generator(self.seed, "flip", epoch).integers(0, 2, count)',
        "unit/data/test_augment.py::test_each_image_is_mirrored_every_second_epoch",
    ),
    Mutation(
        "recipe mirror",
        "the mirrored evaluation looks at the same image twice",
        f"{PACKAGE}/training/eval_loop.py",
        'batch["images"].flip(-1)',
        'batch["images"]',
        "unit/training/test_eval_loop.py::test_mirrored_evaluation_averages_both_sides",
    ),
    Mutation(
        "recipe trust",
        "LARS decays twice",
        f"{PACKAGE}/training/optimizer.py",
        'group["weight_decay"] = 0.0  # it is in the gradients now',
        "pass",
        "unit/training/test_optimizer.py::test_lars_by_hand",
    ),
    Mutation(
        "R17",
        "the lock is not taken",
        f"{PACKAGE}/tracking/run_dir.py",
        "            lock.acquire(timeout=0)\n",
        "            pass\n",
        "faults/test_interrupts.py::test_two_runs_cannot_write_into_one_folder",
    ),
    Mutation(
        "R17 done",
        "a finished run is continued",
        "train.py",
        "        if job.is_done(progress):\n            console",
        "        if False:\n            console",
        "integration/test_train.py::test_finished_run_trains_nothing_more",
    ),
    Mutation(
        "R20",
        "the format's number goes up without a reader for the old one",
        f"{PACKAGE}/training/checkpoint.py",
        "FORMAT = 1 ",
        "FORMAT = 2 ",
        "unit/training/test_checkpoint.py::test_the_previous_releases_checkpoint_continues",
    ),
    Mutation(
        "H1",
        "gloo listens on the address of the host's name",
        f"{PACKAGE}/distributed/network.py",
        "return None if found == _loopback() else found",
        "return None",
        "ranks/test_hosts.py::test_hosts_compute_what_one_process_does",
    ),
    Mutation(
        "H1 meeting",
        "the machine of RDZV has to find out by its name that it is",
        "launch/multinode.sh",
        '"is_host=true" if own == target[0] else ""',
        '""',
        "ranks/test_hosts.py::test_hosts_compute_what_one_process_does",
    ),
    Mutation(
        "H2",
        "a refused process is started again",
        f"{PACKAGE}/distributed/launch_checks.py",
        "            atexit.register(",
        "            _ = (",
        "ranks/test_hosts.py::test_a_mistake_is_one_line_on_each_host_and_ends_all_without_restarts",
    ),
    Mutation(
        "H3",
        "launchers keep one store for all restarts",
        "launch/multinode.sh",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=0",
        "ranks/test_hosts.py::test_a_host_dies_and_comes_back",
    ),
    Mutation(
        "H4",
        "ranks look for each other under their own launcher's number of restarts",
        f"{PACKAGE}/distributed/watchdog.py",
        "run = from_main(accelerator, lambda: secrets.token_hex(8))",
        "run = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')",
        "faults/test_watchdog.py::test_a_killed_rank_is_named_and_ends_the_other",
    ),
    Mutation(
        "H5",
        "SIGTERM from a scheduler and from the launcher are two",
        f"{PACKAGE}/distributed/signals.py",
        "patience = REPEAT_SECONDS if number == signal.SIGTERM else 0.0",
        "patience = 0.0",
        "faults/test_interrupts.py::test_sigterm_from_a_scheduler_and_once_more_from_the_launcher_is_one",
    ),
    Mutation(
        "H6",
        "the marker of an earlier turn stays",
        "launch/slurm.sbatch",
        'rm -f "$out/PREEMPTED"',
        ': "$out/PREEMPTED"',
        "integration/test_launch.py::test_slurm_does_not_repeat_what_fails",
    ),
    Mutation(
        "H7",
        "scancel's signal is taken for the time limit's",
        "launch/slurm.sbatch",
        "trap 'ended=1' TERM",
        "trap : TERM",
        "integration/test_launch.py::test_slurm_ends_what_scancel_ends",
    ),
    Mutation(
        "H8",
        "one process in place of several is let through",
        f"{PACKAGE}/distributed/launch_checks.py",
        'started_by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment',
        "started_by_accelerate = False",
        "ranks/test_traps.py::test_g3_one_process_in_place_of_two_is_refused",
    ),
    Mutation(
        "H9",
        "a configuration file that nobody named is read",
        "launch/node.sh",
        'exec accelerate launch --config_file "$here/accelerate_config.yaml" --num_processes "$ranks"',
        'exec accelerate launch --multi_gpu --num_machines 1 --num_processes "$ranks"',
        "ranks/test_traps.py::test_g5_and_g6_cores_are_shared_and_a_file_that_nobody_named_is_not_read",
    ),
    Mutation(
        "S10",
        "a manifest may name any file",
        f"{PACKAGE}/training/checkpoint.py",
        """if "/" in name or name == ".." or (path / name).is_symlink():""",
        "if False:",
        "faults/test_fuzz.py::test_a_manifest_cannot_name_files_elsewhere",
    ),
]


# Of each question that the preflight asks, one that it does not.
MUTATIONS += [
    Mutation(
        f"doctor {name}",
        words,
        f"{PACKAGE}/doctor/{module}.py",
        old,
        new,
        test if "::" in test else f"unit/doctor/test_{module}.py::{test}",
    )
    for name, words, module, old, new, test in (
        (
            "GPUs",
            "more processes than GPUs pass",
            "checks_hardware",
            "if count and processes > count:",
            "if False:",
            "test_gpus",
        ),
        (
            "driver",
            "a driver without torch's GPUs passes",
            "checks_hardware",
            "    if found.driver:",
            "    if False:",
            "test_gpus",
        ),
        (
            "bf16",
            "fp16 on a CPU passes",
            "checks_hardware",
            '"error", "precision"',
            '"ok", "precision"',
            "test_precision",
        ),
        (
            "threads",
            "any number passes",
            "checks_hardware",
            "if each * processes <= usable:",
            "if True:",
            "test_threads",
        ),
        (
            "quota",
            "a container's share is not read",
            "checks_hardware",
            "float(quota) / float(period)",
            "None",
            "test_a_containers_share_of_the_cores",
        ),
        (
            "shm",
            "any size passes",
            "checks_hardware",
            "if size < SMALL_SHM:",
            "if False:",
            "test_shared_memory_matters_between_the_gpus_of_a_node",
        ),
        (
            "world",
            "G3: fewer than asked for pass",
            "checks_hardware",
            "if asked is not None and formed != asked:",
            "if False:",
            "test_world_formed_against_world_asked_for",
        ),
        (
            "leftover",
            "WORLD_SIZE alone passes",
            "checks_hardware",
            "if started is not None and not",
            "if False and not",
            "test_world_formed_against_world_asked_for",
        ),
        (
            "launch",
            "train.py's own refusals are not asked for",
            "checks_hardware",
            "        launch_checks.check_processes(",
            "        (lambda *_, **__: None)(",
            "test_world_formed_against_world_asked_for",
        ),
        (
            "elastic",
            "fewer nodes are not thought of",
            "checks_hardware",
            "if not stuck:",
            "if True:",
            "test_a_batch_that_fewer_nodes_could_not_share",
        ),
        ("SLURM", "a launcher per task passes", "checks_hardware", "if tasks > allotted:", "if False:", "test_slurm"),
        (
            "G1",
            "num_processes may be missing",
            "checks_hardware",
            'if processes is None and kind != "NO":',
            "if False:",
            "test_accelerates_configuration",
        ),
        (
            "G2",
            "MULTI_GPU without GPUs passes",
            "checks_hardware",
            'if kind == "MULTI_GPU" and',
            "if False and",
            "test_accelerates_configuration",
        ),
        (
            "G3",
            "MULTI_CPU passes",
            "checks_hardware",
            'if kind == "MULTI_CPU" or',
            "if False or",
            "test_accelerates_configuration",
        ),
        (
            "G4",
            "an unquoted no passes",
            "checks_hardware",
            "if isinstance(content.get(key), bool):",
            "if False:",
            "test_accelerates_configuration",
        ),
        (
            "G6",
            "the hidden file is not looked for",
            "checks_hardware",
            "if path is None and not default.is_file():",
            "if path is None:",
            "test_the_hidden_configuration_is_named",
        ),
        (
            "name",
            "a name without address passes",
            "checks_network",
            "    if not found:",
            "    if False:",
            "test_address",
        ),
        (
            "elsewhere",
            "node 0 may be elsewhere",
            "checks_network",
            "if not any(port_is_free(0,",
            "if False and not any(port_is_free(0,",
            "test_address",
        ),
        (
            "taken",
            "a taken port passes",
            "checks_network",
            "if not port_is_free(nodes.port):",
            "if False:",
            "test_address",
        ),
        (
            "port",
            "a single node's port is not tried",
            "checks_network",
            "if port_is_free(ACCELERATE_PORT):",
            "if True:",
            "test_the_port_of_a_single_node",
        ),
        (
            "interface",
            "a host to which nothing leads passes",
            "checks_network",
            "    if name := interface_towards(nodes.host):\n",
            '    if name := "eth0":\n',
            "test_interface",
        ),
        (
            "deadline",
            "a host that lets nobody in is tried for longer",
            "checks_network",
            "if left <= 0:",
            "if left <= -20:",
            "test_a_host_that_lets_nobody_in",
        ),
        (
            "resolver",
            "a silent name server is waited for",
            "checks_network",
            "within(seconds, lambda:",
            "within(20, lambda:",
            "test_a_name_server_that_is_silent_is_left",
        ),
        (
            "folder",
            "a file passes for a folder",
            "checks_storage",
            "if not place.is_dir():",
            "if False:",
            "test_a_run_folder_that_is_a_file_or_below_one",
        ),
        (
            "full disk",
            "nothing is written",
            "checks_storage",
            "file.write(bytes(4096))",
            'file.write(b"")',
            "test_a_run_folder_on_a_full_disk",
        ),
        (
            "another run",
            "what is in the folder is not read",
            "checks_storage",
            "        run_dir.check_run_dir(",
            "        (lambda _: None)(",
            "test_a_run_folder_that_holds_another_run",
        ),
        (
            "room",
            "no room for one passes",
            "checks_storage",
            "if free < size:",
            "if False:",
            "test_no_room_for_a_checkpoint",
        ),
        (
            "some room",
            "those that are there count as lost",
            "checks_storage",
            "if free + held < most:",
            "if free < most:",
            "test_room_for_some_checkpoints",
        ),
        (
            "cache",
            "another revision's name is looked for",
            "checks_storage",
            "sources.hub_key(hub_name, config.revision)",
            "sources.hub_key(hub_name, None)",
            "test_images_that_were_decoded_before_are_found_where_the_run_finds_them",
        ),
        (
            "images",
            "an empty folder passes",
            "checks_storage",
            "if not any(next(files, None) for files in layouts):",
            "if False:",
            "test_images_that_are_not_there",
        ),
        (
            "Hub",
            "the Hub is not asked",
            "checks_storage",
            "if url and answers(url):",
            "if url:",
            "test_a_hub_that_cannot_be_reached",
        ),
        (
            "secret",
            "an address is shown with its key",
            "checks_storage",
            '{urlsplit(url).hostname} does not answer" if url',
            '{urlsplit(url).netloc} does not answer" if url',
            "test_a_hub_that_cannot_be_reached",
        ),
        ("W&B", "its server is not asked", "checks_storage", "if not answers(url):", "if False:", "test_wandb"),
        (
            "login",
            "a missing login passes",
            "checks_storage",
            'return Finding("error", "W&B", str(error))',
            'return Finding("ok", "W&B", "")',
            "test_wandb",
        ),
        (
            "silent host",
            "it is waited for without end",
            "compare_nodes",
            "except (RuntimeError, TimeoutError):",
            "except RuntimeError:",
            "test_a_host_that_accepts_and_is_silent",
        ),
        (
            "under way",
            "a launcher's store is taken for node 0",
            "compare_nodes",
            "if greeting is None:",
            "if False:",
            "test_a_launch_that_is_under_way",
        ),
        (
            "missing",
            "a missing node passes",
            "compare_nodes",
            "if present < nodes.least:",
            "if False:",
            "test_a_node_that_does_not_come",
        ),
        (
            "twice",
            "two nodes of one rank pass",
            "compare_nodes",
            "if times > 1]",
            "if times > 2]",
            "test_two_nodes_of_one_rank",
        ),
        (
            "shared",
            "a folder of its own passes",
            "compare_nodes",
            "sees_token=seen",
            "sees_token=True",
            "integration/test_doctor.py::test_a_run_folder_that_is_not_shared_and_options_that_differ",
        ),
        (
            "options",
            "other options pass",
            "compare_nodes",
            "lambda report: report.command)",
            "lambda report: 0)",
            "test_nodes_are_compared",
        ),
        (
            "versions",
            "other versions pass",
            "compare_nodes",
            'if other is None or key == "commit":',
            "if True:",
            "test_nodes_are_compared",
        ),
        (
            "ports",
            "closed ports pass",
            "compare_nodes",
            "if report.unreachable), None)",
            "if False), None)",
            "test_nodes_are_compared",
        ),
        (
            "clocks",
            "clocks are not read",
            "compare_nodes",
            "offset = time.time() - float(clock or 0)",
            "offset = 0.0",
            "test_clocks_that_are_apart",
        ),
        (
            "leaving",
            "a node goes while the store is open",
            "compare_nodes",
            "line.recv(1)",
            "pass",
            "test_a_node_leaves_when_the_port_is_free_again",
        ),
        (
            "token",
            "the file stays",
            "compare_nodes",
            "            token.unlink()",
            "            pass",
            "integration/test_doctor.py::test_a_doctor_that_is_told_to_stop_leaves_no_file",
        ),
        (
            "exit",
            "Python's own exit meets a waiting thread",
            "cli",
            "os._exit(code)",
            "sys.exit(code)",
            "integration/test_doctor.py::test_a_doctor_that_is_told_to_stop_leaves_no_file",
        ),
        (
            "others",
            "faults of other nodes are not told",
            "compare_nodes",
            "if int(rank) != mine.rank for text",
            "if False for text",
            "test_nodes_meet_and_all_hear_of_each_others_faults",
        ),
        (
            "code",
            "errors end with 0",
            "cli",
            "return EXIT_ERROR if errors else 0",
            "return 0",
            "test_quiet_prints_what_is_wrong_alone_and_to_stderr",
        ),
    )
]


def caught(mutation: Mutation, copy: Path) -> bool:
    """Apply a mutation to the copy, run its test, and undo it."""
    path = copy / mutation.path
    text = path.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.name}: {mutation.path} has {text.count(mutation.old)} such places"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
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
