"""Self-supervised methods: heads on the representation, and a loss of their outputs.

The invariance penalty is not part of a method: it can be added to each of them. Keyword
defaults are the papers' values; `method.kwargs` overrides those that `make_method` does
not set from other keys. All heads normalize over the whole batch, whatever the group
size of the encoder.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from invariance_jax import losses
from invariance_jax.models import PredictedProjection, ProjectionHead
from invariance_jax.settings import Settings, plugins
from invariance_jax.settings.schema import Key
from invariance_jax.settings.values import Bad, convert, expectation
from invariance_jax.types import Array, PyTree


class Method(NamedTuple):
    """A self-supervised method.

    Attributes:
      heads: flax module, `heads.apply(variables, h [B, D], train=bool)` -> outputs, a
        pytree of `[B, ...]`; the projection z is its only array, or its entry "z".
      loss: `(own, other, target_own, target_other, memory, *, axis_name) -> [B]`; own
        and other are outputs of the heads for the first and the second views, then
        those of the target network's heads (None without one). The mean over all
        replicas is the loss of the joined batch; axis_name None: one replica.
        None if there is `joint`.
      momentum: of the target network, step -> m from 0 to 1, in `target <- m target +
        (1 - m) parameters` after each step; None: there is no target network.
      memory: a pytree of arrays that the method keeps from step to step, such as a
        queue; (): none.
      update: `(memory, outputs) -> memory` after each step; outputs is the pair of
        both views' outputs for the whole batch, of the target network if there is one.
        None: the memory stays the same.
      constant_rate: name of the part of the heads' parameters whose learning rate is
        the peak rate in every step; None: no part.
      joint: `(outputs, *, axis_name) -> [B]`, a loss of the outputs of all views of an
        example, which replaces `loss`; None: `loss` compares the views in pairs.
    """

    heads: nn.Module
    loss: Callable[..., Array] | None
    momentum: optax.Schedule | None = None
    memory: PyTree = ()
    update: Callable[[PyTree, PyTree], PyTree] | None = None
    constant_rate: str | None = None
    joint: Callable[..., Array] | None = None


Head = Callable[..., ProjectionHead]
"""`ProjectionHead` with its `tangent` and `axis_name` set."""


def projection(outputs: PyTree) -> PyTree:
    """Returns the projection z in outputs of heads, None if there is no matrix z."""
    z = outputs.get("z") if isinstance(outputs, dict) else outputs
    return z if getattr(z, "ndim", 0) == 2 else None


def _of_pair(loss: Callable[..., Array], **settings: object) -> Callable[..., Array]:
    """Returns the loss of a method that only compares the z of both views."""

    def pair_loss(
        own: PyTree, other: PyTree, *_: PyTree, axis_name: str | None
    ) -> Array:
        return loss(own, other, axis_name=axis_name, **settings)

    return pair_loss


def _crossed(
    loss: Callable[[Array, Array], Array], pair: tuple[PyTree, PyTree], targets: PyTree
) -> Array:
    """Returns the loss of each view's p and the other view's target z, summed."""
    (own, other), (target_own, target_other) = pair, targets
    return loss(own["p"], target_other["z"]) + loss(other["p"], target_own["z"])


def rising(momentum: float, *, steps: int) -> optax.Schedule:
    """Returns a momentum that rises to 1 along half a cosine, Grill et al. (2020)."""

    def schedule(step: Array) -> Array:
        # Converted first: int32 divided is float32, whatever the precision.
        angle = math.pi / steps * jnp.asarray(step, float)
        return 1 - (1 - momentum) * (1 + jnp.cos(angle)) / 2

    return schedule


def contrastive(
    loss: Callable[..., Array],
    /,
    head: Head,
    *,
    temperature: float,
    output: int = 128,
    block_size: int | None = None,
) -> Method:
    """SimCLR, Chen, Kornblith, Norouzi, Hinton (2020); DCL, Yeh et al. (2022).

    They differ only in the loss of z. The head is that of Foster et al. (2021).
    """
    pair_loss = _of_pair(loss, temperature=temperature, block_size=block_size)
    return Method(head(output=output), pair_loss)


def moco_v3(
    head: Head,
    *,
    temperature: float,
    steps: int,
    hidden: int = 4096,
    layers: int = 3,
    output: int = 256,
    final_norm: bool = True,
    momentum: float = 0.99,
    block_size: int | None = None,
) -> Method:
    """MoCo v3, Chen, Xie, He (2021), algorithm 1.

    `2 T` times InfoNCE of p with the target's z of the other view as keys, summed over
    both views. The heads are those of the paper's ViT. Its ResNet has a projector of 2
    layers and, in its code, a predictor without final normalization.
    """
    predictor = head(hidden, output, final_norm=final_norm)
    heads = PredictedProjection(head(hidden, output, layers), predictor)

    def loss(own: PyTree, other: PyTree, *rest: PyTree, axis_name: str | None) -> Array:
        nce = functools.partial(
            losses.info_nce,
            temperature=temperature,
            block_size=block_size,
            axis_name=axis_name,
        )
        return 2 * temperature * _crossed(nce, (own, other), rest[:2])

    return Method(heads, loss, rising(momentum, steps=steps))


def byol(
    head: Head,
    *,
    steps: int,
    hidden: int = 4096,
    output: int = 256,
    momentum: float = 0.996,
) -> Method:
    """BYOL, Grill et al. (2020), equation 2, summed over both views.

    `2 - 2 cos` of the angle between p and the target's z of the other view.
    """
    mlp = head(hidden, output, final_norm=False)
    heads = PredictedProjection(mlp, mlp.clone())

    def loss(own: PyTree, other: PyTree, *rest: PyTree, axis_name: str | None) -> Array:
        return 4 + 2 * _crossed(losses.negative_cosine, (own, other), rest[:2])

    return Method(heads, loss, rising(momentum, steps=steps))


def simsiam(
    head: Head,
    *,
    hidden: int = 2048,
    layers: int = 3,
    output: int = 2048,
    bottleneck: int = 512,
) -> Method:
    """SimSiam, Chen and He (2021), equations 1 to 4.

    The mean over both views of the negative cosine of p and the other view's z, whose
    gradient is stopped. The learning rate of the predictor is constant.
    """
    predictor = head(bottleneck, output, final_norm=False, final_bias=True)
    heads = PredictedProjection(head(hidden, output, layers), predictor)

    def loss(own: PyTree, other: PyTree, *_: PyTree, axis_name: str | None) -> Array:
        pair = own, other
        targets = jax.lax.stop_gradient(pair)
        return _crossed(losses.negative_cosine, pair, targets) / 2

    return Method(heads, loss, constant_rate="predictor")


def barlow_twins(
    head: Head,
    *,
    hidden: int = 8192,
    layers: int = 3,
    output: int = 8192,
    off_diagonal_weight: float = 5e-3,
) -> Method:
    """Barlow Twins, Zbontar et al. (2021), equation 1: correlations of z."""
    loss = _of_pair(losses.barlow_twins, off_diagonal_weight=off_diagonal_weight)
    return Method(head(hidden, output, layers, final_norm=False), loss)


def vicreg(
    head: Head,
    *,
    hidden: int = 8192,
    layers: int = 3,
    output: int = 8192,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Method:
    """VICReg, Bardes, Ponce, LeCun (2022), equation 6; z is the expander's output."""
    loss = _of_pair(
        losses.vicreg,
        invariance_weight=invariance_weight,
        variance_weight=variance_weight,
        covariance_weight=covariance_weight,
    )
    return Method(head(hidden, output, layers, final_norm=False), loss)


def emp_ssl(
    head: Head,
    *,
    hidden: int = 4096,
    layers: int = 3,
    output: int = 1024,
    invariance_weight: float = 200.0,
    distortion: float = 0.2,
) -> Method:
    """EMP-SSL, Tong, Chen, Ma, LeCun (2023), equation 3, of the z of all patches.

    The patches are the views of both sides and of `more_views`. The heads are those of
    its code. The paper probes their first layer, averaged over patches; here it is h.
    Deviation: batch statistics are those of one view, not of all patches together.
    """

    def joint(outputs: Sequence[PyTree], *, axis_name: str | None) -> Array:
        return losses.emp_ssl(
            jnp.stack(outputs),
            invariance_weight=invariance_weight,
            distortion=distortion,
            axis_name=axis_name,
        )

    heads = head(hidden, output, layers, final_norm=False, final_bias=True)
    return Method(heads, loss=None, joint=joint)


METHODS: dict[str, Callable[..., Method]] = {
    "simclr": functools.partial(contrastive, losses.nt_xent),
    "dcl": functools.partial(contrastive, losses.dcl),
    **{
        method.__name__: method
        for method in (moco_v3, byol, simsiam, barlow_twins, vicreg, emp_ssl)
    },
}
"""The built-in methods by name, as in the key `method.name`."""


def make_method(
    settings: Settings,
    features: int,
    *,
    tangent: str = "coupled",
    axis_name: str | None = None,
) -> Method:
    """Returns the method that the settings name; tangent: that of its `BatchNorm`."""
    name, kwargs = settings.method.name, settings.method.kwargs
    if not plugins.is_own(name):
        common = {
            "head": functools.partial(
                ProjectionHead, tangent=tangent, axis_name=axis_name
            ),
            "temperature": settings.temperature,
            "block_size": settings.similarity_block or None,
            "steps": settings.derived.steps,
            "output": settings.encoder.projection,
        }
        accepted = inspect.signature(METHODS[name]).parameters
        defaults = {key: accepted[key].default for key in accepted if key not in common}
        for key, value in kwargs.items():
            _check(name, defaults, key, value)
        common = {key: common[key] for key in common if key in accepted}
        if settings.encoder.projection is None:
            del common["output"]
        return METHODS[name](**common, **kwargs)
    kwargs = {"features": features, "axis_name": axis_name, **kwargs}
    method = plugins.call("method.name", name, **kwargs)
    if not isinstance(method, Method) or not isinstance(method.heads, nn.Module):
        raise ValueError(
            f"method.name is {name!r}, which returned {method!r}; expected a "
            "Method whose heads are a flax module."
        )
    return method


_RANGES: dict[str | type, dict[str, Any]] = {
    "layers": {"least": 1, "most": 100},
    "momentum": {"least": 0, "most": 1},
    "distortion": {"above": 0},  # a divisor
    int: {"least": 1, "most": 65_536},  # numbers of features
    float: {"least": 0},
    bool: {},
}
"""Ranges of keyword arguments by name, or by the type of their default."""


def _check(
    name: str, defaults: dict[str, int | float], key: str, value: object
) -> None:
    """Checks a keyword argument of a built-in method: name, type of default, range."""
    if key not in defaults:
        names = ", ".join(defaults) or "nothing"
        expected = f"{names}, as method.name is {name!r}"
        raise ValueError(f"method.kwargs has {key}; expected {expected}.")
    kind = type(defaults[key])
    limits = _RANGES.get(key, _RANGES[kind])
    declaration = Key("method.kwargs", kind, None, Method, **limits)
    try:
        convert(declaration, value)
    except Bad:
        expected = expectation(declaration)
        text = f"method.kwargs has {key} = {value!r}; expected {expected}."
        raise ValueError(text) from None
