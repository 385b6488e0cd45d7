"""The words and numbers that `MOALoss` takes, and what it refuses before any training."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from suite.losses.action_model import has_entropy
from suite.losses.common import OptionsOf, refuse_unread
from suite.losses.curiosity import TERMS, Scale
from suite.losses.cvae import Target
from suite.losses.imagination import Kind, check_imagination, refuse
from suite.losses.influence import InfluenceScale
from suite.losses.world_model import Reduction
from suite.modules.functional import Divergence
from suite.modules.gaussian import Direction
from suite.modules.state_model import PARTS, ActionInputs, OthersActions, PolicyLatent
from suite.specs import Specs

ActorInputs = Literal["obs", "obs+z", "obs+z+moa", "obs+moa", "obs+past", "obs+hidden"]
MemoryKind = Literal["none", "gru"]
CriticLatent = Literal["student", "none", "teacher_no_action"]
CriticLatents = Literal["all", "own"]
PPOLatent = Literal["stored", "recompute"]
REWARD_TERMS = (*TERMS, "influence", "social_curiosity")
CONTROLS = ("obs+past", "obs+hidden")  # actor inputs without any model
WORDS = {"kl_direction": Direction, "rec_target": Target, "actor_inputs": ActorInputs, "others_actions": OthersActions,
         "moa_inputs": ActionInputs, "policy_latent": PolicyLatent, "memory": MemoryKind,
         "influence_divergence": Divergence, "influence_scale": InfluenceScale, "curiosity_scale": Scale,
         "imagination": Kind, "reduction": Reduction, "critic_z": CriticLatent, "critic_latents": CriticLatents,
         "ppo_latent": PPOLatent}
POSITIVE = ("latent_dim", "acting_tau", "num_cells", "depth", "memory_dim", "ensemble", "imagination_every", "lr",
            "epochs", "max_grad_norm", "influence_max")
SHARES = ("acting_tau", "alpha_warmup", "influence_decay", "social_forward")
ANY_SIGN = ("imagination_reward_skill",)  # of predictions worse than a constant it is negative


def check_options(specs: Specs, options: dict[str, Any], defaults: dict[str, Any]) -> None:
    """ValueError for a wrong value, naming it and what is allowed, for what the task cannot give, or nobody reads."""
    if specs.n_agents < 2:
        raise ValueError("loss 'moa' models other agents, but the task has a single agent")
    for name, value in options.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and not math.isfinite(value):
            raise ValueError(f"{name} of loss 'moa' must be a finite number, got {value}")
        if number and value < 0 and name not in ANY_SIGN:
            raise ValueError(f"{name} of loss 'moa' must not be negative, got {value}")
    for name, words in WORDS.items():
        if options[name] not in get_args(words):
            raise ValueError(f"{name} of loss 'moa' must be one of {list(get_args(words))}, got {options[name]!r}")
    if not options["held_out"] < 1:
        raise ValueError(f"held_out of loss 'moa' is a share below 1, got {options['held_out']}")
    for name in SHARES:
        if not options[name] <= 1:
            raise ValueError(f"{name} of loss 'moa' is a share up to 1, got {options[name]}")
    for name in POSITIVE:
        if not options[name] > 0:
            raise ValueError(f"{name} of loss 'moa' must be positive, got {options[name]}")
    if options["disagreement"] and options["ensemble"] < 2:
        raise ValueError(f"disagreement of loss 'moa' is that of several world models: give ensemble=2 or more, got "
                         f"{options['ensemble']}")
    check_imagination(options)
    _check_influence(specs, options)
    _check_learning(options)
    _check_action_model(specs, options)
    _check_parts(options["x_parts"])
    _check_task(specs, options)
    given = [name for name, value in options.items() if value != defaults[name]]
    refuse_unread("moa", READ_BY_PARTS, options, given)


def remarks(specs: Specs, options: dict[str, Any]) -> list[str]:
    """What a run should know before it begins: what is assumed, and what may never count."""
    out = []
    if specs.visible and options["others_actions"] == "all" and options["actor_inputs"] not in ("obs", "obs+hidden"):
        out.append("the task says who sees whom, but every agent is assumed to be told what all others did at the step "
                   "before, at execution too: others_actions=visible or own assume less")
    if options["imagination"] != "none" and options["imagination_skill"] > 0:
        out.append(f"imagination counts in batches with wm/obs_skill_1 above {options['imagination_skill']} and "
                   f"wm/rew_r2 above {options['imagination_reward_skill']}, perhaps in none: imagination/active tells")
    return out


def needs_held_out(options: dict[str, Any]) -> str:
    """What needs environments that are held out, because its model must have shown skill there; "" if nothing does."""
    gated = {"influence_skill": options["influence"] and options["influence_skill"],
             "imagination": options["imagination"] != "none"}
    return next((f"{name} of loss 'moa'" for name, needs in gated.items() if needs), "")


READ_BY_PARTS = (
    OptionsOf("give influence a weight", lambda o: o["influence"],
         ("influence_max", "influence_skill", "influence_decay", "influence_scale")),
    OptionsOf("give influence or social_curiosity a weight", lambda o: o["influence"] or o["social_curiosity"],
         ("influence_divergence", "influence_samples")),
    OptionsOf("give social_curiosity a weight", lambda o: o["social_curiosity"], ("social_forward",)),
    OptionsOf("give curiosity a weight", lambda o: o["curiosity"], ("curiosity_scale",)),
    OptionsOf("give memory=gru", lambda o: o["memory"] != "none", ("memory_dim", "memory_chunk")),
    OptionsOf("give imagination", lambda o: o["imagination"] != "none",
         ("horizon", "imagination_skill", "imagination_reward_skill")),
    OptionsOf("give imagination=expand", lambda o: o["imagination"] == "expand", ("imagination_mix",)),
    OptionsOf("give imagination=dyna or decentralised", lambda o: o["imagination"] in ("dyna", "decentralised"),
         ("imagination_weight", "imagination_every")),
    OptionsOf("leave use_teacher at True", lambda o: o["use_teacher"],
         ("teacher_coef", "beta_teacher", "teacher_action_coef", "kl_direction", "student_pull", "teacher_pull")),
    OptionsOf("leave free_bits_dim at 0", lambda o: not o["free_bits_dim"], ("free_nats",)),
    OptionsOf("give actor_inputs with z", lambda o: "z" in o["actor_inputs"], ("policy_latent", "shuffle_z")),
)


def _check_influence(specs: Specs, options: dict[str, Any]) -> None:
    if options["influence_skill"] >= 1:
        raise ValueError(f"influence_skill of loss 'moa' is a skill below 1, got {options['influence_skill']}")
    if not specs.discrete and options["influence_divergence"] != "kl":
        raise ValueError("influence_divergence of loss 'moa' is for discrete actions: leave it out")
    if options["influence"] and options["influence_skill"] and not has_entropy(specs):
        raise ValueError("influence_skill of loss 'moa' needs the entropy of the policies, which is not known where "
                         "some have fewer continuous actions than others or follow a script: give influence_skill=0")
    if not options["influence_samples"] > 1:
        raise ValueError(f"influence_samples of loss 'moa' are the action taken and others: 2 or more, got "
                         f"{options['influence_samples']}")
    if options["influence"] and options["influence_skill"] and not options["held_out"]:
        raise ValueError("influence_skill of loss 'moa' is measured on environments that are held out: give held_out "
                         "a share above 0, or influence_skill=0")


def _check_learning(options: dict[str, Any]) -> None:
    """What reads which latent, and who trains when."""
    inputs, imagined = options["actor_inputs"], options["imagination"]
    untrained = {f"actor_inputs {inputs!r}, which trains no model": inputs in CONTROLS}
    remembering = options["memory"] != "none"
    if options["rl_grad_to_phi"]:
        refuse("rl_grad_to_phi", {
            "ppo_latent 'stored': PPO's losses must compute the latent, give ppo_latent=recompute":
                options["ppo_latent"] == "stored",
            f"acting_tau={options['acting_tau']}: what acts must be what learns, give acting_tau=1":
                options["acting_tau"] != 1})
    if options["ppo_latent"] == "recompute":
        refuse("ppo_latent 'recompute'", {
            f"actor_inputs {inputs!r}, which has no latent": "z" not in inputs,
            "policy_latent 'sample': another sample has another ratio": options["policy_latent"] == "sample",
            "shuffle_z: a minibatch does not hold the others' rows": options["shuffle_z"],
            f"imagination {imagined!r}, which is read as it acted": imagined in ("dyna", "decentralised")})
    if options["critic_z"] == "teacher_no_action":
        refuse("critic_z 'teacher_no_action'", {
            "use_teacher=False": not options["use_teacher"], **untrained,
            f"imagination {imagined!r}, which does not predict what the teacher sees": imagined != "none"})
    if options["joint_update"]:
        refuse("joint_update", {
            **untrained, "memory 'gru': PPO's minibatches are no sequences": remembering,
            "wm_replay, which has steps of its own": bool(options["wm_replay"]),
            "held-out environments: PPO learns from all, give held_out=0": bool(options["held_out"])})


def refuse_replay(options: dict[str, Any]) -> None:
    """ValueError for what an off-policy algorithm cannot have."""
    those = "mappo, ippo, maa2c or ia2c"
    wrong = {
        f"imagination of loss 'moa' needs an on-policy algorithm: {those}": options["imagination"] != "none",
        f"joint_update of loss 'moa' shares the steps of {those}": options["joint_update"],
        f"influence and social_curiosity of loss 'moa' read the distribution of a stochastic policy: use {those}":
            bool(options["influence"] or options["social_curiosity"]),
        f"memory 'gru' of loss 'moa' learns from sequences of the present policy: use {those}, or leave memory at "
        "'none'": options["memory"] != "none",
        f"ppo_latent 'recompute' of loss 'moa' is of the policy loss of {those}": options["ppo_latent"] != "stored",
        f"critic_z 'teacher_no_action' of loss 'moa' is of the critic of {those}":
            options["critic_z"] == "teacher_no_action"}
    for sentence, found in wrong.items():
        if found:
            raise ValueError(sentence)


def _check_action_model(specs: Specs, options: dict[str, Any]) -> None:
    if options["moa_factorised"] and specs.action_factors is None:
        raise ValueError("moa_factorised of loss 'moa' needs a task whose choices combine several, such as those of "
                         "vmas with --task-options continuous_actions=False")
    if options["moa_sigma"] and specs.discrete:
        raise ValueError("moa_sigma of loss 'moa' is of continuous actions: leave it out")


def _check_parts(named: str) -> None:
    parts = named.split("+")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"x_parts of loss 'moa' has {unknown}; join some of {list(PARTS)} by '+'")
    if len(set(parts)) < len(parts):
        raise ValueError(f"x_parts of loss 'moa' names a part twice, got {named!r}")


def _check_task(specs: Specs, options: dict[str, Any]) -> None:
    ahead = {name: options[name] for name in ("influence", "social_curiosity")}
    ahead["decentralised imagination"] = options["imagination"] == "decentralised"
    if options["moa_inputs"] == "prev+obs" and (early := [name for name, asked in ahead.items() if asked]):
        raise ValueError(f"{early[0]} of loss 'moa' asks for the others' actions before the next observation is known: "
                         f"leave moa_inputs at 'prev'")
    if options["actor_inputs"] == "obs+hidden" and not specs.hidden_dim:
        raise ValueError("actor_inputs obs+hidden of loss 'moa' needs a task that exports its hidden variables: "
                         "--task-options with_hidden=True")
    if options["actor_inputs"] in CONTROLS and options["memory"] != "none":
        raise ValueError(f"actor_inputs {options['actor_inputs']} of loss 'moa' trains no model that could remember: "
                         f"leave memory at 'none' (--actor-recurrent-dim gives the actor itself a memory)")
    trained = (*REWARD_TERMS, "wm_replay", "wm_use_z")
    if options["actor_inputs"] in CONTROLS and (wrong := [name for name in trained if options[name]]):
        raise ValueError(f"actor_inputs {options['actor_inputs']} of loss 'moa' trains no model: leave {wrong[0]} out")
    asking = {"others_actions=visible": options["others_actions"] == "visible",
              "train_moa_only_when_visible": options["train_moa_only_when_visible"]}
    if wanted := [name for name, asked in asking.items() if asked and specs.visible is None]:
        raise ValueError(f"{wanted[0]} of loss 'moa' needs a task that says who sees whom: "
                         f"--task-options with_visible=True where it is offered")
