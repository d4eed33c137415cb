"""What every page of ours has: one file that needs nothing else, no script, no font, no picture from anywhere.

It follows the reader's light or dark, fits a telephone, and prints. Figures are written by `figure` wherever they stand.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

from trainer.svg import Chart

Cell = str | int | float | None
Card = tuple[str, str, str]
"""What it is, its value, and what that means."""
Section = tuple[str, str, Sequence[str]]
"""Anchor, title, and what is in it, in HTML."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --rule: #d0d7de; --sheet: #f6f8fa;
  --a: #0b62a8; --b: #b35900; --c: #1a7f5a; --d: #7a3fb0; --bad: #b3261e; --label: #f2b36b; --good: #1a7f37 }
@media (prefers-color-scheme: dark) { :root { --paper: #12161b; --ink: #e6edf3; --soft: #9aa6b2; --rule: #3a434d;
  --sheet: #1b2128; --a: #6cb6ff; --b: #f0a35e; --c: #58c79a; --d: #c69bf0; --bad: #ff8a80; --label: #8a5a1c;
  --good: #6fdd8b } }
* { box-sizing: border-box }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem;
  padding: 1.5rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem } h2 { font-size: 1.3rem; margin: 2.6rem 0 .4rem }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .3rem } p { margin: .4rem 0; max-width: 46rem }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem } a { color: var(--a) }
nav ul, .key { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; margin: .3rem 0; padding: 0 }
.key { font-size: .85rem } .key svg { height: .75em; margin-right: .4em; width: 1.5em }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); margin: 1.2rem 0; padding: 0 }
.cards div { background: var(--sheet); border: 1px solid var(--rule); border-radius: .5rem; padding: .7rem .9rem }
.cards dt { color: var(--soft); font-size: .9rem } .cards dd { margin: 0 }
.cards .value { font-size: 1.55rem; font-weight: 600 }
.verdict { border-left: .35rem solid var(--soft); background: var(--sheet); padding: .5rem .9rem }
.verdict.kept { border-color: var(--good) } .verdict.broken { border-color: var(--bad) }
figure { margin: .8rem 0; break-inside: avoid; overflow-x: auto }
figure > svg { height: auto; min-width: 40rem; width: 100% } .many figure > svg { min-width: 25rem }
.many { display: grid; gap: .4rem 1.4rem; grid-template-columns: repeat(auto-fill, minmax(min(25rem, 100%), 1fr)) }
.many > * { min-width: 0 } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0 }
th, td { border-bottom: 1px solid var(--rule); padding: .25rem .6rem; text-align: right; vertical-align: top }
th:first-child, .text { text-align: left } tbody th { font-weight: 400 } .one { white-space: nowrap }
thead th, thead td { border-bottom: 2px solid var(--rule); vertical-align: bottom }
tr.ours th, tr.ours td { font-weight: 600 } caption { text-align: left }
details { margin: .3rem 0 } summary { color: var(--soft); cursor: pointer; font-size: .9rem }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif } svg .x { text-anchor: middle } svg .y { text-anchor: end }
.frame { fill: none; stroke: var(--rule) } .grid { fill: none; stroke: var(--rule); stroke-width: .6 }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round } .area { opacity: .25 } .dot { stroke: none }
.line.a { stroke: var(--a) } .line.b { stroke: var(--b); stroke-dasharray: 7 3 }
.line.c { stroke: var(--c); stroke-dasharray: 2 3 }
.line.d { stroke: var(--d); stroke-dasharray: 9 3 2 3 } .line.soft { stroke: var(--soft); stroke-dasharray: 3 3 }
.line.thin { stroke: var(--a); stroke-width: .9 }
.key .line.thin { stroke-width: 1.6 } .line.bad { stroke: var(--bad); stroke-width: 1.8 }
.line.limit { stroke: var(--bad); stroke-dasharray: 6 4 } .area.a { fill: var(--a) } .area.b { fill: var(--b) }
.area.label { fill: var(--label); opacity: .45 }
.dot.a { fill: var(--a) } .dot.b { fill: var(--b) } .dot.c { fill: var(--c) } .dot.d { fill: var(--d) }
.dot.bad { fill: var(--bad) }
.dot.faint { fill: var(--a); opacity: .55 } .dot.strange { fill: var(--b); opacity: .75 }
@media print { body { font-size: 10.5pt; max-width: none; padding: 0 } nav { display: none } h2, h3 { break-after: avoid }
  figure, .scroll { overflow: visible } figure > svg, .many figure > svg { min-width: 0 } table { font-size: 8.5pt }
  th, td { padding: .2rem .35rem } th, td, code { overflow-wrap: anywhere }
  tr { break-inside: avoid } details::details-content { content-visibility: visible; display: block } .many { display: block } }
"""


def figure(value: Cell) -> str:
    """As it is written everywhere on the page: numbers to four digits, an en dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{float(f'{value:.4g}'):.10g}"
    return str(value)


def whole(title: str, heading: str, summary: str, top: str, sections: Sequence[Section]) -> str:
    """The page. `title` and `heading` are text, `summary` and `top` HTML."""
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Even if something crept in that asks for the outside: nothing is loaded.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{escape(heading)}</h1>",
        f"<p>{summary}</p>",
        '<nav aria-label="Sections"><ul>',
        *(f'<li><a href="#{anchor}">{name}</a></li>' for anchor, name, _ in sections),
        "</ul></nav>",
        top,
        "</header>",
        "<main>",
    ]
    for anchor, name, body in sections:
        lines += [
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">',
            f'<h2 id="{anchor}-title">{name}</h2>',
            *body,
            "</section>",
        ]
    return "\n".join([*lines, "</main>", "</body>", "</html>", ""])


def cards(those: Iterable[Card]) -> str:
    inside = [
        f'<div><dt>{title}</dt><dd class="value">{escape(value)}</dd><dd class="soft">{escape(text)}</dd></div>'
        for title, value, text in those
    ]
    return f'<dl class="cards">{"".join(inside)}</dl>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], ours: int = -1) -> str:
    """The first column names the row; the row `ours` stands out."""
    lines = ['<div class="scroll"><table>', f"<caption>{escape(caption)}</caption>", "<thead><tr>"]
    rows = list(rows)
    # A column with a word in it stands to the left as a whole, its title too.
    words = [any(isinstance(row[at], str) for row in rows) for at in range(len(head))]
    lines += [
        f'<th scope="col"{_class(text and "text", len(title) < 10 and "one")}>{escape(title)}</th>' if title else "<td></td>"
        for title, text in zip(head, words, strict=True)
    ]
    lines.append("</tr></thead><tbody>")
    for i, row in enumerate(rows):
        cells = [
            f"<td{_class(text and 'text')}>{escape(figure(cell))}</td>" for cell, text in zip(row[1:], words[1:], strict=True)
        ]
        name = figure(row[0])
        # A moment or a file's name stays in one piece.
        lines.append(
            f'<tr{_class(i == ours and "ours")}><th scope="row"{_class(" " not in name and "one")}>{escape(name)}</th>'
            f"{''.join(cells)}</tr>"
        )
    return "\n".join([*lines, "</tbody></table></div>"])


def _class(*names: str | Literal[False]) -> str:
    known = [name for name in names if name]
    return f' class="{" ".join(known)}"' if known else ""


def plot(chart: Chart, caption: str) -> str:
    return f"<figure>{chart.svg()}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"


def behind(shown: str) -> str:
    return f"<details><summary>The figures of this plot</summary>{shown}</details>"
