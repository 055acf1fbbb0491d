"""Checks the user's own encoder and method on random inputs, before training."""

import contextlib
import functools
import logging
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.settings import KEYS, plugins
from invariance_jax.settings.schema import get
from invariance_jax.training.build import Parts, applied, build, view_shapes
from invariance_jax.training.parallel import AXIS_NAME
from invariance_jax.training.step import update_memory
from invariance_jax.types import Array, PyTree

_log = logging.getLogger(__name__)

_UNSEEN_BY_ENCODER = "precision", "batchnorm.group_size", "encoder.rematerialize"
_UNSEEN_BY_METHOD = "encoder.projection", "similarity_block"


def check_own_parts(parts: Parts, num_devices: int) -> None:
    """Checks the user's own encoder and method, if any, before training."""
    settings = parts.settings
    for part, check, unseen in (
        ("encoder.name", _check_encoder, _UNSEEN_BY_ENCODER),
        ("method.name", _check_method, _UNSEEN_BY_METHOD),
    ):
        if not plugins.is_own(name := get(settings, part)):
            continue
        _log.info("compiling a check of %s %s", part, name)
        for key in unseen:
            if (value := get(settings, key)) != KEYS[key].default:
                text = "%s is %r, which %s %r does not see: use its kwargs"
                _log.warning(text, key, value, part, name)
        check(parts, num_devices)


def _trace(
    function: Callable[..., PyTree], num_devices: int, *arguments: PyTree
) -> PyTree:
    """Returns the shapes and dtypes of what a function returns on one device."""
    axes = [(AXIS_NAME, num_devices)]
    trace = jax.make_jaxpr(function, axis_env=axes, return_shape=True)
    return trace(*arguments)[1]


def _in_training(
    module: nn.Module, x: PyTree
) -> tuple[PyTree, Callable[[PyTree, PyTree], PyTree]]:
    """Returns initial parameters, and `(params, x) -> outputs` of a training step."""
    variables = module.init(jax.random.key(1), x, train=False)
    params, stats = variables.get("params", {}), variables.get("batch_stats", {})

    def apply(params: PyTree, x: PyTree) -> PyTree:
        collections = {"params": params, "batch_stats": stats}
        module.apply(collections, x, train=False)  # for its errors, as evaluation does
        outputs, updated = module.apply(
            collections, x, train=True, mutable=["batch_stats"]
        )
        if _forms(updated.get("batch_stats", {})) != _forms(stats):
            raise ValueError("batch_stats change their shapes or dtypes.")
        return outputs

    return params, apply


def _forms(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)


def _on_few(
    function: Callable[..., PyTree], size: int, *inputs: PyTree
) -> tuple[PyTree, int]:
    """Returns what a function gives for few examples and these inputs, and how many.

    It is the least number, from 8, that the function accepts: a batch may need too much
    memory. Divisors of the batch size are tried and, as it may have none, powers of 2.
    """
    compiled = jax.jit(function, static_argnums=0)
    for count in range(8, size):
        if size % count == 0 or count.bit_count() == 1:
            with contextlib.suppress(Exception):  # user code may raise anything
                compiled.eval_shape(count, *inputs)
                break
    else:
        count = size
    return compiled(count, *inputs), count


def _gradient(encoder: nn.Module, shape: tuple[int, ...]) -> PyTree:
    """Returns the gradient of a squared derivative of h along random images, and h."""
    x = jax.random.uniform(jax.random.key(0), shape)
    params, represent = _in_training(encoder, x)

    def squared_tangent(params: PyTree) -> tuple[Array, PyTree]:
        at_params = functools.partial(represent, params)
        h, tangent = jax.jvp(at_params, (x,), (jnp.ones_like(x),))
        return jnp.sum(jnp.square(tangent)), h

    return jax.grad(squared_tangent, has_aux=True)(params)


def _check_encoder(parts: Parts, num_devices: int) -> None:
    """Checks that an encoder is finite and allows reverse over forward mode."""
    settings = parts.settings
    encoder = build(settings, axis_name=AXIS_NAME).encoder
    name, size = settings.encoder.name, settings.batch_size // settings.microbatches
    share, views = size // num_devices, view_shapes(parts.task, parts.transformation)
    image = views.shape[1:]

    def represent(x: Array) -> PyTree:
        params, apply = _in_training(encoder, x)
        return apply(params, x)

    x = jax.ShapeDtypeStruct((share, *image), jnp.float32)
    where = f"images of shape {x.shape}"
    fault = f"which cannot be applied to {where}:"
    with plugins.blaming("encoder.name", name, fault=fault):
        h = _trace(represent, num_devices, x)
    expected = share, parts.features
    if getattr(h, "shape", None) != expected:
        raise ValueError(
            f"encoder.name is {name!r}, which returns {h} for {where} if train=True; "
            f"expected h of shape {expected}, as if train=False."
        )
    fault = (
        "whose derivative along the images cannot be differentiated in the parameters, "
        "which the penalty needs (reverse over forward mode; no custom_vjp):"
    )
    with plugins.blaming("encoder.name", name, fault=fault):
        _trace(lambda: _gradient(encoder, x.shape), num_devices)
        result, few = _on_few(
            lambda count: _gradient(parts.encoder, (count, *image)), size
        )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result)):
        raise ValueError(
            f"encoder.name is {name!r}, whose h or derivatives are not finite on "
            f"{few} random images; expected finite h and derivatives."
        )


def _apply_method(parts: Parts, count: int, memory: PyTree) -> PyTree:
    """Returns losses, momenta (first and last step) and new memory, for random h."""
    method, target = parts.objective.method, (None, None)
    momenta: tuple[Array, ...] = ()
    shape = 2 + parts.settings.more_views, count, parts.features
    views = jax.random.normal(jax.random.key(0), shape)
    params, project = _in_training(method.heads, views[0])
    outputs = [project(params, h) for h in views]
    pair = outputs[0], outputs[1]
    if method.momentum is not None:
        ends = 0, parts.settings.derived.steps - 1
        steps = (jnp.full((), step, jnp.int32) for step in ends)  # traced
        momenta, target = tuple(map(method.momentum, steps)), pair
    losses = parts.objective.losses(outputs, target, memory)
    return losses, momenta, update_memory(parts.objective, memory, pair)


def _check_method(parts: Parts, num_devices: int) -> None:
    """Checks the functions of a method, and that the memory keeps its shapes."""
    settings, method = parts.settings, parts.objective.method
    share = settings.batch_size // num_devices
    where = f"method.name is {settings.method.name!r}, whose"
    for field in ("loss", "momentum", "update", "joint"):
        function = getattr(method, field)
        needed = field == "loss" and method.joint is None
        if not callable(function) and (needed or function is not None):
            raise ValueError(f"{where} {field} is {function!r}; expected a function.")

    shape = share, parts.features
    fault = f"whose heads, loss, momentum or update cannot be applied to h {shape}:"
    with plugins.blaming("method.name", settings.method.name, fault=fault):
        memory = jax.tree.map(jnp.asarray, method.memory)
        h = jax.ShapeDtypeStruct(shape, jnp.float32)
        params = applied(method.heads, h)[1].get("params", {})
        mapped = build(settings, axis_name=AXIS_NAME)
        on_device = functools.partial(_apply_method, mapped, share)
        losses, _, updated = _trace(on_device, num_devices, memory)
        found = f"{losses.dtype}{list(losses.shape)}"
        apply = functools.partial(_apply_method, parts)
        # As an input: of a constant XLA would compute all that it can at compile time.
        (numbers, momenta, _), few = _on_few(apply, settings.batch_size, memory)
    name = f"{where} {'loss' if method.joint is None else 'joint'}"
    if losses.shape != (share,) or not jnp.issubdtype(losses.dtype, jnp.floating):
        text = f"{name} returns {found} for {share} examples; expected floating [B]."
        raise ValueError(text)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} is not finite for {few} random examples.")
    for momentum in momenta:
        if np.shape(momentum) or not 0 <= momentum <= 1:
            raise ValueError(
                f"{where} momentum is {momentum}; expected one number, from 0 to 1."
            )
    if _forms(updated) != _forms(memory):
        raise ValueError(f"{where} update changes the shapes or dtypes of the memory.")
    if method.constant_rate not in (None, *params):
        raise ValueError(
            f"{where} constant_rate is {method.constant_rate!r}; expected None or one "
            f"of the parts of the heads' parameters: {', '.join(params) or 'none'}."
        )
