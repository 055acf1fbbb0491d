"""Writes configs/README.md: every run with its command, cost and result.

    python -m configs.results.page

The headers of the configurations describe the runs. `index.toml` holds the sections and
their text. NAME.csv holds the numbers of a section, with the digits that are shown: a
row for each run, metric and coordinates (column `at`). `configs.results.keep` writes
such a file from finished runs.
"""

import ast
import csv
import re
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "README.md"
PAPER = FOLDER.parents[1] / "invariance_jax" / "report" / "paper.csv"
DIFFERENCE = "difference (95 % interval)"

Row = dict[str, str]


def make_page() -> str:
    """Returns the text of the page."""
    index = tomllib.loads((FOLDER / "index.toml").read_text())
    parts = [index["introduction"]]
    for name in index["runs"]:
        header = _header(f"{name}.py")
        (command,) = re.findall("python launch.py .*", header)
        parts += [f"**{header.splitlines()[0]}**", f"`{command}`", _variants(header)]
    for folder in ("sweeps", "examples"):
        files = [f"{folder}/{name}.py" for name in index[folder]["files"]]
        lines = [
            (f"[`{file}`]({file})", _header(file).split("\n")[0]) for file in files
        ]
        parts += [index[folder]["text"], _markdown(("file", "content"), lines)]
    parts += [index["claims"]["text"], _claims(index)]
    parts += [index["results"], *map(_section, index["section"])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _header(file: str) -> str:
    return ast.get_docstring(ast.parse((FOLDER.parent / file).read_text())) or ""


def _variants(header: str) -> str:
    """Returns a table of the variants that the header of a configuration lists."""
    lines = []
    entries = re.findall(r"^  (\w+)( \(default\))?: (.*(?:\n    .*)*)", header, re.M)
    for name, default, text in entries:
        # The result begins at the first "Plain" or "M = ".
        parts = re.split(r"\s(?=Plain|M = )", " ".join(text.split()), maxsplit=1)
        lines.append((f"`{name}`{default}", *parts, "")[:3])
    return _markdown(("variant", "content, hardware, time", "result"), lines)


def _claims(index: dict[str, Any]) -> str:
    """Returns the table of the paper's claims: a line for each comparison of runs."""
    titles = {section["file"]: section["title"] for section in index["section"]}
    heads = "claim", "where", "metric", "change (95 % interval)", "n", "seconds"
    lines = []
    for place in index["claims"]["place"]:
        study, run, number = place.get("study", ""), place["run"], place["number"]
        first, *others = (
            row
            for row in _rows(FOLDER / f"{place['file']}.csv")
            if (row.get("study", ""), _number(row)) == (study, number)
        )
        (row,) = (row for row in others if row["run"] == run)
        # GitHub's anchor of the section's title.
        anchor = re.sub(r"[^\w -]", "", titles[place["file"]].lower())
        where = f"[{place['where']}](#{anchor.replace(' ', '-')})"
        base = None if row["metric"] == "accuracy" else float(first["mean"])
        difference, verdict = change(row, base, place["sign"])
        facts = row["n"], row.get("seconds", "")
        lines.append((place["claim"], where, number, difference, *facts, verdict))
    return _markdown((*heads, "verdict"), lines)


def change(row: Row, base: float | None, sign: str) -> tuple[str, str]:
    """Returns the text of a difference, and whether it has the claimed sign.

    The text is in percent of `base`, or in percentage points if `base` is None. If the
    interval reaches below -100 %, it is in the metric's own unit, followed by `base`.
    """
    texts = [row[name] for name in ("difference", "low", "high") if row[name]]
    numbers, unit = [*map(float, texts)], ""
    if base is None:
        text, *ends = (f"{100 * x:+.1f} points" for x in numbers)
    elif min(numbers) < -base:
        text, *ends = (f"{Decimal(x):+f}" for x in texts)
        unit = f" from {base:g}"
    else:
        text, *ends = (f"{round(100 * x / base):+d} %" for x in numbers)
    if not ends:
        return text, "one seed"
    _, low, high = numbers
    verdict = "holds" if (low > 0) == (sign == "+") else "the opposite"
    verdict = verdict if low * high > 0 else "not significant"
    return f"{text} ({' to '.join(ends)}){unit}", verdict


def _section(section: dict[str, Any]) -> str:
    rows = [*_rows(FOLDER / f"{section['file']}.csv")]
    n, commits = (
        ", ".join(dict.fromkeys(row[k] for row in rows)) for k in ("n", "commit")
    )
    how = f"{section['how'].strip()} n = {n}; commit {commits}."
    table = _table([*rows, *_paper_rows(section.get("paper", ""))], section)
    if section.get("folded"):
        table = f"<details><summary>Show the table</summary>\n\n{table}\n\n</details>"
    return f"### {section['title']}\n\n{how}\n\n{table}\n\n{section['text'].strip()}"


def _rows(path: Path) -> Iterator[Row]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def _paper_rows(data: str) -> Iterator[Row]:
    """Yields the paper's results for averaged features on a data set."""
    for row in _rows(PAPER):
        averaged = row["experiment"] == "averaging" and not row["target"]
        if row["data"] == data and averaged and "weight" not in row["run"]:
            yield row | {"metric": row["metric"].upper(), "at": f"M = {row['views']}"}


def _table(rows: list[Row], section: dict[str, Any]) -> str:
    """Returns the table of a section, with a line for each run or for each number."""
    cells: dict[tuple[str, ...], Row] = {}
    if "numbers" in section:
        order = {number: k for k, number in enumerate(section["numbers"])}
        rows = [row for row in rows if _number(row) in order]
        rows.sort(key=lambda row: order[_number(row)])
    for row in rows:
        scale = section.get("scale", {}).get(row["metric"].split(" ")[0], "")
        number = _number(row, f" x {scale}" if scale else "")
        mean, error, difference, low, high = (
            f"{Decimal(row[name]) / Decimal(scale or 1):f}" if row.get(name) else ""
            for name in ("mean", "standard_error", "difference", "low", "high")
        )
        key, column = (row.get("study", ""), row["run"]), number
        if section["lines"] == "numbers":
            key, column = (number,), row["run"]
        line = cells.setdefault(key, {})
        line[column] = f"{mean} ± {error}" if error else mean
        interval = f"{difference} ({low} to {high})" if low else ""
        line[f"{column}: {DIFFERENCE}"] = interval
    columns = dict.fromkeys(column for line in cells.values() for column in line)
    columns = [c for c in columns if any(line.get(c) for line in cells.values())]
    lines = [(*key, *(line.get(c, "") for c in columns)) for key, line in cells.items()]
    heads = ("",) * len(key) + tuple(columns)
    if not any(key[0] for key in cells):
        heads, lines = heads[1:], [line[1:] for line in lines]
    return _markdown(heads, lines)


def _number(row: Row, unit: str = "") -> str:
    """Returns the name of a row's number, such as "MSE, M = 8"."""
    return ", ".join(filter(None, (row["metric"] + unit, row["at"])))


def _markdown(heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows).replace("+-", "±")


if __name__ == "__main__":
    PAGE.write_text(make_page())
