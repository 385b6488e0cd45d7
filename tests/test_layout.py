"""The shape of the project, checked: who may import whom, how long things may be, that everything has its tests."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"suite": {"envs", "recipes", "tests"}, "envs": {"suite", "recipes", "tests"}, "recipes": {"tests"}}
BUDGET = {"recipes": 150, "suite/trainer.py": 300}
FILES = sorted(path.relative_to(ROOT) for top in ("suite", "envs", "recipes") for path in (ROOT / top).rglob("*.py"))
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
MODULES = [path for path in FILES if path.name != "__init__.py"]
TEXTS = [*FILES, *TESTS, *(Path(name) for name in ("README.md", "pyproject.toml", ".ci/run") if (ROOT / name).exists())]


def tree(path):
    return ast.parse((ROOT / path).read_text())


def imported(path):
    """Top-level packages that a file imports anywhere, also inside functions and by name."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found |= {arg.value.split(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def test_there_is_something_to_check():
    assert {path.parts[0] for path in FILES} == {"suite", "envs", "recipes"} and len(MODULES) > 30


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path):
    assert not imported(path) & FORBIDDEN[path.parts[0]]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_its_adapter_imports_vmas(path):
    """VMAS is GPL-3.0; the speed comparison runs it as it is, in a process of its own."""
    allowed = (path.parts[0] == "envs" and path.name.startswith("vmas")) or path.name.startswith("speed_")
    assert allowed or "vmas" not in imported(path)


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=str)
def test_sizes(path):
    limit = BUDGET.get(path.as_posix(), BUDGET.get(path.parts[0], 400))
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= limit, f"{lines} lines, {limit} allowed"
    long = {node.name: node.end_lineno - node.lineno + 1 for node in ast.walk(tree(path))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60}
    assert not long, "functions of more than 60 lines"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] != "recipes"], ids=str)
def test_every_module_has_a_test_file(path):
    assert (ROOT / "tests" / path.parent / f"test_{path.name}").exists()


def test_every_test_file_is_of_a_module_or_a_known_purpose():
    """Tests mirror the layout: test_<module>.py, or test_<module>_<aspect>.py where one file would be too long."""
    purposes = {"test_layout", "test_results", "envs/test_contract", "recipes/test_resume", "recipes/test_learning",
                "recipes/test_bad_input", "recipes/test_matrix", "suite/losses/test_epymarl"}
    known = {path.with_suffix("").as_posix() for path in MODULES}
    for path in TESTS:
        name = path.relative_to("tests").with_suffix("").as_posix()
        if path.name.startswith("test_") and name not in purposes:
            stem = name.replace("test_", "")
            assert any(stem == module or stem.startswith(f"{module}_") for module in known), f"{path} mirrors no module"


def test_tests_are_no_package():
    """An __init__.py would let tests/suite shadow suite."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_no_paths_of_a_machine(path):
    if path.name == Path(__file__).name:
        return
    found = re.findall(r"(?<![\w.])/(?:home|root|work|Users|tmp/v|mnt|data)/\S*", (ROOT / path).read_text())
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_names_say_something(path):
    assert path.stem not in {"utils", "util", "helpers", "helper", "misc", "tools"}
