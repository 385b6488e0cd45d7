"""Networks as TensorDictModules, and pure tensor functions."""

from suite.modules.lowered import Lowered
from suite.modules.policies import make_actor, make_critic

__all__ = ["Lowered", "make_actor", "make_critic"]
