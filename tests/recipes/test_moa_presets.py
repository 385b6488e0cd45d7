"""The reference settings of loss moa and its controls: one word each, everything else equal."""

import dataclasses

import pytest

from recipes import cooperative as recipe
from recipes.cooperative import CHOOSERS, configure, swap_flags
from recipes.cooperative_config import Config
from recipes.moa_presets import MOA, REFERENCE
from suite.config import parse_cli
from suite.modules.policies import ActorNetwork
from suite.run import MemoryRun


def chosen(*words):
    return parse_cli(configure, Config, choosers=CHOOSERS, prog="test", args=list(words))


@pytest.mark.parametrize("preset", MOA)
def test_a_control_differs_from_the_reference_in_one_thing(preset):
    needed, changes, options = MOA[preset]
    reference, cfg = chosen("--preset", "moa", "--loss", needed or "none"), chosen("--preset", preset)
    assert cfg.loss == (needed or "none") and cfg.loss_options == options
    differing = {field.name for field in dataclasses.fields(Config)
                 if getattr(cfg, field.name) != getattr(reference, field.name)}
    assert differing - {"preset"} == {*changes, *(["loss_options"] if options else [])}
    assert all(getattr(cfg, name) == changes[name] if name in changes else getattr(cfg, name) == value
               for name, value in REFERENCE.items())


def test_the_reference_is_for_every_loss_and_a_control_for_its_own():
    losses = ["none", "moa", "smpe"]
    assert [chosen("--preset", "moa", "--loss", loss).loss for loss in losses] == losses
    with pytest.raises(ValueError, match="preset 'oracle' is a control with loss 'moa', not 'smpe'; leave --loss out"):
        chosen("--preset", "oracle", "--loss", "smpe")
    with pytest.raises(ValueError, match="preset 'gru' is a control with loss 'none', not 'moa'"):
        chosen("--preset", "gru", "--loss", "moa")
    assert "--preset moa" in swap_flags(chosen("--preset", "oracle")), "another loss keeps the settings"
    assert "--preset epymarl" in swap_flags(chosen("--preset", "epymarl", "--algorithm", "maa2c"))


def small(*words):
    cfg = chosen("--task", "vmas/hidden_leader", "--task-options", "continuous_actions=False", "with_hidden=True",
                 "--num-envs", "4", "--steps", "10", "--frames", "80", "--minibatch-size", "40", "--epochs", "1",
                 "--evaluations", "0", "--quiet", *words)
    return recipe.make_trainer(cfg, MemoryRun())


@pytest.mark.parametrize("preset", MOA)
def test_every_control_trains_on_hidden_leader(preset):
    words = ["--preset", preset, *(["--loss", "moa"] if preset == "moa" else [])]
    cells = ["--loss-options", "num_cells=8"] if "none" not in MOA[preset] else []
    trainer = small(*words, *cells, "--actor-cells", "8")
    trainer.train()
    assert trainer.iteration == 2


def test_roles_have_an_actor_of_their_own():
    """Speaker and listener; the agents of hidden_leader are one role."""
    for task, sets in (("vmas/simple_speaker_listener_pe", (2,)), ("vmas/hidden_leader", ())):
        trainer = small("--preset", "moa", "--loss", "moa", "--task", task)
        [actor] = [module for module in trainer.policy.modules() if isinstance(module, ActorNetwork)]
        assert actor.out.weight.shape[:-2] == sets


def at_execution(trainer):
    """Parameters of everything that acts."""
    return sum(parameter.numel() for parameter in {id(p): p for p in trainer.policy.parameters()}.values())


def test_matched_has_as_many_parameters_at_execution():
    """152,771 with models against 72,708 plain; two layers of 380 have as many (navigation, 4 agents, continuous)."""
    def count(*words):
        cfg = chosen("--task", "vmas/navigation", "--num-envs", "2", "--minibatch-size", "100", *words)
        return at_execution(recipe.make_trainer(cfg, MemoryRun()))

    plain, models, matched = (count("--preset", *words) for words in
                              (["moa"], ["moa", "--loss", "moa"], ["matched"]))
    assert plain == 72_708 and models == 152_771
    assert matched == pytest.approx(models, rel=0.02)
