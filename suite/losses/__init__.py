"""Losses, the table of state-modelling losses that ``--loss`` chooses from, and that of codecs for ``--codec``."""

from suite.losses.codecs import CODECS, DirectActions, EmbeddedActions
from suite.losses.common import Learner, Loss, NoLoss
from suite.losses.deterministic import DeterministicPolicyLoss, QValueLoss, SoftTargets
from suite.losses.hyar import HyARLoss
from suite.losses.hybrid_ppo import HybridPolicyLoss
from suite.losses.moa import MOALoss
from suite.losses.next_observation import NextObservationLoss
from suite.losses.off_policy import MADDPGLoss, MixedQLoss
from suite.losses.pdqn import PDQNParamsLoss, PDQNValueLoss
from suite.losses.ppo import PolicyLoss, ValueLoss
from suite.losses.returns import Returns
from suite.losses.smpe import SMPELoss

STATE_MODELS: dict[str, type[Loss]] = {
    "none": NoLoss,
    "moa": MOALoss,
    "next_observation": NextObservationLoss,
    "smpe": SMPELoss,
}

__all__ = [
    "CODECS",
    "STATE_MODELS",
    "DeterministicPolicyLoss",
    "DirectActions",
    "EmbeddedActions",
    "HyARLoss",
    "HybridPolicyLoss",
    "Learner",
    "Loss",
    "MADDPGLoss",
    "MOALoss",
    "MixedQLoss",
    "NextObservationLoss",
    "NoLoss",
    "PDQNParamsLoss",
    "PDQNValueLoss",
    "PolicyLoss",
    "QValueLoss",
    "Returns",
    "SMPELoss",
    "SoftTargets",
    "ValueLoss",
]
