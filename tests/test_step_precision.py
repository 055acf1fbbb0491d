"""Gradients of a step on the device against float64 on the CPU, by precision."""

import jax
import numpy as np
import optax
import pytest
from tiny import tiny_config

from invariance_jax.settings import resolve
from invariance_jax.training.build import build, initial_state

CHANGES = {
    "batch_size": 32,
    "penalty.weight": 1.0,  # so that the penalty is seen in the gradient
    "penalty.example_limit": None,
    "encoder.name": "invariance_jax.models:ResNet",
    "data.train_examples": 32,
}


def step(device, dtype, kernels=None):
    """Returns loss and penalty `[2]`, and the gradient as one vector."""
    kwargs = {"stage_sizes": (1,), "bottleneck": False, "width": 8, "dtype": kernels}
    settings = resolve(tiny_config(CHANGES | {"encoder.kwargs": kwargs}))
    parts = build(settings)._replace(optimizer=optax.sgd(1.0))

    def cast(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if leaf.dtype == np.float32 else leaf

    state, x = initial_state(parts), parts.task.examples("train").x
    draws = jax.jit(parts.make_draw())(parts.key, 0)
    with jax.enable_x64(dtype == "float64"), jax.default_device(device):
        state, x, draws = jax.tree.map(cast, (state, x, draws))
        new, sums = jax.jit(parts.make_step())(state, x, draws)
    gradient = jax.tree.map(np.subtract, state.params, new.params)
    return (
        np.array([sums[name][0] for name in ("loss", "penalty")]),
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]),
    )


@pytest.fixture(scope="module")
def exact():
    return step(jax.local_devices(backend="cpu")[0], "float64")


@pytest.mark.parametrize(
    ("kernels", "products", "tolerance"),
    [
        (None, "highest", 1e-3),
        (None, None, 5e-2),  # TF32 on a GPU, bfloat16 on a TPU
        ("bfloat16", None, 1e-1),
    ],
)
def test_a_step_is_that_of_float64(exact, kernels, products, tolerance):
    with jax.default_matmul_precision(products):
        found = step(jax.local_devices()[0], "float32", kernels)
    for value, expected in zip(found, exact, strict=True):
        error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
        assert error < tolerance
