"""A loss that computes what it reads of encoders itself, instead of taking it as it was stored."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from suite.losses.common import Loss
from suite.modules.lowered import Lowered

ENCODERS = "encoders"  # the part of an update whose parameters are those of encoders


class Encoded(Loss):
    """Another loss, on features as the present encoders write them.

    Its gradients reach ``trained`` as far as the encoders pass them on; these form a part of their own, `ENCODERS`,
    which an update declares as shared: the loss that the encoders belong to trains them too.

    Args:
        loss: reads the features. encoders: TensorDictModules, run in order; they remain their owner's.
        trained: parameters of theirs.
    """

    def __init__(self, loss: Loss, encoders: Sequence[TensorDictModule], trained: Sequence[nn.Parameter] = ()):
        network = TensorDictSequential(*encoders)
        read = [key for key in loss.in_keys if key not in network.out_keys]
        super().__init__(dict.fromkeys([*network.in_keys, *read]))
        self.loss = loss
        self.__dict__.update(encode=Lowered(network), trained=list(trained))

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """The other loss's entries."""
        network = self.encode.policy
        features = self.encode({key: minibatch[key] for key in network.in_keys})
        td = minibatch.copy()
        for key in network.out_keys:
            td[key] = features[key]
        return self.loss(td)

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """Those of the other loss, and what is trained of the encoders."""
        return self.loss.networks(part) | ({ENCODERS: self.trained} if self.trained else {})
