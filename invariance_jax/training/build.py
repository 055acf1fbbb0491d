"""From settings to the parts of a run, built once per program."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from invariance_jax.data import Pictures
from invariance_jax.models import create_encoder, resnet, weights
from invariance_jax.settings import KEYS, Settings, check_parameters, plugins
from invariance_jax.settings.schema import get
from invariance_jax.tasks import Task, make_task
from invariance_jax.training.batches import Sampler, Streamed, make_sampler
from invariance_jax.training.draws import Draws, make_draw
from invariance_jax.training.methods import Method, make_method, projection
from invariance_jax.training.objective import Objective, block_output, is_block
from invariance_jax.training.optimizers import make_optimizer, make_schedule
from invariance_jax.training.step import (
    Metrics,
    TrainState,
    init_state,
    make_step,
)
from invariance_jax.transforms import Transformation
from invariance_jax.types import Array, Key, PyTree

_log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The parts of a run.

    Attributes:
      settings: what they were built from.
      task: examples and probes.
      transformation: makes views.
      encoder: images -> h.
      features: D of h.
      point_features: those of h, z or a block, where the penalty acts.
      method: heads and loss.
      objective: the loss of a batch.
      optimizer: an optax transformation.
      schedule: step -> learning rate.
      axis_name: the mapped axis over which a batch is spread; None: one replica.
    """

    settings: Settings
    task: Task
    transformation: Transformation
    encoder: nn.Module
    features: int
    point_features: int
    method: Method
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    axis_name: str | None

    @property
    def is_penalized(self) -> bool:
        """Whether the first view has a penalty of its own."""
        penalty = self.settings.penalty
        return penalty.weight > 0 and penalty.kind != "consistency"

    def make_step(self) -> Callable[..., tuple[TrainState, Metrics]]:
        """Returns the step of one replica, see `training.step`."""
        return make_step(
            self.objective,
            self.optimizer,
            microbatches=self.settings.microbatches,
        )

    def make_draw(self) -> Callable[..., Draws]:
        """Returns the draws of the views of a global batch, see `training.draws`."""
        settings = self.settings
        penalty, names = settings.penalty, self.transformation.names
        signed, more = penalty.estimator == "sign", self.objective.more
        chosen = penalty.parameters or names
        weights = penalty.parameter_weights or (1.0,) * len(chosen)
        weight_of = dict(zip(chosen, weights, strict=True))
        return make_draw(
            self.transformation,
            batch_size=settings.batch_size,
            directions=penalty.directions,
            penalized=self.is_penalized,
            kind=penalty.kind,
            column_weights=tuple(weight_of.get(name, 0.0) for name in names),
            sign_features=self.point_features if signed else None,
            average_views=settings.average_views,
            more=(more,) * settings.more_views if more else (),
        )

    def make_sampler(self) -> Sampler:
        """Returns the sampler of examples of a global batch, see `training.batches`."""
        count = self.settings.data.train_examples
        assert count is not None
        return make_sampler(num_examples=count, batch_size=self.settings.batch_size)

    def make_stream(self, pictures: Pictures, num_devices: int) -> Streamed:
        """Returns batches of pictures for a run from its seed."""
        return Streamed(
            pictures,
            self.make_sampler(),
            self.key,
            batch_size=self.settings.batch_size,
            num_devices=num_devices,
            prefetch=self.settings.data.prefetch,
        )

    @property
    def key(self) -> Key:
        """That of the order of the examples and of the views."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), 1)


def build(settings: Settings, *, axis_name: str | None = None) -> Parts:
    """Returns the parts of a run; nothing is compiled, no data set is read.

    Args:
      settings: the result of `resolve`.
      axis_name: the mapped axis over which a batch is spread; None: one replica.

    Raises:
      ValueError: if a part of the user's own cannot be imported or is not what it
        should be, or the method lacks what a key asks of it.
    """
    plugins.check(settings)
    task = make_task(settings)
    transformation = task.transformation()
    if plugins.is_own(settings.augmentation.name):
        check_parameters(settings, transformation.names)
    statistics = settings.penalty.batch_statistics
    encoder = _make_encoder(settings, "coupled", axis_name)
    images = view_shapes(task, transformation)
    alone = _make_encoder(settings, "coupled", None)
    h = _representation(settings, alone, images)
    features = int(h.shape[-1])
    method = make_method(settings, features, axis_name=axis_name)
    if method.momentum is None and settings.evaluation.network == "target":
        raise ValueError(
            "evaluation.network is 'target'; expected 'online', as method.name "
            f"{settings.method.name!r} has no target network."
        )
    penalized_heads = make_method(
        settings, features, tangent=statistics, axis_name=axis_name
    ).heads
    objective = Objective(
        encoder,
        _make_encoder(settings, statistics, axis_name),
        method,
        penalized_heads,
        transformation,
        settings.penalty,
        axis_name,
        task.transformation("more") if settings.more_views else None,
    )
    return Parts(
        settings,
        task,
        transformation,
        encoder,
        features,
        _point_features(settings, alone, images, h),
        method,
        objective,
        make_optimizer(settings, constant_rate=method.constant_rate),
        make_schedule(settings),
        axis_name,
    )


def _make_encoder(settings: Settings, tangent: str, axis_name: str | None) -> nn.Module:
    chosen = settings.encoder
    if plugins.is_own(chosen.name):
        kwargs = {"axis_name": axis_name, **chosen.kwargs}
        found = plugins.call("encoder.name", chosen.name, **kwargs)
        if not isinstance(found, nn.Module):
            raise ValueError(
                f"encoder.name is {chosen.name!r}, which returned {found!r}; expected "
                "a flax (linen) module."
            )
        return found
    return create_encoder(
        chosen.name,
        stem=chosen.stem,
        width=chosen.width,
        patch_size=chosen.patch_size,
        pool=chosen.pool,
        depth=chosen.depth,
        final=chosen.final,
        norm_group_size=settings.batchnorm.group_size,
        norm_tangent=tangent,
        precision=settings.precision,
        rematerialize=chosen.rematerialize,
        axis_name=axis_name,
    )


def view_shapes(task: Task, transformation: Transformation) -> jax.ShapeDtypeStruct:
    """Returns the shape of two views."""

    def views(key: Key) -> Array:
        x = jax.tree.map(jnp.asarray, task.stand_ins(2))
        return transformation.apply(x, transformation.draw(key, x))

    return jax.eval_shape(views, jax.random.key(0))


def _representation(
    settings: Settings, encoder: nn.Module, images: jax.ShapeDtypeStruct
) -> jax.ShapeDtypeStruct:
    """Returns the shape of h, which an encoder of the user's own may have wrong."""
    name = settings.encoder.name

    def init(images: Array) -> PyTree:
        return encoder.init_with_output(jax.random.key(0), images, train=False)[0]

    try:
        h = jax.eval_shape(init, images)
    except Exception as error:
        if not plugins.is_own(name):
            raise
        raise ValueError(
            f"encoder.name is {name!r}, which cannot be applied to images of shape "
            f"{images.shape}: {type(error).__name__}: {error}"
        ) from error
    shape = getattr(h, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != images.shape[0]:
        raise ValueError(
            f"encoder.name is {name!r}, which returns {shape} of images "
            f"{images.shape}; expected h [B, D]."
        )
    return h


def _point_features(
    settings: Settings,
    encoder: nn.Module,
    images: jax.ShapeDtypeStruct,
    h: jax.ShapeDtypeStruct,
) -> int:
    """Returns the features of what the penalty acts on."""
    at = settings.penalty.at
    if at == "z":
        return _projected(settings, h)
    if at == "h":
        return int(h.shape[-1])

    def point(images: Array) -> Array:
        _, seen = encoder.init_with_output(
            jax.random.key(0), images, train=False, capture_intermediates=is_block
        )
        return block_output(seen["intermediates"], at)

    try:
        return int(jax.eval_shape(point, images).shape[-1])
    except KeyError as error:
        raise ValueError(
            f"penalty.at is {at!r}; expected 'h', 'z' or a block of encoder.name "
            f"{settings.encoder.name!r}: {error.args[0]}."
        ) from error


def _projected(settings: Settings, h: jax.ShapeDtypeStruct) -> int:
    """Returns the features of z, which a method of the user's own may not have."""
    heads = make_method(settings, int(h.shape[-1])).heads

    def init(h: Array) -> PyTree:
        return heads.init_with_output(jax.random.key(0), h, train=False)[0]

    name = settings.method.name
    try:
        z = projection(jax.eval_shape(init, h))
    except Exception as error:
        raise ValueError(
            f"method.name is {name!r}, whose heads cannot be applied to h {h.shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if z is None:
        raise ValueError(
            f"penalty.at is 'z'; expected 'h', as the outputs of {name!r} are neither "
            'one matrix z [B, features] nor a dictionary with such an entry "z".'
        )
    return int(z.shape[-1])


def check_own_parts(parts: Parts) -> None:
    """Checks the parts of the user's own on random inputs, if there are any.

    Raises:
      ValueError: if an encoder is not finite or lacks the derivatives that training
        takes, or a method does not give one finite loss per example.
    """
    settings = parts.settings
    if plugins.is_own(settings.encoder.name):
        _log.info("compiling a check of the encoder %s", settings.encoder.name)
        for key in ("precision", "batchnorm.group_size", "encoder.rematerialize"):
            if (value := get(settings, key)) != KEYS[key].default:
                text = "%s is %r, of which encoder.name %r is not told: see its kwargs"
                _log.warning(text, key, value, settings.encoder.name)
        _check_encoder(settings, parts.encoder, parts)
    if plugins.is_own(settings.method.name):
        _check_method(settings, parts.method, parts.features)


def _check_encoder(settings: Settings, encoder: nn.Module, parts: Parts) -> None:
    """Checks an encoder: finite, and reverse over forward mode."""
    name, shape = settings.encoder.name, view_shapes(parts.task, parts.transformation)

    @jax.jit
    def gradient(x: Array) -> PyTree:
        variables = encoder.init(jax.random.key(1), x, train=True)

        def change(params: PyTree) -> tuple[Array, PyTree]:
            def represent(x: Array) -> PyTree:
                inputs = {**variables, "params": params}
                return encoder.apply(inputs, x, train=True, mutable=["batch_stats"])[0]

            h, tangent = jax.jvp(represent, (x,), (jnp.ones_like(x),))
            return jnp.sum(jnp.square(tangent)), h

        return jax.grad(change, has_aux=True)(variables["params"])

    try:
        found = jax.tree.leaves(
            gradient(jax.random.uniform(jax.random.key(0), shape.shape))
        )
    except Exception as error:
        raise ValueError(
            f"encoder.name is {name!r}, whose derivative along the images cannot be "
            "differentiated in the parameters, which the penalty needs (reverse over "
            f"forward mode; no custom_vjp): {type(error).__name__}: {error}"
        ) from error
    if not all(np.isfinite(leaf).all() for leaf in found):
        raise ValueError(
            f"encoder.name is {name!r}, which is not finite on random images, or its "
            "derivatives are not; expected finite h and derivatives."
        )


def _check_method(settings: Settings, method: Method, features: int) -> None:
    """Checks a method: one finite loss per example, a memory that keeps its shape."""
    name = settings.method.name

    @jax.jit
    def apply(h: Array) -> PyTree:
        variables = method.heads.init(jax.random.key(1), h, train=True)
        outputs, _ = method.heads.apply(
            variables, h, train=True, mutable=["batch_stats"]
        )
        target, memory = None if method.momentum is None else outputs, method.memory
        losses = method.loss(outputs, outputs, target, target, memory, axis_name=None)
        if method.update is not None:
            memory = method.update(memory, (outputs, outputs))
        return losses, memory

    try:
        h = jax.random.normal(jax.random.key(0), (4, features))
        losses, memory = apply(h)
    except Exception as error:
        raise ValueError(
            f"method.name is {name!r}, whose heads or loss cannot be applied to h "
            f"{(4, features)}: {type(error).__name__}: {error}"
        ) from error
    if np.shape(losses) != (4,) or not np.isfinite(losses).all():
        raise ValueError(
            f"method.name is {name!r}, whose loss is {losses} for 4 examples; "
            "expected [B] finite numbers."
        )
    if jax.tree.map(np.shape, memory) != jax.tree.map(np.shape, method.memory):
        raise ValueError(
            f"method.name is {name!r}, whose update changes the shapes of the memory."
        )


def initial_state(parts: Parts) -> TrainState:
    """Returns the state before the first step, of one replica, as NumPy arrays."""
    # Compiled, since one operation after the other takes ten times as long.
    init = jax.jit(lambda key: _init(parts, key))
    seed = jax.random.key(parts.settings.seed)
    state: TrainState = jax.tree.map(np.asarray, init(jax.random.fold_in(seed, 0)))
    return state


def state_shapes(parts: Parts) -> TrainState:
    """Returns what `initial_state` does, as shapes: nothing is computed."""
    return jax.eval_shape(lambda key: _init(parts, key), jax.random.key(0))


def _init(parts: Parts, key: Key) -> TrainState:
    x = jax.tree.map(jnp.asarray, parts.task.stand_ins(2))
    return init_state(key, parts.objective, parts.optimizer, x)


def read_weights(settings: Settings) -> dict[str, PyTree] | None:
    """Returns the variables of the encoder in the file of the settings, if any.

    Raises:
      ValueError: if the file cannot be read or holds another network.
    """
    path, chosen = settings.encoder.weights, settings.encoder
    if path is None:
        return None
    state_dict = weights.load_state_dict(path)
    found = weights.identify(state_dict)
    width = chosen.width or resnet.WIDTH
    expected = weights.Architecture(chosen.name, chosen.stem, width)
    if found != expected:
        raise ValueError(
            f"encoder.weights is {path}, which holds {found}; expected {expected}."
        )
    return weights.from_torch_state_dict(state_dict)


def first_state(parts: Parts) -> TrainState:
    """Returns the state that training starts from: given weights, else initial ones."""
    state, variables = initial_state(parts), read_weights(parts.settings)
    if variables is None:
        return state
    params = {**state.params, "encoder": variables["params"]}
    stats = {**state.batch_stats, "encoder": variables["batch_stats"]}
    target = state.target
    if target is not None:
        target = target._replace(params=params, batch_stats=stats)
    return state._replace(params=params, batch_stats=stats, target=target)
