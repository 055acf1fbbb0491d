"""A frozen encoder over the examples of a data set: features, predictions, variance."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.numerics import l2_normalize
from invariance_jax.training.build import Parts
from invariance_jax.training.parallel import make_map
from invariance_jax.types import Array, Key

VIEWS_BATCH = 100
"""Examples per device of which several views are held at once."""


class FrozenEncoder:
    """The encoder of a run on running statistics, over the examples of a data set.

    Examples are passed in batches of `evaluation.batch_size` per device. The views of
    an example depend on `evaluation.seed`, the stream and its index only.
    """

    def __init__(
        self,
        parts: Parts,
        devices: Sequence[jax.Device],
        *,
        between: Callable[[], None] = lambda: None,
    ):
        """Builds the functions; nothing is compiled before the first use.

        Args:
          parts: of one replica.
          devices: the devices of all processes.
          between: called before each batch; what it raises ends the computation.
        """
        self._settings, self._task = parts.settings, parts.task
        self._make_map = functools.partial(make_map, devices=devices, between=between)
        self._encoder = parts.encoder
        self._map_features = functools.cache(self._make_features)
        self._map_probabilities = functools.cache(self._make_probabilities)
        self._plain = self.map(self._encode_plain, axis=0)
        self._map_views = functools.cache(self._make_views)

    def features(
        self,
        variables: Any,
        x: np.ndarray,
        *,
        num_views: tuple[int, ...],
        stream: int,
        family: str = "all",
    ) -> np.ndarray:
        """Returns the averaged features for every M of a sweep.

        Args:
          variables: {"params", "batch_stats"} of the encoder.
          x: examples `[N, ...]`.
          num_views: the sweep.
          stream: number of the stream of views, another one for each split.
          family: the part of the transformation that is drawn.

        Returns:
          `[len(num_views), N, D]`.
        """
        mapped = self._map_features(tuple(num_views), family)
        return mapped(variables, x, stream)

    def plain(self, variables: Any, x: np.ndarray) -> np.ndarray:
        """Returns the features of plain images.

        Args:
          variables: {"params", "batch_stats"} of the encoder.
          x: images `[N, ...]`.

        Returns:
          `[N, D]`.
        """
        return self._plain(variables, x, 0)

    def pixels(
        self, x: np.ndarray, *, num_views: tuple[int, ...], stream: int
    ) -> np.ndarray:
        """Returns the averaged images themselves, flat, for every M of a sweep.

        Args:
          x: examples `[N, ...]`.
          num_views: the sweep.
          stream: number of the stream of views: that of `features` gives its views.

        Returns:
          `[len(num_views), N, H W 3]`.
        """
        mapped = self._map_features(tuple(num_views), "all", pixels=True)
        return mapped({}, x, stream)

    def probabilities(
        self,
        variables: Any,
        probe: evaluation.LinearProbe,
        x: np.ndarray,
        *,
        num_views: tuple[int, ...],
        stream: int,
    ) -> np.ndarray:
        """Returns the mean of the predicted probabilities over M views, for every M.

        Args:
          variables: {"params", "batch_stats"} of the encoder.
          probe: a logistic probe on the features of one view.
          x: examples `[N, ...]`.
          num_views: the sweep.
          stream: number of the stream of views: that of `features` gives its views.

        Returns:
          `[len(num_views), N, C]`.
        """
        mapped = self._map_probabilities(tuple(num_views))
        return mapped((variables, probe), x, stream)

    def variance(
        self, variables: Any, x: np.ndarray, *, stream: int, family: str = "all"
    ) -> evaluation.Variance:
        """Returns the variance of n(h) over views of the same example.

        Args:
          variables: {"params", "batch_stats"} of the encoder.
          x: examples `[N, ...]`.
          stream: number of the stream of views.
          family: the part of the transformation that is drawn.

        Returns:
          Within, total and normalized variance.
        """
        views = self._map_views(family)(variables, x, stream)
        return evaluation.invariance(jnp.asarray(views))

    def map(
        self,
        function: Callable[..., Array],
        *,
        axis: int,
        batch_size: int | None = None,
    ) -> Callable[[Any, np.ndarray, int], np.ndarray]:
        """Returns a function of the examples of a data set, computed batch by batch.

        Args:
          function: `(variables, x [B, ...], indices int32 [B], stream) -> [..., B,
            ...]`, pure; variables is any pytree, and what it holds is not part of the
            compiled program.
          axis: the axis of the result that counts examples.
          batch_size: examples per device; None: `evaluation.batch_size`.

        Returns:
          `(variables, x [N, ...], stream) -> results [..., N, ...]` on the host.
        """
        size = batch_size or int(self._settings.evaluation.batch_size)
        return functools.partial(self._make_map(function, axis=axis), batch_size=size)

    def key(self, stream: int | Array) -> Key:
        """Returns the key of a stream of views."""
        return jax.random.fold_in(
            jax.random.key(self._settings.evaluation.seed), stream
        )

    def encode(self, variables: Any, images: Array) -> Array:
        """Returns the features `[B, D]` of views on running statistics."""
        return self._encoder.apply(variables, images, train=False)

    def _make_features(
        self, num_views: tuple[int, ...], family: str, *, pixels: bool = False
    ) -> Any:
        transformation = self._task.transformation(family)

        def encode(variables: Any, images: Array) -> Array:
            if pixels:
                return images.reshape(len(images), -1)
            return self.encode(variables, images)

        def features(variables: Any, x: Array, indices: Array, stream: Array) -> Array:
            return evaluation.average_features(
                self.key(stream),
                functools.partial(encode, variables),
                transformation,
                x,
                num_views=num_views,
                indices=indices,
            )

        return self.map(features, axis=1)

    def _make_probabilities(self, num_views: tuple[int, ...]) -> Any:
        transformation = self._task.transformation()

        def probabilities(parts: Any, x: Array, indices: Array, stream: Array) -> Array:
            variables, probe = parts

            def predict(images: Array) -> Array:
                h = self.encode(variables, images)
                return jax.nn.softmax(evaluation.predict(probe, h))

            return evaluation.average_features(
                self.key(stream),
                predict,
                transformation,
                x,
                num_views=num_views,
                indices=indices,
            )

        return self.map(probabilities, axis=1)

    def _encode_plain(
        self, variables: Any, x: Array, indices: Array, stream: Array
    ) -> Array:
        del indices, stream
        plain = self._task.transformation().plain
        assert plain is not None
        return self.encode(variables, plain(x))

    def _make_views(self, family: str) -> Any:
        transformation = self._task.transformation(family)

        def views(variables: Any, x: Array, indices: Array, stream: Array) -> Array:
            return evaluation.encode_views(
                self.key(stream),
                lambda images: l2_normalize(self.encode(variables, images)),
                transformation,
                x,
                num_views=self._settings.evaluation.variance_views,
                indices=indices,
            )

        return self.map(views, axis=1, batch_size=VIEWS_BATCH)


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
