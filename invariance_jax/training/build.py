"""Builds the parts of a run from its settings."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from invariance_jax.data import Pictures
from invariance_jax.models import create_encoder, resnet, weights
from invariance_jax.settings import Settings, check_parameters, plugins
from invariance_jax.tasks import Task, make_task
from invariance_jax.training.batches import Sampler, Streamed, make_sampler
from invariance_jax.training.draws import Draws, make_draw
from invariance_jax.training.methods import make_method, projection
from invariance_jax.training.objective import Objective, block_output, is_block
from invariance_jax.training.optimizers import make_optimizer
from invariance_jax.training.step import Metrics, Target, TrainState, make_step
from invariance_jax.transforms import Transformation
from invariance_jax.types import Array, Key, PyTree


class Parts(NamedTuple):
    """The parts of a run."""

    settings: Settings  # from which the parts were built
    task: Task  # examples and probes
    transformation: Transformation  # makes views
    encoder: nn.Module  # images -> h
    features: int  # D of h
    point_features: int  # features of the penalized output: h, z or a block
    objective: Objective  # the loss of a batch
    optimizer: optax.GradientTransformation

    def make_step(self) -> Callable[..., tuple[TrainState, Metrics]]:
        """Returns the train step of one replica, see `training.step`."""
        count = self.settings.microbatches
        return make_step(self.objective, self.optimizer, microbatches=count)

    def make_draw(self) -> Callable[..., Draws]:
        """Returns the function that draws a step's views, see `training.draws`."""
        settings, more = self.settings, self.objective.more
        return make_draw(
            self.transformation,
            settings.penalty,
            batch_size=settings.batch_size,
            sign_features=self.point_features,
            average_views=settings.average_views,
            more=(more,) * settings.more_views if more else (),
        )

    def make_sampler(self) -> Sampler:
        """Returns the sampler of examples of a global batch, see `training.batches`."""
        count = self.settings.data.train_examples
        assert count is not None
        return make_sampler(num_examples=count, batch_size=self.settings.batch_size)

    def make_stream(self, pictures: Pictures, num_devices: int) -> Streamed:
        """Returns batches of pictures, decoded in the order given by the seed."""
        return Streamed(
            pictures,
            self.make_sampler(),
            self.key,
            batch_size=self.settings.batch_size,
            num_devices=num_devices,
            prefetch=self.settings.data.prefetch,
        )

    def init(self, key: Key) -> TrainState:
        """Returns the state of one replica before the first step."""
        encoder_key, heads_key, view_key = jax.random.split(key, 3)
        transformation, method = self.transformation, self.objective.method
        x = jax.tree.map(jnp.asarray, self.task.stand_ins(2))  # for the shapes
        images = transformation.apply(x, transformation.draw(view_key, x))
        encoder = self.encoder.init(encoder_key, images, train=False)
        h = self.encoder.apply(encoder, images, train=False)
        heads = method.heads.init(heads_key, h, train=False)
        parts = {"encoder": encoder, "heads": heads}
        params = {name: part.get("params", {}) for name, part in parts.items()}
        stats = {name: part.get("batch_stats", {}) for name, part in parts.items()}
        target, effects, penalty = None, None, self.settings.penalty
        if method.momentum is not None:
            # A copy: no buffer of the donated state may occur twice in it.
            target = Target(*jax.tree.map(jnp.copy, (params, stats)))
        if penalty.kind == "mixed" and penalty.weight > 0:
            effects = jnp.zeros((2, len(transformation.names)))
        memory = jax.tree.map(jnp.asarray, method.memory)
        step, opt_state = jnp.zeros((), jnp.int32), self.optimizer.init(params)
        return TrainState(step, params, stats, opt_state, target, memory, effects)

    @property
    def key(self) -> Key:
        """PRNG key from which training draws the order of examples and the views."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), 1)


def build(settings: Settings, *, axis_name: str | None = None) -> Parts:
    """Returns the parts of a run; compiles nothing and reads no data set."""
    plugins.check(settings)
    task = make_task(settings)
    transformation = task.transformation()
    if plugins.is_own(settings.augmentation.name):
        check_parameters(settings, transformation.names)
    tangent = settings.penalty.batch_statistics
    encoder = _make_encoder(settings, "coupled", axis_name)
    features, point_features = _features(settings, view_shapes(task, transformation))
    method = make_method(settings, features, axis_name=axis_name)
    if method.momentum is None and settings.evaluation.network == "target":
        raise ValueError(
            "evaluation.network is 'target'; expected 'online', as method.name "
            f"{settings.method.name!r} has no target network."
        )
    penalized_heads = make_method(
        settings, features, tangent=tangent, axis_name=axis_name
    ).heads
    objective = Objective(
        encoder,
        _make_encoder(settings, tangent, axis_name),
        method,
        penalized_heads,
        transformation,
        settings.penalty,
        axis_name,
        task.transformation("more") if settings.more_views else None,
    )
    optimizer = make_optimizer(settings, constant_rate=method.constant_rate)
    return Parts(
        settings,
        task,
        transformation,
        encoder,
        features,
        point_features,
        objective,
        optimizer,
    )


def _make_encoder(settings: Settings, tangent: str, axis_name: str | None) -> nn.Module:
    """Returns the encoder; tangent: as penalty.batch_statistics."""
    encoder = settings.encoder
    if plugins.is_own(encoder.name):
        kwargs = {"axis_name": axis_name, **encoder.kwargs}
        module = plugins.call("encoder.name", encoder.name, **kwargs)
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"encoder.name is {encoder.name!r}, which returned {module!r}; "
                "expected a flax (linen) module."
            )
        return module
    return create_encoder(
        encoder.name,
        stem=encoder.stem,
        width=encoder.width,
        patch_size=encoder.patch_size,
        pool=encoder.pool,
        depth=encoder.depth,
        final=encoder.final,
        norm_group_size=settings.batchnorm.group_size,
        norm_tangent=tangent,
        precision=settings.precision,
        rematerialize=encoder.rematerialize,
        axis_name=axis_name,
    )


def view_shapes(task: Task, transformation: Transformation) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a batch of two views."""

    def views(key: Key) -> Array:
        x = jax.tree.map(jnp.asarray, task.stand_ins(2))
        return transformation.apply(x, transformation.draw(key, x))

    return jax.eval_shape(views, jax.random.key(0))


def applied(
    module: nn.Module, x: PyTree, seen: Callable[..., bool] | bool = False
) -> tuple[PyTree, PyTree]:
    """Returns the shapes and dtypes of a module's outputs for x, and of its variables.

    `seen` selects the submodule calls whose outputs are captured as intermediates.
    """
    init = functools.partial(
        module.init_with_output, train=False, capture_intermediates=seen
    )
    return jax.eval_shape(init, jax.random.key(0), x)


def _features(settings: Settings, images: jax.ShapeDtypeStruct) -> tuple[int, int]:
    """Returns the number of features of h, and of the penalized h, z or block."""
    name, at = settings.encoder.name, settings.penalty.at
    encoder = _make_encoder(settings, "coupled", None)
    fault = f"which cannot be applied to images of shape {images.shape}:"
    with plugins.blaming("encoder.name", name, fault=fault):
        seen = at not in ("h", "z") and is_block
        h, variables = applied(encoder, images, seen)
    shape = getattr(h, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != images.shape[0]:
        raise ValueError(
            f"encoder.name is {name!r}, which returns shape {shape} for images "
            f"of shape {images.shape}; expected h [B, D]."
        )
    if at == "h":
        return shape[-1], shape[-1]
    if at == "z":
        return shape[-1], _features_of_z(settings, h)
    try:
        block = functools.partial(block_output, name=at)
        point = jax.eval_shape(block, variables.get("intermediates", {}))
    except KeyError as error:
        raise ValueError(
            f"penalty.at is {at!r}; expected 'h', 'z' or a block of encoder.name "
            f"{name!r}: {error.args[0]}."
        ) from error
    return shape[-1], point.shape[-1]


def _features_of_z(settings: Settings, h: jax.ShapeDtypeStruct) -> int:
    name, heads = settings.method.name, make_method(settings, h.shape[-1]).heads
    fault = f"whose heads cannot be applied to h {h.shape}:"
    with plugins.blaming("method.name", name, fault=fault):
        z = projection(applied(heads, h)[0])
    if z is None:
        raise ValueError(
            f"penalty.at is 'z'; expected 'h', as the outputs of {name!r} are neither "
            'one matrix z [B, features] nor a dictionary with such an entry "z".'
        )
    return int(z.shape[-1])


def initial_state(parts: Parts) -> TrainState:
    """Returns the state of one replica before the first step, as NumPy arrays."""
    key = jax.random.fold_in(jax.random.key(parts.settings.seed), 0)
    # Compiled: operation by operation, it takes ten times as long.
    state: TrainState = jax.tree.map(np.asarray, jax.jit(parts.init)(key))
    return state


def state_shapes(parts: Parts) -> TrainState:
    """Returns the shapes and dtypes of `initial_state`; computes nothing."""
    return jax.eval_shape(parts.init, jax.random.key(0))


def read_weights(settings: Settings) -> dict[str, PyTree] | None:
    """Returns the encoder's variables from the file encoder.weights; None: no file."""
    path, encoder = settings.encoder.weights, settings.encoder
    if path is None:
        return None
    state_dict = weights.load_state_dict(path)
    found = weights.identify(state_dict)
    width = encoder.width or resnet.WIDTH
    expected = weights.Architecture(encoder.name, encoder.stem, width)
    if found != expected:
        raise ValueError(
            f"encoder.weights is {path}, which holds {found}; expected {expected}."
        )
    return weights.from_torch_state_dict(state_dict)


def first_state(parts: Parts) -> TrainState:
    """Returns the state at step 0, with the encoder of encoder.weights if given."""
    state, variables = initial_state(parts), read_weights(parts.settings)
    if variables is None:
        return state
    params = {**state.params, "encoder": variables["params"]}
    stats = {**state.batch_stats, "encoder": variables["batch_stats"]}
    target = state.target
    if target is not None:
        target = target._replace(params=params, batch_stats=stats)
    return state._replace(params=params, batch_stats=stats, target=target)
