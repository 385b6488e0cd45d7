import dataclasses

import pytest

from recipes.checks import OFF_POLICY, ON_POLICY, check_config, check_used, validate
from recipes.cooperative_config import Config
from recipes.presets import ALGORITHMS, PRESETS, overrides
from suite.specs import ALIVE
from tests.batches import make_specs

OTHER = {  # another valid value of every field that one kind of algorithm reads
    "gae_lambda": 0.5, "returns": "nstep", "n_step": 3, "normalize_advantage": "agent", "standardize_reward": True,
    "target_tau": 0.1, "epochs": 3, "recompute_advantage": True, "clip": 0.3, "value_clip": 0.3,
    "value_loss": "smooth_l1", "entropy_coef": 0.3, "head": "normal", "state_dependent_scale": False,
    "buffer_size": 100, "warmup": 600, "gradient_steps": 3, "tau": 0.3, "mixer_dim": 8, "exploration_start": 0.9,
    "exploration_end": 0.3, "exploration_frames": 30,
}


def make(algorithm="mappo", preset="default", **changes):
    return Config(**overrides(algorithm, preset) | changes)


def kind(algorithm):
    return {"off_policy": ALGORITHMS[algorithm][0] != "on_policy"}


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
     "exploration falls from exploration_start 0.1 to exploration_end 0.2, which must not be larger"),
    ({"exploration_start": -0.1, "exploration_end": -0.2}, "exploration_start must be at least 0, got -0.1"),
    ({"exploration_frames": 0}, "exploration_frames must be positive, got 0"),
    ({"warmup": -1}, "warmup must be at least 0, got -1"), ({"mixer_dim": 0}, "mixer_dim must be positive, got 0"),
    ({"clip": 0.0}, "clip must be positive, got 0"), ({"value_clip": -1.0}, "value_clip must be positive, got -1"),
    ({"eval_episodes": 0}, "eval_episodes must be positive"), ({"evaluations": -1}, "evaluations must be at least 0"),
    ({"keep_checkpoints": 0}, "keep_checkpoints must be positive"),
    ({"checkpoint_every": -1}, "checkpoint_every must be at least 0"),
    ({"actor_recurrent_dim": -1}, "actor_recurrent_dim must be at least 0"),
    ({"returns": "td"}, r"unknown returns 'td'; choose from \['gae', 'nstep'\]"),
    ({"cuda_graphs": True}, "--cuda-graphs needs --compile and a CUDA device"),
    ({"compile": True, "fast_collector": False}, "--compile needs the fast collector"),
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


def test_the_two_lists_name_fields_and_no_field_twice():
    names = [*ON_POLICY, *OFF_POLICY]
    assert len(names) == len(set(names)) and set(names) == set(OTHER)
    assert set(names) <= {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_field_that_the_algorithm_does_not_read_is_refused_and_its_own_are_not(algorithm):
    default = make(algorithm)
    foreign, own = (ON_POLICY, OFF_POLICY) if kind(algorithm)["off_policy"] else (OFF_POLICY, ON_POLICY)
    for name in own:
        check_used(dataclasses.replace(default, **{name: OTHER[name]}), default, **kind(algorithm))
    for name in foreign:
        assert getattr(default, name) != OTHER[name]
        with pytest.raises(ValueError, match=f"algorithm '{algorithm}' does not use {name}: leave it at "):
            check_used(dataclasses.replace(default, **{name: OTHER[name]}), default, **kind(algorithm))


@pytest.mark.parametrize("algorithm, preset", [(a, preset) for preset, table in PRESETS.items() for a in table])
def test_presets_are_their_own_defaults(algorithm, preset):
    check_used(make(algorithm, preset), make(algorithm, preset), **kind(algorithm))


# ---------------------------------------------------------------------- task and algorithm


def specs_for(algorithm, **options):
    return make_specs("continuous" if ALGORITHMS[algorithm][2] == "continuous" else "discrete", **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_agents_that_leave_early_are_for_on_policy_algorithms(algorithm):
    batch = 10_000
    validate(make(algorithm), specs_for(algorithm), batch)
    leaving = specs_for(algorithm, alive=ALIVE)
    if kind(algorithm)["off_policy"]:
        with pytest.raises(ValueError, match=f"'{algorithm}' cannot learn tasks whose agents leave early, such as "
                                             "'vmas/navigation'; use mappo, ippo, maa2c or ia2c"):
            validate(make(algorithm), leaving, batch)
    else:
        validate(make(algorithm), leaving, batch)


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
     "fast_collector=False cannot be resumed"),
], ids=str)
def test_sizes_that_do_not_fit(algorithm, change, message):
    with pytest.raises(ValueError, match=message):
        validate(make(algorithm, **change), specs_for(algorithm), 100)
