"""A tiny cooperative task for tests of the learning side: agents walk to a target they see."""

from __future__ import annotations

import torch

from envs.base import ACTION, ACTION_MASK, OBSERVATION, BatchedEnv, continuous, discrete

MOVES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


class ToyEnv(BatchedEnv):
    """Reward is minus the distance to the target; an episode terminates when all agents have arrived."""

    def __init__(self, num_envs=8, n_agents=2, *, is_discrete=False, mask=False, state=True, max_steps=10, seed=0,
                 agent_types=None, arrive=0.0, **base):
        super().__init__(
            num_envs=num_envs,
            agent_names=[f"agent_{k}" for k in range(n_agents)],
            agent_types=agent_types or [0] * n_agents,
            max_steps=max_steps,
            seed=seed,
            device="cpu",
            **base,
        )
        bound = torch.ones(n_agents, 2)
        self._set_specs(observation_dim=4, action=discrete(5, n_agents) if is_discrete else continuous(-bound, bound),
                        action_mask=5 if mask else None, state_dim=4 * n_agents if state else None)
        self.is_discrete, self.mask, self.has_state, self.arrive = is_discrete, mask, state, arrive
        self.at, self.target = torch.zeros(num_envs, n_agents, 2), torch.zeros(num_envs, n_agents, 2)
        self.generator = torch.Generator().manual_seed(seed)

    def _restart(self, mask):
        new = torch.rand(2, *self.at.shape, generator=self.generator) * 2 - 1
        keep = None if mask is None else mask[:, None, None]
        self.at = new[0] if keep is None else torch.where(keep, new[0], self.at)
        self.target = new[1] if keep is None else torch.where(keep, new[1], self.target)

    def _simulate(self, actions):
        action = actions[ACTION]
        move = MOVES[action] if self.is_discrete else action.clamp(-1, 1)
        self.at = self.at + 0.2 * move
        distance = (self.at - self.target).norm(dim=-1)
        return -distance, (distance < self.arrive).all(-1)

    def _observe(self):
        out = {OBSERVATION: torch.cat([self.at, self.target - self.at], -1)}
        if self.has_state:
            out["state"] = out[OBSERVATION].flatten(1)
        if self.mask:
            allowed = torch.ones(*self.at.shape[:2], 5, dtype=torch.bool)
            allowed[..., 1] = self.at[..., 0] < 0.5
            out[ACTION_MASK] = allowed
        return out

    def _capture(self):
        return {"at": self.at.clone(), "target": self.target.clone(), "random": self.generator.get_state()}

    def _restore(self, state, mask=None):
        keep = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else mask
        self.at = torch.where(keep[:, None, None], state["at"], self.at)
        self.target = torch.where(keep[:, None, None], state["target"], self.target)
        if mask is None:
            self.generator.set_state(state["random"])

    def _set_seed(self, seed):
        self.generator.manual_seed(seed)
