"""Do the models predict? Of random partners what they do next, and under random policies what is seen next."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from recipes.moa_experiments import Effort, Learned, learn, random_partners, smooth_actors
from suite.specs import OBSERVATION

SEEN = {"particle/spread-3": {}, "vmas/simple_spread": {"continuous_actions": False}}  # everybody sees all positions
UNSEEN = {"vmas/navigation": {"continuous_actions": False}}  # others beyond a lidar's reach, and their goals, are not
PREDICTABLE = ("give_way", "dispersion", "dropout", "wind_flocking", "simple_spread", "simple_push")  # own > 0.6
JOINT = ("simple_spread", "simple_tag", "simple_push")  # where others' actions move what an agent sees
HORIZONS = (1, 3, 5, 10)
ACTIONS, WORLD = Effort(iterations=10), Effort(iterations=4, epochs=15)


def partners(seed: int, *, effort: Effort = ACTIONS) -> dict[str, float]:
    """Skill, and how far the cross-entropy is above its floor, for random networks as partners."""
    out = {}
    for task, options in (SEEN | UNSEEN).items():
        found = learn(task, random_partners, seed=seed, part="action_loss", effort=effort, **options).numbers()
        out |= {f"{task}: skill": found["moa/skill"], f"{task}: ce - floor": found["moa/ce"] - found["moa/ce_floor"]}
    return out


def world(seed: int, *, effort: Effort = WORLD) -> dict[str, float]:
    """Skills of the world model and what the others' actions add, for aimless smooth actions."""
    out, rises = {}, []
    for name in dict.fromkeys((*PREDICTABLE, *JOINT)):
        learned = learn(f"vmas/{name}", smooth_actors, seed=seed, part="world_loss", effort=effort)
        found = learned.numbers()
        skills = [found[f"wm/obs_skill_{k}_true"] for k in HORIZONS]
        rises += [after - before for before, after in pairwise(skills)]
        alone = feature_skill(learned, others=False)
        out |= {f"{name}: skill_1": found["wm/obs_skill_1"], f"{name}: gain_joint": found["wm/gain_joint"],
                f"{name}: skill_1 by feature": feature_skill(learned),
                f"{name}: gain_joint by feature": feature_skill(learned) - alone}
    return out | {"largest rise to the next k": max(rises)}


@torch.no_grad()
def feature_skill(learned: Learned, *, others: bool = True) -> float:
    """The mean over features of 1 - mse / mse_copy, the scale of the table of section 5.3 of the specification.

    A ratio of means over all features belongs to the few with large errors, such as velocities after a collision.
    ``others``: False tells the world model zeros for the others' actions.
    """
    world, scaler = learned.loss.world_loss, learned.loss.model.scaler
    u, joint = world.inputs(learned.test)
    if not others:
        joint = joint * (torch.arange(joint.shape[-1]) < learned.specs.action_dim)
    predicted, after = learned.loss.model.world_model(u, joint)[0], scaler(learned.test["next", *OBSERVATION])

    def error(guess: Tensor) -> Tensor:
        return ((guess - after) * scaler.mask).square().flatten(0, -2).mean(0)  # padding counts on neither side

    copy = error(u)
    moves = copy > 1e-8
    return (1 - error(predicted) / copy.clamp_min(1e-8))[moves].mean().item()
