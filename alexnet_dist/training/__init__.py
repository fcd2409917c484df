"""The training and evaluation loops, optimizer, learning rate, EMA, metrics, checkpoints and profiler."""

from alexnet_dist.training.lr_schedule import LearningRate
from alexnet_dist.training.metrics import Evaluation, Metrics, NonFiniteError
from alexnet_dist.training.progress import Plan, Progress
from alexnet_dist.training.train_loop import TrainContext

__all__ = ["Evaluation", "LearningRate", "Metrics", "NonFiniteError", "Plan", "Progress", "TrainContext"]
