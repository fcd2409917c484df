"""The configuration as frozen dataclasses: every option, its default and its range.

Every field's docstring is its help text. Imports no torch, so that `--help` and a mistyped flag are answered at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alexnet_dist.architecture import NUM_CONV2_KERNELS, SMALLEST_IMAGE

LARGEST_IMAGE = 1024  # 20 times the memory of 224; larger stored images serve no configuration


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as a sentence at every call
    if not condition:
        raise ValueError(message)


def _check(config: object, section: str = "", **ranges: str) -> None:
    """Check fields against ranges in interval notation, such as `batch_size="[1, inf)"`; None is in every range.

    Raises:
        ValueError: naming the option and its range in words.
    """
    for name, interval in ranges.items():
        value, (low, high) = getattr(config, name), interval[1:-1].split(", ")
        if value is None:
            continue
        is_above = value >= float(low) if interval[0] == "[" else value > float(low)
        is_below = value <= float(high) if interval[-1] == "]" else value < float(high)
        words = [f"at least {low}" if interval[0] == "[" else f"above {low}"]
        words += [] if high == "inf" else [f"at most {high}" if interval[-1] == "]" else f"below {high}"]
        _require(is_above and is_below, f"--{section}{name.replace('_', '-')} must be {' and '.join(words)}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on, and how images reach the network."""

    dataset: str = "cifar10"
    """cifar10, digits, synthetic, a Hub id (owner/name), a folder (class folders, parquet, tars), a zip or an .npz."""
    config: str | None = None
    """Configuration of a Hub data set that has several."""
    revision: str | None = None
    """Git revision of a Hub data set; pins the run to exactly that data."""
    train_split: str | None = None
    """Split to train on (default: train)."""
    eval_split: str | None = None
    """Split to evaluate on (default: test, else validation; if neither has labels, held-out training images)."""
    image_column: str | None = None
    """Column of the images (default: the only one that holds images)."""
    label_column: str | None = None
    """Column of the labels (default: a guess by type and name, which the run card shows)."""
    fallback: Literal["none", "digits"] = "none"
    """What to train on when the Hub cannot be reached: nothing (an error), or digits."""
    batch_size: int = 256
    """Global batch: images per optimizer step over all processes together."""
    image_size: int = 224
    """Side of the network's input in pixels (at least 63)."""
    fit: Literal["auto", "enlarge", "crop"] = "auto"
    """How images become inputs; auto enlarges small squares of one size, and resizes and crops all else."""
    crop_scale: float = 0.08
    """Smallest share of an image's area in a random resized crop of training."""
    resized_crop: float | None = None
    """For enlarged images: random resized crops instead of shifts, of at least this share of the area, such as 0.6."""
    store: Literal["auto", "array", "pixels", "encoded"] = "auto"
    """How a node keeps images: one array, pixels of reduced size, or the originals; auto chooses by size and space."""
    stored_size: int = 256
    """Short side in pixels to which the store `pixels` reduces images, their aspect kept."""
    threads: int | None = None
    """Threads that decode and crop photographs in each process (default: its share of the node's cores)."""
    verify: bool = False
    """Hash all prepared images at the start and compare them with what was recorded when they were prepared."""
    limit: int | None = None
    """Use only this many images of each split, chosen by a fixed hash: for debugging."""
    val_fraction: float = 0.0
    """Hold out this share of the training images, by a fixed hash, and evaluate on it instead of the test split."""
    augment: bool = True
    """Data augmentation: crop (shift by up to 1/8, or resized), flip every second epoch (never digits), cutout."""
    cutout: float = 0.25
    """Erase a square of this share of the side at a random place of each training image; 0 turns it off."""
    mixup: float | None = None
    """Blend each training image and its label with another, with weights from Beta(a, a), where a is this value."""
    cutmix: float | None = None
    """Replace a box in each training image by another's, with an area from Beta(a, a), where a is this value."""
    pca_color: float | None = None
    """AlexNet's colour augmentation: standard deviation of shifts along the pixels' principal axes, such as 0.1."""
    normalize: bool = True
    """Normalise each channel by the training split's statistics, or ImageNet's with its weights; off: [0, 1]."""
    cache_dir: Path | None = None
    """Where decoded data sets are kept (default: alexnet_dist under $XDG_CACHE_HOME or ~/.cache)."""

    def __post_init__(self) -> None:
        _check(
            self, "data.", batch_size="[1, inf)", image_size=f"[{SMALLEST_IMAGE}, {LARGEST_IMAGE}]", limit="[1, inf)"
        )
        _check(self, "data.", val_fraction="[0, 1)", cutout="[0, 1]", mixup="(0, inf)", cutmix="(0, inf)")
        _check(self, "data.", crop_scale="(0, 1]", stored_size="[1, inf)", threads="[1, inf)", pca_color="(0, inf)")
        _check(self, "data.", resized_crop="(0, 1)")
        _require(bool(self.dataset.strip()), "--data.dataset must not be empty")
        mixes = (self.mixup, self.cutmix)
        _require(None in mixes, "--data.mixup and --data.cutmix exclude each other: choose one")
        excluded = "--data.no-augment excludes --data.mixup, --data.cutmix and --data.pca-color: they are augmentation"
        _require(self.augment or (*mixes, self.pca_color) == (None, None, None), excluded)
        crossed = (self.fit, self.store) in {("enlarge", "pixels"), ("enlarge", "encoded"), ("crop", "array")}
        _require(not crossed, f"--data.fit {self.fit} excludes --data.store {self.store}: arrays hold what is enlarged")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and its starting weights (random, unless one of these says otherwise)."""

    pretrained: bool = False
    """Start from torchvision's ImageNet weights (downloaded once); the head starts fresh."""
    weights: Path | None = None
    """Start from this safetensors file with torchvision's key names; a head of another size starts fresh."""
    init: Literal["torch", "he"] = "torch"
    """Random initial weights: torch's default, or He initialisation after conv1, which keeps activations' variance."""
    conv1_init_scale: float = 0.1
    """Factor on conv1's random weights and biases; well below 1, pictures show what was learned and less noise.
    On CIFAR-10 a tenth cost AdamW 1.5 points of accuracy, and Muon none."""
    dropout: float = 0.25
    """Dropout probability before fc6 and fc7 (torchvision's own is 0.5)."""

    def __post_init__(self) -> None:
        _check(self, "model.", dropout="[0, 1)", conv1_init_scale="(0, inf)")
        both = "--model.pretrained and --model.weights exclude each other: choose one source of weights"
        _require(not (self.pretrained and self.weights), both)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, learning rate and regularisation."""

    name: Literal["adam", "adamw", "sgd", "lars", "lamb", "muon"] = "muon"
    """Optimizer; lars and lamb: sgd and adamw with a trust ratio a layer; muon: adamw for all but muon-layers."""
    momentum: float | None = None
    """Momentum of sgd and lars (default: 0.9) and of muon (default: 0.95)."""
    muon_layers: Literal["convolutions", "hidden"] = "convolutions"
    """Layers with muon's orthogonal updates: conv2 to conv5, or fc6 and fc7 too, which costs 6 TFLOP a step."""
    nesterov: bool = True
    """Nesterov's momentum for sgd and lars; else plain momentum."""
    lr: float = 5e-4
    """Peak learning rate, before scale-lr."""
    scale_lr: Literal["none", "sqrt", "linear"] = "none"
    """Multiply the learning rate by (global batch / 256), by its square root, or not at all."""
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = "cosine"
    """Learning rate after the warm-up: constant, cosine to 0, one-cycle (cosine from lr/25 up and down to 0), steps."""
    step_epochs: int = 30
    """The schedule `step` divides the learning rate by ten after every this many epochs."""
    warmup_epochs: float | None = None
    """Epochs of warm-up (default: 30 % of the run for one-cycle, 1/15 for cosine, else none)."""
    weight_decay: float | None = None
    """Weight decay: L2 for adam, sgd and lars, else decoupled (default: 0.5 for adamw and muon, else 0)."""
    beta2: float = 0.999
    """Decay of the gradient's second moment in adam, adamw, lamb and muon."""
    decay_biases: bool = False
    """Apply the weight decay to biases too."""
    clip_norm: float | None = None
    """Clip the gradient's global norm to this value."""
    label_smoothing: float = 0.1
    """Share of the target probability spread over all classes."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; evaluation then uses the average."""
    accumulate: int = 1
    """Gradient accumulation: split the global batch into this many parts to save memory; the step stays the same."""

    def __post_init__(self) -> None:
        _check(self, "optim.", lr="(0, inf)", clip_norm="(0, inf)", label_smoothing="[0, 1)", ema="(0, 1)")
        _check(self, "optim.", warmup_epochs="[0, inf)", weight_decay="[0, inf)", accumulate="[1, inf)")
        _check(self, "optim.", step_epochs="[1, inf)", beta2="[0, 1)", momentum="[0, 1)")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Devices and processes; they change results by rounding only."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: the launcher's choice, else bf16 where the device is fast at it, else fp16 on CUDA, else fp32."""
    cpu: bool = False
    """Use the CPU although there are GPUs; needed for several CPU processes."""
    compile: bool = False
    """Compile the network with torch.compile."""
    cuda_graphs: bool = False
    """Compile the network and replay it as CUDA graphs; not measured on a GPU."""
    comm_hook: Literal["none", "bf16", "fp16"] = "none"
    """Data type of gradients between processes; bf16 and fp16 halve the bytes and round."""
    probe_network: bool = False
    """Time an all-reduce of all gradients (228 MB) at the start; run card and summary.json show it."""
    timeout_seconds: int = 600
    """How long a process waits for the others before it gives up."""

    def __post_init__(self) -> None:
        _check(self, "runtime.", timeout_seconds="[1, inf)")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is recorded, and how often."""

    every_steps: int = 20
    """Steps between two records of training metrics; the host waits for the device only then."""
    kernels_every_epochs: int | None = None
    """Epochs between two sets of pictures (default: 1 up to epoch 30, 2 up to 60, 4 up to 120, and so on)."""
    conv2_kernel: int = 0
    """Number of the conv2 kernel, of 192, that is shown channel by channel."""
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ("wandb",)
    """Where metrics go besides the run folder; the flag without a value: nowhere else."""

    def __post_init__(self) -> None:
        _check(self, "log.", every_steps="[1, inf)", kernels_every_epochs="[1, inf)")
        _check(self, "log.", conv2_kernel=f"[0, {NUM_CONV2_KERNELS - 1}]")
        _require(len(set(self.trackers)) == len(self.trackers), "--log.trackers names one tracker twice")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases. Keys come from `wandb login` or WANDB_API_KEY, never from a flag."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where a login exists, else offline."""
    project: str | None = None
    """Project name (default: WANDB_PROJECT, else alexnet_dist)."""
    entity: str | None = None
    """User or team (default: WANDB_ENTITY, else the login's)."""
    name: str | None = None
    """Display name (default: WANDB_NAME, else the run folder's)."""
    group: str | None = None
    """Runs that belong together, such as the seeds of one experiment (default: WANDB_RUN_GROUP, else the recipe)."""
    job_type: str | None = None
    """What kind of run it is within its group (default: WANDB_JOB_TYPE, else train)."""
    tags: tuple[str, ...] = ()
    """Tags of the run (default: WANDB_TAGS), besides its data set, precision and number of processes."""
    artifacts: Literal["none", "final", "all"] = "none"
    """Weights to upload; final: the best and the last at the end; all: those of every epoch's checkpoint."""
    shared: bool = False
    """Record system metrics of every process, not only of the first one's machine; needs a login."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved: 685 MB each with Adam."""

    every_steps: int | None = None
    """Also save after every this many optimizer steps."""
    every_epochs: int = 1
    """Save after every this many epochs, and after the last."""
    keep: int = 2
    """How many of the newest checkpoints stay, besides the best."""

    def __post_init__(self) -> None:
        _check(self, "checkpoint.", every_steps="[1, inf)", every_epochs="[1, inf)", keep="[1, inf)")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train AlexNet. `--config FILE.yaml`, or a recipe by name, is read first; flags win. Defaults: `reference`.

    Most used:
      --config NAME             a recipe (quick, reference, photos, ...) or a file
      --data.dataset NAME       a Hub id, a folder of images, a zip file, ...
      --epochs INT              passes over the training images
      --out-dir PATH            run folder; the same command continues it
      --seed INT                seed of everything random
      --data.batch-size INT     images per step of all processes together
      --optim.lr FLOAT          peak learning rate
      --model.weights PATH      start from the weights of a file
      --runtime.precision NAME  bf16, fp16 or fp32
      --wandb.mode MODE         online, offline or disabled
    """

    epochs: int = 30
    """Passes over the training images."""
    seed: int = 0
    """Seed of everything random: initial weights, order of images, data augmentation, dropout."""
    out_dir: Path | None = None
    """Run folder (default: a new one under runs/)."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue the run in out-dir, if any; never: refuse a folder with a run; must: refuse one without."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, evaluate and end: for debugging."""
    profile: bool = False
    """Trace the run's sixth to eighth step with torch's profiler into RUN/profile."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    log: LogConfig = field(default_factory=LogConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        _check(self, epochs="[1, inf)", seed=f"[0, {2**63})", max_steps="[1, inf)")
        parts, batch_size = self.optim.accumulate, self.data.batch_size
        _require(batch_size % parts == 0, f"--optim.accumulate {parts} does not divide --data.batch-size {batch_size}")
