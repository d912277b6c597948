"""Loss terms that `mmtok.training.Objective` composes; each is one class with plain arguments."""

from mmtok.losses.adversarial import Adversarial, GANLoss, Hinge, HingeNonSaturating, NonSaturating, Vanilla
from mmtok.losses.base import Teacher, Term
from mmtok.losses.distillation import ProxyCodes
from mmtok.losses.entropy import CodeEntropy
from mmtok.losses.features import FeatureContrast
from mmtok.losses.perceptual import ConvNeXtLogits, Perceptual
from mmtok.losses.reconstruction import L1, L2, LogCosh

__all__ = [
    "L1", "L2", "Adversarial", "CodeEntropy", "ConvNeXtLogits", "FeatureContrast", "GANLoss", "Hinge",
    "HingeNonSaturating", "LogCosh", "NonSaturating", "Perceptual", "ProxyCodes", "Teacher", "Term", "Vanilla",
]  # fmt: skip
