"""What a composition makes of a config and an environment's sizes."""

import ast
import inspect

import pytest
import torch

import recipes.cooperative as recipe
from recipes.compositions import COMPOSITIONS
from suite.modules.q_networks import STATE_ACTION_VALUE
from suite.run import MemoryRun
from suite.specs import ACTION, OBSERVATION
from tests.small import config, make_toy


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(recipe, "make_env", make_toy)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_composition_reads_all_it_is_given(name):
    function = ast.parse(inspect.getsource(COMPOSITIONS[name]))
    read = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert set(inspect.signature(COMPOSITIONS[name]).parameters) <= read


@pytest.mark.parametrize("share", ["all", "roles", "none"])
@pytest.mark.parametrize("agent_id", [False, True])
def test_maddpg_has_a_joint_value_per_agent_whatever_its_actor_knows(share, agent_id):
    """Two agents of one role; the flag decides what the actor reads, and nothing of the critic."""
    trainer = recipe.make_trainer(config("maddpg", share=share, agent_id=agent_id), MemoryRun())
    batch = next(iter(trainer.collector))
    td = trainer.updates[0].losses[0].td
    with torch.no_grad(), td.value_network_params.to_module(td.value_network):
        value = td.value_network(batch.select(OBSERVATION, ACTION))[STATE_ACTION_VALUE]
    assert value.shape == (*batch.shape, 2, 1) and not torch.isclose(value[..., 0, :], value[..., 1, :]).any()
    shapes = {key: tuple(p.shape) for key, p in td.value_network_params.flatten_keys(".").items()}
    ids = 0 if share == "none" else 2
    assert {shape[-1] for key, shape in shapes.items() if key.endswith("layers.0.weight")} == {2 * (4 + 2) + ids}
    first = next(p for p in td.actor_network_params.parameters() if p.ndim > 1)
    assert first.shape[-1] == 4 + 2 * agent_id
