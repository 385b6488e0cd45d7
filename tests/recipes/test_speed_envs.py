"""The speed of environments at the smallest size; what is printed, not how fast it is."""

import re

import pytest
import torch

from envs import make_env
from recipes import speed_envs
from recipes.speed import speed
from recipes.speed_actions import policy_actions, random_actions
from recipes.speed_devices import cell
from recipes.speed_devices import section as device_section
from recipes.speed_envs import batched, row
from recipes.speed_graphs import Loop, carried, rate
from recipes.speed_graphs import worker as device_worker
from recipes.speed_packages import STEPS, package

FAMILIES = ("foraging/8x8-2p-2f-coop", "warehouse/tiny-2ag-hard", "particle/spread-3", "particle/navigation-4")
HYBRID = ("hybrid/platform", "hybrid/goal", "hybrid/catch_point", "hybrid/hard_move-4", "hybrid/moving")


# ---------------------------------------------------------------------- against the packages

@pytest.mark.parametrize("task", [*FAMILIES, *HYBRID])
def test_both_sides_are_stepped(task):
    name = speed_envs.TASKS[task][0]
    steps = {"lbforaging": 50, "rware": 500}.get(name, STEPS)
    assert batched(task, 2, compile=False)() == 2 * steps
    pytest.importorskip(name)
    assert package(task, 2)() == {"vmas": 2 * steps, "numpy": 500}.get(name, steps)


def test_ours_resets_only_where_the_package_does(monkeypatch):
    made, resets = [], []

    def spied(task, **options):
        made.append(make_env(task, **options))
        inner = made[-1].reset_tensors
        made[-1].reset_tensors = lambda *mask: resets.append(mask) or inner(*mask)
        return made[-1]

    monkeypatch.setattr(speed_envs, "make_env", spied)
    batched("foraging/8x8-2p-2f-coop", 2, compile=False)()
    assert len(resets) == 2 and resets[1][0].all(), "at the start, and at the end of the episode"
    batched("particle/spread-3", 2, compile=False)()
    assert len(resets) == 3


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(speed_envs, "find_spec", lambda name: None)
    words = speed_envs.worker("package", "warehouse/tiny-2ag-hard", 2, 0.01)
    assert words == "rware is not installed"
    line = row("warehouse/tiny-2ag-hard", 2, {"package": [words], "eager": [4000.0], "compile": [8000.0]})
    assert " ".join(line.split()) == "warehouse/tiny-2ag-hard 2 rware - 4.0 8.0 - - rware is not installed"


def test_ratios_are_taken_inside_a_round():
    line = row("particle/spread-3", 64, {"package": [1e3, 2e3], "eager": [2e3, 8e3], "compile": [1e4, "it broke"]})
    assert " ".join(line.split()[2:]) == "vmas 1.5 5.0 10.0 3.00 (2.00-4.00) 10.00 (10.00-10.00) it broke"


@pytest.mark.slow
def test_the_section_of_environments(capsys):
    speed(rounds=1, environments=True, tasks=("particle/spread-3",), envs=(2,), seconds=0.01)
    printed = capsys.readouterr().out
    assert "Environments, 1000 steps per CPU second of one thread" in printed
    ratios = r" +\d+\.\d\d \(\d+\.\d\d-\d+\.\d\d\)"
    assert re.search(rf"particle/spread-3 +2 +vmas( +\d+\.\d){{3}}({ratios}){{2}}\n", printed), printed


# ---------------------------------------------------------------------- on a device

@pytest.mark.parametrize("task", FAMILIES)
def test_a_step_in_place_is_the_step(task):
    """The tensors of a graph stay where they are and hold what plain stepping gives, resets included."""
    loops = []
    for _ in range(2):
        env = make_env(task, num_envs=3, max_steps=4)
        env.cheap_reset = True  # as on a GPU
        loops.append(Loop(env, random_actions(env)))
    plain, fixed = loops
    places = {name: x.data_ptr() for name, x in carried(fixed).items()}
    for seed in range(10):
        for step in (plain.advance, fixed.in_place):
            torch.manual_seed(seed)
            step()
        one, two = carried(plain), carried(fixed)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert places == {name: x.data_ptr() for name, x in carried(fixed).items()}
    assert fixed.env.steps.tolist() == [2, 2, 2]


@pytest.mark.parametrize("task", [*FAMILIES, *HYBRID])
def test_the_policy_acts_within_the_specs(task):
    env = make_env(task, num_envs=3)
    for act in (random_actions(env), policy_actions(env, compile=False)):
        actions = act(env.reset_tensors())
        for key in env.action_keys:  # environments clamp the parameters of hybrid actions
            action = actions[key].clamp(-1, 1) if key[-1] == "params" else actions[key]
            assert env.full_action_spec[key].is_in(action)


def test_a_size_that_fails_costs_no_other(monkeypatch):
    def measured(task, num_envs, *rest):
        if num_envs > 2:
            raise RuntimeError("CUDA out of memory\nmore")
        return 1e6

    monkeypatch.setattr("recipes.speed_graphs.rate", measured)
    assert device_worker("foraging", "eager", "cpu", 0.1, 2, 4) == [[1e6, 1e6], ["CUDA out of memory"] * 2]
    assert cell(["it broke"], [1e6]) == "it broke" and cell([1e6], ["it broke"]) == "its base has no numbers"
    assert cell([4e6, 8e6], [2e6, 2e6]).split() == ["6.00", "3.00", "(2.00-4.00)"]


def test_a_rate_on_a_cpu():
    assert rate("particle/spread-3", 2, "eager", "cpu", "policy", 0.01) > 0


@pytest.mark.slow
def test_the_section_of_a_device():
    lines = device_section(1, "cpu", ("eager",), ("foraging/8x8-2p-2f-coop",), (2, 4), 0.01)
    assert "Environments on cpu (one thread), million steps per second and ratio to eager" in lines
    rates = r"( +\d+\.\d\d +1\.00 \(1\.00-1\.00\)){2}"
    for line, size in zip(lines[-2:], (2, 4), strict=True):
        assert re.fullmatch(rf"foraging/8x8-2p-2f-coop +{size} eager {rates}", line), line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("task", FAMILIES)
@pytest.mark.parametrize("drive", ["random", "policy"])
def test_a_step_is_captured_in_a_graph(task, drive):
    assert rate(task, 64, "graphs", "cuda", drive, 0.1) > 0
