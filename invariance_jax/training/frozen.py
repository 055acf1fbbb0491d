"""Features, probabilities and variances of a frozen encoder over a data set."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.data import Pictures
from invariance_jax.training.build import Parts
from invariance_jax.training.objective import Variables
from invariance_jax.training.parallel import make_map
from invariance_jax.training.step import TrainState
from invariance_jax.types import Array, Key, PyTree

VIEWS_BATCH = 100
"""Examples per device and call where several views of each are in memory at once."""

Inputs = np.ndarray | Pictures
"""Examples `x [N, ...]`."""

Mapped = Callable[[PyTree, Inputs, int], np.ndarray]
"""(variables, x [N, ...], stream) -> results [..., N, ...] on the host."""


class FrozenEncoder:
    """The encoder of a run with running statistics, over the examples of a data set.

    Variables are {"params", "batch_stats"} of the encoder. Examples `x [N, ...]` pass
    in batches of `evaluation.batch_size` per device. The views of an example depend
    only on `evaluation.seed`, the stream (an integer, a different one for each split)
    and the example's index. A family is a part of the transformation.
    """

    def __init__(
        self,
        parts: Parts,
        devices: Sequence[jax.Device],
        *,
        between: Callable[[], None] = lambda: None,
    ):
        """Builds the functions and compiles nothing; between: see `make_map`."""
        self._parts, self._settings = parts, parts.settings.evaluation
        self._make_map = functools.partial(make_map, devices=devices, between=between)
        self._plain = self.map(self._encode_plain, axis=0)
        self._map_views = functools.cache(self._make_map_views)

    def features(
        self,
        variables: Variables,
        x: Inputs,
        *,
        num_views: tuple[int, ...],
        stream: int,
        family: str = "all",
    ) -> np.ndarray:
        """Returns features averaged over each M, `[len(num_views), N, D]`."""
        average = evaluation.average_features
        mapped = self._map_views(average, self.encode, num_views, family)
        return mapped(variables, x, stream)

    def plain(self, variables: Variables, x: Inputs) -> np.ndarray:
        """Returns the features of plain images, `[N, D]`."""
        return self._plain(variables, x, 0)

    def pixels(
        self, x: Inputs, *, num_views: tuple[int, ...], stream: int
    ) -> np.ndarray:
        """Returns the averaged pixels of views, `[len(num_views), N, H W 3]`."""
        mapped = self._map_views(evaluation.average_features, _flat, num_views)
        return mapped({}, x, stream)

    def probabilities(
        self,
        variables: Variables,
        probe: evaluation.LinearProbe,
        x: Inputs,
        *,
        num_views: tuple[int, ...],
        stream: int,
    ) -> np.ndarray:
        """Returns averaged probabilities of a probe, `[len(num_views), N, C]`."""
        average = evaluation.average_features
        mapped = self._map_views(average, self._classify, num_views)
        return mapped((variables, probe), x, stream)

    def views(
        self, variables: Variables, x: Inputs, *, stream: int, family: str = "all"
    ) -> Array:
        """Returns features of `evaluation.variance_views` views, `[M, N, D]`."""
        count, encode_views = self._settings.variance_views, evaluation.encode_views
        mapped = self._map_views(encode_views, self.encode, count, family, VIEWS_BATCH)
        return jnp.asarray(mapped(variables, x, stream))

    def map(
        self,
        function: Callable[[PyTree, Array, Array, Array], Array],
        *,
        axis: int,
        batch_size: int | None = None,
    ) -> Mapped:
        """Returns a pure function mapped over the examples of a data set, in batches.

        function: `(variables, x [B, ...], indices int32 [B], stream) -> [..., B, ...]`;
        variables is any pytree, an argument of the compiled program. axis: that of the
        examples in the result. batch_size: per device, `evaluation.batch_size` if None.
        """
        size = batch_size or self._settings.batch_size
        return functools.partial(self._make_map(function, axis=axis), batch_size=size)

    def key(self, stream: int | Array) -> Key:
        """Returns the PRNG key of a stream of views."""
        return jax.random.fold_in(jax.random.key(self._settings.seed), stream)

    def encode(self, variables: Variables, images: Array) -> Array:
        """Returns the features of views, `[B, D]`."""
        return apply(self._parts.encoder, variables, images)

    def _make_map_views(
        self,
        function: Callable[..., Array],
        encode: Callable[[PyTree, Array], Array],
        num_views: tuple[int, ...] | int,
        family: str = "all",
        batch_size: int | None = None,
    ) -> Mapped:
        """Returns a function of `evaluation.averaging`, mapped over a data set."""
        transformation = self._parts.task.transformation(family)

        def compute(tree: PyTree, x: Array, indices: Array, stream: Array) -> Array:
            return function(
                self.key(stream),
                functools.partial(encode, tree),
                transformation,
                x,
                num_views=num_views,
                indices=indices,
            )

        return self.map(compute, axis=1, batch_size=batch_size)

    def _classify(
        self, tree: tuple[Variables, evaluation.LinearProbe], images: Array
    ) -> Array:
        variables, probe = tree
        return jax.nn.softmax(evaluation.predict(probe, self.encode(variables, images)))

    def _encode_plain(self, variables: Variables, x: Array, *_: Array) -> Array:
        plain = self._parts.transformation.plain
        assert plain is not None
        return self.encode(variables, plain(x))


def _flat(variables: Variables, images: Array) -> Array:
    return images.reshape(len(images), -1)


def apply(encoder: nn.Module, variables: Variables, images: Array) -> Array:
    """Returns the features of views with running statistics, `[B, D]`."""
    return jnp.asarray(encoder.apply(variables, images, train=False))


def encoder_variables(state: TrainState, network: str) -> Variables:
    """Returns {"params", "batch_stats"} of the "online" or the "target" encoder."""
    source = state if network == "online" else state.target
    assert source is not None, "build checks evaluation.network"
    collections = {"params": source.params, "batch_stats": source.batch_stats}
    return {name: parts["encoder"] for name, parts in collections.items()}
