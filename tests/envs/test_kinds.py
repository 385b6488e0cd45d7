"""Kinds of options: what fits an annotation or a default, and what an error says of what does not."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest

from envs.kinds import check_kinds, fits, kinds_of, named


def maker(name, *, flag: bool = False, count: int = 1, rate: float = 0.5, word: str = "a",
          way: Literal["x", "y"] = "x", limit: int | None = None, sizes: Sequence[int] = (), plain=3, switch=True,
          open_=None, **options: Any):
    """What a family's maker looks like."""


@pytest.mark.parametrize("given", [
    {"flag": True}, {"count": 0}, {"rate": 1}, {"rate": 0.5}, {"word": ""}, {"way": "y"}, {"limit": None}, {"limit": 3},
    {"sizes": [1, 2]}, {"sizes": (1,)}, {"plain": 0.5}, {"plain": None}, {"plain": [1, 0.5]}, {"switch": False},
    {"open_": "x"}, {"unknown": [{}]}], ids=str)
def test_values_of_an_option_s_kind(given):
    check_kinds("toy/walk", given, kinds_of(maker))


def test_annotations_that_cannot_be_read_are_of_no_kind():
    def foreign(size: "OnlyForATypeChecker" = 3):  # noqa: F821
        """As a constructor elsewhere whose types are imported for a type checker alone."""

    check_kinds("toy/walk", {"size": "any"}, kinds_of(foreign))


@pytest.mark.parametrize(("name", "value", "allowed"), [
    ("flag", "no", "True or False"), ("flag", 0, "True or False"), ("flag", None, "True or False"),
    ("count", 2.0, "an integer"), ("count", True, "an integer"), ("rate", "fast", "a number"),
    ("rate", False, "a number"), ("word", 3, "a word"), ("way", "z", r"one of \['x', 'y'\]"),
    ("limit", "none", "an integer or None"), ("sizes", 3, "a list"), ("sizes", ["a"], "a list"),
    ("plain", "x", "a number, a list or None"), ("plain", True, "a number, a list or None"),
    ("switch", 1, "True or False")])
def test_values_of_another_kind(name, value, allowed):
    with pytest.raises(ValueError, match=rf"{name} of toy/walk must be {allowed}, got "):
        check_kinds("toy/walk", {name: value}, kinds_of(maker))


def test_kinds_of_fields():
    for kind, good, bad, words in ((dict[str, int], {"a": 1}, [1], "names with values"),
                                   (Annotated[int | None, "x"], None, "a", "an integer or None"),
                                   (tuple[int, ...], (1, 2), (1, "a"), "a list")):
        assert fits(good, kind) and not fits(bad, kind) and named(kind) == words
