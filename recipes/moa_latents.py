"""What student and teacher know of a hidden variable: on the toy task of hidden goals, and of a scripted leader.

Rows are the steps of followers with a valid past in episodes that no model was trained on; probes learn from 80 % of
these episodes and are scored on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F

from envs.toy_belief import Episodes, belief, play
from recipes.moa_experiments import Effort, learn, uniform_actors
from suite.losses.cvae import CVAELoss
from suite.losses.moa import MOALoss
from suite.modules.gaussian import Direction
from suite.modules.state_model import MEMORY, PAST, PREV_ACTION, PREV_OBSERVATION, PREV_VALID
from suite.probes import linear_probe, mlp_probe, split_episodes
from suite.specs import ACTION, OBSERVATION, PRIVILEGED, Specs
from suite.state_metrics import as_floats, latent_statistics

# one role: the leader sees nothing, and has no statistics of its own
TOY = Specs(n_agents=2, obs_dim=4, action_dim=5, discrete=True, agent_types=(0, 0), hidden_dim=4)
PROBED = ("u", "uc", "uc_mlp", "z", "z_mlp", "z_teacher")
FOLLOWER, MEMORY_DIM, LATE = 1, 64, 10
WATCHED = Effort(iterations=25, epochs=4, test_envs=640)  # fewer are no ceiling: an MLP probe over-fits them


@dataclass(frozen=True)
class ToyEffort:
    """Episodes and Adam steps of the toy (section 5.6 of the specification); tests take less."""

    train: int = 2000
    test: int = 2000
    action_steps: int = 2000
    latent_steps: int = 1500
    memory_steps: int = 900
    probe_steps: int = 2000


def latent_numbers(cvae: CVAELoss, td: TensorDictBase, counts: Tensor, hidden: Tensor, classes: int, *,
                   probed: Sequence[str] = PROBED, steps: int = 2000) -> dict[str, float]:
    """kl, calibration, and accuracies of probes for the classes ``hidden`` [E, T, A] over the rows of ``counts``.

    ``u`` own observation, ``uc`` with the past, ``z`` and ``z_teacher`` the latents' means; ``uc_mlp`` and ``z_mlp`` by
    a network. ``probed`` chooses among them.
    """
    with torch.no_grad():
        known, y = cvae.model.infer_batch(td), cvae.privileged(td)
        teacher = cvae.teacher(*known.student_inputs, y)
    found = as_floats(latent_statistics((known.mean, known.log_sigma), teacher, counts.float(),
                                        direction=cvae.kl_direction))
    episode = torch.arange(len(td))[:, None, None].expand_as(counts)[counts]
    common = dict(target=hidden[counts], classes=classes, episode=episode, train=split_episodes(episode))
    rows = {"u": known.u, "uc": torch.cat([known.u, known.context], -1), "z": known.mean, "z_teacher": teacher[0]}
    found |= {name: linear_probe(rows[name][counts], **common).score for name in rows if name in probed}
    return found | {f"{name}_mlp": mlp_probe(rows[name][counts], steps=steps, **common).score for name in ("uc", "z")
                    if f"{name}_mlp" in probed}


# ---------------------------------------------------------------------- the toy


def toy(seed: int, *, direction: Direction = "student_to_teacher", memory: bool = False,
        effort: ToyEffort = ToyEffort()) -> dict[str, float]:
    """Train the parts of loss ``moa`` on episodes of the toy: the model of the leader first, then the latents."""
    torch.manual_seed(seed)
    loss = MOALoss(TOY, latent_dim=8, num_cells=64, x_parts="obs+moa", kl_direction=direction,
                   **dict(memory="gru", memory_dim=MEMORY_DIM) if memory else {})
    model, cvae = loss.model, loss.cvae_loss
    train, data = toy_batch(play(effort.train, seed=2 * seed), loss), play(effort.test, seed=2 * seed + 1)
    rows = train if memory else train[:, 1:].reshape(-1)
    options = dict(size=128, lr=2e-3) if memory else dict(size=1024, lr=1e-3)
    model.scaler.moments.update(train[OBSERVATION][:, :, FOLLOWER])
    for _ in _fit(loss.action_loss, rows, effort.memory_steps if memory else effort.action_steps, **options):
        pass
    with torch.no_grad():
        model.x_scaler.moments.update(model.raw_features(*(train[key] for key in model.keys))[1][:, 1:, FOLLOWER])
    for share in _fit(cvae, rows, effort.memory_steps if memory else effort.latent_steps, **options):
        cvae.alpha = loss.options["alpha"] * min(1.0, share / loss.options["alpha_warmup"])
    test = toy_batch(data, loss)
    goal = data.goal[:, None, None].expand(*test.shape, 2)
    counts = test[PREV_VALID].squeeze(-1) > 0
    found = latent_numbers(cvae, test, counts, goal, 4, steps=effort.probe_steps)
    late = counts & (torch.arange(test.shape[1]) >= LATE)[:, None]
    right = (belief(data).argmax(-1) == data.goal[:, None]).float()
    return found | {"bayes": right[:, 1:].mean().item(), "bayes_late": right[:, LATE:].mean().item(),
                    "z_late": latent_numbers(cvae, test, late, goal, 4, probed=("z",))["z"]}


def toy_batch(data: Episodes, loss: MOALoss) -> TensorDict:
    """[E, T] as the losses read it, agent 1 the follower; the leader sees nothing, and its rows have no weight."""
    td = TensorDict({ACTION: data.action}, batch_size=data.action.shape[:2])
    td[OBSERVATION] = torch.stack([torch.zeros_like(data.observation), data.observation], -2)
    seen, joint, _ = loss.model.previous(td[OBSERVATION], td[ACTION])
    for key, now in ((PREV_OBSERVATION, seen), (PREV_ACTION, joint)):
        td[key] = F.pad(now, (0, 0, 0, 0, 1, 0))[:, :-1]
    td[PREV_VALID] = torch.zeros(*td.shape, 2, 1)
    td[PREV_VALID][:, 1:, FOLLOWER] = 1
    td[PRIVILEGED] = F.one_hot(data.goal, 4).float()[:, None, None].expand(*td.shape, 2, 4)
    for key in MEMORY if loss.model.memory_dim else ():
        td[key] = torch.zeros(()).expand(*td.shape, 2, loss.model.memory_dim)  # every row is a whole episode
    return td


def _fit(loss: nn.Module, rows: TensorDictBase, steps: int, *, size: int, lr: float) -> Iterator[float]:
    """Adam, global gradient clipping 1; yields the share of steps done before each, for schedules."""
    params: Sequence[nn.Parameter] = [p for group in loss.networks("").values() for p in group]
    optimizer = torch.optim.Adam(params, lr=lr, fused=True)
    for step in range(steps):
        yield step / steps
        out = loss(rows[torch.randint(len(rows), (size,))])
        optimizer.zero_grad()
        sum(value for name, value in out.items() if name.startswith("loss_")).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()


# ---------------------------------------------------------------------- hidden leader


def leader(seed: int, *, direction: Direction = "student_to_teacher", effort: Effort = WATCHED,
           steps: int = 2000) -> dict[str, float]:
    """Followers that walk at random watch a scripted leader: what do they know of its goal?"""
    found = learn("vmas/hidden_leader", uniform_actors, seed=seed, effort=effort, loss_options={
        "kl_direction": direction}, continuous_actions=False, with_hidden=True, partner_types=True)
    leads, goal = (part.argmax(-1) for part in found.test[PRIVILEGED].split(
        [width for _, width, _ in found.specs.hidden_parts], -1)[:2])
    follows = leads != torch.arange(found.specs.n_agents)
    counts = follows & (found.test[PAST[-1]].squeeze(-1) > 0)
    return latent_numbers(found.loss.cvae_loss, found.test, counts, goal, found.specs.hidden_parts[1][1], steps=steps)
