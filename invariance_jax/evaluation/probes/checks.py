"""Checks of the arguments that several probes share."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.types import Array


def check_matrix(array: Array, *, name: str, expected: str) -> None:
    """Checks that an array is a matrix.

    Args:
      array: what was given.
      name: of the argument, for the message.
      expected: the shape and meaning that were expected, for the message.

    Raises:
      ValueError: if the array has another rank than 2.
    """
    chex.assert_rank(
        array,
        2,
        custom_message=f"{name} must be {expected}",
        exception_type=ValueError,
    )


def check_representations(h: Array, *, name: str = "h") -> None:
    """Checks that representations are a floating matrix.

    Args:
      h: what was given.
      name: of the argument, for the message.

    Raises:
      ValueError: if h is not a matrix or does not have a floating dtype.
    """
    check_matrix(h, name=name, expected="[B, D], representations")
    if not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(f"{name} must have a float dtype, not {h.dtype}.")


def check_labels(
    labels: Array,
    *,
    num_examples: int,
    num_classes: int | None,
    name: str = "labels",
) -> None:
    """Checks class labels: one integer in range for each of one or more examples.

    Args:
      labels: what was given; the range is not checked where it is traced.
      num_examples: rows of the representations or logits that the labels belong to.
      num_classes: C; None leaves the range open.
      name: of the argument, for the message.

    Raises:
      ValueError: if a label is missing, is no integer or is outside 0 .. C - 1.
    """
    if jnp.shape(labels) != (num_examples,) or num_examples == 0:
        raise ValueError(
            f"{name} must have one entry for each example, of which there are "
            f"{num_examples}, at least one; found shape {list(jnp.shape(labels))}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} must have an integer dtype, not {labels.dtype}.")
    if num_classes is None or isinstance(labels, jax.core.Tracer):
        return
    found = np.asarray(labels)
    if found.min() < 0 or found.max() >= num_classes:
        raise ValueError(
            f"{name} must be from 0 to {num_classes - 1} for {num_classes} classes, "
            f"but are from {found.min()} to {found.max()}."
        )


def check_l2(*, l2: float | Array) -> None:
    """Checks the weight of a penalty.

    Args:
      l2: what was given; its sign is not checked where it is traced.

    Raises:
      ValueError: if l2 is not a number or, unless traced, is negative.
    """
    if jnp.ndim(l2) != 0:
        raise ValueError(f"l2 must be a number, but has shape {jnp.shape(l2)}.")
    if not isinstance(l2, jax.core.Tracer) and not l2 >= 0:
        raise ValueError(f"l2 must be 0 or more, not {l2}.")
