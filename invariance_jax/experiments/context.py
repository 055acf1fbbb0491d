"""The input of every experiment: a frozen encoder and the examples of its run."""

import functools

import jax
import numpy as np
from etils import epath

from invariance_jax.runs.results import Row, rows_of
from invariance_jax.settings import Settings
from invariance_jax.tasks import Examples, Scored, Task
from invariance_jax.training.build import Parts, initial_state
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.objective import Variables
from invariance_jax.types import PyTree

STREAMS = {"train": 0, "test": 1}
"""Split -> the number of the random stream of its views, for `FrozenEncoder`."""


class Context:
    """A trained encoder, the examples of its run, and results that experiments share.

    Features and probes are computed at first use and kept, so arrays are read-only. A
    split is "train" or "test"; "test" is the validation split if `evaluation.split` is
    "validation".

    Attributes:
      parts: the parts of the run.
      settings: the settings of the run.
      task: the task of the run: its examples and probes.
      workdir: the work directory of the seed.
      encoder: the frozen encoder, a function of variables and examples.
      variables: the encoder's variables, {"params", "batch_stats"}.
      train: the examples that probes are fitted on.
      test: the examples that all results are measured on.
      num_views: the numbers M of views that features are averaged over.
    """

    def __init__(
        self,
        parts: Parts,
        workdir: epath.Path,
        encoder: FrozenEncoder,
        variables: Variables,
        *,
        num_views: tuple[int, ...],
    ):
        """Reads the examples; `num_views` has only the M that the experiments need."""
        self.parts, self.workdir, self.num_views = parts, workdir, num_views
        self.settings: Settings = parts.settings
        self.task: Task = parts.task
        self.encoder, self.variables = encoder, _read_only(variables)
        evaluation = self.settings.evaluation
        train, test = map(self.task.examples, ("train", evaluation.split))
        self.train = _read_only(self.task.probe_examples(train))
        self.test = _read_only(test.first(evaluation.test_examples))
        self._features: dict[tuple[str, str], np.ndarray] = {}
        self._plain: dict[str, np.ndarray] = {}
        self._scored: dict[tuple[int, str], Scored] = {}
        self._selected: dict[int, list[Row]] = {}

    @functools.cached_property
    def untrained(self) -> Variables:
        """The variables of the encoder before training."""
        return encoder_variables(initial_state(self.parts), "online")

    @property
    def is_plain(self) -> bool:
        """Whether the transformation has plain (untransformed) images."""
        return self.parts.transformation.plain is not None

    def examples(self, split: str) -> Examples:
        """Returns the examples of a split."""
        return {"train": self.train, "test": self.test}[split]

    def y(self, split: str) -> np.ndarray:
        """Returns the targets or labels of a split; there must be some."""
        y = self.examples(split).y
        assert y is not None, "experiments with probes need labels"
        return y

    def features(self, split: str, family: str = "all") -> np.ndarray:
        """Returns features averaged over each M, `[len(num_views), N, D]`."""
        if (split, family) not in self._features:
            features = self.encoder.features(
                self.variables,
                self.examples(split).x,
                num_views=self.num_views,
                stream=STREAMS[split],
                family=family,
            )
            self._features[split, family] = _read_only(features)
        return self._features[split, family]

    def plain(self, split: str) -> np.ndarray:
        """Returns the features of plain images, `[N, D]`."""
        if split not in self._plain:
            x = self.examples(split).x
            self._plain[split] = _read_only(self.encoder.plain(self.variables, x))
        return self._plain[split]

    def fit_and_score(self, h: np.ndarray, h_test: np.ndarray) -> Scored:
        """Returns the probe of training features and its quality on test features."""
        probe = self.task.fit(h, self.y("train"))
        return self.task.score(probe, h_test, self.y("test"))

    def both(self, number: int, family: str = "all") -> tuple[np.ndarray, np.ndarray]:
        """Returns training and test features averaged over `num_views[number]`."""
        h, h_test = (self.features(split, family) for split in STREAMS)
        return h[number], h_test[number]

    def scored(self, number: int, family: str = "all") -> Scored:
        """Returns the scored probe on features averaged over `num_views[number]`."""
        place = number % len(self.num_views), family
        if place not in self._scored:
            self._scored[place] = self.fit_and_score(*self.both(number, family))
        return self._scored[place]

    def selected(self, number: int) -> list[Row]:
        """Returns `select` on features averaged over `num_views[number]`."""
        if number not in self._selected:
            views = self.num_views[number]
            self._selected[number] = self.select(*self.both(number), views)
        return self._selected[number]

    def select(self, h: np.ndarray, h_test: np.ndarray, views: int | str) -> list[Row]:
        """Returns rows of probes with a selected l2 or a limited number of steps.

        Of regression only the mean over the targets is returned.
        """
        y, y_test = self.y("train"), self.y("test")
        probes = {"selected": self.task.select(h, y, h_test, y_test)}
        for steps in self.settings.evaluation.lbfgs_steps:
            probe = self.task.fit_in_steps(h, y, steps)
            probes[f"lbfgs{steps}"] = self.task.score(probe, h_test, y_test).values
        return [
            row
            for name, values in probes.items()
            for row in rows_of(overall(values), views=views, probe=name)
        ]


def _read_only(tree: PyTree) -> PyTree:
    """Returns the tree, whose NumPy arrays can no longer be changed in place."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, np.ndarray):
            leaf.flags.writeable = False
    return tree


def overall(values: dict[str, float]) -> dict[str, float]:
    """Returns the metrics without those of single targets."""
    return {name: value for name, value in values.items() if "." not in name}
