"""The training and evaluation loops, optimizer, learning rate, EMA, metrics, checkpoints and profiler."""

from alexnet_dist.training.checkpoint import Saver
from alexnet_dist.training.ema import Ema
from alexnet_dist.training.eval_loop import evaluate
from alexnet_dist.training.lr_schedule import LearningRate
from alexnet_dist.training.metrics import Evaluation, Metrics, NonFiniteError
from alexnet_dist.training.plan import Plan
from alexnet_dist.training.profiler import Tracer
from alexnet_dist.training.progress import Progress
from alexnet_dist.training.train_loop import TrainContext, train_epoch, train_step

__all__ = [
    "Ema", "Evaluation", "LearningRate", "Metrics", "NonFiniteError", "Plan", "Progress", "Saver", "Tracer",
    "TrainContext", "evaluate", "train_epoch", "train_step",
]  # fmt: skip
