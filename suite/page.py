"""How results read: the wording shared by results/README.md and results/index.html, and the HTML page itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from suite.figures import Drawing, Style
    from suite.report import Summary

MISSING = "\u2013"
AGGREGATE = "all tasks, normalised"
READING = (
    "A cell is the interquartile mean (IQM) over seeds of the return of the final policy in fresh episodes, never the "
    "best evaluation, with its 95 % stratified bootstrap interval in brackets (percentile method). With fewer than 4 "
    "seeds the IQM is the plain mean, and an interval of few seeds is too narrow: it cannot leave the range of their "
    "returns. Bold: the best IQM of a line, if its interval does not overlap the runner-up's, both have at least 3 "
    "seeds and its runs are complete. \u2020: runs that ended below the target frames, counted with their last "
    f"evaluation. {MISSING}: no run. Published: what others report for the cell."
)


def mark(text: str) -> str:
    """Plain text for Markdown: what would be markup is escaped, line breaks become spaces."""
    for sign in "\\|*<`":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def number(value: float, scale: float) -> str:
    """A value with the decimals that suit the largest one beside it."""
    digits = 0 if scale >= 1000 else 1 if scale >= 100 else 2 if scale >= 1 else 3
    text = f"{value:,.{digits}f}"
    return text.replace("-", "\u2212") if float(text.replace(",", "")) else text.replace("-", "")


def cell_text(summary: Summary, task: str | None, row: str) -> list[str]:
    """[value, interval, (seeds)] of a cell, or of the aggregate (task None); a single run has no interval."""
    cells = summary.table.cells
    estimate = summary.aggregate.get(row) if task is None else summary.cells.get((task, row))
    if estimate is None:
        return [MISSING]
    scale = max([1.0] if task is None else [abs(c.finals).max() for (t, _), c in cells.items() if t == task])
    bounds = [] if estimate.low is None else [f"[{number(estimate.low, scale)}, {number(estimate.high, scale)}]"]
    tasks = [t for t in summary.table.shown[0] if t not in summary.left_out] if task is None else [task]
    mine = [cells[t, row] for t in tasks]
    counts = sorted({len(cell.runs) for cell in mine})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}\u2013{counts[-1]}"
    dagger = " \u2020" if any(cell.incomplete for cell in mine) else ""
    return [number(estimate.value, scale), *bounds, f"({seeds} seed{'s' * (counts[-1] > 1)}){dagger}"]


def published_text(summary: Summary, task: str | None, row: str) -> list[str]:
    """[what others report for a cell], or nothing."""
    known = summary.table.info.reference.get(task, {}).get(row)
    return [] if known is None else [f"published {known['value']:,g}"]


def facts(summary: Summary) -> list[tuple[str, str]]:
    """What stands under a table as (label, text): how it was measured, made, normalised, and how it compares."""
    info, cells, table, (tasks, _) = summary.table.info, summary.table.cells, summary.table, summary.table.shown
    last = [run[-1] for cell in cells.values() for run in cell.runs.values()]
    target = {task: info.frames[task] if isinstance(info.frames, dict) else info.frames for task in tasks}
    target = {"": next(iter(target.values()))} if len(set(target.values())) == 1 else target
    short = [f"{row} on {task}, seed {seed}: {at:,} of {cells[task, row].target:,} frames" for task in table.tasks
             for row in table.rows if (task, row) in cells for seed, at in cells[task, row].incomplete.items()]
    superseded = sum(cell.superseded for cell in cells.values())
    out = [
        *_measured(summary),
        ("Frames per run", ", ".join(f"{task} {frames:,}".strip() for task, frames in target.items())),
        ("Wall time per run, median", _minutes(summary)),
        ("Command", info.command),
        ("Commit", ", ".join(sorted({end.commit for end in last}))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(info.versions.items()))),
        ("Hardware", info.hardware),
        ("Incomplete (\u2020)", "; ".join(short)),
        ("Repeated", f"{superseded} lines were replaced by a resumed or repeated run" if superseded else ""),
        ("Not run yet", _not_run(summary)),
        ("Published by", _sources(summary)),
        ("Published, not run here", _not_compared(summary)),
        ("Normalisation", _normalisation(summary)),
        *(("Note", note) for note in info.notes),
    ]
    return [(label, text) for label, text in out if text]


def _measured(summary: Summary) -> list[tuple[str, str]]:
    """What is shown and how it was measured, and of which tasks if it is not the same for all."""
    info = summary.table.info
    by_way: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for task in summary.table.shown[0]:
        counts = {run[-1].episodes for (of, _), cell in summary.table.cells.items() if of == task
                  for run in cell.runs.values()}
        by_way.setdefault((info.mode_of(task), tuple(sorted(counts))), []).append(task)
    out = []
    for (mode, counts), tasks in by_way.items():
        what = {"success": "share of episodes that reach the goal, greedy",
                "success_sampled": "share of episodes that reach the goal, sampled"}.get(mode, mode) + " actions"
        episodes = f", {', '.join(f'{n:,}' for n in counts)} episodes per evaluation" if counts else ""
        out.append((("Success" if mode.startswith("success") else "Return")
                    + f" of {', '.join(tasks)}" * (len(by_way) > 1),
                    what + episodes + f", mean of the last {info.last} evaluations" * (info.last > 1)))
    return out


def _minutes(summary: Summary) -> str:
    """Complete runs only: a run that was cut short says nothing about the time of a whole one."""
    times: dict[str, list[float]] = {row: [] for row in summary.table.rows}
    for (_, row), cell in summary.table.cells.items():
        times[row] += [run[-1].seconds / 60 for seed, run in cell.runs.items() if seed not in cell.incomplete]
    return ", ".join(f"{row} {np.median(minutes):,.1f} min" for row, minutes in times.items() if minutes)


def _not_run(summary: Summary) -> str:
    """Planned tasks and rows that the table leaves out."""
    table, (tasks, rows) = summary.table, summary.table.shown
    left = {"tasks": [task for task in table.tasks if task not in tasks],
            "rows": [row for row in table.rows if row not in rows]}
    return "; ".join(f"{what} {', '.join(names)}" for what, names in left.items() if names)


def _sources(summary: Summary) -> str:
    """Who reports the published numbers; of which cells, if it is not the same for all."""
    cells: dict[str, list[str]] = {}
    for task, rows in summary.table.info.reference.items():
        for row, known in rows.items():
            cells.setdefault(known["source"], []).append(f"{row} on {task}")
    return "; ".join(source + f" ({', '.join(of)})" * (len(cells) > 1) for source, of in cells.items())


def _not_compared(summary: Summary) -> str:
    """The published numbers of tasks and rows that the table leaves out."""
    (tasks, rows), reference = summary.table.shown, summary.table.info.reference
    left = {task: ", ".join(f"{row} {known['value']:,g}" for row, known in by_row.items()
                            if task not in tasks or row not in rows) for task, by_row in reference.items()}
    return "; ".join(f"{task}: {numbers}" for task, numbers in left.items() if numbers)


def _normalisation(summary: Summary) -> str:
    if not summary.scores:
        return ""
    scored = [task for task in summary.table.shown[0] if task not in summary.left_out]
    given = [task for task in scored if task in summary.table.info.random]
    left = len(scored) - len(given)
    floor = " and ".join(["the return of random actions"] * bool(given)
                         + [f"the lowest run{' where that is not known' * bool(given)}"] * bool(left))
    uneven = len({len(runs) for scores in summary.scores.values() for runs in scores}) > 1
    return (f"per task 0 is {floor}, 1 the best run of this table; all runs of all tasks are pooled, a row without "
            "runs on every task has no aggregate" + "; tasks with more seeds weigh more" * uneven
            + (f"; left out, because no run is above 0: {', '.join(summary.left_out)}" if summary.left_out else ""))


STYLE = """
:root{color-scheme:light dark;--bg:#fbfbf9;--card:#fff;--ink:#1d2126;--muted:#646b75;--line:#e2e3e0;--accent:#2f6fca}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1b1f24;--ink:#e6e8eb;--muted:#979fa9;--line:#2e343b;
--accent:#7fb0f5}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main,header{max-width:1120px;margin:auto;padding:0 20px}
header{padding-top:48px}
main{padding-bottom:64px}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.02em;margin:0 0 12px}
h2{font-size:1.35rem;margin:0 0 16px}
h3{font-size:1rem;margin:32px 0 8px}
.muted{color:var(--muted);max-width:80ch;margin:0 0 12px;font-size:.92rem}
a{color:var(--accent)}
nav{display:flex;flex-wrap:wrap;gap:4px 20px;margin:16px 0 0}
section{border-top:1px solid var(--line);margin-top:40px;padding-top:32px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:10px 16px;text-align:right;white-space:nowrap;vertical-align:top}
tbody tr>*,tfoot tr>*{border-top:1px solid var(--line)}
tfoot tr>*{border-top-width:2px}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card);font-weight:500}
thead th{font-weight:600;padding:4px 6px}
thead button{font:inherit;color:inherit;background:none;border:0;padding:6px 10px;border-radius:6px;cursor:pointer}
thead button:hover{background:var(--bg)}
thead button::after{content:"\\2195";color:var(--muted);opacity:.45;margin-left:6px}
[aria-sort=ascending] button::after{content:"\\2191";opacity:1}
[aria-sort=descending] button::after{content:"\\2193";opacity:1}
td span{display:block;color:var(--muted);font-size:.82rem;line-height:1.5}
td strong{font-weight:700}
.key{display:inline-block;vertical-align:middle;margin-right:7px;width:22px;height:4px}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.copy{font:inherit;font-size:.75rem;line-height:1;color:var(--muted);background:none;border:1px solid var(--line);
border-radius:5px;padding:3px 6px;cursor:pointer}
td .copy{margin-left:8px}
.copy:hover,.copy:focus-visible{color:var(--ink);border-color:var(--muted)}
pre{display:flex;gap:12px;align-items:flex-start;justify-content:space-between;margin:16px 0;padding:10px 14px;
background:var(--card);border:1px solid var(--line);border-radius:10px;font-size:.85rem}
pre code{white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(150px,max-content) 1fr;gap:4px 24px;font-size:.88rem;margin:16px 0}
dt{color:var(--muted);max-width:40ch}
dd{margin:0;overflow-wrap:anywhere}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:.88rem;margin:0 0 12px;padding:0;list-style:none}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:24px}
figure{margin:0;min-width:0;max-width:420px}
figcaption{font-size:.88rem;font-weight:500;margin-bottom:4px}
svg{display:block;width:100%;height:auto}
svg text{font-family:inherit!important}
details{margin-top:24px}
summary{cursor:pointer;font-weight:600}
details .panels{margin-top:12px}
img{max-width:100%;border-radius:8px}
@media(max-width:640px){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}header{padding-top:28px}
h1{font-size:1.6rem}th,td{padding:8px 12px}}
"""

SCRIPT = """
document.querySelectorAll("thead button").forEach(button => button.addEventListener("click", () => {
  const head = button.closest("th"), body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") === "descending", index = head.cellIndex;
  const key = row => { const value = row.cells[index].dataset.value; return index ? Number(value ?? NaN) : value; };
  head.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
  }).forEach(row => body.append(row));
}));
document.querySelectorAll(".copy").forEach(button => button.addEventListener("click", async () => {
  const label = button.textContent, text = button.dataset.command;
  try { await navigator.clipboard.writeText(text); } catch {
    const area = Object.assign(document.createElement("textarea"), {value: text});
    document.body.append(area); area.select(); document.execCommand("copy"); area.remove(); button.focus();
  }
  button.textContent = "copied"; setTimeout(() => { button.textContent = "copy"; }, 1200);
}));
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def html(summaries: Sequence[Summary], drawings: Sequence[Drawing]) -> str:
    """The whole page as one file that needs no network."""
    names = [(s.table.name, s.table.info.title) for s in summaries]
    links = "".join(f'<a href="#{escape(name)}">{escape(title)}</a>' for name, title in names)
    nav = f'<nav aria-label="Tables">{links}</nav>' if len(names) > 1 else ""
    sections = "".join(_section(summary, drawing) for summary, drawing in zip(summaries, drawings, strict=True))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Results</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head>\n<body>'
        f'<header><h1>Results</h1><p class="muted">{escape(READING)}</p>{nav}</header>\n'
        f"<main>{sections}</main>\n<script>{SCRIPT}</script></body></html>\n"
    )


def _copy(command: str, what: str) -> str:
    return (f'<button type="button" class="copy" data-command="{escape(command)}" title="{escape(command)}" '
            f'aria-label="Copy the command of {escape(what)}">copy</button>')


def _section(summary: Summary, drawing: Drawing) -> str:
    info, name = summary.table.info, escape(summary.table.name)
    notes = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts(summary) if k != "Command")
    legend, scored = (_legend({row: drawing.styles[row] for row in rows})
                      for rows in (summary.table.shown[1], summary.scores))
    panels = "".join(f"<figure><figcaption>{escape(task)}</figcaption>{svg}</figure>"
                     for task, svg in drawing.curves.items())
    curves = f'<h3>Return over training</h3>{legend}<div class="panels">{panels}</div>' if panels else ""
    profile = ('<h3>Performance profile</h3><p class="muted">Share of runs with a normalised score above a threshold: '
               f"the higher the better.</p>{scored}<figure>{drawing.profile}</figure>" if drawing.profile else "")
    command = f"<pre><code>{escape(info.command)}</code>{_copy(info.command, info.title)}</pre>"
    head = f'<h2 id="{name}-title">{escape(info.title)}</h2>'
    return (f'<section id="{name}" aria-labelledby="{name}-title">{head}'
            f"{_table(summary, drawing.styles)}{command}<dl>{notes}</dl>{curves}{profile}"
            f"{_pictures(summary)}</section>\n")


def _legend(styles: Mapping[str, Style]) -> str:
    return f'<ul class="legend">{"".join(f"<li>{_key(style)}{escape(row)}</li>" for row, style in styles.items())}</ul>'


def _key(style: Style) -> str:
    dashes = " ".join(map(str, style.dash))
    return (f'<svg class="key" viewBox="0 0 22 4" aria-hidden="true"><line x1="0" y1="2" x2="22" y2="2" '
            f'stroke="{style.colour}" stroke-width="3" stroke-dasharray="{dashes}"/></svg>')


def _table(summary: Summary, styles: Mapping[str, Style]) -> str:
    table, (tasks, rows) = summary.table, summary.table.shown
    heads = "".join(f'<th scope="col"><button type="button">{_key(styles[row])}{escape(row)}</button></th>'
                    for row in rows)
    lines = "".join(f'<tr><th scope="row" data-value="{escape(task)}">{escape(task)}</th>'
                    f'{"".join(_cell(summary, task, row) for row in rows)}</tr>' for task in tasks)
    total = "".join(_cell(summary, None, row) for row in rows)
    foot = f'<tfoot><tr><th scope="row">{AGGREGATE}</th>{total}</tr></tfoot>' if len(tasks) > 1 else ""
    return (f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.info.title)}"><table><thead><tr>'
            f'<th scope="col"><button type="button">task</button></th>{heads}</tr></thead><tbody>{lines}</tbody>{foot}'
            "</table></div>")


def _cell(summary: Summary, task: str | None, row: str) -> str:
    value, *rest = cell_text(summary, task, row)
    value = f"<strong>{value}</strong>" if task is not None and summary.bold.get(task) == row else value
    number_of = summary.cells.get((task, row)) if task is not None else None
    data = f' data-value="{number_of.value:.9g}"' if number_of else ""
    spans = [escape(part) for part in rest]
    if task is not None:
        spans = [*spans[:-1], "".join(spans[-1:]) + _copy(summary.table.command(task, row), f"{row} on {task}")]
    spans += published_text(summary, task, row)
    return f"<td{data}>{value}{''.join(f'<span>{part}</span>' for part in spans)}</td>"


def _pictures(summary: Summary) -> str:
    table, figures = summary.table, []
    files = {(task, row): table.path(task, row, "gif") for task in table.tasks for row in table.rows}
    for (task, row), path in ((key, path) for key, path in files.items() if path.exists()):
        data = path.read_bytes()
        if not data.startswith((b"GIF87a", b"GIF89a")):
            raise ValueError(f"{path} is not a GIF file")
        what, text = escape(f"{row} on {task}"), base64.b64encode(data).decode()
        figures.append(f'<figure><figcaption>{what}</figcaption><img loading="lazy" decoding="async" '
                       f'alt="Episode of {what}" src="data:image/gif;base64,{text}"></figure>')
    body = f'<summary>Episodes ({len(figures)})</summary><div class="panels">{"".join(figures)}</div>'
    return f"<details>{body}</details>" if figures else ""
