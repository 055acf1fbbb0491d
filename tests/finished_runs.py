"""Work directories as train and evaluate leave them, with numbers made up for tests.

Plausible in size, so that figures of them look like those of a run.
"""

import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from invariance_jax.runs import workdir

TARGETS = ["m", "b", "sigma", "rfore"]
NUISANCE = ["h", "rback", "gfore", "gback", "bfore", "bback"]
CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat"]
CLASSES += ["sandal", "shirt", "sneaker", "bag", "ankle boot"]

Rows = Iterator[tuple[str, str, dict[str, Any], float]]
"""Experiment, metric, coordinates, value."""


def tasks(kind: str, at: dict[str, Any], error: float) -> Rows:
    """The metrics of a probe; an error of .002 is an accuracy of .96."""
    if kind == "images":
        yield "", "accuracy", at, 1 - min(20 * error, 0.9)
        yield "", "cross_entropy", at, 60 * error
    elif kind == "spirograph":
        yield "", "mse", at, error
        for target, share in zip(TARGETS, (0.24, 3.7, 0.05, 0.01), strict=True):
            yield "", "mse", at | {"target": target}, error * share
            yield "", "r2", at | {"target": target}, 1 - 5 * error * share


def averaging(kind: str, num_views: tuple[int, ...]) -> Rows:
    """Downstream task and averaging; mse@M is 2e-3 / M."""
    for m in num_views:
        yield from tasks(kind, {"views": m}, 2e-3 / m)
    if kind == "images":
        yield from tasks(kind, {"views": "plain"}, 1.8e-3)
        yield from tasks(kind, {"views": "plain", "encoder": "pixels"}, 8e-3)
        yield "", "knn20", {"views": "plain"}, 0.95
        for m in num_views:
            yield from tasks(kind, {"views": m, "family": "crop"}, 2.2e-3 / m)
    if kind == "spirograph":
        yield "", "mse.constant", {}, 0.2276
        yield "", "mse", {"views": num_views[-1], "probe": "selected"}, 1e-4
        for m in num_views:
            yield "", "mse", {"views": m, "probe": "ensemble"}, 2e-3 / m**0.5


def invariance(kind: str) -> Rows:
    """Variance over views: of the whole, by parameter, by checkpoint."""
    for name, value in (("within", 0.02), ("total", 0.95), ("normalized", 0.021)):
        yield "", f"variance.{name}", {}, value
    shares = dict(zip(["all", *NUISANCE], (1, 0.6, 0.02, 0.1, 0.02, 0.05, 0.03)))
    levels: dict[tuple[Any, ...], float] = {
        ("parameters", "parameter", name): 0.02 * share
        for name, share in shares.items()
    }
    for step in (250, 500, 1000, 1500):
        levels["checkpoints", "step", step] = 0.02 + float(np.exp(-step / 300))
    for (table, axis, place), level in levels.items():
        for of, scale in (("n(h)", 1.0), ("h", 1.5)):
            at = {"table": table, axis: place, "of": of}
            yield "", "within", at, scale * level
            yield "", "normalized", at, scale * level / 0.95


def linearization(kind: str) -> Rows:
    """First-order against true change, by step and by parameter."""
    for step in (0.01, 0.03, 0.1, 0.3, 1.0):
        yield from _linear({"step": step, "parameters": "all"}, step)
    for number, name in enumerate(NUISANCE):
        yield from _linear({"step": 1.0, "parameters": name}, 1 / (number + 1))


def _linear(at: dict[str, Any], step: float) -> Rows:
    yield "", "relative_error", at, 0.9 * step**1.6
    yield "", "ratio", at, 1 + 1.5 * step
    yield "", "median_ratio", at, 1 + 0.3 * step
    yield "", "top_share", at, 0.05 + 0.1 * step
    yield "", "cosine", at, 1 - 0.2 * step


def nuisance_prediction(kind: str) -> Rows:
    """R² of the parameters of a view."""
    for number, name in enumerate(NUISANCE):
        yield "", "r2", {"parameter": name}, 0.9 / (number + 1) ** 2 - 0.02
        yield "", "mse", {"parameter": name}, 0.33 - 0.3 / (number + 1)


def shift(kind: str) -> Rows:
    """Quality of both heads over the grids of the paper."""
    grids: dict[tuple[str, str], tuple[float, ...]] = {
        ("h", "move"): (-0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5),
        ("background", "move"): (0.0, 0.1, 0.2, 0.3, 0.4),
        ("h", "widen"): (1.0, 1.25, 1.5),
    }
    if kind == "images":
        grids = {("color", "strength"): (0.0, 0.25, 0.5, 0.75, 0.875)}
    for (parameter, how), grid in grids.items():
        start = {"widen": 1.0, "move": 0.0, "strength": 0.5}[how]
        for value in grid:
            for head, slope in (("refitted", 4), ("fixed", 20)):
                for views in (1, 8):
                    at = {"parameter": parameter, "how": how, "shift": value}
                    at |= {"head": head, "views": views}
                    error = 3e-3 * (1 + slope * (value - start) ** 2) * views**-0.25
                    yield from tasks(kind, at, error)


def label_fraction(kind: str) -> Rows:
    """Quality of probes that see few labels."""
    for fraction in (0.05, 0.1, 0.2, 0.5, 1.0):
        for views, level in (("plain" if kind == "images" else 1, 2e-3), (8, 1e-3)):
            at = {"fraction": fraction, "views": views}
            yield from tasks(kind, at, level * (1 + 0.05 / fraction))


EXPERIMENTS: dict[str, Callable[[str], Rows]] = {
    "invariance": invariance,
    "linearization": linearization,
    "nuisance_prediction": nuisance_prediction,
    "shift": shift,
    "label_fraction": label_fraction,
}


def write_run(
    path: Path,
    *,
    kind: str = "spirograph",
    seeds: int = 1,
    num_views: tuple[int, ...] = (1, 2, 4, 8),
    scale: float = 1.0,
    experiments: tuple[str, ...] = ("invariance",),
    config: dict[str, Any] | None = None,
    noise: float = 0.1,
    side: int = 8,
) -> Path:
    """Writes a finished run: of kind "spirograph", "images" or "none" (no labels).

    Of s seeds the values are 1 - noise ... 1 + noise times those above, times scale
    where lower is better.
    """
    path.mkdir(parents=True, exist_ok=True)
    names = {"spirograph": "spirograph", "images": "fashion_mnist", "none": "flat"}
    content = {
        "format": workdir.FORMAT,
        "config": {
            "seed": 0,
            "batch_size": 256,
            "data": {"name": names[kind]},
            "encoder": {"name": "mlp", "width": 512},
            "penalty": {"weight": 0.1},
            "augmentation": {"strength": 0.5},
        },
        "derived": {"steps": 1500},
        "environment": {"git_commit": "0123abc", "devices": ["cpu", "cpu"]},
        "command": f"launch.py --config=configs/a.py --workdir {path.name}",
    }
    for key, value in (config or {}).items():
        section, _, name = key.rpartition(".")
        (content["config"][section] if section else content["config"])[name] = value
    (path / "config.json").write_text(json.dumps(content))
    found = [*averaging(kind, num_views)] if kind != "none" else []
    each = {"averaging": found, "training": [("", "loss.final", {}, 4.5)]}
    each |= {name: [*EXPERIMENTS[name](kind)] for name in experiments}
    rows = []
    for seed in range(seeds):
        spread = 1 + noise * (2 * seed / (seeds - 1) - 1 if seeds > 1 else 0)
        for name, entries in each.items():
            for _, metric, at, value in entries:
                if metric in ("accuracy", "r2", "knn20"):
                    value = 1 - (1 - value) * spread * scale
                elif metric != "mse.constant":
                    value *= spread * scale
                row = {"experiment": name, "metric": metric, "at": at}
                rows.append(row | {"seed": seed, "value": value})
    settings = {"num_views": num_views, "l2": 1e-8, "split": "test", "step": 1500}
    settings |= {
        "spirograph": {"targets": TARGETS},
        "images": {"classes": CLASSES},
    }.get(kind, {})
    results = {
        "format": 3,
        "n": seeds,
        "seeds": [*range(seeds)],
        "seconds": 12.3,
        "command": f"launch.py --mode=evaluate --workdir={path.name}",
        "settings": settings,
        "summary": {},
        "rows": rows,
        "experiments": {name: {"seconds": 12.3} for name in each},
    }
    (path / "results.json").write_text(json.dumps(results))
    for seed in range(seeds):
        folder = path / f"seed_{seed}" if seeds > 1 else path
        folder.mkdir(exist_ok=True)
        write_log(folder, seed, scale)
        np.savez_compressed(folder / "samples.npz", **samples(kind, seed, side))
    return path


def write_log(folder: Path, seed: int, scale: float = 1.0) -> None:
    """Writes the training log of one seed."""
    generator = np.random.default_rng(seed)
    lines = []
    for step in range(50, 1501, 50):
        decay = scale * float(np.exp(-step / 400)) + 0.02 * float(generator.random())
        row = {"step": step, "loss": 4 + decay, "penalty": 0.2 + decay}
        lines.append(row | {"examples_per_second": 9000.0, "seconds": step * 0.03})
        if step % 250 == 0:
            probe = {"probe_mse": 0.002 + 0.1 * decay, "variance_normalized": decay}
            lines.append({"step": step, **probe})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def samples(kind: str, seed: int = 0, side: int = 8) -> dict[str, np.ndarray]:
    """The arrays of `samples.npz`."""
    generator = np.random.default_rng(seed)

    def images(*shape: int) -> np.ndarray:
        """Discs of random place and colour."""
        place = generator.uniform(0.3, 0.7, (*shape, 2, 1, 1)) * side
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
        inside = ((grid - place) ** 2).sum(axis=-3) < (0.3 * side) ** 2
        colors = generator.integers(60, 256, (2, *shape, 1, 1, 3))
        return np.where(inside[..., None], colors[0], colors[1] // 4).astype(np.uint8)

    labels = generator.integers(0, 10, 60)
    true = generator.uniform((2, 0.1, 0.25, 0.4), (5, 1.1, 1, 1), (60, 4))
    noise = generator.normal(size=(60, 4)) * (0.15, 0.05, 0.04, 0.03)
    found = {"views": images(4, 10), "neighbors": images(10, 8)}
    found["projection"] = generator.normal(size=(60, 2)).astype(np.float32)
    found["projection_explained"] = np.array([0.31, 0.12], np.float32)
    if kind == "spirograph":
        found |= {"true": true, "predicted": true + noise, "projection_targets": true}
        found["predicted_single"] = true + 2 * noise
        found["projection"] += np.stack([3 * true[:, 0], true[:, 1]], axis=1)
    else:
        found["plain"] = images(4)
    if kind == "images":
        angle = labels * 2 * np.pi / 10
        found["projection"] += 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        found["confusion"] = generator.integers(0, 9, (10, 10)) + 90 * np.eye(
            10, dtype=int
        )
        found["projection_labels"] = labels
        found["neighbor_labels"] = np.where(
            generator.random((10, 8)) < 0.8, np.arange(10)[:, None], 3
        )
    return found


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites a JSON file after an edit."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


class Page(HTMLParser):
    """Collects what the tests look at: attributes, tables, text."""

    void = {"meta", "img", "br", "link"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.stack.append(tag)
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
        if not {"script", "style"} & set(self.stack):
            self.text += data

    def find(self, *columns: str) -> list[list[str]]:
        """The first table whose header starts with the given columns."""
        return next(t for t in self.tables if tuple(t[0][: len(columns)]) == columns)
