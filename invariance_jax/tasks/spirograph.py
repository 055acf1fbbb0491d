"""The Spirograph task: regression of the target parameters of an example.

Foster, Pukdee, Rainforth (ICLR 2021), section 5.
"""

import jax.numpy as jnp
import numpy as np

from invariance_jax import data, evaluation
from invariance_jax.evaluation import LinearProbe
from invariance_jax.settings import Settings
from invariance_jax.settings.views import make_spirograph, spirograph_bounds
from invariance_jax.tasks.task import Examples, Task, in_float64
from invariance_jax.transforms import Transformation
from invariance_jax.types import Array


class SpirographTask(Task):
    """An example is a target vector; the probe is ridge regression, in CPU float64."""

    metric = "mse"
    precision = staticmethod(in_float64)

    def __init__(self, settings: Settings):
        """See `Task`."""
        super().__init__(settings)
        self.targets = settings.data.targets

    def examples(self, split: str, *, in_order: bool = False) -> Examples:
        """Returns the targets of a split, as x and as y."""
        targets = self._draw(split, getattr(self.settings.data, f"{split}_examples"))
        return Examples(targets, targets)

    def stand_ins(self, count: int) -> np.ndarray:
        """Returns the first training examples, which are drawn and not read."""
        return self._draw("train", count)

    def _draw(self, split: str, count: int) -> np.ndarray:
        return data.make_targets(
            split,
            num_examples=count,
            seed=self.settings.data.seed,
            targets=self.targets,
            bounds=spirograph_bounds(self.settings),
        )

    def _make_transformation(self, family: str) -> Transformation:
        return make_spirograph(self.settings)

    def shiftable(self) -> Transformation:
        """Returns the transformation itself."""
        return self.transformation()

    def labeled(self, y: np.ndarray, fraction: float) -> np.ndarray:
        """Returns the first indices, because examples are drawn independently."""
        return np.arange(max(int(np.floor(fraction * len(y) + 0.5)), 1))

    def fit(self, h: np.ndarray, y: np.ndarray) -> LinearProbe:
        """Returns the probe of a ridge regression."""
        with in_float64():
            l2 = self.settings.evaluation.l2
            return evaluation.fit_ridge(_to_float64(h), _to_float64(y), l2=l2)

    def select(
        self, h: np.ndarray, y: np.ndarray, h_test: np.ndarray, y_test: np.ndarray
    ) -> dict[str, float]:
        """See `Task.select`; each target has its own l2, for standardized features."""
        grid, num_held_out = self.settings.evaluation.l2_grid, max(len(h) // 10, 1)
        if not grid:
            return {}
        with in_float64():
            probe, _ = evaluation.fit_ridge_selected(
                _to_float64(h), _to_float64(y), l2=grid, num_held_out=num_held_out
            )
        return self.score(probe, h_test, y_test).values

    def fit_in_steps(self, h: np.ndarray, y: np.ndarray, steps: int) -> LinearProbe:
        """Returns the probe of `fit` if L-BFGS from 0 ends after `steps` steps.

        The initialization and line search of the authors' code may differ.
        """
        import scipy.optimize  # here, since most runs do not need it

        rows = np.concatenate([h, np.ones_like(h[:, :1])], axis=1, dtype=np.float64)
        shape = rows.shape[1], y.shape[1]
        gram, cross = rows.T @ rows / y.size, rows.T @ y / y.size
        # The bias, the last row, has no penalty.
        gram[np.diag_indices(len(gram) - 1)] += self.settings.evaluation.l2

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = flat.reshape(shape)
            half_gradient = gram @ weights - cross
            value = np.sum(weights * (half_gradient - cross))
            return float(value), 2 * half_gradient.ravel()

        solution = scipy.optimize.minimize(
            objective,
            np.zeros(shape).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps, "maxfun": 100 * steps, "ftol": 0, "gtol": 0},
        ).x.reshape(shape)
        with in_float64():
            return LinearProbe(_to_float64(solution[:-1]), _to_float64(solution[-1]))

    def quality(self, predictions: Array, y: Array) -> dict[str, float]:
        """Returns mse, the mean over the targets, and mse and r2 of each target."""
        mse = np.asarray(evaluation.mean_squared_error(predictions, y))
        r2 = np.asarray(evaluation.r_squared(predictions, y))
        values = {"mse": float(mse.mean())}
        for name, error, explained in zip(self.targets, mse, r2, strict=True):
            values |= {f"mse.{name}": float(error), f"r2.{name}": float(explained)}
        return values


def _to_float64(array: np.ndarray) -> Array:
    return jnp.asarray(array).astype(jnp.float64)
