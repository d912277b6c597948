"""Training: the task, the objective and what they are made of. `mmtok.training.cli.main` is the command."""

from mmtok.training.audio_validation import AudioValidation
from mmtok.training.balancer import Balancer
from mmtok.training.ema import EMA
from mmtok.training.objective import Objective
from mmtok.training.optimizers import Constant, Cosine, Exponential, Linear, Schedule, Steps
from mmtok.training.task import TokenizerTask
from mmtok.training.validation import Validation

__all__ = [
    "EMA", "AudioValidation", "Balancer", "Constant", "Cosine", "Exponential", "Linear", "Objective", "Schedule",
    "Steps", "TokenizerTask", "Validation",
]  # fmt: skip
