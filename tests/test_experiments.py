"""Experiments on a tiny encoder, against loops over views and examples."""

import contextlib
import functools
import shutil
from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tiny import image_config, tiny_config

from invariance_jax import evaluation
from invariance_jax.experiments import EXPERIMENTS, Context, invariance, shift
from invariance_jax.experiments.context import STREAMS
from invariance_jax.experiments.nuisance_prediction import features, predict_nuisance
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.results import summary, table
from invariance_jax.runtime.devices import all_devices
from invariance_jax.settings import KEYS, resolve
from invariance_jax.training.build import build, initial_state
from invariance_jax.training.frozen import FrozenEncoder, apply, encoder_variables
from invariance_jax.transforms import View

pytestmark = pytest.mark.usefixtures("compiled_once")

NUISANCE = ("h", "rback", "gfore", "gback", "bfore", "bback")
EXAMPLES, VIEWS = 12, 4
# As many test as training examples, so that they share the compiled programs.
CHANGES = {
    "data.test_examples": 200,
    "evaluation.experiments": ("all",),
    "evaluation.variance_examples": EXAMPLES,
    "evaluation.variance_views": VIEWS,
    "evaluation.linearization_steps": (0.1, 1.0, 0.5),
    "evaluation.label_fractions": (0.2, 1.0),
    "evaluation.l2_grid": (1e-6, 1e-3, 1.0),
    "evaluation.lbfgs_steps": (7,),
    "evaluation.shifts": (("h", "move", (0.5,)), ("background", "widen", (1.0, 1.5))),
}
IMAGES = {
    **CHANGES,
    "evaluation.lbfgs_steps": (),
    "data.test_examples": None,
    "data.train_examples": 45,
    "augmentation.crop": False,  # takes long to compile
    "evaluation.label_fractions": (1.0,),
    "evaluation.shifts": (("color", "strength", (0.0, 1.0)),),
}


def make_context(settings, workdir, state=None):
    parts = build(settings)
    return Context(
        parts,
        epath.Path(workdir),
        FrozenEncoder(parts, all_devices()),
        encoder_variables(state or initial_state(parts), "online"),
        num_views=settings.evaluation.num_views,
    )


@pytest.fixture(scope="module")
def states():
    """The states of two encoders, as if they were those of two steps."""
    settings = (resolve(tiny_config({"seed": seed})) for seed in range(2))
    return dict(zip((10, 20), map(initial_state, map(build, settings)), strict=True))


@pytest.fixture(scope="module")
def context(states, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("experiments")
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
    return make_context(resolve(tiny_config(CHANGES)), workdir, states[20])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("sets")
    return make_context(resolve(image_config(data_dir, IMAGES)), data_dir / "run")


@functools.cache
def encoder_of(context):
    return jax.jit(functools.partial(apply, context.parts.encoder))


def encode(context, pictures, variables=None):
    return encoder_of(context)(variables or context.variables, pictures)


def views_of(context, alphas, x, variables=None):
    """h `[M, N, D]` of Spirograph under given alpha `[M][N, P]`."""
    make = context.parts.transformation.apply
    each = [make(jnp.asarray(x), View(jnp.asarray(alpha))) for alpha in alphas]
    return np.stack([encode(context, one, variables) for one in each])


def drawn_alphas(context, count=EXAMPLES, stream=1, views=range(VIEWS)):
    key = jax.random.key(context.settings.evaluation.seed)
    key, transformation = jax.random.fold_in(key, stream), context.parts.transformation
    indices = jnp.arange(count, dtype=jnp.int32)
    draw = functools.partial(evaluation.sample_view, key, transformation, indices)
    return [np.array(draw(view=view).alpha) for view in views]


def unit(h):
    return h / np.linalg.norm(h, axis=-1, keepdims=True)


def loop_variance(h, whole=None):
    """From the definitions, one example after the other; the total is of the whole."""
    h, rows = (a.astype(float) for a in (h, h if whole is None else whole))
    within = np.mean([h[:, b].var(axis=0, ddof=1).sum() for b in range(h.shape[1])])
    total = rows.reshape(-1, rows.shape[2]).var(axis=0, ddof=1).sum()
    return {"within": within, "total": total, "normalized": within / total}


def values_at(result, **at):
    """Metric (or metric.target) -> value of the rows at these other coordinates."""
    found = {}
    for row in result.rows:
        place = dict(row.at)
        target = place.pop("target", None)
        if place == at:
            name = f"{row.metric}.{target}" if target else row.metric
            assert name not in found
            found[name] = row.value
    return found


def places(result):
    """The coordinates of the rows, without targets, each once."""
    each = [{k: v for k, v in row.at.items() if k != "target"} for row in result.rows]
    return list(dict.fromkeys(tuple(place.items()) for place in each))


def in_summary(result):
    found = summary(table("name", result.rows, seed=0))
    return {name: entry["mean"] for name, entry in found.items()}


@pytest.fixture(scope="module")
def variances(context):
    return invariance.run(context)


OF = pytest.mark.parametrize(("of", "normalize"), [("n(h)", unit), ("h", np.asarray)])


@OF
def test_the_whole_transformation_is_a_row(context, variances, of, normalize):
    h = views_of(context, drawn_alphas(context), context.test.x[:EXAMPLES])
    h = normalize(h)
    expected = loop_variance(h)
    pairs = [((h[0] - h[1]) ** 2).sum(1).mean(), ((h[2] - h[3]) ** 2).sum(1).mean()]
    found = values_at(variances, table="parameters", parameter="all", of=of)
    assert found == pytest.approx(expected | {"paired": np.mean(pairs) / 2}, rel=1e-4)
    if of == "n(h)":
        named = {f"variance.{name}": value for name, value in expected.items()}
        assert in_summary(variances) == pytest.approx(named, rel=1e-4)


@OF
@pytest.mark.parametrize("name", ["h", "bback"])
def test_one_parameter_alone_is_redrawn(context, variances, name, of, normalize):
    column, x = NUISANCE.index(name), context.test.x[:EXAMPLES]
    (kept,) = drawn_alphas(context, views=[VIEWS])
    alphas = []
    for drawn in drawn_alphas(context):
        alphas.append(kept.copy())
        alphas[-1][:, column] = drawn[:, column]
    each = alphas, drawn_alphas(context)
    alone, whole = (normalize(views_of(context, one, x)) for one in each)
    found = values_at(variances, table="parameters", parameter=name, of=of)
    expected = loop_variance(alone, whole)
    assert found == pytest.approx(expected, rel=1e-4)


@OF
def test_every_checkpoint_is_a_row(context, variances, states, of, normalize):
    x, alphas = context.test.x[:EXAMPLES], drawn_alphas(context)
    for step, state in states.items():
        h = views_of(context, alphas, x, encoder_variables(state, "online"))
        found = values_at(variances, table="checkpoints", step=step, of=of)
        assert found == pytest.approx(loop_variance(normalize(h)), rel=1e-4)


def test_a_damaged_checkpoint_has_no_row(context, tmp_path, caplog):
    workdir = Path(shutil.copytree(context.workdir, tmp_path / "run"))
    (workdir / "checkpoints" / "10" / "_CHECKPOINT_METADATA").write_text("{}")
    damaged = make_context(context.settings, workdir)
    assert [step for step, _ in invariance.checkpoints(damaged)] == [20]
    assert "checkpoints/10 is damaged" in caplog.text


@pytest.fixture(scope="module")
def linear(context):
    return EXPERIMENTS["linearization"](context)


def loop_changes(context, columns, step):
    """Squared norms of change, first-order term and difference, pair by pair."""
    make, found = context.parts.transformation.apply, []
    x = jnp.asarray(context.test.x[:EXAMPLES])
    for pair in range(VIEWS // 2):
        start, end = drawn_alphas(context, views=(2 * pair, 2 * pair + 1))
        direction = np.where(columns, end - start, np.float32(0))

        def normalized(alpha):
            h = encode(context, make(x, View(alpha)))
            return h / jnp.linalg.norm(h, axis=1, keepdims=True)

        _, slope = jax.jvp(normalized, (start,), (direction,))
        true = normalized(start + np.float32(step) * direction) - normalized(start)
        parts = true, step * slope, true - step * slope
        found.append([np.square(np.asarray(part, float)).sum(1) for part in parts])
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize(
    ("step", "name"),
    [(0.1, "all"), (1.0, "all"), (0.5, "all"), (1.0, "h"), (1.0, "bback")],
)
def test_changes_are_those_between_pairs_of_views(context, linear, step, name):
    columns = np.array([name in ("all", parameter) for parameter in NUISANCE])
    true, first, difference = loop_changes(context, columns, step)
    assert values_at(linear, step=step, parameters=name) == pytest.approx(
        {
            "relative_error": difference.mean() / true.mean(),
            "ratio": first.mean() / true.mean(),
            "median_ratio": np.median(first / true),
            "top_share": first.max() / first.sum(),
            "cosine": ((true + first - difference) / 2 / np.sqrt(true * first)).mean(),
        },
        rel=2e-3,
    )


def test_low_precision_does_not_blur_small_steps(context, linear, states):
    config = tiny_config({**CHANGES, "precision": "bfloat16"})
    low = make_context(resolve(config), context.workdir, states[20])
    rows = EXPERIMENTS["linearization"](low).rows
    for found, expected in zip(rows, linear.rows, strict=True):
        assert found.value == pytest.approx(expected.value, rel=1e-4)


def test_coordinates_of_variances_and_linearization(variances, linear):
    parameters = [("parameters", "parameter", name) for name in ("all", *NUISANCE)]
    steps = [("checkpoints", "step", step) for step in (10, 20)]
    expected = [
        (("table", name), (key, value), ("of", of))
        for name, key, value in parameters + steps
        for of in ("n(h)", "h")
    ]
    assert places(variances) == [(), *expected]
    expected = [(step, "all") for step in (0.1, 1.0, 0.5)]
    expected += [(1.0, name) for name in NUISANCE]
    assert places(linear) == [(("step", s), ("parameters", p)) for s, p in expected]


def test_rows_of_the_nuisance(context):
    measured = EXPERIMENTS["nuisance_prediction"](context)
    each = [(("parameter", name),) for name in NUISANCE]
    nonlinear = [(*place, ("probe", "nonlinear")) for place in each]
    assert places(measured) == each + nonlinear
    arrays = []
    for split, stream in STREAMS.items():
        x = context.examples(split).x
        (alpha,) = drawn_alphas(context, len(x), stream, views=[0])
        (h,) = views_of(context, [alpha], x)
        arrays += [context.features(split)[0], alpha]
        np.testing.assert_allclose(arrays[-2], h, rtol=1e-4, atol=1e-5)
    l2 = context.settings.evaluation.nuisance_l2
    expected = predict_nuisance(*arrays, l2=l2)
    for number, name in enumerate(NUISANCE):
        found = values_at(measured, parameter=name)
        assert found == pytest.approx({k: v[number] for k, v in expected.items()})
        residual = 1 - found["mse"] / arrays[3][:, number].astype(float).var()
        assert found["r2"] == pytest.approx(residual, abs=1e-5)


def test_one_view_is_predicted_where_more_are_averaged(context, states):
    config = tiny_config({**CHANGES, "evaluation.num_views": (2, 3)})
    other = make_context(resolve(config), context.workdir, states[20])
    found = features(other, "test")
    expected = context.features("test")[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def shifted(context):
    return shift.run(context)


BOUNDS = {"rback": (0.0, 0.6), "gback": (0.0, 0.6), "bback": (0.0, 0.6)}


def shifted_features(context, split, views, what, how, value):
    """The mean of h over views whose alpha is shifted number by number."""
    x = context.examples(split).x
    alphas = drawn_alphas(context, len(x), STREAMS[split], range(views))
    names = BOUNDS if what == "background" else (what,)
    for alpha in alphas:
        for column in (NUISANCE.index(name) for name in names):
            if how == "move":
                alpha[:, column] += value
            else:
                middle = sum(BOUNDS[NUISANCE[column]]) / 2
                alpha[:, column] = middle + value * (alpha[:, column] - middle)
    return views_of(context, alphas, x).mean(axis=0)


@pytest.mark.parametrize(
    ("what", "how", "value"),
    [("h", "move", 0.0), ("h", "move", 0.5), ("background", "widen", 1.5)],
)
@pytest.mark.parametrize(("number", "views"), [(0, 1), (1, 3)])
def test_heads_on_shifted_views(context, shifted, what, how, value, number, views):
    at = {"parameter": what, "how": how, "shift": value, "views": views}
    h, h_test = (
        shifted_features(context, split, views, what, how, value) for split in STREAMS
    )
    expected = context.fit_and_score(h, h_test).values
    refitted = values_at(shifted, **at, head="refitted")
    assert refitted == pytest.approx(expected, rel=5e-3, abs=5e-3)
    probe = context.task.fit(context.features("train")[number], context.train.y)
    predictions = h_test.astype(float) @ np.asarray(probe.kernel)
    mse = np.square(predictions + np.asarray(probe.bias) - context.test.y).mean(axis=0)
    fixed = values_at(shifted, **at, head="fixed")
    for name, error in zip(context.task.targets, mse, strict=True):
        assert fixed[f"mse.{name}"] == pytest.approx(error, rel=2e-3)
    assert fixed["mse"] == pytest.approx(mse.mean(), rel=2e-3)


def shift_places(points):
    names = ("parameter", "how", "shift", "head", "views")
    return [
        tuple(zip(names, (*point, head, views), strict=True))
        for point in points
        for head in ("refitted", "fixed")
        for views in (1, 3)
    ]


def test_the_unshifted_distribution_is_the_ordinary_probe(context, shifted):
    points = [("h", "move", 0.0), ("h", "move", 0.5)]
    points += [("background", "widen", 1.0), ("background", "widen", 1.5)]
    assert places(shifted) == shift_places(points)
    for place in shift_places([points[0], points[2]]):
        number = (1, 3).index(dict(place)["views"])
        assert values_at(shifted, **dict(place)) == context.scored(number).values


def test_no_shift_has_no_rows(context, states):
    config = tiny_config({**CHANGES, "evaluation.shifts": ()})
    none = make_context(resolve(config), context.workdir, states[20])
    assert shift.run(none).rows == []


def test_each_target_has_a_probe_with_its_own_l2(context):
    values = in_summary(EXPERIMENTS["averaging"](context))
    one_view = in_summary(EXPERIMENTS["downstream"](context))
    assert one_view["mse.selected@1"] == values["mse.selected@1"]
    for number, views in enumerate(context.num_views):
        h, h_test = (context.features(split)[number] for split in STREAMS)
        with jax.enable_x64(True):
            probe, _ = evaluation.fit_ridge_selected(
                jnp.asarray(h, jnp.float64),
                jnp.asarray(context.train.y, jnp.float64),
                l2=(1e-6, 1e-3, 1.0),
                num_held_out=20,
            )
            error = np.asarray(evaluation.predict(probe, h_test)) - context.test.y
        expected = np.square(error).mean()
        assert values[f"mse.selected@{views}"] == pytest.approx(expected, rel=1e-5)
        early = context.task.fit_in_steps(h, context.train.y, 7)
        found = context.task.score(early, h_test, context.test.y).values["mse"]
        assert values[f"mse.lbfgs7@{views}"] == pytest.approx(found)


def test_shares_of_the_examples(context):
    measured = EXPERIMENTS["label_fraction"](context)
    expected = [(f, views) for f in (0.2, 1.0) for views in (1, 3)]
    assert places(measured) == [(("fraction", f), ("views", m)) for f, m in expected]
    for number, views in enumerate((1, 3)):
        whole = values_at(measured, fraction=1.0, views=views)
        assert whole == pytest.approx(context.scored(number).values)
    # Of 200 examples, the first 40.
    h, h_test = (context.features(split)[1] for split in STREAMS)
    probe = context.task.fit(h[:40], context.train.y[:40])
    expected = context.task.score(probe, h_test, context.test.y).values
    assert values_at(measured, fraction=0.2, views=3) == pytest.approx(expected)


def encode_plain(context, split):
    plain = context.parts.transformation.plain
    return np.asarray(encode(context, plain(jnp.asarray(context.examples(split).x))))


def test_images_have_plain_and_averaged_features(images):
    measured = EXPERIMENTS["label_fraction"](images)
    assert [dict(place)["views"] for place in places(measured)] == ["plain", 3]
    averaged = values_at(measured, fraction=1.0, views=3)
    assert averaged == pytest.approx(images.scored(-1).values)
    h, h_test = (encode_plain(images, split) for split in STREAMS)
    expected = images.fit_and_score(h, h_test).values
    found = values_at(measured, fraction=1.0, views="plain")
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.03)
    assert found["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-2)


def test_images_are_jittered_at_the_strength_of_the_training_too(images):
    jittered = shift.run(images)
    points = [("color", "strength", strength) for strength in (0.0, 0.5, 1.0)]
    assert places(jittered) == shift_places(points)
    for strength, views in ((0.5, 1), (0.5, 3), (1.0, 1), (1.0, 3)):
        at = {"parameter": "color", "how": "strength", "shift": strength}
        fixed, refitted = (
            values_at(jittered, **at, head=head, views=views)
            for head in ("fixed", "refitted")
        )
        assert {*fixed} == {"accuracy", "cross_entropy"}
        assert (fixed == refitted) == (strength == 0.5)


def test_strength_0_is_the_plain_image(images):
    features = shift.shifted_features(images, images.task.shiftable(), (1, 3))
    plain = encode_plain(images, "test")
    # The matrices of the hue are not exact inverses.
    for one in features("test", ("color", "strength", 0.0)):
        np.testing.assert_allclose(one, plain, atol=0.02 * np.abs(plain).max())


def test_gated_views_do_not_change(images):
    found = values_at(EXPERIMENTS["linearization"](images), step=0.1, parameters="all")
    assert 0 < found["relative_error"] < 1
    assert found["cosine"] > 0.5


def test_a_transformation_without_alpha_has_no_rows(tmp_path):
    changes = IMAGES | {"augmentation.differentiate": (), "penalty.weight": 0.0}
    none = make_context(resolve(image_config(tmp_path, changes)), tmp_path / "run")
    for name in ("linearization", "poincare_ratio", "nuisance_prediction"):
        assert EXPERIMENTS[name](none).rows == []


def test_given_weights_are_a_checkpoint_at_step_0(images):
    ((step, variables),) = invariance.checkpoints(images)
    assert step == 0
    assert variables is images.variables


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("kind", ["spirograph", "images"])
def test_what_an_experiment_reads_is_declared(context, images, kind, name, monkeypatch):
    known, read = {"spirograph": context, "images": images}[kind], set()
    options = type(known.settings.evaluation)
    plain, keys = options.__getattribute__, {field.name for field in fields(options)}

    def noted(self, name):
        read.update({name} & keys)
        return plain(self, name)

    fresh = make_context(known.settings, known.workdir)
    monkeypatch.setattr(options, "__getattribute__", noted)
    EXPERIMENTS[name](fresh)
    assert read
    for key in read - {"batch_size"}:  # it changes no number
        readers = KEYS[f"evaluation.{key}"].readers
        assert readers is None or name in readers, key


def test_what_experiments_share_cannot_be_changed_by_one_of_them(context, images):
    one, other = context.untrained, images.examples("train")
    shared = [context.variables, one, context.train, context.test, other.x, other.y]
    shared += [context.features("test"), *context.both(0), images.plain("test")]
    for array in jax.tree.leaves(shared):
        with pytest.raises(ValueError, match="read-only"):
            array += 1
