"""The publish command: a trained network as a model on the Hugging Face Hub, with a card that explains it.

A folder is made first: `model.safetensors`, `config.json`, `README.md`, `kernels.png` and, where the run counted it,
`evaluation.json`. It holds what is written here and nothing else of the run folder. Then it becomes one commit.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # listed for lazy imports alone
from PIL import Image

from alexnet_dist import atomic_files
from alexnet_dist.commands import model_card
from alexnet_dist.config.cli import parse_options
from alexnet_dist.config.commands import PublishOptions
from alexnet_dist.errors import EXIT_DONE, UserError, first_line
from alexnet_dist.models import weights
from alexnet_dist.tracking import Console
from alexnet_dist.training import classifier
from alexnet_dist.visualization import kernel_images

COUNTS = ("epoch", "global_step", "class_names", "confusion")
"""What is published of a run's evaluation.json."""
FILES = """
## Files

`model.safetensors` has the weights, by torchvision's names, and in its header the text of `config.json`: class names,
inputs, data, result and versions. `alexnet_dist.load("{repository}")` reads that file alone.{evaluation}

![The 64 kernels of conv1](kernels.png)
"""
EVALUATION = " `evaluation.json` has the confusion matrix, in whole images."


def main(argv: Sequence[str], *, prog: str) -> int:
    """Publish the network that the command line names, and return the exit code.

    Raises:
        UserError: the command line is wrong, there is no such network, or the Hub refuses it.
    """
    options = parse_options(argv, PublishOptions(), prog=prog)
    source, repository = checked_names(options.names)
    console = Console(enabled=True)
    if options.dry_run is not None:
        folder = new_folder(options.dry_run)
        console.card("not published", {"folder": folder, **make_folder(folder, source, repository, options)})
        return EXIT_DONE
    with hub_errors(repository):
        user = huggingface_hub.HfApi().whoami()["name"]  # before anything is computed or made
    with tempfile.TemporaryDirectory() as scratch:
        shown = make_folder(Path(scratch), source, repository, options)
        with hub_errors(repository):
            commit = upload(Path(scratch), repository, options)
    console.card("published", {"commit": commit, "as": user, **shown})
    return EXIT_DONE


def checked_names(names: Sequence[str]) -> tuple[str, str]:
    """Return the network and the model's id that the command line names.

    Raises:
        UserError: they are not two, or the second is no id of the Hub.
    """
    if len(names) != 2:
        raise UserError(f"name a network and a model of the Hub: RUN owner/name, not {' '.join(names) or 'nothing'}")
    source, repository = names
    with contextlib.suppress(HFValidationError):
        validate_repo_id(repository)
        if "/" in repository:
            return source, repository
    raise UserError(f"{repository} cannot be a model's id on the Hub: it must be owner/name")


# ---- the folder ------------------------------------------------------------------------------------------------------


def new_folder(path: Path) -> Path:
    """Return the folder of `--dry-run`, made.

    Raises:
        UserError: it holds something, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        full = any(path.iterdir())
    except OSError as error:
        raise UserError(f"--dry-run {path} cannot be made: {error.strerror}") from None
    if full:
        raise UserError(f"--dry-run {path} holds files: name a new folder")
    return path


def make_folder(folder: Path, source: str, repository: str, options: PublishOptions) -> dict[str, str]:
    """Write all that is published into an empty folder, and return the rows that are shown of it.

    Raises:
        UserError: there is no such network, or its file has no metadata.
    """
    path = classifier.find(source, which=options.which)
    file = weights.read(path, named_by="RUN")
    if file.metadata is None:
        raise UserError(f"{path} has no metadata with classes and preprocessing: publish a run folder instead")
    trained = classifier.load(path)  # weights, class names and inputs agree
    counts = evaluation(path, file.metadata)
    try:
        card = model_card.card(file.metadata, repository=repository, revision=options.revision)
        header = front_matter(file.metadata, repository, options.license)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: its metadata are incomplete ({error!r})") from None
    branch = f"@{options.revision}" if options.revision else ""
    card += FILES.format(repository=repository + branch, evaluation=EVALUATION if counts else "")
    texts = {"README.md": f"---\n{header}\n---\n\n{card}", "config.json": json.dumps(file.metadata, indent=1)}
    texts |= {"evaluation.json": json.dumps(counts)} if counts else {}
    weights.write(folder / "model.safetensors", file.tensors, file.metadata)
    for name, text in texts.items():
        atomic_files.write_text(folder / name, text, mode=weights.FOR_ALL)
    now = kernel_images.snapshot(trained.network)
    picture = kernel_images.draw(now, now, conv2_kernel=0)["conv1"].now
    Image.fromarray(picture).save(folder / "kernels.png")
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    return {"files": files, "top-1": model_card.top1_words(file.metadata["result"])}


def evaluation(path: Path, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Return the counts of the run's evaluation.json; None if it is of other weights than this network file's."""
    run = path.absolute().parent.parent.parent  # of RUN/checkpoints/step_00000098/model.safetensors
    try:
        found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
        confusion = np.array(found["confusion"])
        counted = [found["global_step"], int(np.trace(confusion)), int(confusion.sum())]
        claimed = [metadata["result"][key] for key in ("step", "correct", "total")]
        return {key: found[key] for key in COUNTS} if counted == claimed else None
    except (OSError, ValueError, KeyError, TypeError):  # none, a damaged one, or no claim
        return None


def front_matter(metadata: dict[str, Any], repository: str, licence: str | None) -> str:
    """Return the YAML that the Hub reads at the top of a card: task, tags, data and the claimed top-1."""
    data, result = metadata["data"], metadata["result"]
    claim = result and huggingface_hub.EvalResult(
        task_type="image-classification",
        dataset_type=data["name"],
        dataset_name=data["name"],
        dataset_split=data["split"],
        dataset_revision=data["revision"],
        metric_type="accuracy",
        metric_name="top-1 accuracy",
        metric_value=result["correct"] / result["total"],
    )
    return huggingface_hub.ModelCardData(
        license=licence,
        library_name="torchvision",
        pipeline_tag="image-classification",
        tags=["alexnet", "image-classification", "safetensors", "alexnet_dist"],
        datasets=[data["name"]] if data["name"].count("/") == 1 else None,  # a Hub id: names of folders have no slash
        model_name=repository.partition("/")[2],
        eval_results=[claim] if claim else None,
    ).to_yaml()


# ---- the Hub ---------------------------------------------------------------------------------------------------------


def upload(folder: Path, repository: str, options: PublishOptions) -> str:
    """Make the folder one commit of the model, which is made where there is none; return the commit's address.

    Raises:
        UserError: `--private` is asked for, and the model is public already.
    """
    api = huggingface_hub.HfApi()
    api.create_repo(repository, private=options.private or None, exist_ok=True)
    if options.private and not api.model_info(repository).private:
        raise UserError(f"--private: {repository} is there already and public; nothing was sent")
    if options.revision is not None:
        api.create_branch(repository, branch=options.revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        revision=options.revision,
        commit_message="Network and card",
        delete_patterns="evaluation.json",  # an earlier one is of other weights
    ).commit_url


@contextlib.contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn each error of the Hub's client within the block into one line that names the way out."""
    try:
        yield
    except UserError:
        raise
    except LocalTokenNotFoundError:
        raise UserError("nobody is logged in to the Hub: `hf auth login`, or HF_TOKEN in the environment") from None
    except Exception as error:  # noqa: BLE001 - its client raises errors of several libraries
        status = getattr(getattr(error, "response", None), "status_code", 0)
        ways = {401: "the Hub does not accept this login: `hf auth login` ", 403: "this login may not write there "}
        raise UserError(f"{repository} cannot be published: {ways.get(status, '')}({first_line(error)})") from None
