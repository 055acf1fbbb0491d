"""What the experiments measure: a frozen encoder and the examples it is measured on."""

import functools
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from invariance_jax.training.components import (
    Examples,
    is_regression,
    make_examples,
)
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.protocols import (
    Scored,
    fit_and_score,
    probe_examples,
    score_selected,
)
from invariance_jax.training.start import initial_state

TRAIN, TEST = 0, 1
"""Streams of views."""

SELECTED = "selected"
"""What a probe that chose its own l2 is called in the summary."""

Value = str | int | float


class Row(NamedTuple):
    """Numbers of an experiment and where on its grid they were measured.

    Attributes:
      at: coordinate -> value, the same coordinates in every row of a table; rows of
        several tables of one experiment differ in the coordinate "table".
      values: metric -> number.
    """

    at: dict[str, Value]
    values: dict[str, float]


class Measured(NamedTuple):
    """The results of one experiment on one seed.

    Attributes:
      values: name -> number, for the summary of `results.json`.
      rows: for its own section of the report.
    """

    values: dict[str, float]
    rows: list[Row]


class Subject:
    """A trained encoder, the examples of its run, and what experiments share.

    Attributes:
      settings: the result of `training.settings.resolve`.
      workdir: the work directory of the seed.
      encoder: the frozen encoder.
      variables: its variables, {"params", "batch_stats"}.
      train: the examples that probes are fitted on.
      test: the examples that they are measured on.
      num_views: the numbers M of views that features are averaged over.
    """

    def __init__(
        self,
        settings: Any,
        workdir: epath.Path,
        encoder: FrozenEncoder,
        variables: Any,
        *,
        num_views: tuple[int, ...],
    ):
        """Reads the examples; nothing is computed before it is asked for.

        Args:
          settings: the result of `training.settings.resolve`.
          workdir: the work directory of the seed.
          encoder: the frozen encoder.
          variables: its variables.
          num_views: `evaluation.num_views`, or the first of them if no more is needed.
        """
        self.num_views = num_views
        self.settings, self.workdir = settings, workdir
        self.encoder, self.variables = encoder, variables
        self.train = probe_examples(settings, make_examples(settings, "train"))
        chosen = settings.evaluation
        self.test = make_examples(settings, chosen.split).first(chosen.test_examples)
        self._features: dict[Any, np.ndarray] = {}
        self._plain: dict[str, np.ndarray] = {}
        self._scored: dict[Any, Scored] = {}
        self._selected: dict[int, dict[str, float]] = {}

    @functools.cached_property
    def untrained(self) -> Any:
        """The variables of the encoder before training."""
        return encoder_variables(initial_state(self.settings))

    def examples(self, split: str) -> Examples:
        """Returns the examples of "train" or "test"."""
        return {"train": self.train, "test": self.test}[split]

    def features(self, split: str, family: str = "all") -> np.ndarray:
        """Returns the features averaged over each M of `num_views`.

        Args:
          split: "train" or "test".
          family: the part of the transformation that is drawn.

        Returns:
          `[len(num_views), N, D]`.
        """
        place = split, family
        if place not in self._features:
            self._features[place] = self.encoder.features(
                self.variables,
                self.examples(split).x,
                num_views=self.num_views,
                stream=TRAIN if split == "train" else TEST,
                family=family,
            )
        return self._features[place]

    def plain(self, split: str) -> np.ndarray:
        """Returns the features `[N, D]` of plain images of "train" or "test"."""
        if split not in self._plain:
            x = self.examples(split).x
            self._plain[split] = self.encoder.plain(self.variables, x)
        return self._plain[split]

    def scored(self, number: int, family: str = "all") -> Scored:
        """Returns the probe on averaged features, and its quality on the test examples.

        Args:
          number: index of M in `num_views`; may be negative.
          family: the part of the transformation that is drawn.

        Returns:
          Probe, predictions and metrics.
        """
        number %= len(self.num_views)
        place = number, family
        if place not in self._scored:
            h, h_test = (self.features(s, family)[number] for s in ("train", "test"))
            self._scored[place] = fit_and_score(
                self.settings, h, self.train.y, h_test, self.test.y
            )
        return self._scored[place]

    def selected(self, number: int) -> dict[str, float]:
        """Returns the quality of a probe with its own l2 on averaged features, named.

        Args:
          number: index of M in `num_views`.

        Returns:
          Values for the summary: `mse.selected@M`, or `accuracy.selected@M`, ...;
          nothing if `evaluation.l2_grid` is empty.
        """
        if number not in self._selected:
            h, h_test = (self.features(split)[number] for split in ("train", "test"))
            self._selected[number] = score_selected(
                self.settings, h, self.train.y, h_test, self.test.y
            )
        found = self._selected[number]
        if is_regression(self.settings):
            found = {name: found[name] for name in ("mse",) if found}
        return named(found, SELECTED, self.num_views[number])


def named(values: dict[str, float], part: str, views: int | str) -> dict[str, float]:
    """Returns metrics under their names in the summary, such as `mse.b@8`.

    Args:
      values: metric -> number.
      part: what they are of, such as a family of views or a baseline; "all" is not
        named.
      views: M, or "plain".
    """
    part = "" if part == "all" else f".{part}"
    return {f"{name}{part}@{views}": value for name, value in values.items()}
