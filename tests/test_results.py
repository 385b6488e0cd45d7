"""The published tables are what the committed rows give: nothing in them is typed by hand."""

from pathlib import Path

from suite.report import markdown, summarise
from suite.results import read_results

RESULTS = Path(__file__).resolve().parents[1] / "results"


def test_the_tables_follow_from_the_rows():
    made = markdown([summarise(table) for table in read_results(RESULTS)])
    assert (RESULTS / "README.md").read_text(encoding="utf-8").rstrip() == made.rstrip()
