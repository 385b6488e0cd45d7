"""Visit counts of continuous vectors by locality-sensitive hashing, one set of counters per agent, as tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suite import distributed

BITS = 16
BUCKETS = (9931, 9953, 9959, 9961, 9979, 9983)


class SimHash(nn.Module):
    """Counts of sign(x P), P Gaussian, in six hash tables (Tang et al. 2017; constants of the SMPE2 program).

    code b = sign(x P) in {-1, 0, 1}^16; for six primes p: key_p = (sum_j b_j m_{j,p}) mod p, m_{j,p} = 2^j mod p. The
    count of x is the smallest of its six cells. Counters never fall.
    """

    def __init__(self, n_agents: int, dim: int):
        super().__init__()
        powers = [[pow(2, j, p) for p in BUCKETS] for j in range(BITS)]
        # float64, so that a sign depends on the vector and not on the order of the sum
        self.register_buffer("projection", torch.randn(n_agents, dim, BITS, dtype=torch.float64))
        self.register_buffer("powers", torch.tensor(powers, dtype=torch.float64), persistent=False)
        self.register_buffer("sizes", torch.tensor(BUCKETS), persistent=False)
        self.register_buffer("tables", torch.zeros(n_agents, len(BUCKETS), max(BUCKETS), dtype=torch.int64))

    def keys(self, x: Tensor) -> Tensor:
        """Cells of x [..., A, dim]: int64 [rows, A, 6]."""
        rows = x.reshape(-1, *x.shape[-2:]).transpose(0, 1).double()
        code = torch.bmm(rows, self.projection).sign()
        # all numbers are integers below 2^53, so the product is exact
        return (code @ self.powers).long().remainder(self.sizes).transpose(0, 1)

    @torch.no_grad()
    def count(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Count every row of x [..., A, dim], or those where ``mask`` (bool [..., A]) is True; on all processes.

        Returns what `forward` then gives.
        """
        keys = self.keys(x)  # [rows, A, 6]
        one = torch.ones_like(keys)
        if mask is not None:
            one = one * mask.reshape(keys.shape[:2]).unsqueeze(-1)
        several = distributed.world_size() > 1
        fresh = torch.zeros_like(self.tables) if several else self.tables
        fresh.scatter_add_(2, keys.permute(1, 2, 0), one.permute(1, 2, 0))
        if several:
            self.tables += distributed.total(fresh)
        return self._look(keys, x)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """How often the code of x [..., A, dim] was counted: int64 [..., A]."""
        return self._look(self.keys(x), x)

    def _look(self, keys: Tensor, x: Tensor) -> Tensor:
        return self.tables.gather(2, keys.permute(1, 2, 0)).amin(1).T.reshape(x.shape[:-1])
