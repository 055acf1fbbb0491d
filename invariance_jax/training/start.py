"""What training starts from: a state, initialized or with given weights, and a step."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from invariance_jax.models import weights
from invariance_jax.training import parallel
from invariance_jax.training.components import (
    make_networks,
    make_stand_ins,
    make_transformation,
)
from invariance_jax.training.draws import Draws, make_draw
from invariance_jax.training.objective import penalized_views
from invariance_jax.training.optimizers import make_optimizer
from invariance_jax.training.steps import TrainState, init_state, make_step
from invariance_jax.types import Array, Key


def initial_state(settings: Any) -> TrainState:
    """Returns the state before the first step, as NumPy arrays.

    Args:
      settings: the result of `training.settings.resolve`.

    Returns:
      The state of one replica.
    """
    # Compiled, since one operation after the other takes ten times as long.
    init = jax.jit(_make_init(settings))
    state = init(jax.random.fold_in(jax.random.key(settings.seed), 0))
    return jax.tree.map(np.asarray, state)


def state_shapes(settings: Any) -> TrainState:
    """Returns what `initial_state` does, as shapes: nothing is computed.

    Args:
      settings: the result of `training.settings.resolve`.

    Returns:
      The state of one replica, leaves `jax.ShapeDtypeStruct`.
    """
    return jax.eval_shape(_make_init(settings), jax.random.key(settings.seed))


def _make_init(settings: Any) -> Callable[[Key], TrainState]:
    networks, transformation = make_networks(settings), make_transformation(settings)
    optimizer, x = make_optimizer(settings), make_stand_ins(settings)
    return lambda key: init_state(key, networks, transformation, optimizer, x)


def read_weights(settings: Any) -> dict[str, Any] | None:
    """Returns the variables of the encoder in the file of the settings.

    Args:
      settings: the result of `training.settings.resolve`.

    Returns:
      {"params", "batch_stats"}; None if `encoder.weights` is empty.

    Raises:
      ValueError: if the file cannot be read or holds another network.
    """
    path, chosen = settings.encoder.weights, settings.encoder
    if path is None:
        return None
    state_dict = weights.load_state_dict(path)
    found = weights.identify(state_dict)
    if found != (chosen.name, chosen.stem):
        raise ValueError(
            f"encoder.weights is {path}, which holds {found.name} with the "
            f"{found.stem} stem; expected {chosen.name} with the {chosen.stem} stem."
        )
    return weights.from_torch_state_dict(state_dict)


def first_state(settings: Any) -> TrainState:
    """Returns the state that training starts from: given weights, else initial ones.

    Args:
      settings: the result of `training.settings.resolve`.

    Returns:
      The state of one replica, at step 0.

    Raises:
      ValueError: as `read_weights`.
    """
    state, variables = initial_state(settings), read_weights(settings)
    if variables is None:
        return state
    return state._replace(
        params={**state.params, "encoder": variables["params"]},
        batch_stats={**state.batch_stats, "encoder": variables["batch_stats"]},
    )


def step_and_draw(settings: Any) -> tuple[Callable[..., Any], Callable[..., Draws]]:
    """Returns the step of a run on one of several replicas, and what draws for it.

    Args:
      settings: the result of `training.settings.resolve`.

    Returns:
      The first two arguments of `parallel.make_train`.
    """
    transformation = make_transformation(settings)
    step = make_step(
        settings,
        make_networks(settings, axis_name=parallel.AXIS_NAME),
        transformation,
        make_optimizer(settings),
        axis_name=parallel.AXIS_NAME,
    )
    draw = make_draw(
        transformation,
        num_examples=settings.data.train_examples,
        batch_size=settings.batch_size,
        directions=settings.penalty.directions,
        penalized_views=penalized_views(settings),
        sign_features=_sign_features(settings),
        average_views=settings.average_views,
    )
    return step, draw


def _sign_features(settings: Any) -> int | None:
    """Returns the features of what the penalty acts on if it is projected on signs."""
    if settings.penalty.estimator != "sign" or not penalized_views(settings):
        return None
    if settings.penalty.at == "z":
        return int(settings.encoder.projection)
    networks, x = make_networks(settings), make_stand_ins(settings)
    transformation = make_transformation(settings)

    def represent(key: Key) -> Array:
        images = transformation.apply(x, transformation.sample(key, len(x)))
        return networks.encoder.init_with_output(key, images, train=False)[0]

    return int(jax.eval_shape(represent, jax.random.key(0)).shape[-1])
