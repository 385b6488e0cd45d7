"""Does a policy use its latent? The return it loses when it is handed another episode's latent instead of its own, and
how far the latent moves what it does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from suite.modules.lowered import Lowered, call


class OtherEpisode(nn.Module):
    """Hands every environment the rows of another one, the same one at every step.

    So a shuffled latent is one that some episode really had, with its course over time; only the episode is wrong.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed, self.orders = seed, {}

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]; ValueError with a single environment."""
        if len(x) not in self.orders:
            self.orders[len(x)] = self._order(len(x)).to(x.device)
        return x[self.orders[len(x)]]

    def _order(self, n: int) -> Tensor:
        """A random cycle through all n: no row keeps its place."""
        if n < 2:
            raise ValueError("a latent cannot be shuffled over one environment")
        tour = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        order = torch.empty_like(tour)
        order[tour] = tour.roll(1)
        return order


def shuffled_latent(policy: TensorDictModuleBase, key: NestedKey, *, seed: int = 0) -> TensorDictSequential:
    """The same modules with the entry ``key`` [B, ...] permuted over environments after it was last written.

    Parameters are shared with ``policy``. What the encoders carry from step to step stays with its environment.

    Raises:
        ValueError: no module of the policy writes that key.
    """
    modules = [module for module, _ in Lowered(policy).steps]
    writers = [i for i, module in enumerate(modules) if key in module.out_keys]
    if not writers:
        raise ValueError(f"no module of the policy writes {key!r}")
    cut = writers[-1] + 1
    shuffle = TensorDictModule(OtherEpisode(seed), in_keys=[key], out_keys=[key])
    return TensorDictSequential(*modules[:cut], shuffle, *modules[cut:])


def latent_sensitivity(actor: TensorDictModuleBase, batch: TensorDictBase, key: NestedKey, *,
                       alive: NestedKey | None = None) -> float:
    """Mean over frames [N, T], agents, outputs k and latent entries d of |d out_k / d z_d| std(z_d).

    Agents count where the bool [N, T, A] under ``alive`` is True. The outputs are what the actor's first module writes
    first: logits, or the location of continuous actions. Steps count one by one: a recurrent actor goes on from its
    stored states.
    """
    network = Lowered(actor).steps[0][0]
    inputs = {name: batch[name].flatten(0, 1).detach() for name in network.in_keys}
    with torch.enable_grad():
        z = inputs[key] = inputs[key].requires_grad_()
        out = call(network, inputs)
        count = torch.ones_like(z[..., 0], dtype=torch.bool) if alive is None else batch[alive].flatten(0, 1)
        slopes = [torch.autograd.grad(part.sum(), z, retain_graph=True)[0][count].abs().mean(0)
                  for part in out.unbind(-1)]
    return (torch.stack(slopes).mean(0) * z.detach()[count].std(0)).mean().item()


def latent_use(make_evaluator: Callable[[TensorDictModuleBase], Callable[[], dict[str, float]]],
               policy: TensorDictModuleBase, key: NestedKey, *, seed: int = 0) -> dict[str, float]:
    """Returns with the policy's own latents and with shuffled ones, from the same initial states.

    ``make_evaluator(policy)`` is called for both before either plays; such as a function that makes an `Evaluator`.

    Returns:
        return, return_shuffled, z_use (the drop: 0 if the actor ignores its latent) and z_use_share, the drop as a
        share of the absolute return.
    """
    evaluators = make_evaluator(policy), make_evaluator(shuffled_latent(policy, key, seed=seed))
    own, other = (evaluate()["return"] for evaluate in evaluators)
    return {"return": own, "return_shuffled": other, "z_use": own - other,
            "z_use_share": (own - other) / max(abs(own), 1e-8)}
