"""Work directories as train and evaluate leave them, with numbers made up for tests."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = ["m", "b", "sigma", "rfore"]


def summary(num_views: list[int], n: int, scale: float = 1.0) -> dict[str, Any]:
    """A summary whose mse@M is scale * 2e-3 / M and whose errors are a tenth of it."""
    numbers = {"variance.normalized": 0.021, "penalty.final": 0.3, "loss.final": 4.5}
    numbers["mse.constant"] = 0.2276
    for m in num_views:
        numbers[f"mse@{m}"] = scale * 2e-3 / m
        for index, target in enumerate(TARGETS):
            numbers[f"mse.{target}@{m}"] = scale * 10.0 ** (-2 - index) / m
            numbers[f"r2.{target}@{m}"] = 1 - 0.01 / m
    return {
        name: {"mean": v, "standard_error": 0.1 * abs(v) if n > 1 else None, "n": n}
        for name, v in numbers.items()
    }


def image_summary(num_views: list[int], n: int, scale: float) -> dict[str, Any]:
    """A summary whose accuracy is 1 - scale * .1 on plain images and grows with M."""
    numbers = {"variance.normalized": 0.021, "loss.final": 4.5}
    for place, m in (("plain", 1), *((str(m), m) for m in num_views)):
        for part, gain in (("", 0.3), (".crop", 0.28), (".ensemble", 0.2)):
            if part and place == "plain":
                continue
            error = 0.1 * scale * m**-gain
            numbers[f"accuracy{part}@{place}"] = 1 - error
            numbers[f"cross_entropy{part}@{place}"] = 3 * error
    return {
        name: {"mean": v, "standard_error": 2e-3 if n > 1 else None, "n": n}
        for name, v in numbers.items()
    }


def write_seed(folder: Path, seed: int, *, points: int = 6) -> None:
    """Writes the training log and the samples of one seed."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in np.linspace(50, 1500, points).astype(int).tolist():
        decay = float(np.exp(-step / 400)) + 0.02 * float(generator.random())
        lines.append(
            {
                "step": step,
                "loss": 4 + decay,
                "contrastive": 4 + decay,
                "penalty": 0.2 + decay,
                "learning_rate": 1e-3,
                "examples_per_second": 9000.0,
                "seconds": step * 0.03,
            }
        )
        probe = {"probe_mse": 0.002 + 0.1 * decay, "variance_normalized": 0.02 + decay}
        lines.append({"step": step, **probe})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    low, high = np.array([2, 0.1, 0.25, 0.4]), np.array([5, 1.1, 1, 1])
    true = generator.uniform(low, high, (60, 4))
    noise = generator.normal(size=(60, 4)) * 0.05 * (high - low)
    np.savez(
        folder / "samples.npz",
        views=generator.integers(0, 256, (3, 10, 8, 8, 3), np.uint8),
        true=true,
        predicted=true + noise,
        predicted_single=true + 2 * noise,
    )


def write_run(
    path: Path,
    *,
    seeds: int = 1,
    num_views: tuple[int, ...] = (1, 2, 4, 8),
    scale: float = 1.0,
    weight: float = 0.1,
    device: str = "cpu",
    data: str = "spirograph",
) -> Path:
    """Writes a finished work directory as train and evaluate leave it."""
    images = data != "spirograph"
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "format": 1,
        "config": {
            "seed": 0,
            "batch_size": 256,
            "data": {"name": data},
            "encoder": {"name": "mlp", "width": 512},
            "epochs": None,
            "penalty": {"weight": weight, "normalization": "l2"},
            "augmentation": {"strength": 0.5},
        },
        "derived": {"steps": 1500},
        "environment": {
            "git_commit": "0123abc",
            "versions": {"jax": "0.10.0"},
            "devices": [device, device],
            "python": "3.11",
        },
        "command": f"python launch.py --config=configs/a.py --workdir={path.name}",
    }
    (path / "config.json").write_text(json.dumps(config))
    settings = {"num_views": num_views, "l2": 1e-8, "split": "test"}
    settings |= {} if images else {"targets": TARGETS}
    numbers = image_summary if images else summary
    results = {
        "format": 1,
        "settings": settings,
        "n": seeds,
        "seeds": list(range(seeds)),
        "summary": numbers(list(num_views), seeds, scale),
    }
    (path / "results.json").write_text(json.dumps(results))
    for seed in range(seeds):
        write_seed(path / f"seed_{seed}" if seeds > 1 else path, seed)
    return path


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites a JSON file after an edit."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


class Page(HTMLParser):
    """Collects what the tests look at: attributes, tables, text, headings."""

    void = {"meta", "img", "source", "br", "link"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text: list[str] = []
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
            self.text.append(data)

    def find(self, *columns: str) -> list[list[str]]:
        """The first table whose header starts with the given columns."""
        return next(t for t in self.tables if tuple(t[0][: len(columns)]) == columns)
