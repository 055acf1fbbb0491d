"""The report as one HTML file that a browser opens without a network.

Images are embedded, styles and the few lines of script are inline, and the page's own
security policy forbids it to load anything else. Whatever comes from a run is escaped.
"""

import base64
import math
from collections.abc import Sequence
from functools import partial
from html import escape

from invariance_jax.report.results import Statistic
from invariance_jax.report.style import Picture
from invariance_jax.report.tables import PAPER, Cell, Table, show

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #5b6470;
  --rule: #d9dde2; --band: #f5f6f8; --accent: #0067a3; }
@media (prefers-color-scheme: dark) { :root { --page: #171b21; --text: #e4e8ee;
  --soft: #a3acb8; --rule: #363e49; --band: #1f252d; --accent: #6bbcf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 66rem;
  background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p, figcaption, .note { color: var(--soft); font-size: .9rem; margin: .25rem 0 .5rem; }
h1, h2, h3, p, figcaption, a { overflow-wrap: anywhere; }
nav a { margin-right: 1rem; display: inline-block; } a { color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  margin: .25rem 0; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child, .text { text-align: left; }
td.text + td.text, th + td.text { white-space: normal; overflow-wrap: break-word; }
td.faint { color: var(--soft); }
thead th { background: var(--band); } tbody tr:hover { background: var(--band); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 1rem 0 1.5rem; }
img { display: block; width: 100%; min-width: 38rem; height: auto; }
pre { background: var(--band); padding: .6rem .8rem; overflow-x: auto;
  font-size: .85rem; border-radius: 4px; }
summary { cursor: pointer; margin: 1rem 0 .25rem; }
"""

_SCRIPT = """
for (const button of document.querySelectorAll('th button'))
  button.addEventListener('click', () => {
    const head = button.closest('th'), table = head.closest('table');
    const body = table.tBodies[0], column = head.cellIndex;
    const down = head.getAttribute('aria-sort') === 'ascending';
    for (const th of table.querySelectorAll('th')) th.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const value = row => row.cells[column].dataset.value;
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === '' || y === '') return (x === '') - (y === '');
      const kinds = isNaN(x) - isNaN(y);
      const both = kinds || (isNaN(x) ? x.localeCompare(y) : x - y);
      return down ? -both : both;
    };
    body.append(...[...body.rows].sort(order));
  });
"""

_CLASS = {True: ' class="text"', False: ""}

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """Returns the whole document.

    Args:
      title: plain text.
      subtitle: plain text.
      sections: (heading, content): plain text and HTML.
    """
    links = "".join(
        f'<a href="#section-{index}">{escape(heading)}</a>'
        for index, (heading, _) in enumerate(sections)
    )
    body = "\n".join(
        f'<section id="section-{index}"><h2>{escape(heading)}</h2>\n{content}</section>'
        for index, (heading, content) in enumerate(sections)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(subtitle)}</p>
<nav>{links}</nav>
{body}
<script>{_SCRIPT}</script>
</body>
</html>
"""


def table_html(table: Table) -> str:
    """Returns a table whose columns sort on a click, with its title and note."""
    texts = [_is_text(column) for column in zip(*table.rows, strict=True)]
    head = "".join(
        f'<th scope="col"{_CLASS[is_text]}><button type="button">{escape(name)}'
        "</button></th>"
        for name, is_text in zip(table.columns, texts, strict=True)
    )
    rows = "\n".join(map(partial(_row, table.columns, texts), table.rows))
    note = f'<p class="note">{escape(table.note)}</p>\n' if table.note else ""
    return (
        f"<h3>{escape(table.title)}</h3>\n{note}"
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>\n"
    )


def _is_text(column: Sequence[Cell]) -> bool:
    """Returns whether a column has words, which stand on the left, unlike numbers."""
    return any(isinstance(cell, str) and not _is_number(cell) for cell in column)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == ""
    return True


def _row(columns: Sequence[str], texts: Sequence[bool], row: Sequence[Cell]) -> str:
    of_paper = isinstance(row[0], str) and row[0].startswith(PAPER)
    cells = "".join(
        _cell(cell, is_text, of_paper or name.startswith(PAPER))
        for name, is_text, cell in zip(columns, texts, row, strict=True)
    )
    return f"<tr>{cells}</tr>"


def _cell(cell: Cell, is_text: bool, is_faint: bool) -> str:
    text = escape(show(cell))
    value = _sortable(cell.mean) if isinstance(cell, Statistic) else text
    names = ["text"] * (is_text and not isinstance(cell, Statistic))
    names += ["faint"] * is_faint
    kind = f' class="{" ".join(names)}"' if names else ""
    return f'<td{kind} data-value="{value}">{text}</td>'


def _sortable(value: float) -> str:
    """Returns a number as JavaScript reads it; what is none sorts last."""
    if math.isnan(value):
        return ""
    return repr(value).replace("inf", "Infinity")


def facts_html(title: str, facts: Sequence[tuple[str, str]]) -> str:
    """Returns a titled table of two columns, a name and a text in each row."""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="text">{escape(text)}</td></tr>'
        for name, text in facts
    )
    return (
        f'<h3>{escape(title)}</h3>\n<div class="scroll"><table><tbody>\n{rows}\n'
        "</tbody></table></div>\n"
    )


def commands_html(commands: Sequence[str], heading: str = "") -> str:
    """Returns commands as blocks to copy.

    Args:
      commands: a block each.
      heading: above them, if there is one.
    """
    blocks = "".join(f"<pre>{escape(command)}</pre>\n" for command in commands)
    return (f"<h3>{escape(heading)}</h3>\n" if heading else "") + blocks


def note_html(text: str) -> str:
    """Returns one paragraph."""
    return f'<p class="note">{escape(text)}</p>\n'


def details_html(summary: str, content: str) -> str:
    """Returns HTML that is folded away under a line of text."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>\n"


def picture_html(picture: Picture) -> str:
    """Returns a figure with its images embedded, dark where the reader's screen is."""
    light, dark = (
        f"data:image/png;base64,{base64.b64encode(data).decode()}"
        for data in (picture.light, picture.dark)
    )
    title, caption = escape(picture.title), escape(picture.caption)
    return (
        f'<figure><h3>{title}</h3>\n<div class="scroll"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{title}: {caption}" src="{light}"></picture></div>\n'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )
