"""Options of the commands other than train, as frozen dataclasses; every field's docstring is its help text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from alexnet_dist.config.schema import DataConfig, _check

Words = Annotated[tuple[str, ...], Positional]
InputKind = Literal["stored", "pixels", "normalised"]


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Device and precision."""

    precision: Literal["run", "auto", "fp32", "bf16"] = "run"
    """run: the training run's precision, from the file; auto: bf16 where the device is fast at it, else fp32."""
    cpu: bool = False
    """Use the CPU although there are GPUs; needed for several CPU processes."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Which network, and what a file without metadata does not say."""

    which: str = "best"
    """Of a run folder's checkpoints: best, last, or the number of a step."""
    mean: tuple[float, float, float] | None = None
    """For a file without metadata: mean of the inputs' channels, in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """For a file without metadata: standard deviation of the inputs' channels."""
    classes: Path | None = None
    """For a file without metadata: text file of class names, one a line, in the order of the outputs."""
    image_size: int | None = None
    """For a file without metadata: side of the network's input in pixels."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(NetworkOptions):
    """Evaluate trained networks, and compare the results with those in their files."""

    runs: Words = ()
    """RUN ...: run folders, checkpoints, .safetensors files or Hub ids (owner/name, owner/name@REVISION)."""
    out: Path | None = None
    """JSON file for counts, confusion matrix, accuracy of each class and the worst errors."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set (default for a run folder: the run's)."""
    runtime: InferenceConfig = field(default_factory=InferenceConfig)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(NetworkOptions):
    """Predict the classes of pictures of any size."""

    paths: Words = ()
    """RUN FILE|FOLDER|- ...: a network, then pictures; - reads a path a line from stdin."""
    top: int = 5
    """How many classes to name for each picture."""
    format: Literal["text", "csv", "jsonl"] = "text"
    """text to read; csv or jsonl: a line for each picture."""
    logits: bool = False
    """Write all logits of each picture too (csv and jsonl)."""
    out: Path | None = None
    """File for the results (default: stdout)."""
    batch_size: int = 64
    """Batch size, over all processes together."""
    threads: int | None = None
    """Threads that decode pictures (default: this process's share of the cores)."""
    runtime: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        _check(self, top="[1, inf)", batch_size="[1, inf)", threads="[1, inf)")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Turn the weights of another program's AlexNet into a network file; code in a pickle is never run."""

    paths: Words = ()
    """FILE OUT.safetensors: a .pth, .pt, .pth.tar, .ckpt or .safetensors file, and a new file."""
    entry: str | None = None
    """Entry of FILE that holds the weights (default: FILE itself, state_dict, model, model_state_dict, net or ema)."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(NetworkOptions):
    """Export a trained network with its preprocessing, as a file that works without this package."""

    paths: Words = ()
    """RUN: a run folder, checkpoint, .safetensors file or Hub id."""
    format: Literal["onnx", "pt2"] = "onnx"
    """onnx: for ONNX Runtime and others, needs the extra `export`; pt2: for torch.export.load."""
    input: InputKind = "pixels"
    """stored: uint8 at the stored size; pixels: uint8 at the network's size; normalised: float32, normalised."""
    out: Path | None = None
    """The new file, FILE.onnx or FILE.pt2."""


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Publish a trained network on the Hugging Face Hub, as the user of `hf auth login` or HF_TOKEN."""

    names: Words = ()
    """RUN owner/name: a run folder, a checkpoint or a .safetensors file, then the model's id on the Hub."""
    which: str = "best"
    """Of a run folder's checkpoints: best, last, or the number of a step."""
    private: bool = False
    """Make the model private; refused for a model that is public already."""
    revision: str | None = None
    """Branch to write to, created if it does not exist (default: main)."""
    license: str | None = None
    """Licence's id on the Hub, such as apache-2.0 (default: none is claimed)."""
    dry_run: Path | None = None
    """Write the files into this new folder, and send nothing."""


@dataclass(frozen=True, kw_only=True)
class DashboardOptions:
    """Save a view of a project on W&B, or replace the one that this command saved before."""

    project: Annotated[str | None, Positional] = None
    """PROJECT or ENTITY/PROJECT (default: WANDB_PROJECT, else alexnet_dist)."""


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions(NetworkOptions):
    """Write features, the outputs of layers, for pictures or a split of a data set, into a safetensors file."""

    paths: Words = ()
    """RUN [FILE|FOLDER|- ...]: a network, then pictures; - reads a path a line from stdin."""
    layers: str = "fc7"
    """Names between commas: conv1, relu1, pool1, conv2, ..., pool5, avgpool, fc6, relu6, fc7, relu7, logits."""
    out: Path | None = None
    """FILE.safetensors; above --shard-images, FILE-00001-of-00002.safetensors, ..., and FILE.safetensors.index.json."""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """Data type in the file: fp16 takes half the space and keeps three digits."""
    shard_images: int | None = None
    """Images in a file (default: as many as fit into 1 GB, 100,000 at most)."""
    split: Literal["train", "test"] = "test"
    """Split of a data set; train: the training images, neither shuffled nor augmented."""
    batch_size: int = 64
    """Batch size in each process."""
    data: DataConfig = field(default_factory=lambda: DataConfig(dataset="none"))
    """The data set, in place of pictures."""
    runtime: InferenceConfig = field(default_factory=lambda: InferenceConfig(precision="fp32"))

    def __post_init__(self) -> None:
        _check(self, shard_images="[1, inf)", batch_size="[1, inf)")
