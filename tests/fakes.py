"""A loss, a collector and a run without networks, environments or disks: for tests of the loop itself."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import nn

from suite.checkpoint import Checkpoints
from suite.data import DataSource
from suite.losses import Loss
from suite.run import MemoryRun
from suite.specs import GROUP, OBSERVATION
from suite.trainer import Trainer
from suite.update import Update

N, T, A = 3, 4, 2


class Square(Loss):
    """Mean square of a linear map of the observation; ``terms`` are added as reward terms."""

    def __init__(self, *, name="square", terms=None, net=None, factor=1.0):
        super().__init__([OBSERVATION])
        self.net = nn.Linear(3, 1) if net is None else net
        self.name, self.terms, self.factor, self.events = name, terms or {}, factor, []

    def forward(self, minibatch):
        self.events.append("forward")
        value = self.net(minibatch[OBSERVATION])
        return TensorDict({f"loss_{self.name}": self.factor * value.square().mean(), "size": value.abs().mean()})

    def reward_terms(self, batch):
        return {name: torch.full((N, T, A, 1), value) for name, value in self.terms.items()}

    def refresh(self, batch):
        self.events.append("refresh")


class Batches:
    """A collector without an environment: the same observations, a given reward."""

    def __init__(self, count=3, reward=1.0):
        self.frames, self.total_frames, self.reward, self.synced = 0, count * N * T, reward, 0

    def __iter__(self):
        while self.frames < self.total_frames:
            self.frames += N * T
            yield self.batch()

    def batch(self):
        torch.manual_seed(0)
        reward = self.reward(self.frames // (N * T)) if callable(self.reward) else self.reward
        td = TensorDict({GROUP: TensorDict({"observation": torch.randn(N, T, A, 3)}, batch_size=[N, T, A])},
                        batch_size=[N, T], device="cpu")
        done = torch.zeros(N, T, 1, dtype=torch.bool)
        done[:, -1], terminated = True, torch.zeros_like(done)
        terminated[0, -1] = True
        td["next"] = TensorDict({"done": done, "terminated": terminated, "truncated": done & ~terminated,
                                 GROUP: TensorDict({"reward": reward * torch.ones(N, T, A, 1)}, batch_size=[N, T, A])},
                                batch_size=[N, T], device="cpu")
        return td

    def update_policy_weights_(self):
        self.synced += 1

    def state_dict(self):
        return {"frames": self.frames}

    def load_state_dict(self, state):
        self.frames = state["frames"]


class DiskRun(MemoryRun):
    """Also keeps the checkpoints."""

    def __init__(self, path):
        super().__init__()
        self.checkpoints = Checkpoints(path, keep=99)

    def save(self, state, *, iteration, frames):
        self.checkpoints.save(state, iteration)


class Whole(DataSource):
    """The batch as it is, once."""

    def __call__(self, batch, keys):
        yield batch.select(*keys)

    def with_epochs(self, epochs):
        return self


class Given(Whole):
    """Minibatches of a function (batch, keys)."""

    def __init__(self, function):
        self.function = function

    def __call__(self, batch, keys):
        yield from self.function(batch, keys)


whole = Whole()


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def update(name="u", loss=None, **options):
    return Update(name, {name: Square() if loss is None else loss}, options.pop("data", whole),
                  **{"optimizer": sgd, "max_grad_norm": None} | options)


def make(updates=(), *, policy=None, collector=None, weights=None, run=None, **options):
    return Trainer(collector or Batches(), policy or nn.Module(), updates, reward_weights=weights or {"task": 1.0},
                   run=run or MemoryRun(), **options)


def copies(module):
    return [p.detach().clone() for p in module.parameters()]


def unchanged(module, before):
    return all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def frozen_terms(**terms):
    return Square(terms=terms).requires_grad_(False)
