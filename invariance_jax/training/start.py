"""The state that training starts from: initialized, or with given weights."""

from typing import Any

import jax
import numpy as np

from invariance_jax.models import weights
from invariance_jax.training.components import (
    make_networks,
    make_stand_ins,
    make_transformation,
)
from invariance_jax.training.optimizers import make_optimizer
from invariance_jax.training.steps import TrainState, init_state


def initial_state(settings: Any) -> TrainState:
    """Returns the state before the first step, as NumPy arrays.

    Args:
      settings: the result of `training.settings.resolve`.

    Returns:
      The state of one replica.
    """
    networks, transformation = make_networks(settings), make_transformation(settings)
    optimizer, x = make_optimizer(settings), make_stand_ins(settings)
    # Compiled, since one operation after the other takes ten times as long.
    init = jax.jit(lambda key: init_state(key, networks, transformation, optimizer, x))
    state = init(jax.random.fold_in(jax.random.key(settings.seed), 0))
    return jax.tree.map(np.asarray, state)


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
