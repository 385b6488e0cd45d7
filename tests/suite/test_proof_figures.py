"""The picture shows every obligation, run or not."""

from suite.proof_figures import _columns, draw_proofs, make_figure
from suite.proofs import Obligation, judge

CLAIMS = [Obligation("e", claim, "task", f"task: {name}", sense, bound) for claim, name, sense, bound in (
    ("predicts", "skill", ">", 0.5), ("predicts", "gap", "<", 0.1), ("knows", "z", ">", 0.6), ("helps", "iqm", ">", 0))]
NUMBERS = {"e": {"task: skill": {"1": 0.7, "2": 0.8}, "task: gap": {"1": 0.3}, "task: z": {"1": 0.6, "2": 0.7}}}


def test_a_panel_for_each_claim_and_a_line_for_each_number():
    figure = make_figure([judge(o, NUMBERS) for o in CLAIMS])
    panels = {axes.get_title("left"): axes for axes in figure.axes}
    assert list(panels) == ["predicts", "knows", "helps"]
    assert [label.get_text() for label in panels["predicts"].get_yticklabels()] == ["task: gap", "task: skill"]
    assert [text.get_text() for text in panels["helps"].texts] == ["not run"]
    low, high = panels["predicts"].get_xlim()
    assert low < 0.1 and high > 0.8


def test_columns_are_about_equally_long():
    assert _columns({"a": 3, "b": 1, "c": 1, "d": 1}) == [["a"], ["b", "c", "d"]]
    assert _columns({"a": 1, "b": 1}) == [["a", "b"]]


def test_the_file_has_the_same_bytes_twice(tmp_path):
    findings = [judge(o, NUMBERS) for o in CLAIMS]
    first, second = (draw_proofs(findings, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second and first.startswith(b"\x89PNG")
