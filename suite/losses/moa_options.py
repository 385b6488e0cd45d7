"""The words and numbers that `MOALoss` takes, and what it refuses before any training."""

from __future__ import annotations

from typing import Any, Literal, get_args

from suite.losses.curiosity import Scale
from suite.losses.cvae import Target
from suite.losses.imagination import Kind, check_imagination
from suite.modules.functional import Divergence
from suite.modules.gaussian import Direction
from suite.modules.state_model import PARTS, ActionInputs, OthersActions, PolicyLatent
from suite.specs import Specs

ActorInputs = Literal["obs", "obs+z", "obs+z+moa", "obs+moa", "obs+past", "obs+hidden"]
MemoryKind = Literal["none", "gru"]
CONTROLS = ("obs+past", "obs+hidden")  # actor inputs without any model
WORDS = {"kl_direction": Direction, "rec_target": Target, "actor_inputs": ActorInputs, "others_actions": OthersActions,
         "moa_inputs": ActionInputs, "policy_latent": PolicyLatent, "memory": MemoryKind,
         "influence_divergence": Divergence, "curiosity_scale": Scale, "imagination": Kind}
POSITIVE = ("latent_dim", "acting_tau", "num_cells", "depth", "memory_dim", "ensemble", "imagination_every", "lr",
            "epochs", "max_grad_norm")
ANY_SIGN = ("imagination_reward_skill",)  # of predictions worse than a constant it is negative


def check_options(specs: Specs, options: dict[str, Any]) -> None:
    """ValueError for a wrong value, naming it and what is allowed, or for what the task cannot give."""
    if specs.n_agents < 2:
        raise ValueError("loss 'moa' models other agents, but the task has a single agent")
    for name, value in options.items():
        unsigned = isinstance(value, (int, float)) and not isinstance(value, bool) and name not in ANY_SIGN
        if unsigned and value < 0:
            raise ValueError(f"{name} of loss 'moa' must not be negative, got {value}")
    for name, words in WORDS.items():
        if options[name] not in get_args(words):
            raise ValueError(f"{name} of loss 'moa' must be one of {list(get_args(words))}, got {options[name]!r}")
    if not options["held_out"] < 1:
        raise ValueError(f"held_out of loss 'moa' is a share below 1, got {options['held_out']}")
    if not options["acting_tau"] <= 1:
        raise ValueError(f"acting_tau of loss 'moa' is a share up to 1, got {options['acting_tau']}")
    for name in POSITIVE:
        if not options[name] > 0:
            raise ValueError(f"{name} of loss 'moa' must be positive, got {options[name]}")
    if options["disagreement"] and options["ensemble"] < 2:
        raise ValueError(f"disagreement of loss 'moa' is that of several world models: give ensemble=2 or more, got "
                         f"{options['ensemble']}")
    check_imagination(options)
    _check_parts(options["x_parts"])
    _check_task(specs, options)


def _check_parts(named: str) -> None:
    parts = named.split("+")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"x_parts of loss 'moa' has {unknown}; join some of {list(PARTS)} by '+'")
    if len(set(parts)) < len(parts):
        raise ValueError(f"x_parts of loss 'moa' names a part twice, got {named!r}")


def _check_task(specs: Specs, options: dict[str, Any]) -> None:
    if options["influence"] and not specs.discrete:
        raise ValueError("influence of loss 'moa' enumerates an agent's choices: it needs discrete actions")
    if options["moa_inputs"] == "prev+obs" and (options["influence"] or options["imagination"] == "decentralised"):
        raise ValueError("influence and decentralised imagination of loss 'moa' ask for the others' actions before "
                         "the next observation is known: leave moa_inputs at 'prev'")
    if options["actor_inputs"] == "obs+hidden" and not specs.hidden_dim:
        raise ValueError("actor_inputs obs+hidden of loss 'moa' needs a task that exports its hidden variables: "
                         "--task-options with_hidden=True")
    if options["actor_inputs"] in CONTROLS and options["memory"] != "none":
        raise ValueError(f"actor_inputs {options['actor_inputs']} of loss 'moa' trains no model that could remember: "
                         f"leave memory at 'none' (--actor-recurrent-dim gives the actor itself a memory)")
    trained = ("curiosity", "disagreement", "latent_surprise", "influence", "wm_replay")
    if options["actor_inputs"] in CONTROLS and (wrong := [name for name in trained if options[name]]):
        raise ValueError(f"actor_inputs {options['actor_inputs']} of loss 'moa' trains no model: leave {wrong[0]} at 0")
    if options["memory_chunk"] and options["memory"] == "none":
        raise ValueError("memory_chunk of loss 'moa' cuts the sequences of a memory: give memory=gru, or leave it at 0")
    asking = {"others_actions=visible": options["others_actions"] == "visible",
              "train_moa_only_when_visible": options["train_moa_only_when_visible"]}
    if wanted := [name for name, asked in asking.items() if asked and specs.visible is None]:
        raise ValueError(f"{wanted[0]} of loss 'moa' needs a task that says who sees whom: "
                         f"--task-options with_visible=True where it is offered")
