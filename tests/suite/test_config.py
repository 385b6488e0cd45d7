import dataclasses
import inspect
import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from recipes.checks import check_config
from recipes.cooperative import configure
from recipes.cooperative_config import Config
from recipes.hybrid_config import Config as HybridConfig
from recipes.presets import ALGORITHMS, PRESETS
from recipes.smpe_presets import SMPE
from suite.checkpoint import CheckpointError
from suite.config import (
    Options,
    as_flags,
    as_plain,
    check_choice,
    check_positive,
    from_plain,
    parse_cli,
    parse_options,
    run_cli,
)
from suite.trainer import Trainer


@dataclass(frozen=True)
class Small:
    """A recipe for tests."""

    kind: str = "a"
    """What it is."""
    size: int = 1
    """How large."""
    cells: tuple[int, ...] = (4, 4)
    """Widths."""
    rate: float | None = None
    """How fast."""
    mode: Literal["x", "y"] = "x"
    """Which way."""
    flag: bool = False
    """Whether."""
    options: Options = field(default_factory=dict)
    """More."""


def parse(*words, choosers=("kind",)):
    sizes = {"a": 1, "b": 20}
    return parse_cli(lambda chosen: Small(size=sizes[chosen.get("kind", "a")]), Small, choosers=choosers, prog="p",
                     args=list(words))


def cooperative(*words):
    return parse_cli(configure, Config, choosers=("algorithm", "preset", "resume"), prog="p", args=list(words))


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize("word, value", [
    ("x=1", 1), ("x=-0.5", -0.5), ("x=1e-3", 1e-3), ("x=True", True), ("x=None", None), ("x=word", "word"),
    ("x=(1,2)", (1, 2)),
    ("x=[1, 2]", [1, 2]), ("x=a=b", "a=b"), ("x=", ""), ("x='1'", "1"), ("x=l2-norm", "l2-norm"),
    ("x={'a': 1}", {"a": 1}),
    ("x=true", True), ("x=FALSE", False), ("x=none", "none"), ("x=no", "no"), ("x='true'", "true"),
])
def test_an_option_is_a_literal_or_a_word(word, value):
    found = parse_options([word])
    assert found == {"x": value} and type(found["x"]) is type(value)


@pytest.mark.parametrize("word", ["x", "=1", "1x=2", "x y=1", "--x=1", ""])
def test_an_option_without_a_name_is_refused(word):
    with pytest.raises(ValueError, match="write options as name=value, got"):
        parse_options([word])


def test_an_option_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"option 'lr' is given twice: 0.1 and 0.001"):
        parse_options(["lr=0.1", "a=1", "lr=0.001"])


def test_options_are_data_and_not_code(tmp_path):
    text = f"x=open({str(tmp_path / 'boom')!r}, 'w')"
    assert parse_options([text]) == {"x": text[2:]}
    assert not (tmp_path / "boom").exists()


def test_options_on_the_command_line():
    assert parse("--options", "a=1", "b=two", "--size", "3") == Small(size=3, options={"a": 1, "b": "two"})
    assert parse("--options").options == {} and parse().options == {}


# ---------------------------------------------------------------------- flags


def test_flags():
    assert parse("--size", "7", "--cells", "1", "2", "3", "--rate", "0.5", "--mode", "y", "--flag") == \
        Small(size=7, cells=(1, 2, 3), rate=0.5, mode="y", flag=True)
    assert parse("--rate", "None").rate is None


@pytest.mark.parametrize("words", [("--kind", "b"), ("--kind=b",)])
def test_a_chooser_sets_the_defaults_and_a_flag_overrides_them(words):
    assert parse(*words) == Small(kind="b", size=20)
    assert parse(*words, "--size", "3").size == 3
    assert parse("--size", "3", *words).size == 3


@pytest.mark.parametrize("words, named", [
    (("--sise", "3"), ["sise", "size"]), (("--size", "three"), ["size", "three"]),
    (("--mode", "z"), ["--mode", "'z'", "'x', 'y'"]),
    (("--cells", "1", "wide"), ["cells", "wide"]), (("--options", "=3"), ["name=value"]),
])
def test_an_unknown_flag_or_value_is_named_with_what_is_allowed(words, named, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    printed = "".join(capsys.readouterr())
    assert all(word in printed for word in named), printed


def test_help_mentions_every_field_and_its_meaning(capsys):
    with pytest.raises(SystemExit) as caught:
        cooperative("--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for item in dataclasses.fields(Config):
        flag = f"--{item.name.replace('_', '-')}"
        assert f"{flag} " in printed or f"{flag}," in printed, item.name
    words = " ".join(printed.replace("│", " ").split())
    for meaning in ("Parallel copies of the task", "Weight of the entropy bonus", "Discount per step", "Width of QMIX"):
        assert meaning in words


@pytest.mark.parametrize("config", [Config, HybridConfig])
def test_every_field_of_a_recipe_is_explained(config):
    """Where it is defined first; a recipe with another default need not say it again."""
    source = "\n".join(inspect.getsource(part) for part in reversed(config.__mro__[:-1]))
    lines = [line.strip() for line in source.splitlines()]
    for item in dataclasses.fields(config):
        at = next(k for k, line in enumerate(lines) if line.startswith(f"{item.name}:"))
        end = next(k for k in range(at + 1, len(lines)) if lines[k].endswith('"""'))
        assert lines[at + 1].startswith('"""') and lines[end].endswith('."""') and end <= at + 2, item.name


# ---------------------------------------------------------------------- algorithms and presets


def test_flag_beats_preset_beats_algorithm_beats_default():
    assert cooperative() == Config()
    by_algorithm, by_preset = ALGORITHMS["maa2c"][1], PRESETS["epymarl"]["maa2c"]
    assert len({Config().steps, by_algorithm["steps"], by_preset["steps"]}) == 3, "three different values to tell apart"
    assert cooperative("--algorithm", "maa2c").steps == by_algorithm["steps"]
    assert cooperative("--algorithm", "maa2c", "--preset", "epymarl").steps == by_preset["steps"]
    assert cooperative("--algorithm", "maa2c", "--preset", "epymarl", "--steps", "77").steps == 77
    assert cooperative("--steps", "77", "--preset", "epymarl", "--algorithm", "maa2c").steps == 77
    assert cooperative("--algorithm", "maa2c").gamma == Config().gamma
    assert cooperative("--algorithm", "ippo").centralized is False and cooperative("--algorithm", "mappo").centralized
    assert cooperative("--algorithm", "maa2c").clip is None


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_a_valid_config_for_each_of_its_algorithms(preset):
    for algorithm in PRESETS[preset]:
        cfg = cooperative("--algorithm", algorithm, "--preset", preset)
        assert (cfg.algorithm, cfg.preset) == (algorithm, preset)
        check_config(cfg)
        special = SMPE.get(preset, {}).get(algorithm, {})
        for name, value in (ALGORITHMS[algorithm][1] | PRESETS[preset][algorithm] | special).items():
            assert getattr(cfg, name) == value


@pytest.mark.parametrize("words, message", [
    (("--algorithm", "mapo"), r"unknown algorithm 'mapo'; choose from \['ia2c', .*'vdn'\]. Did you mean 'mappo'\?"),
    (("--preset", "epymal"),
     r"preset 'epymal'; choose from \['benchmarl', 'default', 'epymarl', .*'shuffled'\]. Did you mean 'epymarl'"),
    (("--algorithm", "qmix", "--preset", "epymarl"),
     r"preset 'epymarl' has no algorithm 'qmix'; it has \['ia2c', .*\]"),
    (("--resume", "nowhere"), r"nowhere is not a run folder: it has no config.json"),
])
def test_unknown_choices_are_refused_with_the_list(words, message):
    with pytest.raises(ValueError, match=message):
        cooperative(*words)


@pytest.mark.parametrize("change, message", [
    ({"frames": 0}, "frames must be positive, got 0"), ({"steps": 0}, "steps must be positive"),
    ({"lr": -1.0}, "lr must be"),
    ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"), ({"epochs": 0}, "epochs"), ({"threads": 0}, "threads"),
    ({"lr": float("nan")}, "lr must be positive, got nan"), ({"entropy_coef": -0.1}, "entropy_coef must be at least 0"),
    ({"lr_decay": "cosine"}, r"unknown lr_decay 'cosine'; choose from \['linear', 'none'\]"),
    ({"share": "some"}, r"unknown share 'some'; choose from \['all', 'none', 'roles'\]"),
    ({"task_options": {"num_envs": 3}}, "num_envs is no task option but a flag of its own: --num-envs"),
])
def test_impossible_numbers_and_words_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_config(dataclasses.replace(Config(), **change))


# ---------------------------------------------------------------------- back to flags


@pytest.mark.parametrize("config, words", [
    (Small(), []), (Small(flag=True), ["--flag"]), (Small(rate=0.5, mode="y"), ["--rate", "0.5", "--mode", "y"]),
    (Small(cells=(1, 2)), ["--cells", "1", "2"]), (Small(cells=()), ["--cells"]),
    (Small(kind="b", size=20), ["--kind", "b", "--size", "20"]),
    (Small(options={"a": 1, "b": "two", "c": None, "d": [1, 2], "e": (0.5,)}),
     ["--options", "a=1", "b=two", "c=None", "d=[1, 2]", "e=(0.5,)"]),
    (Small(options={"a": "1", "b": "None", "c": "x y"}), ["--options", "a='1'", "b='None'", "c=x y"]),
    (Small(options={"a": "false", "b": False, "c": "none"}), ["--options", "a='false'", "b=False", "c=none"]),
])
def test_flags_are_what_differs_and_parse_to_the_config(config, words):
    assert as_flags(config, Small()) == words
    assert parse(*words) == config


def test_flags_against_other_defaults():
    """What the other default switched on or set is switched off and unset."""
    default = Small(flag=True, rate=0.5, options={"a": 1})
    words = as_flags(Small(), default)
    assert words == ["--rate", "None", "--no-flag", "--options"]
    assert parse_cli(lambda chosen: default, Small, choosers=(), prog="p", args=words) == Small()


@pytest.mark.parametrize("words, told", [
    (["--options", "a=1", "b=x y", "--kind", "b"], {"options": "a=1\nb=x y", "kind": "b"}),
    (["--kind", "b", "--options"], {"options": "", "kind": "b"}), (["--kind"], {}), (["--kind", "-h"], {}),
    (["--options=a=1"], {"options": "a=1"})])
def test_choosers_with_several_words_are_told_as_lines(words, told):
    seen = {}
    with pytest.raises(StopIteration):
        parse_cli(lambda chosen: seen.update(chosen) or next(iter(())), Small, choosers=("kind", "options"), prog="p",
                  args=words)
    assert seen == told


def test_some_flags_may_always_be_named():
    assert as_flags(Small(), Small(), always=["kind", "flag"]) == ["--kind", "a", "--no-flag"]


# ---------------------------------------------------------------------- plain data


@pytest.mark.parametrize("config", [
    Config(), Config(actor_cells=(), steps=None, task_options={"n_agents": 3, "shared_rew": False}, loggers=("csv",)),
    Config(**ALGORITHMS["maa2c"][1] | PRESETS["epymarl"]["maa2c"], reward_weights={"curiosity": 0.1}),
])
def test_plain_data_survives_json_and_comes_back(config):
    plain = as_plain(config)
    assert json.loads(json.dumps(plain)) == plain
    assert from_plain(Config, plain) == config
    assert as_plain(from_plain(Config, plain)) == plain


def test_unknown_fields_in_stored_data_are_refused():
    with pytest.raises(ValueError, match=r"unknown config field 'framse'; choose from .*Did you mean 'frames'\?"):
        from_plain(Config, as_plain(Config()) | {"framse": 3})


def test_a_config_of_another_recipe_is_not_answered_with_a_list_of_fields():
    with pytest.raises(ValueError, match=r"no config fields \['loose', 'tight'\]: another recipe wrote them"):
        from_plain(Config, as_plain(Config()) | {"tight": 3, "loose": 4})


def test_small_checks():
    check_choice("word", "a", ["a", "b"])
    with pytest.raises(ValueError, match=r"unknown word 'c'; choose from \['a', 'b'\]$"):
        check_choice("word", "c", ["b", "a"])
    check_positive({"x": None, "y": 1e-9})
    check_positive({"x": 0}, zero=True)
    with pytest.raises(ValueError, match="y must be positive, got 0"):
        check_positive({"x": 1, "y": 0})
    with pytest.raises(ValueError, match="y must be at least 0, got -1"):
        check_positive({"y": -1}, zero=True)


# ---------------------------------------------------------------------- the program's end


@pytest.mark.parametrize("error, code, text", [
    (ValueError("wrong value"), 2, "error: wrong value"), (CheckpointError("no disk"), 2, "error: no disk"),
    (FloatingPointError("nan in update"), 2, "error: nan in update"),
    (OSError(28, "No space left"), 2, "No space left"),
    (KeyboardInterrupt(), 130, "stopped"),
])
def test_an_error_of_the_user_is_one_line(error, code, text, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    printed = capsys.readouterr().err
    assert caught.value.code == code and text in printed and len(printed.splitlines()) == 1


def test_an_error_of_ours_keeps_its_traceback():
    def main():
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        run_cli(main)


def test_an_error_in_the_midst_of_training_keeps_its_traceback():
    class Broken:
        @property
        def policy(self):
            raise ValueError("raised by torch")

    with pytest.raises(ValueError, match="raised by torch"):
        run_cli(lambda: Trainer.train(Broken()))
