"""Proof obligations of loss ``moa`` (section 5.2 of its specification) as data; ``recipes.moa_proofs`` runs them."""

from __future__ import annotations

from recipes.moa_predictions import JOINT, PREDICTABLE, SEEN
from recipes.moa_runs import CONTROLS, HIDDEN
from suite.proofs import Obligation

_JUMPS = ("a ratio of mean squared errors belongs to rare jumps that nothing an agent sees predicts, which hold 92 % "
          "(82 %) of the error in 1 % of the steps: collisions in simple_spread, food eaten by others in dispersion. "
          "Feature by feature, the scale of the specification's table 5.3, the same predictions pass (above).")
_COPY = ("the error of the baseline, copying the last observation, grows faster with k than the model's, so the skill "
         "grows too under smooth random actions. The expectation is wrong, not the model.")
_JOINT = ("others' actions move what is seen of them by little within one step, and through collisions; the squared "
          "error of the latter hides the former. Feature by feature the gain is there.")
_EARLY = ("the first evaluation on give_way, after 26 thousand frames, comes when policies are almost uniform: "
          "marginal and floor of the cross-entropy hardly differ (by 0.002 nats), and a skill is a ratio of noise "
          "(-1.3, -2.8, -15.9). From the fourth on it is 0.3 and more. The first on simple_speaker_listener_pe is "
          "-0.18 to -0.02 (0.25 and more from the third on), the first two on navigation lie within 0.05 of 0.")
_PROBE = ("the student is probed linearly, its inputs by an MLP, which reads what is not linear in them. A linear "
          "probe of z predicts the goal better than one of all inputs, and an MLP that reads z better than one that "
          "reads the inputs (above): z loses nothing, it does not hold everything linearly.")
_LEVEL = ("a leader that learns shows its goal only once it has learned to go there, and by then what everybody does "
          "suffices: after two million frames MAPPO, MAPPO-inputs and MOA are within three points of each other, and "
          "MAPPO-matched, whose actor is 2.5 times as wide, has 41 and 43. The oracle, which is told leader and goal, "
          "has 47 and 51 (41 to 46 on raw inputs): a headroom of eight points that inference from past steps does not "
          "win.")
_PARTNERS = ("after half a million frames seeds differ more than rows. The oracle, which is told leader and goal, is "
             "level with MAPPO: what limits there is learning, and what the models bring is features as well as "
             "inference.")
_RAW = ("the features of the specification hold the world model's residual, standardised. Of a model with skill 0.92 "
        "it is mostly noise: replacing it by its value of one step before moves the policy by a KL of 0.07 to 0.11, "
        "most of what the latent does at all; the raw observation moves it by 0.003 to 0.006. Rows 'plain x' "
        "leave it out. MAPPO-matched learns faster than MAPPO by the width of its actor.")
_USE = ("after half a million frames nobody speaks on simple_reference_pe (MOA -41, MAPPO -40; -57 at the start), nor "
        "on simple_speaker_listener_pe (both -41; table moa_raw: all rows -38, the oracle -31), so that nothing in a "
        "listener's latent is worth moving for.")
_BAYES = "the specification's own GRU reached 0.772 where the filter has 0.814; the row that it meets is t >= 10."


def _learning() -> list[Obligation]:
    test = "runs"
    return [Obligation("learning", "MOA follows learning partners", test, "lowest skill", ">", 0, note=_EARLY),
            Obligation("learning", "MOA follows learning partners", test,
                       "tasks with acc > baselines", ">", 0.599)]


def _world() -> list[Obligation]:
    out = [Obligation("world", "World model predicts", f"vmas/{name}", f"{name}: skill_1", ">", 0.5, note=_JUMPS)
           for name in PREDICTABLE]
    out += [Obligation("world", "World model predicts, by feature", f"vmas/{name}", f"{name}: skill_1 by feature", ">",
                       0.5) for name in PREDICTABLE]
    out += [Obligation("world", "World model: skill falls with k", "all",
                       "largest rise to the next k", "<", 0, note=_COPY)]
    for kind in ("gain_joint", "gain_joint by feature"):
        out += [Obligation("world", "World model gains by others' actions", f"vmas/{name}", f"{name}: {kind}", ">",
                           0.03, note=_JOINT) for name in JOINT]
    return out


def _latent(experiment: str, test: str) -> list[Obligation]:
    knows, privileged = "Student knows what is hidden", "Teacher is privileged"
    out = [Obligation(experiment, knows, test, "probe/uc_mlp - probe/z", "<", 0.02, note=_PROBE),
           Obligation(experiment, f"{knows}, by an MLP", test, "probe/uc_mlp - probe/z_mlp", "<", 0.02),
           Obligation(experiment, privileged, test, "probe/z_teacher - probe/z", ">", 0.1),
           Obligation(experiment, "Alignment", test, "kl / d_z", "<", 3),
           Obligation(experiment, "Alignment", test, "calibration, KL reversed", "<", 3)]
    if experiment == "toy":
        out += [Obligation("toy_gru", knows, "toy, GRU", "probe/z at t >= 10", ">", 0.85),
                Obligation("toy_gru", knows, "toy, GRU", "Bayes filter - probe/z", "<", 0.02, note=_BAYES),
                Obligation("toy_gru", privileged, "toy, GRU", "probe/z_teacher - probe/z", ">", 0.1),
                Obligation("toy_gru", "Alignment", "toy, GRU", "kl / d_z", "<", 3)]
    return out


def _returns(experiment: str, tests: dict[str, str], note: str) -> list[Obligation]:
    """``tests``: {what stands before a figure: on which runs}, the method's own first."""
    out = []
    for prefix, test in tests.items():
        for what, name, bound in (("return", "IQM - IQM of", 0), ("P(improvement)", "P: better than", 0.5)):
            out += [Obligation(experiment, f"It helps: {what}", test, f"{prefix}{name} {control}", ">", bound,
                               whole_interval=True, note=note) for control in CONTROLS]
    return out


def _harmless(experiment: str, test: str) -> Obligation:
    return Obligation(experiment, "It does no harm", test, "worst difference / |MAPPO|", ">", -0.05)


OBLIGATIONS = [
    *(Obligation("partners", "MOA models the others", task, f"{task}: {figure}", ">", bound) for task in SEEN
      for figure, bound in (("skill", 0.5), ("ce - floor", -0.02))),
    *_learning(), *_world(), *_latent("toy", "toy"), *_latent("leader", "vmas/hidden_leader"),
    *(Obligation("use", "The latent is used", task, f"{task}: z_use / return", ">", 0.05, note=_USE)
      for task in HIDDEN),
    *_returns("returns", {"": "self-play"}, _LEVEL),
    *_returns("returns_partners", {"": "scripted partners"}, _PARTNERS),
    *_returns("returns_raw", {"": "raw inputs", "plain: ": "raw inputs, plain x"}, _RAW),
    _harmless("returns", "dense tasks"), _harmless("returns_raw", "dense tasks, raw inputs"),
]
