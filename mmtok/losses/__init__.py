"""Loss terms that `mmtok.training.Objective` composes; each is one class with plain arguments."""

from mmtok.losses.adversarial import Adversarial
from mmtok.losses.base import Teacher, Term
from mmtok.losses.distillation import ProxyCodes
from mmtok.losses.entropy import CodeEntropy
from mmtok.losses.features import FeatureContrast
from mmtok.losses.gan import (
    GANLoss,
    Hinge,
    HingeNonSaturating,
    LeastSquares,
    NoisyNonSaturating,
    NonSaturating,
    Vanilla,
)
from mmtok.losses.kinds import OnImages, OnVideos
from mmtok.losses.matching import FeatureMatching
from mmtok.losses.perceptual import ConvNeXtLogits, Perceptual
from mmtok.losses.reconstruction import L1, L2, LogCosh
from mmtok.losses.semantic import Semantic, SpeechModel
from mmtok.losses.spectral import (
    DACSTFT,
    CompressedSTFT,
    DACMel,
    EnCodecMel,
    MultiResolutionSTFT,
    SpeechTokenizerMel,
    VocosMel,
)
from mmtok.losses.video import FrameLikelihood, FramePerceptual

__all__ = [
    "DACSTFT", "L1", "L2", "Adversarial", "CodeEntropy", "CompressedSTFT", "ConvNeXtLogits", "DACMel", "EnCodecMel",
    "FeatureContrast", "FeatureMatching", "FrameLikelihood", "FramePerceptual", "GANLoss",
    "Hinge", "HingeNonSaturating", "LeastSquares", "LogCosh",
    "MultiResolutionSTFT", "NoisyNonSaturating", "NonSaturating", "OnImages", "OnVideos", "Perceptual",
    "ProxyCodes", "Semantic", "SpeechModel",
    "SpeechTokenizerMel", "Teacher", "Term", "Vanilla", "VocosMel",
]  # fmt: skip
