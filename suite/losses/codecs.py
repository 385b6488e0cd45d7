"""The table of action codecs that ``--codec`` chooses from: what an actor's vector means, and what trains that."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn

from suite.losses.common import Loss, NoLoss
from suite.losses.hyar import HyARLoss
from suite.modules.action_codec import CodecAct, DirectCodec, EmbeddingCodec
from suite.specs import CHOICE, LATENT_ACTION, OBSERVATION, PARAMS, Specs


class FixedCodec(NoLoss):
    """A codec that nothing trains, with the interface of `HyARLoss`.

    Attributes:
        codec: what decodes. warming: None, there is no warm-up. random_batch: False.
    """

    warming, random_batch, warmup = None, False, 0

    def __init__(self, specs: Specs, codec: nn.Module):
        super().__init__(specs)
        self.codec = codec.requires_grad_(False)

    def decoder(self) -> TensorDictModule:
        """The policy's last module: observation and latent action -> choice and parameters."""
        return TensorDictModule(CodecAct(self.codec), in_keys=[OBSERVATION, LATENT_ACTION], out_keys=[CHOICE, PARAMS])

    def relabel(self, minibatch: TensorDictBase) -> TensorDictBase:
        """Nothing to correct."""
        return minibatch


class DirectActions(FixedCodec):
    """The hybrid action itself as one vector: a value per choice, and all parameters (codec ``none``)."""

    def __init__(self, specs: Specs):
        super().__init__(specs, DirectCodec(specs.param_mask))


class EmbeddedActions(FixedCodec):
    """A random table of embeddings for the choice, parameters as they are (codec ``embedding``, HyAR without its VAE).

    Args:
        embed_dim: width of an embedding.
    """

    def __init__(self, specs: Specs, *, embed_dim: int = 6):
        if embed_dim < 1:
            raise ValueError(f"embed_dim of codec 'embedding' must be positive, got {embed_dim}")
        super().__init__(specs, EmbeddingCodec(specs.param_mask, embed_dim=embed_dim))


CODECS: dict[str, type[Loss]] = {"none": DirectActions, "embedding": EmbeddedActions, "hyar": HyARLoss}
