"""From a frozen dataclass to a command line and back: tyro's flags, option dicts, presets, clean errors."""

from __future__ import annotations

import ast
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from itertools import takewhile
from traceback import walk_tb
from typing import Annotated, Any, TypeVar

import tyro

T = TypeVar("T")
SWITCHES = {"true": True, "false": False}  # in any case; "none" is a word that some options know


def parse_options(words: list[str]) -> dict[str, Any]:
    """``["coef=0.1", "kind=l2"]`` -> ``{"coef": 0.1, "kind": "l2"}``; values are Python literals (true and false in any
    case) or plain words.
    """
    options = {}
    for word in words:
        name, equal, text = word.partition("=")
        if not equal or not name.isidentifier():
            raise ValueError(f"write options as name=value, got {word!r}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = SWITCHES.get(text.lower(), text)
        if name in options:
            raise ValueError(f"option {name!r} is given twice: {options[name]!r} and {value!r}")
        options[name] = value
    return options


def option_words(options: Mapping[str, Any]) -> list[str]:
    """The words that `parse_options` reads as ``options``; a text that would be read as a literal is quoted."""
    words = [f"{name}={value}" for name, value in options.items()]
    same = [parse_options([word])[name] == value for word, (name, value) in zip(words, options.items(), strict=True)]
    return [w if s else f"{name}={v!r}" for w, s, (name, v) in zip(words, same, options.items(), strict=True)]


Options = Annotated[dict[str, Any], tyro.constructors.PrimitiveConstructorSpec(
    nargs="*", metavar="NAME=VALUE ...", instance_from_str=parse_options, is_instance=lambda x: isinstance(x, dict),
    str_from_instance=lambda x: option_words(x))]


def parse_cli(make_default: Callable[[dict[str, str]], T], config: type[T], *, choosers: Iterable[str],
              prog: str, args: list[str] | None = None) -> T:
    """Read a config from the command line.

    The flags named in ``choosers`` (such as ``algorithm`` and ``preset``) are read first; ``make_default`` turns them
    into the config whose values every other flag then overrides (of a flag with several words, each is a line); options
    given by name are added to its own, an option flag without any clears them.
    """
    args = sys.argv[1:] if args is None else args
    chosen, clearable = {}, {field.name for field in dataclasses.fields(config) if field.default_factory is dict}
    for name in choosers:
        for flag in (f"--{name}", f"--{name.replace('_', '-')}"):
            for k, word in enumerate(args):
                words = list(takewhile(lambda word: not word.startswith("-"), args[k + 1:]))
                if word == flag and (words or name in clearable):
                    chosen[name] = "\n".join(words)
                elif word.startswith(flag + "="):
                    chosen[name] = word.partition("=")[2]
    default = make_default(chosen)
    config = tyro.cli(config, prog=prog, default=default, args=args)
    named = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: getattr(default, name) | given for name, given in named.items()
                                          if isinstance(given, dict) and given})


def check_choice(what: str, value: str, allowed: Iterable[str]) -> None:
    """ValueError naming the value, the allowed ones, and the nearest, unless ``value`` is one of them."""
    allowed = sorted(allowed)
    if value not in allowed:
        near = get_close_matches(str(value), allowed, n=1)
        raise ValueError(
            f"unknown {what} {value!r}; choose from {allowed}" + (f". Did you mean {near[0]!r}?" if near else "")
        )


def check_names(what: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """ValueError if a name is not among the allowed ones."""
    for name in given:
        check_choice(what, name, allowed)


def check_positive(values: Mapping[str, float | None], *, zero: bool = False) -> None:
    """ValueError unless every number is positive (or zero, if allowed); None passes."""
    for name, value in values.items():
        if value is not None and not (value > 0 or (zero and value == 0)):
            raise ValueError(f"{name} must be {'at least 0' if zero else 'positive'}, got {value}")


def as_plain(config: Any) -> dict[str, Any]:
    """A config as plain data that survives JSON unchanged (tuples become lists)."""
    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {str(key): plain(value) for key, value in x.items()}
        return [plain(value) for value in x] if isinstance(x, (list, tuple)) else x

    return plain({field.name: getattr(config, field.name) for field in dataclasses.fields(config)})


def as_flags(config: Any, default: Any, *, always: Iterable[str] = ()) -> list[str]:
    """The command line that makes ``config`` out of ``default``."""
    words = []
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
        if value == getattr(default, field.name) and field.name not in always:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            words += [flag, *option_words(value)]
        elif isinstance(value, (list, tuple)):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def from_plain(config: type[T], data: Mapping[str, Any]) -> T:
    """The config back from plain data; ValueError for a field that does not exist (any more)."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    if len(unknown := sorted(data.keys() - fields.keys())) > 1:
        raise ValueError(f"this recipe has no config fields {unknown}: another recipe wrote them, or another version")
    check_names("config field", data, fields)
    return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def run_cli(main: Callable[[], None]) -> None:
    """Run a program; a ValueError or a stop by the user's hand becomes one clear line, not a traceback.

    A ValueError in the midst of training is no mistake on the command line, and keeps its traceback.
    """
    from suite.checkpoint import CheckpointError

    warnings.formatwarning = lambda message, *args, **kwargs: f"note: {message}\n"  # where it was raised is no news
    try:
        main()
    except (ValueError, CheckpointError, FloatingPointError, OSError) as error:
        if isinstance(error, ValueError) and _in_training(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _in_training(error: BaseException) -> bool:
    """Whether an error came out of `Trainer.train`."""
    from suite.trainer import Trainer

    return any(frame.f_code is Trainer.train.__code__ for frame, _ in walk_tb(error.__traceback__))
