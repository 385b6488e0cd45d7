import dataclasses

import pytest

from recipes.checks import OFF_POLICY, ON_POLICY, UNREAD, check_config, check_used, never_learns, validate
from recipes.cooperative_config import Config
from recipes.presets import ALGORITHMS, PRESETS, overrides
from suite.specs import ALIVE, CONTROLLED
from tests.batches import make_specs

OTHER = {  # another valid value of every field that only some algorithms read
    "centralized": False, "critic_cells": (3,), "critic_lr": 0.1, "whole_episodes": True,
    "gae_lambda": 0.5, "returns": "nstep", "n_step": 3, "normalize_advantage": "agent", "standardize_reward": True,
    "value_norm": True, "normalize_observation": True,
    "target_tau": 0.1, "epochs": 3, "recompute_advantage": True, "clip": 0.3, "value_clip": 0.3,
    "value_loss": "smooth_l1", "entropy_coef": 0.3, "head": "normal", "state_dependent_scale": False,
    "buffer_size": 100, "warmup": 600, "gradient_steps": 3, "tau": 0.3, "mixer_dim": 8, "exploration_start": 0.9,
    "exploration_end": 0.3, "exploration_frames": 30,
}


def make(algorithm="mappo", preset="default", **changes):
    return Config(**overrides(algorithm, preset) | changes)


def composition(algorithm):
    return ALGORITHMS[algorithm][0]


def other(default, name):
    """Another valid value of a field."""
    return not default.centralized if name == "centralized" else OTHER[name]


def test_a_run_that_ends_in_its_warmup_is_told_so():
    [said] = never_learns(make("qmix", frames=4000))
    assert "4000 frames are fewer than the warmup of" in said
    warmup = make("qmix").warmup
    assert not never_learns(make("qmix", frames=warmup)) and not never_learns(make("mappo", frames=1))


# ---------------------------------------------------------------------- numbers and words


@pytest.mark.parametrize("change, message", [
    *(({name: value}, f"{name} must be between 0 and 1, got {value}")
      for name in ("gamma", "gae_lambda", "target_tau") for value in (-0.1, 1.1, float("nan"))),
    ({"tau": 1.5}, "tau must be between 0 and 1, got 1.5"), ({"tau": -0.5}, "tau must be at least 0, got -0.5"),
    ({"actor_cells": (8, 0)}, "actor_cells must be positive, got 0"),
    ({"critic_cells": (-3, 8)}, "critic_cells must be positive, got -3"),
    ({"reward_weights": {"task": True}}, "the weight of reward term 'task' must be a finite number, got True"),
    ({"reward_weights": {"task": 1, "curiosity": "much"}},
     "the weight of reward term 'curiosity' must be a finite number, got 'much'"),
    *(({"reward_weights": {"task": float(value)}}, f"reward term 'task' must be a finite number, got {value}")
      for value in ("nan", "inf")),
    ({"exploration_start": 0.1, "exploration_end": 0.2},
     "exploration falls from exploration_start 0.1 to exploration_end 0.2, but 0 <= exploration_end <= "
     "exploration_start is needed"),
    ({"exploration_start": -0.1, "exploration_end": -0.2}, "exploration_start -0.1 to exploration_end -0.2, but 0 <="),
    ({"exploration_start": float("nan")}, "exploration_start nan .* is needed"),
    ({"exploration_start": float("inf")}, "exploration_start inf .* is needed"),
    ({"exploration_frames": 0}, "exploration_frames must be positive, got 0"),
    ({"warmup": -1}, "warmup must be at least 0, got -1"), ({"mixer_dim": 0}, "mixer_dim must be positive, got 0"),
    ({"normalize_advantage": "minibatches"}, r"choose from \['agent', 'batch', 'minibatch', 'none'\]. Did you mean"),
    ({"eval_starts": "new"}, r"unknown eval_starts 'new'; choose from \['fresh', 'same'\]"),
    ({"clip": 0.0}, "clip must be positive, got 0"), ({"value_clip": -1.0}, "value_clip must be positive, got -1"),
    ({"eval_episodes": 0}, "eval_episodes must be positive"), ({"evaluations": -1}, "evaluations must be at least 0"),
    ({"keep_checkpoints": 0}, "keep_checkpoints must be positive"),
    ({"checkpoint_every": -1}, "checkpoint_every must be at least 0"),
    ({"actor_recurrent_dim": -1}, "actor_recurrent_dim must be at least 0"),
    ({"returns": "td"}, r"unknown returns 'td'; choose from \['gae', 'nstep'"),
    ({"cuda_graphs": True}, "--cuda-graphs needs --compile and a CUDA device"),
    ({"compile": True, "fast_collector": False}, "--compile needs the fast collector"),
    ({"eval_starts": "fresh", "evaluations": 0}, "--eval-starts fresh is of evaluations, and --evaluations 0 makes"),
    *(({"task_options": {name: 1}}, f"{name} is no task option but a flag of its own: --{name.replace('_', '-')}")
      for name in ("num_envs", "device", "seed", "max_steps", "truncate")),
], ids=str)
def test_impossible_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_config(make(**change))


@pytest.mark.parametrize("change", [
    {"gamma": 0.0}, {"gamma": 1.0}, {"target_tau": None}, {"target_tau": 1.0}, {"tau": 1.0}, {"actor_cells": ()},
    {"reward_weights": {"task": 0, "curiosity": -0.5}}, {"exploration_start": 0.0, "exploration_end": 0.0},
    {"evaluations": 0}, {"checkpoint_every": 0}, {"clip": None}, {"max_grad_norm": None}, {"minibatch_size": None},
], ids=str)
def test_values_at_the_edge_are_fine(change):
    check_config(make(**change))


# ---------------------------------------------------------------------- fields that nobody would read


def test_the_lists_name_fields_and_no_field_twice():
    names = [*ON_POLICY, *OFF_POLICY, "critic_cells", "mixer_dim"]
    assert len(names) == len(set(names)) and set(names) == set(OTHER) == {n for few in UNREAD.values() for n in few}
    assert set(names) <= {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_field_that_the_algorithm_does_not_read_is_refused_and_its_own_are_not(algorithm):
    default = make(algorithm)
    foreign = {*UNREAD[composition(algorithm)], *(["mixer_dim"] if algorithm == "vdn" else [])}
    for name in OTHER.keys() - foreign:
        returns = {"returns": "nstep"} if name == "n_step" else {}
        check_used(dataclasses.replace(default, **{name: other(default, name)} | returns), default, discrete=False)
    for name in foreign:
        assert getattr(default, name) != other(default, name)
        with pytest.raises(ValueError, match=f"algorithm '{algorithm}' does not use {name}: leave it at "):
            check_used(dataclasses.replace(default, **{name: other(default, name)}), default, discrete=False)


@pytest.mark.parametrize("algorithm, names", [("qmix", ("critic_cells", "centralized")), ("vdn", ("mixer_dim",)),
                                              ("maddpg", ("mixer_dim", "centralized")), ("ia2c", ("mixer_dim",))])
def test_what_the_two_lists_had_left_out(algorithm, names):
    for name in names:
        with pytest.raises(ValueError, match=f"algorithm '{algorithm}' does not use {name}: leave it at "):
            default = make(algorithm)
            check_used(dataclasses.replace(default, **{name: other(default, name)}), default, discrete=False)


@pytest.mark.parametrize("algorithm, preset, change, message", [
    ("mappo", "default", {"n_step": 3}, "returns 'gae' does not use n_step: leave it at 5"),
    ("mappo", "default", {"returns": "nstep", "gae_lambda": 0.5}, "returns 'nstep' does not use gae_lambda: leave"),
    ("mappo", "epymarl", {"gae_lambda": 0.5}, "returns 'nstep' does not use gae_lambda: leave it at 0.95"),
    ("mappo", "epymarl", {"normalize_advantage": "batch"}, "recompute_advantage does not use normalize_advantage"),
])
def test_a_field_that_another_choice_leaves_unread_is_refused(algorithm, preset, change, message):
    with pytest.raises(ValueError, match=message):
        check_used(make(algorithm, preset, **change), make(algorithm, preset), discrete=False)


def test_a_recomputed_advantage_may_be_standardised_over_minibatches():
    for preset in ("default", "epymarl"):
        cfg = make("mappo", preset, recompute_advantage=True, normalize_advantage="minibatch")
        check_used(cfg, make("mappo", preset), discrete=False)


@pytest.mark.parametrize("preset, change, refused", [
    ("default", {"filters": False, "filter_layers": 2}, "filter_layers of loss 'smpe' is read by nobody"),
    ("default", {"novelty": 0.0, "bonus": "inverse"}, "bonus of loss 'smpe' is read by nobody here: give novelty or"),
    ("fixed", {"filters": False}, None), ("fixed", {"filters": False, "filter_layers": 2}, None),  # the preset's
    ("fixed", {"filters": False, "filter_layers": 1}, "filter_layers of loss 'smpe'"),
    ("fixed", {"bonus": "inverse"}, "bonus of loss 'smpe'"),  # the preset has no bonus on particle tasks
    ("fixed", {"bonus": "inverse", "novelty": 0.1}, None), ("official", {"filtered_critic": False}, None),
], ids=str)
def test_options_of_parts_that_are_off_are_refused_unless_the_preset_gave_them(preset, change, refused):
    default = Config(**overrides("mappo", preset, "smpe", "particle/spread-3"))
    cfg = dataclasses.replace(default, loss_options=default.loss_options | change)
    if refused is None:
        return check_used(cfg, default, discrete=True)
    with pytest.raises(ValueError, match=refused):
        check_used(cfg, default, discrete=True)


@pytest.mark.parametrize("name", ["head", "state_dependent_scale"])
def test_discrete_actions_have_no_distribution_to_choose(name):
    changed = make(**{name: OTHER[name]})
    check_used(changed, make(), discrete=False)
    with pytest.raises(ValueError, match=f"a task with discrete actions does not use {name}: leave it at "):
        check_used(changed, make(), discrete=True)


@pytest.mark.parametrize("algorithm", ["qmix", "vdn"])
def test_the_exploration_of_discrete_actions_is_a_probability(algorithm):
    check_config(make(algorithm, exploration_start=1.0, exploration_end=0.0))
    for start, end in ((1.5, 0.1), (-0.1, -0.1), (0.5, -0.1), (0.1, 0.2)):
        with pytest.raises(ValueError, match=f"exploration_start {start} to exploration_end {end}, but 0 <= "
                                             "exploration_end <= exploration_start <= 1 is needed"):
            check_config(make(algorithm, exploration_start=start, exploration_end=end))
    check_config(make("maddpg", exploration_start=1.5))  # a noise scale


@pytest.mark.parametrize("algorithm, preset", [(a, preset) for preset, table in PRESETS.items() for a in table])
@pytest.mark.parametrize("discrete", [False, True])
def test_presets_are_their_own_defaults(algorithm, preset, discrete):
    check_used(make(algorithm, preset), make(algorithm, preset), discrete=discrete)


# ---------------------------------------------------------------------- task and algorithm


def test_padded_steps_can_only_count_where_there_are_some():
    cfg, padded = make(mask_padding=False), make_specs("discrete", alive=ALIVE)
    validate(cfg, padded, 10_000)
    with pytest.raises(ValueError, match="--no-mask-padding is of padded steps, and there are none: give --whole-epis"):
        validate(cfg, make_specs("discrete"), 10_000)


def specs_for(algorithm, **options):
    return make_specs("continuous" if ALGORITHMS[algorithm][2] == "continuous" else "discrete", **options)


@pytest.mark.parametrize("fact, what", [({"alive": ALIVE}, "whose agents leave early, such as 'vmas/navigation'"), (
    {"controlled": CONTROLLED}, "that play some agents themselves, such as 'vmas/navigation' with scripted partners")])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_agents_that_leave_early_or_are_scripted_are_for_on_policy_algorithms(algorithm, fact, what):
    batch = 10_000
    validate(make(algorithm), specs_for(algorithm), batch)
    special = specs_for(algorithm, **fact)
    if composition(algorithm) != "on_policy":
        with pytest.raises(ValueError, match=f"'{algorithm}' cannot learn tasks {what}; use mappo, ippo, maa2c or "):
            validate(make(algorithm), special, batch)
    else:
        validate(make(algorithm), special, batch)


@pytest.mark.parametrize("algorithm, actions, allowed", [
    ("qmix", "continuous", "maddpg"), ("vdn", "continuous", "maddpg"), ("maddpg", "discrete", "qmix"),
])
def test_actions_of_the_wrong_kind(algorithm, actions, allowed):
    with pytest.raises(ValueError, match=f"'{algorithm}' needs .* actions, but .* has {actions} ones .*'{allowed}'"):
        validate(make(algorithm), make_specs(actions), 10_000)


@pytest.mark.parametrize("algorithm, change, message", [
    ("mappo", {"minibatch_size": 101}, r"minibatch_size 101 is larger than the batch of 100 frames"),
    ("qmix", {"warmup": 511}, "needs minibatch_size <= warmup <= buffer_size, got 512, 511, 200000"),
    ("qmix", {"buffer_size": 4999}, "needs minibatch_size <= warmup <= buffer_size, got 512, 5000, 4999"),
    ("maddpg", {"minibatch_size": None}, "needs minibatch_size <= warmup <= buffer_size, got None, 5000, 200000"),
    ("maddpg", {"critic_recurrent_dim": 3}, "'maddpg' has no recurrent networks; set actor_recurrent_dim and"),
    ("mappo", {"minibatch_size": 100, "resume": "x", "fast_collector": False},
     r"x cannot be resumed: TorchRL's collector \(fast_collector=False\) does not save open episodes"),
], ids=str)
def test_sizes_that_do_not_fit(algorithm, change, message):
    with pytest.raises(ValueError, match=message):
        validate(make(algorithm, **change), specs_for(algorithm), 100)
