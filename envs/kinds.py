"""What may be given for an option: its kind is an annotation, and an error says it in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def check_kinds(task: str, options: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """ValueError for an option of ``task`` whose value is not of its kind; any fits one that has none."""
    for name, value in options.items():
        if not fits(value, kind := kinds.get(name, Any)):
            raise ValueError(f"{name} of {task} must be {named(kind)}, got {value!r}")


def kinds_of(make: Callable[..., Any]) -> dict[str, Any]:
    """The kind of each parameter: its annotation, else that of its default."""
    try:
        parameters = signature(make, eval_str=True).parameters.values()
    except NameError:  # of another's constructor, whose annotations are for a type checker alone
        return {}
    return {p.name: kind_of(p.default) if p.annotation is Parameter.empty else p.annotation for p in parameters}


def kind_of(default: Any) -> Any:
    """The kind of an option of which its default alone is known; a number may also be one per agent, or no limit."""
    if isinstance(default, (bool, str)):
        return type(default)
    return float | Sequence[float] | None if isinstance(default, (int, float)) else Any


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; kinds that no option is written with fit always."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, parts[0])
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(part, parts[0]) for part in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, origin or kind) if kind in (bool, str, NoneType) or origin is dict else True


def named(kind: Any) -> str:
    """What may be given for a kind, as an error says it."""
    words = _words(kind)
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _words(kind: Any) -> list[str]:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(parts[0])
    if origin in (Union, UnionType):
        return [word for part in parts for word in _words(part)]
    if origin is Literal:
        return [f"one of {list(parts)}"]
    if origin in (list, tuple, Sequence):
        return ["a list"]
    if origin is dict:
        return ["names with values"]
    return {bool: ["True", "False"], int: ["an integer"], float: ["a number"], str: ["a word"]}.get(kind, ["None"])
