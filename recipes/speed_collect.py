"""Collection as `recipes.speed` measures it, one subject per fresh process; prints frames per CPU second.

    python -m recipes.speed_collect ours simple_spread 512 True

Process CPU seconds of one thread, so that a busy machine disturbs the numbers less.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

# native tasks and the VMAS scenario with the same rules that they are measured against
NATIVE = {"particle/spread-3": ("simple_spread", {"dialect": "vmas"})}
HORIZON = 100
STEPS = 64


def timed(run: Callable[[], int], *, seconds: float) -> float:
    """Frames per CPU second of ``run``, repeated for about that long after one warm-up call."""
    run()
    start, frames = time.process_time(), 0
    while time.process_time() - start < seconds:
        frames += run()
    return frames / (time.process_time() - start)


def raw(scenario: str, num_envs: int, desynchronised: bool) -> Callable[[], int]:
    """VMAS alone: random actions, no resets, no policy."""
    import vmas

    env = vmas.make_env(NATIVE[scenario][0] if scenario in NATIVE else scenario, num_envs=num_envs, seed=0)
    env.reset()
    actions = [torch.rand(num_envs, agent.action_size) * 2 - 1 for agent in env.agents]

    def run() -> int:
        for _ in range(STEPS):
            env.step([action.clone() for action in actions])
        return STEPS * num_envs

    return run


def ours(scenario: str, num_envs: int, desynchronised: bool) -> Callable[[], int]:
    """The recipe's collector with its 2 x 64 actor, episode returns included."""
    from envs import make_env
    from suite.collector import EpisodeStatistics, FastCollector
    from suite.modules import make_actor
    from suite.specs import Specs

    task, options = (scenario, NATIVE[scenario][1]) if scenario in NATIVE else (f"vmas/{scenario}", {})
    env = make_env(task, num_envs=num_envs, max_steps=HORIZON, **options)
    actor = make_actor(
        Specs.from_env(env),
        {},
        share="all",
        agent_id=False,
        cells=(64, 64),
        activation="tanh",
        init="default",
        recurrent_dim=0,
        head="tanh_normal",
        state_dependent_scale=True,
        device="cpu",
    )
    collector = FastCollector(env, actor, steps=STEPS, total_frames=10**12)
    statistics = EpisodeStatistics()
    collector.rollout()
    if desynchronised:
        env.steps = torch.arange(num_envs) % HORIZON

    def run() -> int:
        batch = collector.rollout()
        statistics(batch)
        return batch.numel()

    return run


def stock(scenario: str, num_envs: int, desynchronised: bool) -> Callable[[], int]:
    """TorchRL's Collector over VmasEnv with StepCounter and RewardSum, and the same 2 x 64 actor from its parts."""
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv, VmasEnv
    from torchrl.modules import MultiAgentMLP, NormalParamExtractor, ProbabilisticActor, TanhNormal

    base = VmasEnv(NATIVE[scenario][0] if scenario in NATIVE else scenario, num_envs=num_envs, seed=0, device="cpu")
    spec = base.full_action_spec_unbatched["agents", "action"]
    observation = base.observation_spec["agents", "observation"].shape[-1]
    net = MultiAgentMLP(observation, 2 * spec.shape[-1], base.n_agents, centralised=False, share_params=True, depth=2,
                        num_cells=64, activation_class=nn.Tanh)
    params = [("agents", "loc"), ("agents", "scale")]
    actor = ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(net, NormalParamExtractor()), in_keys=[("agents", "observation")], out_keys=params
        ),
        in_keys=params,
        out_keys=[("agents", "action")],
        spec=base.full_action_spec_unbatched,
        distribution_class=TanhNormal,
        distribution_kwargs=dict(low=spec.space.low, high=spec.space.high),
        return_log_prob=True,
    )
    env = TransformedEnv(base, Compose(StepCounter(HORIZON), RewardSum(
        in_keys=[("agents", "reward")], out_keys=[("agents", "episode_reward")], reset_keys=["_reset"])))
    collector = Collector(env, actor, frames_per_batch=STEPS * num_envs, total_frames=10**12,
                          auto_register_policy_transforms=False, track_traj_ids=False, device="cpu")
    batches = iter(collector)
    next(batches)
    if desynchronised:
        collector._carrier["step_count"] = (torch.arange(num_envs) % HORIZON).unsqueeze(-1)

    return lambda: next(batches).numel()


SUBJECTS = {"raw": raw, "ours": ours, "stock": stock}


def main(subject: str, scenario: str, num_envs: str, desynchronised: str) -> None:
    """Dispatch on the command line."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(json.dumps(timed(SUBJECTS[subject](scenario, int(num_envs), desynchronised == "True"), seconds=4)))


if __name__ == "__main__":
    main(*sys.argv[1:])
