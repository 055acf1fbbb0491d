"""The step against an objective written from the paper, and what a step must keep."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_parallel
from test_parallel import assert_close, widest
from tiny import image_config, penalty, tiny_config

from invariance_jax.losses import nt_xent
from invariance_jax.models.resnet import ResNet
from invariance_jax.settings import resolve
from invariance_jax.training.build import build, initial_state
from invariance_jax.training.objective import block_output, is_block
from invariance_jax.transforms import View

SMALL = test_parallel.SMALL | {
    "batch_size": 6,
    "data.train_examples": 6,
    "penalty.example_limit": None,
}

KEY = jax.random.key(7)
SMOOTH = np.array([0, 1, 0, 1, 1, 1])
"""Parameters with a small ratio in the cases of "mixed"."""

# With plain gradient descent of rate 1 a step subtracts the gradient.
DESCENT = optax.sgd(1.0)


class Case:
    """A step with settings of its own, in the precision that is enabled."""

    def __init__(self, changes=None):
        self.settings = resolve(tiny_config(SMALL | (changes or {})))
        self.parts = build(self.settings)._replace(optimizer=DESCENT)
        self.transformation = self.parts.transformation
        self.x = jnp.asarray(self.parts.task.examples("train").x).astype(float)
        self.draws = jax.jit(self.parts.make_draw())(jax.random.key(3), 0)
        state = jax.jit(self.parts.init)(jax.random.key(0))
        self.state = jax.tree.map(widest, state)
        if self.settings.penalty.kind == "mixed":  # step 1 measures no ratio
            effects = jnp.stack([10 * (1.0 - SMOOTH), jnp.ones(6)])
            self.state = self.state._replace(step=jnp.int32(1), effects=effects)
        self._step = jax.jit(self.parts.make_step())

    def step(self, state=None):
        return self._step(state or self.state, self.x, self.draws)

    def gradient(self):
        new, metrics = self.step()
        gradient = jax.tree.map(jnp.subtract, self.state.params, new.params)
        return gradient, {
            name: float(total / n) for name, (total, n) in metrics.items() if n
        }


def moments(rows):
    mean = rows.sum(0, keepdims=True) / len(rows)
    return mean, ((rows - mean) ** 2).sum(0, keepdims=True) / len(rows)


def standardize(rows, mean, variance):
    return (rows - mean) / (variance + 1e-5) ** 0.5


def affine(rows, parameters):
    return rows * parameters["scale"][None] + parameters["bias"][None]


def encode(params, images, moments=moments):
    """The MLP of two layers; `moments` gives those of the batch."""
    rows = images.reshape(len(images), -1) @ params["dense1"]["kernel"]
    rows = affine(standardize(rows, *moments(rows)), params["bn1"])
    last = params["dense2"]
    return jnp.maximum(rows, 0) @ last["kernel"] + last["bias"][None]


def project(params, h, moments=moments):
    rows = h @ params["dense1"]["kernel"]
    rows = jnp.maximum(affine(standardize(rows, *moments(rows)), params["bn1"]), 0)
    rows = rows @ params["dense2"]["kernel"]
    return standardize(rows, *moments(rows))


def unit(rows):
    return rows / (rows**2).sum(1, keepdims=True) ** 0.5


def point(params, case, view, moments=moments):
    """Where the penalty acts: h or z of one view."""
    images = case.transformation.apply(case.x, view)
    h = encode(params["encoder"], images, moments)
    at = case.settings.penalty.at
    if at == "dense1":
        return images.reshape(len(images), -1) @ params["encoder"]["dense1"]["kernel"]
    return project(params["heads"], h, moments) if at == "z" else h


def held_moments(represent, alpha):
    """Those at alpha, in the order in which they are asked for."""
    seen = []

    def note(rows):
        seen.append(moments(rows))
        return seen[-1]

    represent(alpha, note)
    return lambda: iter(seen).__next__


def full_step_oracle(params, case, side, rough=1):
    """The squared change along some parameters, `[K, B]`."""
    (alpha, held), settings = side.views[0], case.settings.penalty
    normalize = unit if settings.normalization == "l2" else lambda rows: rows
    start = point(params, case, side.views[0])
    changes = [
        normalize(point(params, case, View(alpha + rough * (end - alpha), held)))
        - normalize(start)
        for end in jnp.moveaxis(side.alpha_redrawn, 1, 0)
    ]
    scale = moments(start)[1].sum() if settings.normalization == "batch" else 1.0
    return jnp.stack([(change**2).sum(1) / scale for change in changes])


def derivative_oracle(params, case, side):
    """The mean over directions `[B]`, from the whole Jacobian `[B, D, B, P]`."""
    settings, (alpha, held) = case.settings.penalty, side.views[0]

    def represent(alpha, moments):
        return point(params, case, View(alpha, held), moments)

    fixed = held_moments(represent, alpha)

    def normalized(alpha):
        following = fixed()
        is_held = settings.batch_statistics == "example"
        h = represent(alpha, (lambda rows: following()) if is_held else moments)
        return unit(h) if settings.normalization == "l2" else h

    jacobian = jax.jacfwd(normalized)(alpha)
    scale = 1.0
    if settings.normalization == "batch":
        scale = moments(represent(alpha, moments))[1].sum()
    direction = jnp.moveaxis(side.alpha_other, 1, 0) - alpha[None]
    for column, name in enumerate(case.transformation.names):
        if settings.parameters and name not in settings.parameters:
            direction = direction.at[:, :, column].set(0)
    if settings.kind == "mixed":
        direction = direction * SMOOTH[None, None]
    change = jnp.einsum("idjp,kjp->kid", jacobian, direction)
    if settings.estimator == "sign":
        squared = jnp.einsum("kid,ikd->ki", change, side.signs.astype(float)) ** 2
    else:
        squared = (change**2).sum(2)
    squared = squared / scale
    if settings.kind == "mixed":
        squared += full_step_oracle(params, case, side, 1 - SMOOTH[None])
    return limited(squared, settings).mean(0)


def limited(squared, settings):
    limit = settings.example_limit
    if limit is None:
        return squared
    if settings.limit_shape == "log":
        return limit * jnp.log(1 + squared / limit)
    return jnp.minimum(squared, limit)


def penalty_oracle(params, case):
    """The mean over examples and directions."""
    settings, sides = case.settings.penalty, case.draws[:2]
    if settings.kind == "total_effect":
        return limited(full_step_oracle(params, case, sides[0]) / 2, settings).mean()
    if settings.kind != "consistency":
        return derivative_oracle(params, case, sides[0]).mean()
    one, two = (point(params, case, side.views[0]) for side in sides)
    scale = 1.0
    if settings.normalization == "l2":
        one, two = unit(one), unit(two)
    if settings.normalization == "batch":
        scale = (moments(one)[1].sum() + moments(two)[1].sum()) / 2
    return limited(((one - two) ** 2).sum(1) / scale, settings).mean()


def projection(params, case, views):
    """z of one side, from the mean of h over its views."""
    each = [case.transformation.apply(case.x, view) for view in views]
    rows = sum(encode(params["encoder"], images) for images in each)
    return project(params["heads"], rows / len(each))


def oracle(case):
    def objective(params):
        settings = case.settings
        z1, z2 = (projection(params, case, side.views) for side in case.draws[:2])
        contrastive = nt_xent(z1, z2, temperature=settings.temperature).mean()
        penalty = penalty_oracle(params, case)
        limit = settings.penalty.batch_limit
        limited = penalty if limit is None else jnp.minimum(penalty, limit)
        loss = contrastive + settings.penalty.weight * limited
        return loss, {"loss": loss, "contrastive": contrastive, "penalty": penalty}

    return jax.jit(jax.grad(objective, has_aux=True))(case.state.params)


CASES = {
    "paper": penalty(weight=0.5),
    "two directions": penalty(directions=2, normalization="none"),
    "ratio, held": penalty(
        normalization="batch", batch_statistics="example", weight=0.5
    ),
    "limit per example, held": penalty(
        directions=2, example_limit=0.4, batch_statistics="example", weight=2.0
    ),
    "limit of the batch": penalty(batch_limit=0.01, weight=3.0),
    "signs, some parameters, log": penalty(
        estimator="sign",
        parameters=("gback", "h"),
        directions=2,
        example_limit=0.4,
        limit_shape="log",
    ),
    "signs on z, held": penalty(at="z", estimator="sign", batch_statistics="example"),
    "averaged views, z of the first, held": {
        "average_views": 2,
        **penalty(at="z", normalization="none", batch_statistics="example"),
    },
    "consistency of averaged views, limited": {
        "average_views": 2,
        **penalty(kind="consistency", normalization="batch", example_limit=1.0),
    },
    "total effect, two directions, log": penalty(
        kind="total_effect", directions=2, example_limit=0.1, limit_shape="log"
    ),
    "total effect of z, ratio": penalty(
        kind="total_effect",
        at="z",
        normalization="batch",
        parameters=("gback", "h"),
        parameter_weights=(1.0, 2.0),
    ),
    "a block, signs": penalty(at="dense1", estimator="sign"),
    "mixed, two directions, limited": penalty(
        kind="mixed", directions=2, example_limit=0.4
    ),
    "consistency of z, log": penalty(
        kind="consistency", at="z", example_limit=0.5, limit_shape="log"
    ),
}


paper, *others = CASES
cases = [paper, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.mark.parametrize("name", cases)
def test_losses_and_gradient_are_those_of_the_objective(x64, name):
    case = Case(CASES[name])
    gradient, metrics = case.gradient()
    expected, terms = oracle(case)
    assert_close(metrics, terms, 1e-7)
    assert_close(gradient, expected, 1e-7)


@pytest.fixture(scope="module")
def case():
    return Case({"penalty.warmup_steps": 4, "penalty.weight": 2.0})


def test_a_weight_that_is_tiny_or_0_leaves_the_contrastive_gradient(x64):
    """Statistics that are held along alpha are not held in the loss."""
    expected, terms = Case({"penalty.weight": 0.0}).gradient()
    assert terms["penalty"] == 0
    assert terms["loss"] == terms["contrastive"]
    for statistics in ("coupled", "example"):
        changes = {"penalty.batch_statistics": statistics, "penalty.weight": 1e-16}
        gradient, metrics = Case(changes).gradient()
        assert_close(gradient, expected, 1e-9)
        assert metrics["contrastive"] == pytest.approx(terms["contrastive"], rel=1e-9)


def test_weight_rises_to_its_full_value(case):
    for step, share in [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)]:
        state = case.state._replace(step=jnp.int32(step))
        _, metrics = case.step(state)
        values = {name: float(total) for name, (total, _) in metrics.items()}
        expected = values["contrastive"] + 2.0 * share * values["penalty"]
        assert values["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["gradient", "consistency"])
def test_the_penalty_of_every_third_step_is_three_times_as_heavy(x64, kind):
    case = Case(penalty(kind=kind, every_steps=3, weight=0.5))
    others = {times: Case(penalty(kind=kind, weight=0.5 * times)) for times in (0, 3)}
    for at, times in enumerate((3, 0, 0, 3)):
        state = case.state._replace(step=jnp.int32(at))
        new, metrics = case.step(state)
        expected, terms = others[times].step(state)
        assert_close(new.params, expected.params, 1e-9)
        assert_close(new.batch_stats, expected.batch_stats, 1e-9)
        assert float(metrics["loss"][0]) == pytest.approx(float(terms["loss"][0]))
        counted = terms["penalty"] if times else (0, 0)
        assert_close(metrics["penalty"], counted, 1e-9)


def test_views_without_parameters_are_split_into_microbatches(x64, tmp_path):
    """The further views of images have no derivative: their alpha is [B, 0]."""
    results, changes = [], {"more_views": 1, "batchnorm.group_size": 8}
    for count in (1, 2):
        settings = resolve(image_config(tmp_path, changes | {"microbatches": count}))
        parts = build(settings)._replace(optimizer=DESCENT)
        state = jax.tree.map(widest, jax.jit(parts.init)(KEY))
        draws = jax.tree.map(widest, parts.make_draw()(KEY, 0))
        x = parts.task.examples("train").x[:16]
        assert draws.more[0].alpha.shape == (16, 0)
        results.append(jax.jit(parts.make_step())(state, jnp.asarray(x), draws))
    (parted, metrics), (whole, terms) = results[::-1]
    assert_close(metrics, terms, 1e-9)
    assert_close(parted.params, whole.params, 1e-9)


def test_bound_and_effect_are_measured_in_some_steps(x64):
    """With one layer, examples do not meet: the derivative is that of each."""
    changes = {"penalty.kind": "mixed", "encoder.depth": 1}
    case = Case(changes | {"penalty.ratio_every_steps": 3})
    _, metrics = case.step()
    assert not any(count for name, (_, count) in metrics.items() if "ratio" in name)
    new, metrics = case.step(case.state._replace(step=jnp.int32(3)))
    side, names = case.draws.first, case.transformation.names
    widths = np.diff(case.transformation.bounds)[:, 0]
    params, (alpha, held) = case.state.params["encoder"], side.views[0]

    def normalized(alpha):
        images = case.transformation.apply(case.x, View(alpha, held))
        first = params["dense1"]
        rows = images.reshape(len(images), -1) @ first["kernel"]
        return unit(rows + first["bias"][None])

    jacobian, expected = jax.jacfwd(normalized)(alpha), 0.9 * case.state.effects
    for i, column in enumerate(side.columns):
        end = alpha.at[i, column].set(side.alpha_redrawn[i, 0, column])
        change = normalized(end)[i] - normalized(alpha)[i]
        bound = (widths[column] / np.pi * jacobian[i, :, i, column]) ** 2
        added = jnp.stack([bound.sum(), (change**2).sum() / 2])
        expected = expected.at[:, column].add(added)
    assert_close(new.effects, expected, 1e-9)
    for name, (bound, effect) in zip(names, expected.T, strict=True):
        total, count = metrics[f"poincare_ratio.{name}"]
        assert (float(total), count) == (pytest.approx(float(bound / effect)), 1)


def test_a_parameter_that_is_not_penalized_has_no_ratio(x64):
    names = ("gback", "h")
    case = Case(penalty(kind="mixed", ratio_every_steps=1, parameters=names))
    _, metrics = case.step(case.state._replace(effects=jnp.zeros((2, 6))))
    counted = {name for name, (_, count) in metrics.items() if count}
    assert {name for name in counted if "ratio" in name} == {
        f"poincare_ratio.{name}" for name in names
    }


@pytest.mark.parametrize("changes", [{}, {"average_views": 2, "penalty.at": "z"}])
def test_running_statistics_take_every_view(changes):
    case = Case(changes)
    new, _ = case.step()
    kernel = case.state.params["encoder"]["dense1"]["kernel"]
    mean, variance = np.zeros((1, 7)), np.ones((1, 7))
    for view in (view for side in case.draws[:2] for view in side.views):
        images = case.transformation.apply(case.x, view)
        of_batch = moments(images.reshape(6, -1) @ kernel)
        mean = 0.9 * mean + 0.1 * of_batch[0]
        variance = 0.9 * variance + 0.1 * of_batch[1]
    found = new.batch_stats["encoder"]["bn1"]
    np.testing.assert_allclose(found["mean"], mean[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], variance[0], rtol=1e-4)


def test_a_penalty_of_z_moves_the_running_statistics_as_ever(case):
    new, _ = Case({"penalty.at": "z"}).step()
    expected, _ = case.step()
    assert_close(new.batch_stats, expected.batch_stats, 1e-5)


@pytest.mark.parametrize(
    ("changes", "features"),
    [
        ({}, 7),
        ({"penalty.at": "z"}, 5),
        ({"encoder.name": "resnet18", "encoder.width": 2}, 16),
        ({"encoder.name": "resnet18", "encoder.width": 2, "penalty.at": "layer3"}, 8),
        (
            {
                "encoder.name": "vit_tiny",
                "encoder.width": 64,
                "encoder.depth": 2,
                "encoder.patch_size": 2,
                **penalty(at="block1"),
            },
            64,
        ),
        ({"penalty.weight": 0.0}, None),
    ],
    ids=str,
)
def test_signs_are_drawn_in_the_space_where_the_penalty_acts(changes, features):
    settings = resolve(tiny_config(SMALL | {"penalty.estimator": "sign"} | changes))
    draws = jax.eval_shape(build(settings).make_draw(), jax.random.key(0), 0)
    shape = None if draws.first.signs is None else draws.first.signs.shape
    assert shape == (features and (6, 1, features))


def test_the_block_of_a_resnet_is_the_pooled_output_of_its_stage():
    """Also where it keeps less for the backward pass."""
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    for rematerialize in (False, True):
        encoder = ResNet((1, 2), False, 4, rematerialize=rematerialize)
        variables = jax.jit(partial(encoder.init, train=False))(KEY, images)
        h, seen = jax.jit(
            partial(encoder.apply, train=False, capture_intermediates=is_block)
        )(variables, images)
        # The mean over the places of the last stage is h.
        np.testing.assert_array_equal(block_output(seen["intermediates"], "layer2"), h)
        first = block_output(seen["intermediates"], "layer1")
        np.testing.assert_array_equal(
            first, seen["intermediates"]["layer1_0"]["__call__"][0].mean(axis=(1, 2))
        )


def test_a_block_that_is_not_there_is_refused():
    settings = resolve(tiny_config(SMALL | {"penalty.at": "layer3"}))
    with pytest.raises(ValueError, match="'layer3'; expected 'h', 'z' or .* dense1, "):
        build(settings)


def test_every_seed_has_an_initial_state_of_its_own():
    settings = (resolve(tiny_config({"seed": seed})) for seed in (0, 1))
    ours, theirs = map(initial_state, map(build, settings))
    assert ours.step == 0
    stats = jax.tree.leaves(ours.batch_stats)
    assert {float(value) for leaf in stats for value in leaf} == {0.0, 1.0}
    kernels = [state.params["encoder"]["dense1"]["kernel"] for state in (ours, theirs)]
    assert not np.allclose(*kernels)
