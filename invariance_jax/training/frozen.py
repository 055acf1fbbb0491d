"""A frozen encoder over the examples of a data set: features, predictions, views."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.data import Pictures
from invariance_jax.numerics import l2_normalize
from invariance_jax.training.build import Parts
from invariance_jax.training.objective import Variables
from invariance_jax.training.parallel import make_map
from invariance_jax.training.step import TrainState
from invariance_jax.types import Array, Key, PyTree

VIEWS_BATCH = 100
"""Examples per device of which several views are held at once."""

Mapped = Callable[[PyTree, np.ndarray | Pictures, int], np.ndarray]
"""(variables, x [N, ...], stream) -> results [..., N, ...] on the host."""


class FrozenEncoder:
    """The encoder of a run on running statistics, over the examples of a data set.

    Examples `x [N, ...]` are passed in batches of `evaluation.batch_size` per device.
    The views of an example depend on `evaluation.seed`, the stream (a number, another
    one for each split) and its index only; a family is a part of the transformation.
    """

    def __init__(
        self,
        parts: Parts,
        devices: Sequence[jax.Device],
        *,
        between: Callable[[], None] = lambda: None,
    ):
        """Builds the functions; nothing is compiled before the first use."""
        self._parts, self._chosen = parts, parts.settings.evaluation
        self._make_map = functools.partial(make_map, devices=devices, between=between)
        self._plain = self.map(self._encode_plain, axis=0)
        self._averaged = functools.cache(self._make_averaged)
        self._views = functools.cache(self._make_views)

    def features(
        self,
        variables: Variables,
        x: np.ndarray | Pictures,
        *,
        num_views: tuple[int, ...],
        stream: int,
        family: str = "all",
    ) -> np.ndarray:
        """Returns features averaged over each M, `[len(num_views), N, D]`."""
        return self._averaged(self.encode, num_views, family)(variables, x, stream)

    def plain(self, variables: Variables, x: np.ndarray | Pictures) -> np.ndarray:
        """Returns the features of plain images, `[N, D]`."""
        return self._plain(variables, x, 0)

    def pixels(
        self, x: np.ndarray | Pictures, *, num_views: tuple[int, ...], stream: int
    ) -> np.ndarray:
        """Returns the views of `features` averaged, `[len(num_views), N, H W 3]`."""
        return self._averaged(_flat, num_views, "all")({}, x, stream)

    def probabilities(
        self,
        variables: Variables,
        probe: evaluation.LinearProbe,
        x: np.ndarray | Pictures,
        *,
        num_views: tuple[int, ...],
        stream: int,
    ) -> np.ndarray:
        """Returns averaged probabilities of a probe, `[len(num_views), N, C]`."""
        mapped = self._averaged(self._classify, num_views, "all")
        return mapped((variables, probe), x, stream)

    def views(
        self,
        variables: Variables,
        x: np.ndarray | Pictures,
        *,
        stream: int,
        family: str = "all",
    ) -> Array:
        """Returns features of `evaluation.variance_views` views, `[M, N, D]`."""
        return jnp.asarray(self._views(family)(variables, x, stream))

    def variance(
        self, variables: Variables, x: np.ndarray | Pictures, *, stream: int
    ) -> evaluation.Variance:
        """Returns the variance of n(h) over these views."""
        views = self.views(variables, x, stream=stream)
        return evaluation.invariance(l2_normalize(views))

    def map(
        self,
        function: Callable[[PyTree, Array, Array, Array], Array],
        *,
        axis: int,
        batch_size: int | None = None,
    ) -> Mapped:
        """Returns a function of the examples of a data set, computed batch by batch.

        The function is pure, `(variables, x [B, ...], indices int32 [B], stream) ->
        [..., B, ...]`; variables is any pytree that is no part of the compiled program,
        the axis that of the examples in the result, batch_size that of one device.
        """
        size = batch_size or self._chosen.batch_size
        return functools.partial(self._make_map(function, axis=axis), batch_size=size)

    def key(self, stream: int | Array) -> Key:
        """Returns the key of a stream of views."""
        return jax.random.fold_in(jax.random.key(self._chosen.seed), stream)

    def encode(self, variables: Variables, images: Array) -> Array:
        """Returns the features of views, `[B, D]`."""
        return apply(self._parts.encoder, variables, images)

    def _make_averaged(
        self,
        encode: Callable[[PyTree, Array], Array],
        num_views: tuple[int, ...],
        family: str,
    ) -> Mapped:
        transformation = self._parts.task.transformation(family)

        def averaged(tree: PyTree, x: Array, indices: Array, stream: Array) -> Array:
            return evaluation.average_features(
                self.key(stream),
                functools.partial(encode, tree),
                transformation,
                x,
                num_views=num_views,
                indices=indices,
            )

        return self.map(averaged, axis=1)

    def _classify(
        self, tree: tuple[Variables, evaluation.LinearProbe], images: Array
    ) -> Array:
        variables, probe = tree
        return jax.nn.softmax(evaluation.predict(probe, self.encode(variables, images)))

    def _encode_plain(
        self, variables: Variables, x: Array, indices: Array, stream: Array
    ) -> Array:
        plain = self._parts.transformation.plain
        assert plain is not None
        return self.encode(variables, plain(x))

    def _make_views(self, family: str) -> Mapped:
        transformation = self._parts.task.transformation(family)

        def views(tree: Variables, x: Array, indices: Array, stream: Array) -> Array:
            return evaluation.encode_views(
                self.key(stream),
                functools.partial(self.encode, tree),
                transformation,
                x,
                num_views=self._chosen.variance_views,
                indices=indices,
            )

        return self.map(views, axis=1, batch_size=VIEWS_BATCH)


def _flat(variables: Variables, images: Array) -> Array:
    return images.reshape(len(images), -1)


def apply(encoder: nn.Module, variables: Variables, images: Array) -> Array:
    """Returns the features of views on running statistics, `[B, D]`."""
    return jnp.asarray(encoder.apply(variables, images, train=False))


def encoder_variables(state: TrainState, network: str) -> Variables:
    """Returns {"params", "batch_stats"} of the encoder in a state of one replica."""
    chosen = state if network == "online" else state.target
    assert chosen is not None, "build checks evaluation.network"
    parts = {"params": chosen.params, "batch_stats": chosen.batch_stats}
    return {name: collection["encoder"] for name, collection in parts.items()}
