"""The tables of loss ``moa`` as data: its rows, the controls beside them, and the tasks where something is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recipes.table import Table


def _moa(cells: str = "256", *, matched: str = "380", raw: bool = False) -> dict[str, list[str]]:
    """Rows of the family of loss moa, with that many units in each layer of actor and critic.

    ``raw``: with inputs as they are and other settings that the reference has no more.
    """
    def row(preset: str, *flags: str, actor: str = cells, options: Sequence[str] = ()) -> list[str]:
        features = "moa" in flags or preset in ("same_inputs", "shuffled", "oracle")  # that a critic reads
        options = [*(["critic_latents=all"] if raw and features else []), *options]
        return ["--preset", preset, "--actor-cells", actor, actor, "--critic-cells", cells, cells, *flags,
                *(["--loss-options", *options] if options else []), *(_RAW if raw else [])]

    return {"MAPPO": row("moa"), "MAPPO-inputs": row("same_inputs"), "MAPPO-matched": row("matched", actor=matched),
            "MAPPO-GRU": row("gru"), "MOA": row("moa", "--loss", "moa"),
            "MOA-plain-x": row("moa", "--loss", "moa", options=["x_parts=obs+moa"]),
            "MOA-influence": row("moa", "--loss", "moa", options=["influence=0.01", *(_UNSCHEDULED if raw else [])]),
            "MOA-memory": row("moa", "--loss", "moa", options=["memory=gru"]),
            "MOA-shuffled": row("shuffled"), "SMPE2": row("moa", "--loss", "smpe"), "Oracle": row("oracle")}


_UNSCHEDULED = ["influence_skill=0", "influence_decay=0", "influence_scale=none"]
_RAW = ["--share", "all", "--no-normalize-observation", "--normalize-advantage", "batch", "--eval-episodes", "32"]
_MOA = {f"vmas/{name}": ["--task-options", "continuous_actions=False", *hidden] for name, hidden in {
    "give_way": [], "navigation": ["with_hidden=True"], "simple_reference_pe": ["with_hidden=True"],
    "simple_speaker_listener_pe": ["with_hidden=True"], "hidden_leader": ["with_hidden=True"]}.items()}
_MOA |= {"foraging/2s-8x8-2p-2f-coop": []}
_FRAMES = {"vmas/hidden_leader": 2_000_000, "vmas/simple_speaker_listener_pe": 500_000,
           "vmas/simple_reference_pe": 500_000, "vmas/give_way": 300_000, "vmas/navigation": 300_000,
           "foraging/2s-8x8-2p-2f-coop": 500_000}  # of table moa_small
_FRAMES_RAW = {"vmas/hidden_leader": 1_000_000, "vmas/simple_speaker_listener_pe": 500_000, "vmas/give_way": 300_000,
               "foraging/2s-8x8-2p-2f-coop": 500_000}
_MODES = {task: "sampled" if task.startswith("foraging/") else "greedy" for task in _MOA}
_GREEDY = "Return is the mean over agents, greedy actions, 200 fresh episodes."
_FEWER = "Return is the mean over agents, greedy actions, 32 fresh episodes."
_ROWS = {"MAPPO-inputs": "reads what the models read",
         "MAPPO-matched": "acts with about as many parameters (0.9 to 1.2 times)",
         "MOA-plain-x": "leaves the world model's residual out of its features",
         "MOA-memory": "gives the model of the others and the student a GRU",
         "MOA-shuffled": "reads another environment's latent", "Oracle": "reads the hidden variables"}
_FORAGING = ("In foraging actions are sampled: greedy agents stand in each other's way for ever. An agent's share of "
             "all food is 0.5 there.")
_SMALL = "Networks of actor and critic have two layers of 128."
_OLD = ("Settings that were the reference before those of table moa_small: actor and critic read observations as they "
        "are, advantages are standardised per batch, the critic reads all agents' features, roles share networks.")
_LEADER = "vmas/hidden_leader"
_ROWS_SMALL, _ROWS_RAW = _moa("128", matched="314"), _moa("128", matched="314", raw=True)
_ONLY = {"Oracle": tuple(task for task, flags in _MOA.items() if "with_hidden=True" in flags), "MOA-memory": (_LEADER,)}
_WITHOUT = {"teacher": "use_teacher=False", "CVAE": "actor_inputs=obs+moa", "others": "x_parts=obs+wm_residual",
            "world": "x_parts=obs+moa"}


def _said(*left_out: str) -> str:
    """What the rows of a table are, but for those that it does not have."""
    return ", ".join(f"{name} {what}" for name, what in _some(_ROWS, *left_out).items()) + "."


def _some(rows: dict[str, Any], *left_out: str) -> dict[str, Any]:
    return {name: row for name, row in rows.items() if name not in left_out}


MOA_TABLES = {
    "moa": Table(
        title="Models of other agents, against the controls that could explain them away",
        recipe="recipes.cooperative", rows=_moa(), tasks=_MOA, only=_ONLY, frames=2_000_000, mode=_MODES,
        notes=[_GREEDY, _FORAGING, _said()]),
    "moa_small": Table(
        title="Models of other agents and their controls, as far as two cores go",
        recipe="recipes.cooperative", rows=_ROWS_SMALL, tasks={task: _MOA[task] for task in _FRAMES}, only=_ONLY,
        frames=_FRAMES, mode={task: _MODES[task] for task in _FRAMES},
        notes=[_GREEDY, _FORAGING, _said(), _SMALL, "MAPPO-inputs of commit 2f690b4 read minus mean over deviation, "
               "not zero, as the observation before an episode's first step.",
               "Agents of separate runs play together as well as those of one: 39.9 in cross-play, 39.9 in self-play "
               "(recipes.crossplay, the three runs of MAPPO and of MOA on hidden_leader, one agent among two of "
               "another run, 150 episodes for each of 36 pairs)."]),
    "moa_ablations": Table(
        title="What each part of the models of other agents contributes",
        recipe="recipes.cooperative",
        rows={"MOA": _ROWS_SMALL["MOA"], **{f"without-{name}": [*_ROWS_SMALL["MOA"], "--loss-options", option]
                                            for name, option in _WITHOUT.items()},
              **{name: _ROWS_SMALL[name] for name in ("MOA-shuffled", "MAPPO", "MAPPO-inputs", "MAPPO-matched",
                                                      "Oracle")}},
        tasks={_LEADER: _MOA[_LEADER]}, frames=2_000_000,
        notes=[_GREEDY, _said("MOA-plain-x", "MOA-memory"), _SMALL,
               "without-teacher aligns the student to N(0, 1); without-CVAE gives the actor the predicted actions in "
               "place of a latent; without-others and without-world leave what these models say out of the student's "
               "features."]),
    "moa_partners": Table(
        title="Models of other agents among scripted partners",
        recipe="recipes.cooperative", rows=_some(_ROWS_SMALL, "MOA-influence", "MOA-memory", "SMPE2"),
        tasks={_LEADER: [*_MOA[_LEADER], "partner_types=True"]}, frames=500_000,
        notes=[_GREEDY, _said("MOA-memory"), _SMALL,
               "The leader of every episode is a script, one of ten ways to walk to its goal, so that there is "
               "something to infer from the first frame on (the protocol of LIAM, Papoudakis et al. 2021); followers "
               "learn, what the script does is no sample of the policy's.",
               "Three rows have more than three seeds, towards the ten of the specification: queued once the first "
               "three were known, and ended by time."]),
    "moa_raw": Table(
        title="Models of other agents on observations as they are",
        recipe="recipes.cooperative", rows=_some(_ROWS_RAW, "MOA-memory"),
        tasks={task: _MOA[task] for task in _FRAMES_RAW}, only=_ONLY, frames=_FRAMES_RAW,
        mode={task: _MODES[task] for task in _FRAMES_RAW},
        notes=[_OLD, _FEWER, _FORAGING, _said("MOA-memory"), _SMALL]),
    "moa_raw_long": Table(
        title="Models of other agents on observations as they are, trained until the curves flatten",
        recipe="recipes.cooperative", rows={name: _ROWS_RAW[name] for name in ("MAPPO", "MAPPO-inputs", "MOA")},
        tasks={_LEADER: _MOA[_LEADER]}, frames=3_000_000, notes=[_OLD, _FEWER, _SMALL]),
}
