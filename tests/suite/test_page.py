"""The wording shared by both outputs, and the page: self-contained, escaped, complete."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from suite import figures, page, report
from suite.results import Evaluation, append_rows, read_results

GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")  # one pixel
VOID = {"meta", "img", "line", "path", "use", "rect", "br"}


class Tree(HTMLParser):
    """Elements with their attributes; fails on a tag closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        """Open an element."""
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        """An element without content."""
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        """Close the last element opened."""
        if tag not in VOID:
            assert self.open.pop() == tag

    def all(self, tag, **wanted):
        """Attributes of the elements of a name with these attributes."""
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]


@pytest.fixture
def results(tmp_path):
    """Two tables; the first has a missing cell, hostile text and a picture."""
    info = {"title": "T <script>alert(1)</script>", "command": 'run "a" & b', "hardware": "CPU", "mode": "sampled",
            "frames": 10, "cell_command": "run --row {row} --task {task}", "rows": ["x", "y"], "tasks": ["t/a", "t/b"],
            "notes": ["<img src=x onerror=alert(1)>"]}
    for table in ("a", "b"):
        for row, task in (("x", "t/a"), ("y", "t/a"), ("x", "t/b")):
            lines = [Evaluation(s, f, 1.0, f * s, 0.0, 1, 1.0, "c") for s in range(3) for f in (0, 10)]
            append_rows(tmp_path, table, row, task, lines)
        (tmp_path / table / "table.json").write_text(json.dumps(info))
    (tmp_path / "a" / "x__t.a.gif").write_bytes(GIF)
    return tmp_path


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(report, "REPS", 50)


def render(results):
    summaries = [report.summarise(table) for table in read_results(results)]
    return page.html(summaries, figures.draw(summaries))


def test_page_is_well_formed_and_needs_no_network(results):
    text = render(results)
    tree = Tree(text)
    outside = [a for _, a in tree.elements for k in ("src", "href") if a.get(k, "#")[0] != "#"
               and not a[k].startswith("data:")]
    assert outside == [] and "url(http" not in text and "@import" not in text
    assert tree.all("link") == [] and [a for a in tree.all("script") if "src" in a] == []
    assert "default-src 'none'" in text and "prefers-color-scheme:dark" in text


def test_text_is_escaped(results):
    text = render(results)
    assert len(Tree(text).all("script")) == 1 and "onerror=alert(1)>" not in text
    assert "T &lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_svg_ids_are_unique(results):
    ids = re.findall(r'\bid="([^"]+)"', render(results).split("<section", 2)[1])
    assert len(ids) == len(set(ids))


def test_every_cell_has_its_command_and_headers_are_buttons(results):
    tree = Tree(render(results))
    commands = {a["data-command"] for a in tree.all("button", **{"class": "copy"})}
    assert commands == {'run "a" & b', *(f"run --row {row} --task {task}" for row in "xy" for task in ("t/a", "t/b"))}
    assert all(a.get("aria-label") for a in tree.all("button", **{"class": "copy"}))
    assert len(tree.all("th", scope="col")) == 6 and len([a for a in tree.all("button") if "class" not in a]) == 6
    assert len(tree.all("tbody")) == len(tree.all("tfoot")) == 2 and len(tree.all("details")) == 1


def test_cells_carry_what_is_sorted_by(results):
    cells = [a.get("data-value") for a in Tree(render(results)).all("td")]
    assert cells == 2 * ["10", "10", "10", None, None, None]       # t/a, t/b with one missing, the aggregate


def test_pictures_are_embedded_and_checked(results):
    (image,) = [a for a in Tree(render(results)).all("img")]
    assert image["src"] == "data:image/gif;base64," + base64.b64encode(GIF).decode()
    assert image["loading"] == "lazy" and image["alt"] == "Episode of x on t/a"
    (results / "a" / "x__t.a.gif").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"x__t.a.gif is not a GIF"):
        render(results)


def test_legend_of_the_profile_names_only_what_it_shows(results):
    assert "<h3>Performance" not in render(results)  # y never ran t/b, and x alone has nothing beside it
    for table in ("a", "b"):
        info = json.loads((results / table / "table.json").read_text())
        (results / table / "table.json").write_text(json.dumps(info | {"rows": ["x", "y", "z"]}))
        for task in ("t/a", "t/b"):
            append_rows(results, table, "z", task, [Evaluation(s, f, 1.0, 2.0 * f, 0.0, 1, 1.0, "c") for s in range(3)
                                                    for f in (0, 10)])
    text = render(results)
    curves, profile = (text.split(f"<h3>{head}")[1].split("</ul>")[0] for head in ("Return over", "Performance"))
    assert curves.count("<li>") == 3 and profile.count("<li>") == 2


@pytest.mark.parametrize(("value", "scale", "text"), [
    (-12345.6, 12345.6, "\u221212,346"), (123.45, 123.45, "123.5"), (1.234, 3, "1.23"), (0.1234, 0.5, "0.123"),
    (-0.0001, 1, "0.00"),
])
def test_number(value, scale, text):
    assert page.number(value, scale) == text


def test_markdown_is_escaped():
    assert page.mark("a|b *c*\n<d>") == "a\\|b \\*c\\* \\<d>"
