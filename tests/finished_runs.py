"""Work directories as train and evaluate leave them, with numbers made up for tests.

Plausible in size, so that figures of them look like those of a run.
"""

import base64
import html
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from invariance_jax import report

TARGETS = ["m", "b", "sigma", "rfore"]
NUISANCE = ["h", "rback", "gfore", "gback", "bfore", "bback"]
CLASSES = "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()

Rows = Iterator[tuple[str, dict[str, Any], float]]
"""Metric, coordinates, value."""


def task(kind: str, at: dict[str, Any], error: float) -> Rows:
    """The metrics of a probe; an error of .002 is an accuracy of .96."""
    if kind == "images":
        yield "accuracy", at, 1 - min(20 * error, 0.9)
        yield "cross_entropy", at, 60 * error
    elif kind == "spirograph":
        yield "mse", at, error
        for target, share in zip(TARGETS, (0.24, 3.7, 0.05, 0.01), strict=True):
            yield "mse", at | {"target": target}, error * share
            yield "r2", at | {"target": target}, 1 - 5 * error * share


def averaging(kind: str) -> Rows:
    """The error at M views is 2e-3 / M."""
    for m in (1, 2, 4, 8):
        yield from task(kind, {"views": m}, 2e-3 / m)
        part = {"family": "crop"} if kind == "images" else {"probe": "ensemble"}
        yield from task(kind, {"views": m, **part}, 2e-3 / m**0.5)
    if kind == "images":
        yield from task(kind, {"views": "plain"}, 1.8e-3)
        yield from task(kind, {"views": "plain", "encoder": "pixels"}, 8e-3)
        yield "knn20", {"views": "plain"}, 0.95
    elif kind == "spirograph":
        yield "mse.constant", {}, 0.2276
        yield "mse", {"views": 8, "probe": "selected"}, 1e-4


def invariance(kind: str) -> Rows:
    """Variance over views: of the whole, by parameter, by checkpoint."""
    yield from [("variance.within", {}, 0.02), ("variance.normalized", {}, 0.021)]
    for of, scale in (("n(h)", 1.0), ("h", 1.5)):
        for number, name in enumerate(["all", *NUISANCE]):
            at = {"table": "parameters", "parameter": name, "of": of}
            yield "normalized", at, 0.02 * scale / (number + 1)
        for step in (250, 500, 1000, 1500):
            at = {"table": "checkpoints", "step": step, "of": of}
            yield "normalized", at, scale * (0.02 + float(np.exp(-step / 300)))


def linearization(kind: str) -> Rows:
    """First-order against true change, by step and by parameter."""
    places = [(step, "all", step) for step in (0.01, 0.03, 0.1, 0.3, 1.0)]
    places += [(1.0, name, 1 / (n + 1)) for n, name in enumerate(NUISANCE)]
    for step, name, size in places:
        at = {"step": step, "parameters": name}
        yield "relative_error", at, 0.9 * size**1.6
        yield "ratio", at, 1 + 1.5 * size
        yield "median_ratio", at, 1 + 0.3 * size
        yield "cosine", at, 1 - 0.2 * size


def poincare_ratio(kind: str) -> Rows:
    """Bound and total effect of each parameter."""
    for number, name in enumerate(NUISANCE):
        at = {"parameter": name}
        yield "bound", at, 0.01 * (number + 1)
        yield "effect", at, 0.01
        yield "ratio", at, number + 1.0
        yield "rank_correlation", at, 0.9 / (number + 1)


def nuisance_prediction(kind: str) -> Rows:
    """R² of the parameters of a view."""
    for number, name in enumerate(NUISANCE):
        yield "r2", {"parameter": name}, 0.9 / (number + 1) ** 2 - 0.02


def shift(kind: str) -> Rows:
    """Quality of both heads over grids as those of the paper."""
    grids = {("h", "move"): (-0.5, -0.1, 0.0, 0.5), ("h", "widen"): (1.0, 1.25, 1.5)}
    grids["background", "move"] = (0.0, 0.1, 0.2, 0.3, 0.4)
    if kind == "images":
        grids = {("color", "strength"): (0.0, 0.25, 0.5, 0.75, 0.875)}
    for (parameter, how), grid in grids.items():
        for value, head, views in product(grid, ("refitted", "fixed"), (1, 8)):
            at = {"parameter": parameter, "how": how, "shift": value}
            away = value - {"widen": 1.0, "move": 0.0, "strength": 0.5}[how]
            error = 3e-3 * (1 + away**2 * (4 if head == "refitted" else 20))
            at |= {"head": head, "views": views}
            yield from task(kind, at, error * views**-0.25)


def label_fraction(kind: str) -> Rows:
    """Quality of probes that see few labels."""
    kinds = ("plain" if kind == "images" else 1, 8)
    for fraction, views in product((0.05, 0.1, 0.2, 0.5, 1.0), kinds):
        at = {"fraction": fraction, "views": views}
        yield from task(kind, at, 2e-3 * (1 + 0.05 / fraction))


EXPERIMENTS: dict[str, Callable[[str], Rows]] = {
    experiment.__name__: experiment
    for experiment in (
        *(averaging, invariance, linearization, poincare_ratio, nuisance_prediction),
        *(shift, label_fraction),
    )
}


def write_run(
    path: Path,
    *,
    kind: str = "spirograph",
    seeds: int = 1,
    scale: float = 1.0,
    spread: float = 0.1,
    experiments: tuple[str, ...] = ("averaging", "invariance"),
    more: dict[str, list[tuple[str, dict[str, Any], float]]] | None = None,
    config: dict[str, Any] | None = None,
    drawn: bool = True,
    bare: bool = False,
) -> Path:
    """Writes a finished run of kind "spirograph", "images" or "none" (no labels).

    Over the seeds errors are from 1 - spread to 1 + spread times those above and scale.
    `more` are further experiments, `config` dotted keys; if it is not `drawn`, a run
    has no log or samples, and a bare one has no built-in experiment either.
    """
    path.mkdir(parents=True, exist_ok=True)
    names = {"spirograph": "spirograph", "images": "fashion_mnist", "none": "photos"}
    content: dict[str, Any] = {"seed": 0, "batch_size": 256, "penalty": {"weight": 0.1}}
    content |= {"data": {"name": names[kind]}, "encoder": {"name": "mlp"}}
    for key, value in {"augmentation.strength": 0.5, **(config or {})}.items():
        section, _, name = key.rpartition(".")
        content.setdefault(section, {})[name] = value
    saved = {"format": 3, "config": content, "derived": {"steps": 1500}, "jax": {}}
    saved["environment"] = {"git_commit": "0123abc", "devices": ["cpu", "cpu"]}
    saved["command"] = "python launch.py --config=configs/a.py --workdir 'my runs/a'"
    (path / "config.json").write_text(json.dumps(saved))
    each = {"training": [("loss.final", {}, 4.5)], **(more or {})}
    asked = () if bare else experiments
    each = {name: [*EXPERIMENTS[name](kind)] for name in asked} | each
    factors = np.linspace(1 - spread, 1 + spread, seeds) if seeds > 1 else [1.0]
    rows = []
    for (seed, factor), name in product(enumerate(factors), each):
        for metric, at, value in each[name]:
            if metric in ("accuracy", "r2", "knn20"):
                value = 1 - (1 - value) * factor * scale
            elif metric != "mse.constant":
                value = value * factor * scale
            row = {"experiment": name, "metric": metric, "at": at, "seed": seed}
            rows.append(row | {"value": float(value)})
    settings: dict[str, Any] = {"num_views": [1, 2, 4, 8], "split": "test"}
    settings["step"] = 1500
    settings |= {"targets": TARGETS} if kind == "spirograph" else {}
    settings |= {"classes": CLASSES} if kind == "images" else {}
    results = {"format": 3, "n": seeds, "seeds": [*range(seeds)], "settings": settings}
    results |= {"summary": {}, "rows": rows}
    results["experiments"] = {name: {"seconds": 12.3} for name in each}
    results["command"] = f"python launch.py --mode=evaluate --workdir={path.name}"
    results["environment"] = saved["environment"]
    (path / "results.json").write_text(json.dumps(results))
    for seed in range(seeds if drawn and not bare else 0):
        folder = path / f"seed_{seed}" if seeds > 1 else path
        folder.mkdir(exist_ok=True)
        write_log(folder, seed)
        np.savez_compressed(folder / "samples.npz", **samples(kind, seed))
    return path


def write_log(folder: Path, seed: int) -> None:
    """Writes the training log of one seed."""
    lines = []
    for step in range(50, 1501, 50):
        decay = float(np.exp(-step / 400)) * (1 + seed / 10)
        row = {"step": step, "loss": 4 + decay, "penalty": 0.2 + decay}
        row |= {"examples_per_second": 9000.0, "seconds": step * 0.03}
        if step % 250 == 0:
            row |= {"probe_mse": 0.002 + 0.1 * decay, "variance_normalized": decay}
        lines.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))


def samples(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of `samples.npz`; its images are discs."""
    generator, side = np.random.default_rng(seed), 16

    def images(*shape: int) -> np.ndarray:
        place = generator.uniform(0.3, 0.7, (*shape, 2, 1, 1)) * side
        distances = ((np.indices((side, side)) - place) ** 2).sum(axis=-3)
        colors = generator.integers(60, 256, (2, *shape, 1, 1, 3))
        inside = distances[..., None] < (0.3 * side) ** 2
        return np.where(inside, colors[0], colors[1] // 4).astype(np.uint8)

    labels = generator.integers(0, 10, 200)
    true = generator.uniform((2, 0.1, 0.25, 0.4), (5, 1.1, 1, 1), (200, 4))
    noise = generator.normal(size=(200, 4)) * (0.15, 0.05, 0.04, 0.03)
    found = {"views": images(4, 10), "neighbors": images(10, 8)}
    found["projection"] = generator.normal(size=(200, 2)).astype(np.float32)
    found["projection_explained"] = np.array([0.31, 0.12], np.float32)
    if kind != "spirograph":
        found["plain"] = images(4)
    else:
        found |= {"true": true, "predicted": true + noise, "projection_targets": true}
        found["predicted_single"] = true + 2 * noise
    if kind == "images":
        angle = labels * 2 * np.pi / 10
        found["projection"] += 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        found["confusion"] = generator.integers(0, 9, (10, 10)) + 90 * np.eye(
            10, dtype=int
        )
        same = generator.random((10, 8)) < 0.8
        found["neighbor_labels"] = same * np.arange(10)[:, None]
        found["projection_labels"] = labels
    return found


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites a JSON file after an edit."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def texts(svg: str) -> set[str]:
    """The texts in a figure, from its data URL; it runs nothing."""
    content = base64.b64decode(svg.partition("base64,")[2]).decode()
    assert "<script" not in content
    return set(map(html.unescape, re.findall(r"<text[^>]*>([^<]*)</text>", content)))


class Page(HTMLParser):
    """What tests look at: source, text, tables, title of a figure -> the texts in it.

    A page that loads or runs something, or has a link to no section, is refused.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.links, self.sections = set[str | None](), set[str]()
        self.folder, self.source = path.parent, path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.stack == [] and self.links == self.sections
        figure = r'<h3>([^<]*)</h3>\s*<div[^>]*><img[^>]* src="(.*?)"'
        drawn = re.findall(figure, self.source)
        self.figures = {html.unescape(title): texts(svg) for title, svg in drawn}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object")
        assert (found.get("src") or "data:image/svg+xml").startswith("data:"), tag
        assert not any(name.startswith("on") for name in found)
        self.links |= {found["href"]} if "href" in found else set()
        self.sections |= {f"#{found['id']}"} if tag == "section" else set()
        self.stack += [tag] if tag not in ("meta", "img") else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.stack):
            self.tables[-1][-1][-1] += data
        self.text += data if "style" not in self.stack else ""

    def find(self, *columns: str) -> list[list[str]]:
        """The first table whose header starts with the given columns."""
        return next(t for t in self.tables if tuple(t[0][: len(columns)]) == columns)


def write_report(workdirs: list[Path], out: Path) -> Page:
    """The page of a report that it writes."""
    return Page(report.run(workdirs, out))
