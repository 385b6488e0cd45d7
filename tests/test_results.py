"""The published tables are what the committed rows give: nothing in them is typed by hand."""

import re
from collections import Counter
from pathlib import Path

from recipes.moa_obligations import OBLIGATIONS
from suite.proofs import FAIL, NOT_RUN, ONE_SEED, PASS, judge, read_numbers
from suite.report import markdown, summarise
from suite.results import read_results

RESULTS = Path(__file__).resolve().parents[1] / "results"


def test_the_tables_follow_from_the_rows():
    made = markdown([summarise(table) for table in read_results(RESULTS)])
    assert (RESULTS / "README.md").read_text(encoding="utf-8").rstrip() == made.rstrip()


def test_the_readme_counts_the_proofs_as_they_are():
    numbers = read_numbers(RESULTS / "moa_proofs" / "numbers.json")
    verdicts = Counter(judge(obligation, numbers).verdict for obligation in OBLIGATIONS)
    text = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    said = re.search(r"(\d+) hold, (\d+) fail, (\d+) are open", text)
    assert tuple(map(int, said.groups())) == (verdicts[PASS], verdicts[FAIL], verdicts[ONE_SEED] + verdicts[NOT_RUN])
