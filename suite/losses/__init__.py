"""Losses, and the table of state-modelling losses that ``--loss`` chooses from."""

from suite.losses.common import Learner, Loss, NoLoss
from suite.losses.moa import MOALoss
from suite.losses.next_observation import NextObservationLoss
from suite.losses.off_policy import MADDPGLoss, MixedQLoss
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
    "STATE_MODELS",
    "Learner",
    "Loss",
    "MADDPGLoss",
    "MOALoss",
    "MixedQLoss",
    "NextObservationLoss",
    "NoLoss",
    "PolicyLoss",
    "Returns",
    "SMPELoss",
    "ValueLoss",
]
