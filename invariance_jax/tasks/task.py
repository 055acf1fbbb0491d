"""The protocol of a task: examples, views, and a linear probe on frozen features.

Foster, Pukdee, Rainforth (ICLR 2021), sections 4 and 5.
"""

import abc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.data import Pictures
from invariance_jax.evaluation import LinearProbe
from invariance_jax.settings import Settings
from invariance_jax.settings.rules import is_asked
from invariance_jax.transforms import Squashed, Transformation
from invariance_jax.types import Array


class Examples(NamedTuple):
    """A split of a data set.

    x is what the transformation takes: float32 `[N, T]` Spirograph targets, or images
    uint8 `[N, H, W, 1 or 3]`, which `Pictures` decode when they are asked for. y is
    what a probe predicts: float32 `[N, T]` targets, or labels int32 `[N]`; None for
    images without labels.
    """

    x: np.ndarray | Pictures
    y: np.ndarray | None

    def first(self, count: int | None) -> "Examples":
        """Returns the first examples, all of them if count is None."""
        return Examples(self.x[:count], None if self.y is None else self.y[:count])


class Scored(NamedTuple):
    """A linear probe and what it does on held-out examples."""

    probe: LinearProbe  # fitted on the training features
    predictions: np.ndarray  # [N, T] targets, or [N, C] logits
    values: dict[str, float]  # metric -> number


class Task(abc.ABC):
    """What a run learns from and how its features are probed."""

    targets: tuple[str, ...] = ()  # names of the T regression targets
    metric: str  # the headline, a key of `Scored.values`; "" without labels
    precision: Callable[[], AbstractContextManager[None]] = nullcontext  # of probes

    def __init__(self, settings: Settings):
        """Remembers the settings; no file is read."""
        self.settings = settings
        self._transformations: dict[str, Transformation] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; () of regression and without labels."""
        return ()

    @abc.abstractmethod
    def examples(self, split: str, *, in_order: bool = False) -> Examples:
        """Returns the examples of "train", "validation" or "test".

        Images come in a fixed random order, so that the first of them are a fair sample
        of a set that is sorted by class; or, if in_order, as the set has them.
        """

    @abc.abstractmethod
    def stand_ins(self, count: int) -> np.ndarray | Squashed:
        """Returns examples `x [count, ...]` of the right shape; no image is read."""

    def transformation(self, family: str = "all") -> Transformation:
        """Returns the views of a run, or the part of them of a family."""
        if family not in self._transformations:
            self._transformations[family] = self._make_transformation(family)
        return self._transformations[family]

    @abc.abstractmethod
    def _make_transformation(self, family: str) -> Transformation:
        """Returns what `transformation` keeps."""

    @abc.abstractmethod
    def shiftable(self) -> Transformation | None:
        """Returns the views whose distribution the experiment shift changes, if any."""

    def probe_examples(self, train: Examples) -> Examples:
        """Returns the training examples that probes are fitted on.

        The first `evaluation.train_examples`, and of images `evaluation.label_fraction`
        of each class.
        """
        return train.first(self.settings.evaluation.train_examples)

    @abc.abstractmethod
    def labeled(self, y: np.ndarray, fraction: float) -> np.ndarray:
        """Returns the indices int64 `[n]`, increasing, of a share of the examples."""

    def check_fractions(self, train: Examples) -> None:
        """Checks that the shares of the labels that are asked for reach every class."""
        y = self.probe_examples(train).y
        if y is not None and is_asked(self.settings, "label_fraction"):
            self.labeled(y, self.settings.evaluation.label_fractions[0])

    @abc.abstractmethod
    def fit(self, h: np.ndarray, y: np.ndarray) -> LinearProbe:
        """Returns the paper's probe of features `[N, D]`, with `evaluation.l2`."""

    def fit_in_steps(self, h: np.ndarray, y: np.ndarray, steps: int) -> LinearProbe:
        """Returns what some steps of L-BFGS from 0 make of the objective of `fit`."""
        raise NotImplementedError

    def score(self, probe: LinearProbe, h: np.ndarray, y: np.ndarray) -> Scored:
        """Returns the quality of a probe on features `[N, D]` that it has not seen."""
        with self.precision():
            predictions = evaluation.predict(probe, jnp.asarray(h))
            values = self.quality(predictions, jnp.asarray(y))
        return Scored(probe, np.asarray(predictions), values)

    @abc.abstractmethod
    def select(
        self, h: np.ndarray, y: np.ndarray, h_test: np.ndarray, y_test: np.ndarray
    ) -> dict[str, float]:
        """Returns the quality of a probe whose l2 is chosen for these features.

        Among `evaluation.l2_grid`, on the last tenth of the training examples; {} if
        there is no grid.
        """

    @abc.abstractmethod
    def quality(self, predictions: Array, y: Array) -> dict[str, float]:
        """Returns the metrics of predictions: targets `[N, T]` or logits `[N, C]`."""

    @abc.abstractmethod
    def displayed(self, images: Array) -> np.ndarray:
        """Returns views as pictures, uint8 `[..., S, S, 3]`, normalization undone."""
