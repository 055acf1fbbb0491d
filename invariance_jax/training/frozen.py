"""A frozen encoder over a data set: averaged features, views, and the online probe."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.numerics import l2_normalize
from invariance_jax.training.components import make_networks, make_transformation
from invariance_jax.training.parallel import make_map
from invariance_jax.types import Array


class Regression(NamedTuple):
    """A fitted linear regression and its quality on held-out examples.

    Attributes:
      predictions: `[N, T]`.
      mse: `[T]`, mean squared errors.
      r2: `[T]`, shares of explained variance.
    """

    predictions: np.ndarray
    mse: np.ndarray
    r2: np.ndarray


class FrozenEncoder:
    """The encoder of a run on running statistics, over the examples of a data set."""

    def __init__(self, settings: Any, devices: Sequence[jax.Device]):
        """Builds the functions; nothing is compiled before the first use.

        Args:
          settings: the result of `training.settings.resolve`.
          devices: the local devices.
        """
        self._settings = settings
        self._encoder = make_networks(settings).encoder
        transformation = make_transformation(settings)
        seed = settings.evaluation.seed
        views = settings.evaluation.variance_views

        def average(num_views: tuple[int, ...]) -> Any:
            def features(variables: Any, x: Array, indices: Array, stream: Array):
                return evaluation.average_features(
                    jax.random.fold_in(jax.random.key(seed), stream),
                    lambda images: self._apply(variables, images),
                    transformation,
                    x,
                    num_views=num_views,
                    indices=indices,
                )

            return make_map(features, devices, axis=1)

        def encode_views(variables: Any, x: Array, indices: Array, stream: Array):
            return evaluation.encode_views(
                jax.random.fold_in(jax.random.key(seed), stream),
                lambda images: l2_normalize(self._apply(variables, images)),
                transformation,
                x,
                num_views=views,
                indices=indices,
            )

        self._average = {
            views: average(views) for views in {(1,), settings.evaluation.num_views}
        }
        self._views = make_map(encode_views, devices, axis=1)

    def _apply(self, variables: Any, images: Array) -> Array:
        return self._encoder.apply(variables, images, train=False)

    def features(
        self, variables: Any, x: np.ndarray, *, num_views: tuple[int, ...], stream: int
    ) -> np.ndarray:
        """Returns the averaged features for every M of a sweep.

        Args:
          variables: {"params", "batch_stats"} of the encoder.
          x: examples `[N, ...]`.
          num_views: `(1,)` or the sweep of the settings.
          stream: number of the stream of views, another one for each split.

        Returns:
          `[len(num_views), N, D]`.
        """
        size = self._settings.evaluation.batch_size
        return self._average[num_views](variables, x, stream, batch_size=size)

    def variance(
        self, variables: Any, x: np.ndarray, *, stream: int
    ) -> evaluation.Variance:
        """Returns the variance of n(h) over views of the same example.

        Args:
          variables: {"params", "batch_stats"} of the encoder.
          x: examples `[N, ...]`.
          stream: number of the stream of views.

        Returns:
          Within, total and normalized variance.
        """
        views = self._views(variables, x, stream, batch_size=100)
        return evaluation.invariance(jnp.asarray(views))

    def regression(
        self,
        h: np.ndarray,
        y: np.ndarray,
        h_test: np.ndarray,
        y_test: np.ndarray,
    ) -> Regression:
        """Returns the ridge regression of targets on features, in float64 on the CPU.

        Args:
          h: training features `[N, D]`.
          y: training targets `[N, T]`.
          h_test: features `[N', D]` of the examples that are predicted.
          y_test: their targets `[N', T]`.

        Returns:
          Predictions and their quality.
        """
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            h, y, h_test, y_test = (
                jnp.asarray(array, jnp.float64) for array in (h, y, h_test, y_test)
            )
            probe = evaluation.fit_ridge(h, y, l2=self._settings.evaluation.l2)
            predictions = evaluation.predict(probe, h_test)
            return Regression(
                np.asarray(predictions),
                np.asarray(evaluation.mean_squared_error(predictions, y_test)),
                np.asarray(evaluation.r_squared(predictions, y_test)),
            )


def encoder_variables(state: Any) -> dict[str, Any]:
    """Returns the variables of the encoder in a training state.

    Args:
      state: a `TrainState` of one replica.

    Returns:
      {"params", "batch_stats"}.
    """
    return {
        "params": state.params["encoder"],
        "batch_stats": state.batch_stats["encoder"],
    }
