"""Evaluation episodes and videos. They draw from random states of their own and change nothing in the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from suite.latent_use import shuffled_latent
from suite.modules.lowered import Lowered, Tensors
from suite.modules.policies import hidden_shapes
from suite.specs import IS_INIT, REWARD, SUCCESS


class Evaluator:
    """Plays one fresh episode in each copy of its own environment, the same ones however many it played before.

    Args:
        env: an environment used for nothing else; ``num_envs`` is the number of episodes.
        policy: evaluated as it is at the time of the call; with ``carried`` any function that is called like `Lowered`
            and hands on what that names, as `hidden_shapes` does.
        seed: seed of the episodes and of sampled actions.
        fresh: other initial states and draws after every number of frames, which follow from it and the seed; else
            always the same.
        team: returns are sums over the agents instead of means.
        latents: keys that modules of the policy write for later ones; what they are good for is measured too.
    """

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase | Callable[..., Tensors], *, seed: int,
                 fresh: bool = False, team: bool = False, carried: dict[NestedKey, tuple[int, ...]] | None = None,
                 latents: Sequence[NestedKey] = ()):
        self.env, self.seed, self.fresh, self.team = env, seed, fresh, team
        self.lowered = Lowered(policy) if carried is None else policy
        self.hidden = hidden_shapes(policy) if carried is None else carried
        self.samples = carried is not None or self.lowered.samples  # else both kinds of actions are the same
        self.start = env.state_dict()  # some simulators remember earlier episodes
        self.shuffled = None
        if latents and env.num_envs > 1:
            self.shuffled = Lowered(reduce(shuffled_latent, latents, policy))

    def __call__(self, frames: int = 0) -> dict[str, float]:
        """Mean return (over episodes; over agents or of the team) of sampled and greedy actions, and mean length.

        Where the task says what success is: also the share of greedy episodes with a step that is one, and, of a policy
        that samples, of sampled ones (`EpisodeStatistics` counts alike in training). With latents also
        ``policy/z_use``, the return of sampled actions that is lost with another episode's. ``frames`` is how long the
        policy has been trained.
        """
        seed = self.seed_after(frames)
        greedy = self.play(deterministic=True, seed=seed)
        sampled = self.play(deterministic=False, seed=seed) if self.samples else greedy
        row = {"return": sampled["return"], "return_greedy": greedy["return"], "length": sampled["length"]}
        if "success" in greedy:
            row |= {"success": greedy["success"]} | ({"success_sampled": sampled["success"]} if self.samples else {})
        if self.shuffled is not None:
            other = self.play(deterministic=not self.samples, seed=seed, policy=self.shuffled)
            row["policy/z_use"] = sampled["return"] - other["return"]
        return row

    def seed_after(self, frames: int) -> int:
        """Seed of the evaluation after so many frames."""
        return random.Random(f"{self.seed} {frames}").getrandbits(31) if self.fresh else self.seed

    @torch.no_grad()
    def play(self, *, deterministic: bool, seed: int | None = None, frames: list | None = None,
             size: tuple[int, int] | None = None, policy: Callable[..., Tensors] | None = None) -> dict[str, float]:
        """One episode per copy, of the evaluator's own seed and policy unless others are given.

        With ``frames``, pictures of the first copy [H, W, 3] are appended to it.
        """
        seed = self.seed if seed is None else seed
        devices = [self.env.device] if self.env.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            self.env.load_state_dict(self.start)
            self.env.set_seed(seed)
            return self._play(policy or self.lowered, deterministic, frames, size)

    def _play(self, policy: Callable[..., Tensors], deterministic: bool, frames: list | None,
              size: tuple[int, int] | None) -> dict[str, float]:
        n, device = self.env.num_envs, self.env.device
        current = self.env.reset_tensors()
        current |= {key: torch.zeros(n, *shape, device=device) for key, shape in self.hidden.items()}
        current[IS_INIT] = torch.ones(n, 1, dtype=torch.bool, device=device)
        total, length = torch.zeros(n, device=device), torch.zeros(n, device=device)
        running = torch.ones(n, dtype=torch.bool, device=device)
        reached = torch.zeros_like(running)
        while True:
            if frames is not None and running[0]:
                frames.append(self.env.render_frame(0, size=size))
            tensors = policy(dict(current), deterministic=deterministic)
            out = self.env.step_tensors({key: tensors[key] for key in self.env.action_keys})
            total += self._reward(out[REWARD]) * running
            length += running
            if SUCCESS in out:
                reached = reached | (out[SUCCESS].squeeze(-1) & running)
            running = running & ~out["done"].squeeze(-1)
            if frames is not None and not running[0]:
                frames.append(self.env.render_frame(0, size=size))  # how it ended
                break
            if not running.any():  # one question per step: evaluation is not the hot path
                break
            current = {key: out[key] for key in current if key in out}
            current |= {
                key: tensors[("next", key) if isinstance(key, str) else ("next", *key)] for key in self.hidden
            } | {IS_INIT: torch.zeros_like(out["done"])}
        row = {"return": total.mean().item(), "length": length.mean().item()}
        return row | ({"success": reached.float().mean().item()} if SUCCESS in out else {})

    def _reward(self, reward: Tensor) -> Tensor:
        return reward.sum((-2, -1)) if self.team else reward.mean((-2, -1))

    def video(self, path: str | Path, *, size: tuple[int, int] | None = None, seconds_per_frame: float = 0.05) -> Path:
        """Write a GIF of one greedy episode."""
        from PIL import Image

        frames: list = []
        self.play(deterministic=True, frames=frames, size=size)
        pictures = [Image.fromarray(frame) for frame in frames]
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=int(1000 * seconds_per_frame), loop=0
        )
        return path
