"""What the commands that use a trained network share: its file, the processes, and the precision of the run."""

import logging
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn

from alexnet_dist.config import Config, DataConfig, RuntimeConfig
from alexnet_dist.config.commands import InferenceConfig, NetworkOptions
from alexnet_dist.data import Inputs
from alexnet_dist.distributed import accelerator as processes
from alexnet_dist.distributed.precision import Precision
from alexnet_dist.errors import UserError
from alexnet_dist.training.classifier import ByHand, Classifier, load

logger = logging.getLogger(__name__)


def open_network(source: str, options: NetworkOptions) -> Classifier:
    """Return the network that a command line names, on the CPU.

    Raises:
        UserError: it cannot be had.
    """
    names = None
    if options.classes is not None:
        try:
            names = tuple(options.classes.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--classes {options.classes} cannot be read: {error}") from None
    by_hand = ByHand(options.mean, options.std, names, options.image_size)
    return load(source, options.which, by_hand=by_hand)


def start(
    classifier: Classifier, runtime: InferenceConfig, data: DataConfig | None = None
) -> tuple[Accelerator, Precision]:
    """Form the process group, in the precision that is asked for. Every rank must call it.

    Args:
        classifier: whose file says what the run's precision was.
        runtime: device and precision.
        data: whose global batch the processes share.
    """
    precision = runtime.precision
    if precision == "run":
        recorded = recorded_precision(classifier)
        if recorded == "fp16" and (runtime.cpu or not torch.cuda.is_available()):
            logger.warning("%s was computed in fp16, which needs a GPU: fp32 is used", classifier.path)
            recorded = "fp32"
        chosen = RuntimeConfig(cpu=runtime.cpu, precision=recorded)
    else:
        chosen = RuntimeConfig(cpu=runtime.cpu, precision=precision)
    return processes.make_accelerator(Config(runtime=chosen, data=data or DataConfig()))


def recorded_precision(classifier: Classifier) -> str:
    """Return the precision of the run that a network comes from; fp32 where its file does not say."""
    training = (classifier.metadata or {}).get("training") or {}
    result = (classifier.metadata or {}).get("result") or {}
    return str(training.get("precision") or result.get("precision") or "fp32")


def as_evaluated(classifier: Classifier, accelerator: Accelerator, precision: Precision) -> tuple[nn.Module, Inputs]:
    """Return the network as training evaluates it, on the accelerator's device, with its inputs."""
    network, inputs = classifier.fast(precision.dtype)
    return network.to(accelerator.device), inputs


def words(options: Sequence[str], *, least: int, meaning: str) -> Sequence[str]:
    """Return a command's words after a check that there are enough.

    Raises:
        UserError: there are too few.
    """
    if len(options) < least:
        raise UserError(f"name {meaning}")
    return options
