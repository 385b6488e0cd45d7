"""The tables of loss ``moa`` as data: its rows, the controls beside them, and the tasks where something is hidden."""

from __future__ import annotations

from recipes.table import Table


def _moa(cells: str = "256", *, matched: str = "380") -> dict[str, list[str]]:
    """Rows of the family of loss moa, with that many units in each layer of actor and critic."""
    def row(preset: str, *flags: str, actor: str = cells) -> list[str]:
        return ["--preset", preset, "--actor-cells", actor, actor, "--critic-cells", cells, cells, *flags]

    return {"MAPPO": row("moa"), "MAPPO-inputs": row("same_inputs"), "MAPPO-matched": row("matched", actor=matched),
            "MAPPO-GRU": row("gru"), "MOA": row("moa", "--loss", "moa"),
            "MOA-plain-x": row("moa", "--loss", "moa", "--loss-options", "x_parts=obs+moa"),
            "MOA-influence": row("moa", "--loss", "moa", "--loss-options", "influence=0.01"),
            "MOA-shuffled": row("shuffled"), "SMPE2": row("moa", "--loss", "smpe"), "Oracle": row("oracle")}


_MOA = {f"vmas/{name}": ["--task-options", "continuous_actions=False", *hidden] for name, hidden in {
    "give_way": [], "navigation": ["with_hidden=True"], "simple_reference_pe": ["with_hidden=True"],
    "simple_speaker_listener_pe": ["with_hidden=True"], "hidden_leader": ["with_hidden=True"]}.items()}
_MOA |= {"foraging/2s-8x8-2p-2f-coop": []}
_HIDDEN = tuple(task for task, flags in _MOA.items() if "with_hidden=True" in flags)
_FRAMES = {"vmas/hidden_leader": 1_000_000, "vmas/simple_speaker_listener_pe": 500_000, "vmas/give_way": 300_000,
           "foraging/2s-8x8-2p-2f-coop": 500_000}  # of table moa_small
_MODES = {task: "sampled" if task.startswith("foraging/") else "greedy" for task in _MOA}
_GREEDY = "Return is the mean over agents, greedy actions, 32 fresh episodes."
_ROWS = ("MAPPO-inputs reads what the models read, MAPPO-matched acts with about as many parameters (0.9 to 1.2 "
         "times), MOA-plain-x leaves the world model's residual out of its features, MOA-shuffled reads another "
         "environment's latent, Oracle the hidden variables.")
_FORAGING = ("In foraging actions are sampled: greedy agents stand in each other's way for ever. An agent's share of "
             "all food is 0.5 there.")
_SMALL = "Networks of actor and critic have two layers of 128."
_ROWS_SMALL = _moa("128", matched="314")
_LEADER = "vmas/hidden_leader"
_WITHOUT = {"teacher": "use_teacher=False", "CVAE": "actor_inputs=obs+moa", "others": "x_parts=obs+wm_residual",
            "world": "x_parts=obs+moa"}

MOA_TABLES = {
    "moa": Table(
        title="Models of other agents, against the controls that could explain them away",
        recipe="recipes.cooperative", rows=_moa(), tasks=_MOA, only={"Oracle": _HIDDEN}, frames=2_000_000, mode=_MODES,
        notes=[_GREEDY, _FORAGING, _ROWS]),
    "moa_small": Table(
        title="Models of other agents and their controls, as far as two cores go",
        recipe="recipes.cooperative", rows=_ROWS_SMALL, tasks={task: _MOA[task] for task in _FRAMES},
        only={"Oracle": _HIDDEN}, frames=_FRAMES, mode={task: _MODES[task] for task in _FRAMES},
        notes=[_GREEDY, _FORAGING, _ROWS, _SMALL]),
    "moa_long": Table(
        title="Models of other agents, trained until the curves flatten",
        recipe="recipes.cooperative",
        rows={name: _ROWS_SMALL[name] for name in ("MAPPO", "MAPPO-inputs", "MAPPO-GRU", "MOA", "Oracle")} | {
            "MOA-memory": [*_ROWS_SMALL["MOA"], "--loss-options", "memory=gru"]},
        tasks={_LEADER: _MOA[_LEADER]}, frames=3_000_000,
        notes=[_GREEDY, "Rows as in table moa_small; MOA-memory gives the model of the others and the student a GRU."]),
    "moa_ablations": Table(
        title="What each part of the models of other agents contributes",
        recipe="recipes.cooperative",
        rows={"MOA": _ROWS_SMALL["MOA"], **{f"without-{name}": [*_ROWS_SMALL["MOA"], "--loss-options", option]
                                            for name, option in _WITHOUT.items()},
              **{name: _ROWS_SMALL[name] for name in ("MOA-shuffled", "MAPPO", "MAPPO-inputs", "MAPPO-matched",
                                                      "Oracle")}},
        tasks={_LEADER: _MOA[_LEADER]}, frames=3_000_000,
        notes=[_GREEDY, _ROWS, _SMALL, "without-teacher aligns the student to N(0, 1); without-CVAE gives the actor "
               "the predicted actions in place of a latent; without-others and without-world leave what these models "
               "say out of the student's features."]),
    "moa_partners": Table(
        title="Models of other agents among scripted partners",
        recipe="recipes.cooperative",
        rows={name: row for name, row in _ROWS_SMALL.items() if name not in ("MOA-influence", "SMPE2")},
        tasks={_LEADER: [*_MOA[_LEADER], "partner_types=True"]}, frames=500_000,
        notes=[_GREEDY, _ROWS, _SMALL, "The leader of every episode is a script, one of ten ways to walk to its goal, "
               "so that there is something to infer from the first frame on (the protocol of LIAM, Papoudakis et al. "
               "2021); followers learn, what the script does is no sample of the policy's."]),
}
