"""The protocol of a task: examples, views, and a linear probe on frozen features.

Foster, Pukdee, Rainforth (ICLR 2021), sections 4 and 5.
"""

import abc
import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.data import Pictures
from invariance_jax.evaluation import LinearProbe
from invariance_jax.settings import Settings
from invariance_jax.settings.rules import is_asked
from invariance_jax.transforms import Squashed, Transformation
from invariance_jax.types import Array


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Computes in float64 and on the CPU within a `with` block."""
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        yield


class Examples(NamedTuple):
    """A split of a data set.

    x is the input of the transformation: float32 `[N, T]` Spirograph targets, or images
    uint8 `[N, H, W, 1 or 3]`, which `Pictures` decode on demand. y is the output that a
    probe predicts: float32 `[N, T]` targets, or labels int32 `[N]`; None for images
    without labels.
    """

    x: np.ndarray | Pictures
    y: np.ndarray | None

    def first(self, count: int | None) -> "Examples":
        """Returns the first examples, all of them if count is None."""
        return Examples(self.x[:count], None if self.y is None else self.y[:count])


class Scored(NamedTuple):
    """A linear probe, and its predictions and metrics on held-out examples."""

    probe: LinearProbe  # fitted on the training features
    predictions: np.ndarray  # [N, T] targets, or [N, C] logits
    values: dict[str, float]  # metric -> number


class Task(abc.ABC):
    """The examples of a run, their views, and the probe of its features."""

    targets: tuple[str, ...] = ()  # names of the T regression targets
    metric: str  # main metric, a key of `Scored.values`; "" without labels
    # Context in which probes are computed.
    precision: Callable[[], contextlib.AbstractContextManager[None]] = (
        contextlib.nullcontext
    )

    def __init__(self, settings: Settings):
        """Stores the settings; reads no file."""
        self.settings = settings
        self._transformations: dict[str, Transformation] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; () for regression and for images without labels."""
        return ()

    @abc.abstractmethod
    def examples(self, split: str, *, in_order: bool = False) -> Examples:
        """Returns the examples of "train", "validation" or "test".

        Images have a fixed random order, so that the first of them are a fair sample of
        a set that is sorted by class. If in_order, they have the order of the set.
        """

    @abc.abstractmethod
    def stand_ins(self, count: int) -> np.ndarray | Squashed:
        """Returns placeholders `x [count, ...]`, valid examples; reads no data set."""

    def transformation(self, family: str = "all") -> Transformation:
        """Returns the transformation of a run, or its part of one family of views."""
        if family not in self._transformations:
            self._transformations[family] = self._make_transformation(family)
        return self._transformations[family]

    @abc.abstractmethod
    def _make_transformation(self, family: str) -> Transformation:
        """Makes a transformation, which `transformation` caches."""

    @abc.abstractmethod
    def shiftable(self) -> Transformation | None:
        """Returns the transformation that the experiment `shift` changes, or None."""

    def probe_examples(self, train: Examples) -> Examples:
        """Returns the training examples that probes are fitted on.

        They are the first `evaluation.train_examples`; of images, only the share
        `evaluation.label_fraction` of each class.
        """
        return train.first(self.settings.evaluation.train_examples)

    @abc.abstractmethod
    def labeled(self, y: np.ndarray, fraction: float) -> np.ndarray:
        """Returns the increasing indices int64 `[n]` of a share of the examples."""

    def check_fractions(self, train: Examples) -> None:
        """Raises ValueError if a requested share of the labels leaves a class empty."""
        y = self.probe_examples(train).y
        if y is not None and is_asked(self.settings, "label_fraction"):
            self.labeled(y, self.settings.evaluation.label_fractions[0])

    @abc.abstractmethod
    def fit(self, h: np.ndarray, y: np.ndarray) -> LinearProbe:
        """Returns the paper's probe, fitted to features `[N, D]` at `evaluation.l2`."""

    def fit_in_steps(self, h: np.ndarray, y: np.ndarray, steps: int) -> LinearProbe:
        """Returns the probe of `fit` if L-BFGS from 0 ends after `steps` steps."""
        raise NotImplementedError

    def score(self, probe: LinearProbe, h: np.ndarray, y: np.ndarray) -> Scored:
        """Returns predictions and metrics of a probe on held-out features `[N, D]`."""
        with self.precision():
            predictions = evaluation.predict(probe, jnp.asarray(h))
            values = self.quality(predictions, jnp.asarray(y))
        return Scored(probe, np.asarray(predictions), values)

    @abc.abstractmethod
    def select(
        self, h: np.ndarray, y: np.ndarray, h_test: np.ndarray, y_test: np.ndarray
    ) -> dict[str, float]:
        """Returns the metrics of a probe whose l2 is selected for these features.

        It is selected from `evaluation.l2_grid` on the last tenth of the training
        examples. Returns {} if there is no grid.
        """

    @abc.abstractmethod
    def quality(self, predictions: Array, y: Array) -> dict[str, float]:
        """Returns the metrics of predictions: targets `[N, T]` or logits `[N, C]`."""

    def displayed(self, images: Array | np.ndarray) -> np.ndarray:
        """Returns views as images to be shown, uint8 `[..., S, S, 3]`."""
        pixels: np.ndarray = np.clip(np.rint(np.asarray(images) * 255), 0, 255)
        return pixels.astype(np.uint8)
