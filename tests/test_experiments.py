"""Five experiments on a tiny encoder, against loops over views and examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tiny import image_config, tiny_config

from invariance_jax import evaluation
from invariance_jax.experiments import (
    EXPERIMENTS,
    Subject,
    averaging,
    downstream,
    invariance,
    label_fraction,
    linearization,
    nuisance_prediction,
    shift,
)
from invariance_jax.experiments.subject import TEST, TRAIN
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.training import keys, parallel, protocols
from invariance_jax.training.components import make_networks, make_transformation
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.settings import resolve
from invariance_jax.training.start import initial_state
from invariance_jax.transforms import View
from invariance_jax.transforms.spirograph import PARAMETERS

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
    "evaluation.shifts": (("h", "move", (0.5,)), ("background", "widen", (1.0, 1.5))),
}
IMAGES = {
    **CHANGES,
    "data.test_examples": None,
    "data.train_examples": 45,
    "augmentation.crop": False,  # takes long to compile
    "evaluation.label_fractions": (1.0,),
    "evaluation.shifts": (("color", "strength", (0.0, 1.0)),),
}


def make_subject(settings, workdir, state):
    return Subject(
        settings,
        epath.Path(workdir),
        FrozenEncoder(settings, parallel.all_devices()),
        encoder_variables(state),
        num_views=settings.evaluation.num_views,
    )


def save(workdir, states):
    checkpoints = Checkpoints(workdir)
    for step, state in states.items():
        checkpoints.save(step, state)
    checkpoints.wait()
    checkpoints.close()


@pytest.fixture(scope="module")
def states():
    """The states of two encoders, as if they were those of two steps."""
    each = (initial_state(resolve(tiny_config({"seed": n}))) for n in range(2))
    return dict(zip((10, 20), each, strict=True))


@pytest.fixture(scope="module")
def subject(states, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("experiments")
    save(workdir, states)
    return make_subject(resolve(tiny_config(CHANGES)), workdir, states[20])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("sets")
    settings = resolve(image_config(data_dir, IMAGES))
    return make_subject(settings, data_dir / "run", initial_state(settings))


@functools.cache
def encoder_of(subject):
    encoder = make_networks(subject.settings).encoder
    return jax.jit(functools.partial(encoder.apply, train=False))


def encode(subject, pictures, variables=None):
    return encoder_of(subject)(variables or subject.variables, pictures)


def draw(subject, stream, count, view):
    """Alpha and held of one view of the first examples."""
    key = jax.random.key(subject.settings.evaluation.seed)
    key = jax.random.fold_in(key, stream)
    transformation = make_transformation(subject.settings)
    indices = jnp.arange(count, dtype=jnp.int32)
    return evaluation.sample_view(key, transformation, indices, view=view)


def views_of(subject, alphas, x, variables=None):
    """h `[M, N, D]` of Spirograph under given alpha `[M][N, P]`."""
    apply = make_transformation(subject.settings).apply
    each = [apply(jnp.asarray(x), View(jnp.asarray(alpha))) for alpha in alphas]
    return np.stack([encode(subject, one, variables) for one in each])


def drawn_alphas(subject, count=EXAMPLES, stream=TEST, views=range(VIEWS)):
    return [np.array(draw(subject, stream, count, view).alpha) for view in views]


def unit(h):
    return h / np.linalg.norm(h, axis=-1, keepdims=True)


def loop_variance(h):
    """Within and total from their definitions, one example after the other."""
    h = h.astype(np.float64)
    within = [h[:, b].var(axis=0, ddof=1).sum() for b in range(h.shape[1])]
    return np.mean(within), h.reshape(-1, h.shape[2]).var(axis=0, ddof=1).sum()


def row_at(measured, **at):
    (found,) = [row for row in measured.rows if row.at == at]
    return found.values


@pytest.fixture(scope="module")
def variances(subject):
    return invariance.run(subject)


OF = pytest.mark.parametrize(("of", "normalize"), [("n(h)", unit), ("h", np.asarray)])


def test_the_summary_is_of_all_views_of_normalized_features(subject, variances):
    h = views_of(subject, drawn_alphas(subject), subject.test.x[:EXAMPLES])
    within, total = loop_variance(unit(h))
    assert variances.values == pytest.approx(
        {
            "variance.within": within,
            "variance.total": total,
            "variance.normalized": within / total,
        },
        rel=1e-4,
    )


@OF
def test_the_whole_transformation_is_a_row(subject, variances, of, normalize):
    h = views_of(subject, drawn_alphas(subject), subject.test.x[:EXAMPLES])
    h = normalize(h)
    within, total = loop_variance(h)
    pairs = [((h[0] - h[1]) ** 2).sum(1).mean(), ((h[2] - h[3]) ** 2).sum(1).mean()]
    found = row_at(variances, table="parameters", parameter="all", of=of)
    expected = {"within": within, "total": total, "normalized": within / total}
    assert found == pytest.approx(expected | {"paired": np.mean(pairs) / 2}, rel=1e-4)


@OF
@pytest.mark.parametrize("name", ["h", "bback"])
def test_one_parameter_alone_is_redrawn(subject, variances, name, of, normalize):
    column, x = NUISANCE.index(name), subject.test.x[:EXAMPLES]
    (kept,) = drawn_alphas(subject, views=[VIEWS])
    alphas = []
    for drawn in drawn_alphas(subject):
        alphas.append(kept.copy())
        alphas[-1][:, column] = drawn[:, column]
    within, _ = loop_variance(normalize(views_of(subject, alphas, x)))
    whole = normalize(views_of(subject, drawn_alphas(subject), x))
    _, total = loop_variance(whole)
    found = row_at(variances, table="parameters", parameter=name, of=of)
    expected = {"within": within, "total": total, "normalized": within / total}
    assert found == pytest.approx(expected, rel=1e-4)


@OF
def test_every_checkpoint_is_a_row(subject, variances, states, of, normalize):
    x, alphas = subject.test.x[:EXAMPLES], drawn_alphas(subject)
    for step, state in states.items():
        h = views_of(subject, alphas, x, encoder_variables(state))
        within, total = loop_variance(normalize(h))
        found = row_at(variances, table="checkpoints", step=step, of=of)
        expected = {"within": within, "total": total, "normalized": within / total}
        assert found == pytest.approx(expected, rel=1e-4)


def test_coordinates_of_the_variances(variances):
    places = [tuple(row.at.values()) for row in variances.rows]
    parameters = [("parameters", name) for name in ("all", *NUISANCE)]
    steps = [("checkpoints", step) for step in (10, 20)]
    expected = [(*place, of) for place in parameters + steps for of in ("n(h)", "h")]
    assert places == expected


@pytest.fixture(scope="module")
def linear(subject):
    return linearization.run(subject)


def loop_changes(subject, columns, step):
    """Squared norms of change, first-order term and difference, pair by pair."""
    apply, found = make_transformation(subject.settings).apply, []
    x = jnp.asarray(subject.test.x[:EXAMPLES])
    for pair in range(VIEWS // 2):
        start, end = drawn_alphas(subject, views=(2 * pair, 2 * pair + 1))
        direction = np.where(columns, end - start, np.float32(0))

        def normalized(alpha):
            h = encode(subject, apply(x, View(alpha)))
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
def test_changes_are_those_between_pairs_of_views(subject, linear, step, name):
    columns = np.array([name in ("all", parameter) for parameter in NUISANCE])
    true, first, difference = loop_changes(subject, columns, step)
    found = row_at(linear, step=step, parameters=name)
    assert found == pytest.approx(
        {
            "relative_error": difference.mean() / true.mean(),
            "ratio": first.mean() / true.mean(),
            "median_ratio": np.median(first / true),
            "top_share": first.max() / first.sum(),
            "cosine": ((true + first - difference) / 2 / np.sqrt(true * first)).mean(),
        },
        rel=2e-3,
    )


def test_coordinates_of_the_linearization(linear):
    places = [tuple(row.at.items()) for row in linear.rows]
    expected = [(step, "all") for step in (0.1, 1.0, 0.5)]
    expected += [(1.0, name) for name in NUISANCE]
    assert places == [(("step", s), ("parameters", p)) for s, p in expected]
    assert linear.values == {}


def test_low_precision_does_not_blur_small_steps(subject, linear, states):
    config = tiny_config({**CHANGES, "precision": "bfloat16"})
    low = make_subject(resolve(config), subject.workdir, states[20])
    for found, expected in zip(linearization.run(low).rows, linear.rows, strict=True):
        assert found.values == pytest.approx(expected.values, rel=1e-4)


def test_the_predicted_alpha_is_that_of_the_features(subject):
    for split, stream in (("train", TRAIN), ("test", TEST)):
        alpha, x = nuisance_prediction._alpha(subject, split), subject.examples(split).x
        expected = draw(subject, stream, len(x), 0).alpha
        np.testing.assert_allclose(alpha, expected, rtol=1e-6)
        (h,) = views_of(subject, [alpha], x)
        np.testing.assert_allclose(subject.features(split)[0], h, rtol=1e-4, atol=1e-5)


def test_a_parameter_that_the_features_hold_is_predicted():
    generator = np.random.default_rng(0)
    h, h_test = (generator.normal(size=(n, 5)) for n in (400, 300))
    kernel = generator.normal(size=(5, 2))
    alpha, alpha_test = 3 + h @ kernel, 3 + h_test @ kernel
    found = nuisance_prediction.predict_nuisance(
        h, alpha, h_test, alpha_test, l2=(1.0, 1e-8)
    )
    np.testing.assert_allclose(found["r2"], 1, atol=1e-9)
    np.testing.assert_array_equal(found["l2"], 1e-8)
    constant = np.square(alpha_test - alpha.mean(axis=0)).mean(axis=0)
    np.testing.assert_allclose(found["constant"], constant)


def test_a_parameter_that_is_not_there_has_an_r2_of_0():
    generator = np.random.default_rng(1)
    h, alpha, h_test, alpha_test = (
        generator.normal(size=(n, d)) for n in (2000, 3000) for d in (5, 2)
    )
    found = nuisance_prediction.predict_nuisance(
        h, alpha, h_test, alpha_test, l2=(1e-6, 1.0)
    )
    np.testing.assert_allclose(found["r2"], 0, atol=0.01)
    np.testing.assert_allclose(found["mse"], found["constant"], rtol=0.01)


def test_rows_of_the_nuisance(subject):
    measured = nuisance_prediction.run(subject)
    assert [row.at for row in measured.rows] == [{"parameter": n} for n in NUISANCE]
    arrays = []
    for split, stream in (("train", TRAIN), ("test", TEST)):
        alpha = draw(subject, stream, len(subject.examples(split).x), 0).alpha
        arrays += [subject.features(split)[0], np.asarray(alpha)]
    l2 = subject.settings.evaluation.nuisance_l2
    found = nuisance_prediction.predict_nuisance(*arrays, l2=l2)
    for number, row in enumerate(measured.rows):
        expected = {name: values[number] for name, values in found.items()}
        assert row.values == pytest.approx(expected)
        residual = 1 - row.values["mse"] / arrays[3][:, number].astype(float).var()
        assert row.values["r2"] == pytest.approx(residual, abs=1e-5)
        assert row.values["l2"] in l2


def test_one_view_is_predicted_where_more_are_averaged(subject, states):
    config = tiny_config({**CHANGES, "evaluation.num_views": (2, 3)})
    other = make_subject(resolve(config), subject.workdir, states[20])
    found = nuisance_prediction._features(other, "test")
    np.testing.assert_allclose(found, subject.features("test")[0], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def shifted(subject):
    return shift.run(subject)


BOUNDS = {"rback": (0.0, 0.6), "gback": (0.0, 0.6), "bback": (0.0, 0.6)}


def shifted_features(subject, split, views, what, how, value):
    """The mean of h over views whose alpha is shifted number by number."""
    stream = {"train": TRAIN, "test": TEST}[split]
    x = subject.examples(split).x
    alphas = drawn_alphas(subject, len(x), stream, range(views))
    names = BOUNDS if what == "background" else (what,)
    for alpha in alphas:
        for column in (NUISANCE.index(name) for name in names):
            if how == "move":
                alpha[:, column] += value
            else:
                middle = sum(BOUNDS[NUISANCE[column]]) / 2
                alpha[:, column] = middle + value * (alpha[:, column] - middle)
    return views_of(subject, alphas, x).mean(axis=0)


POINTS = pytest.mark.parametrize(
    ("what", "how", "value"),
    [("h", "move", 0.0), ("h", "move", 0.5), ("background", "widen", 1.5)],
)
M = pytest.mark.parametrize(("number", "views"), [(0, 1), (1, 3)])


@POINTS
@M
def test_a_fixed_head_predicts_shifted_views(
    subject, shifted, what, how, value, number, views
):
    h, h_test = (subject.features(split)[number] for split in ("train", "test"))
    probe = protocols.fit_and_score(
        subject.settings, h, subject.train.y, h_test, subject.test.y
    ).probe
    moved = shifted_features(subject, "test", views, what, how, value).astype(float)
    residual = moved @ np.asarray(probe.kernel) + np.asarray(probe.bias)
    mse = np.square(residual - subject.test.y).mean(axis=0)
    at = {"parameter": what, "how": how, "shift": value, "head": "fixed"}
    found = row_at(shifted, **at, views=views)
    for name, expected in zip(subject.settings.data.targets, mse, strict=True):
        assert found[f"mse.{name}"] == pytest.approx(expected, rel=2e-3)
    assert found["mse"] == pytest.approx(mse.mean(), rel=2e-3)


@POINTS
@M
def test_a_refitted_head_saw_shifted_views(
    subject, shifted, what, how, value, number, views
):
    arrays = [
        array
        for split in ("train", "test")
        for array in (
            shifted_features(subject, split, views, what, how, value),
            subject.examples(split).y,
        )
    ]
    expected = protocols.fit_and_score(subject.settings, *arrays).values
    at = {"parameter": what, "how": how, "shift": value, "head": "refitted"}
    found = row_at(shifted, **at, views=views)
    assert found == pytest.approx(expected, rel=5e-3, abs=5e-3)


def test_coordinates_of_the_shifts(shifted):
    points = [("h", "move", 0.0), ("h", "move", 0.5)]
    points += [("background", "widen", 1.0), ("background", "widen", 1.5)]
    places = [
        (*point, head, views)
        for point in points
        for head in ("refitted", "fixed")
        for views in (1, 3)
    ]
    assert [tuple(row.at.values()) for row in shifted.rows] == places
    assert list(shifted.rows[0].at) == ["parameter", "how", "shift", "head", "views"]


def test_the_unshifted_law_is_the_ordinary_probe(subject, shifted):
    for what, how, value in (("h", "move", 0.0), ("background", "widen", 1.0)):
        for number, views in enumerate((1, 3)):
            for head in ("refitted", "fixed"):
                at = {"parameter": what, "how": how, "shift": value, "head": head}
                found = row_at(shifted, **at, views=views)
                assert found == subject.scored(number).values


def test_no_shift_has_no_rows(subject, states):
    config = tiny_config({**CHANGES, "evaluation.shifts": ()})
    none = make_subject(resolve(config), subject.workdir, states[20])
    assert shift.run(none).rows == []


def test_each_target_has_a_probe_with_its_own_l2(subject):
    values = averaging.run(subject).values
    assert downstream.run(subject).values["mse.selected@1"] == values["mse.selected@1"]
    for number, views in enumerate(subject.num_views):
        h, h_test = (subject.features(split)[number] for split in ("train", "test"))
        with jax.enable_x64(True):
            probe, _ = evaluation.fit_ridge_selected(
                jnp.asarray(h, jnp.float64),
                jnp.asarray(subject.train.y, jnp.float64),
                l2=(1e-6, 1e-3, 1.0),
                num_held_out=20,
            )
            error = np.asarray(evaluation.predict(probe, h_test)) - subject.test.y
        expected = np.square(error).mean()
        assert values[f"mse.selected@{views}"] == pytest.approx(expected, rel=1e-5)


def test_images_have_a_probe_with_its_own_l2(images):
    values = downstream.run(images).values
    h, h_test = (jnp.asarray(images.plain(split)) for split in ("train", "test"))
    probe, l2 = evaluation.fit_logistic_selected(
        h,
        jnp.asarray(images.train.y),
        num_classes=3,
        l2=(1e-6, 1e-3, 1.0),
        num_held_out=len(h) // 10,
    )
    assert values["l2.selected@plain"] == l2
    logits = evaluation.predict(probe, h_test)
    right = np.mean(np.argmax(logits, axis=1) == images.test.y)
    assert values["accuracy.selected@plain"] == pytest.approx(right)
    assert "accuracy.selected@3" in averaging.run(images).values


def test_label_fraction_1_is_the_ordinary_probe(subject):
    measured = label_fraction.run(subject)
    places = [(f, views) for f in (0.2, 1.0) for views in (1, 3)]
    assert [tuple(row.at.values()) for row in measured.rows] == places
    for number, views in enumerate((1, 3)):
        found = row_at(measured, fraction=1.0, views=views)
        assert found == pytest.approx(subject.scored(number).values)


def test_a_share_of_the_examples_is_the_first_of_them(subject):
    measured = label_fraction.run(subject)
    count = round(0.2 * len(subject.train.y))
    assert count == 40
    h, h_test = (subject.features(split)[1] for split in ("train", "test"))
    y = subject.train.y[:count]
    expected = protocols.fit_and_score(
        subject.settings, h[:count], y, h_test, subject.test.y
    )
    found = row_at(measured, fraction=0.2, views=3)
    assert found == pytest.approx(expected.values)


def test_shares_of_images_are_those_of_each_class(images):
    y = images.train.y
    for fraction in (0.2, 0.5):
        seen = y[protocols.choose_labeled(images.settings, y, fraction)]
        for label in range(3):
            expected = np.floor(fraction * (y == label).sum() + 0.5)
            assert (seen == label).sum() == expected


def test_a_share_without_a_class_is_named(images):
    with pytest.raises(ValueError, match=r"evaluation\.label_fractions: .*class"):
        protocols.choose_labeled(images.settings, images.train.y, 0.03)


def test_images_have_plain_and_averaged_features(images):
    measured = label_fraction.run(images)
    places = [(1.0, views) for views in ("plain", 3)]
    assert [tuple(row.at.values()) for row in measured.rows] == places
    found = row_at(measured, fraction=1.0, views=3)
    assert found == pytest.approx(images.scored(-1).values)
    h, h_test = (encode_plain(images, split) for split in ("train", "test"))
    expected = protocols.fit_and_score(
        images.settings, h, images.train.y, h_test, images.test.y
    )
    found = row_at(measured, fraction=1.0, views="plain")
    assert found["accuracy"] == pytest.approx(expected.values["accuracy"], abs=0.03)
    cross_entropy = expected.values["cross_entropy"]
    assert found["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-3)


def encode_plain(subject, split):
    plain = make_transformation(subject.settings).plain
    return np.asarray(encode(subject, plain(jnp.asarray(subject.examples(split).x))))


@pytest.fixture(scope="module")
def jittered(images):
    return shift.run(images)


def test_images_are_jittered_at_the_strength_of_the_training_too(jittered):
    places = [
        ("color", "strength", strength, head, views)
        for strength in (0.0, 0.5, 1.0)
        for head in ("refitted", "fixed")
        for views in (1, 3)
    ]
    assert [tuple(row.at.values()) for row in jittered.rows] == places
    assert {*jittered.rows[0].values} == {"accuracy", "cross_entropy"}


def test_the_head_of_images_is_fitted_at_the_strength_of_the_training(images, jittered):
    for views in (1, 3):
        at = {"parameter": "color", "how": "strength", "shift": 0.5, "views": views}
        fixed, refitted = (
            row_at(jittered, **at, head=head) for head in ("fixed", "refitted")
        )
        assert fixed == refitted
        at["shift"] = 1.0
        fixed, refitted = (
            row_at(jittered, **at, head=head) for head in ("fixed", "refitted")
        )
        assert fixed != refitted


def test_strength_0_is_the_plain_image(images):
    features = shift._Features(images)
    h = features("test", ("color", "strength", 0.0))
    plain = encode_plain(images, "test")
    # The matrices of the hue are not exact inverses.
    for one in h:
        np.testing.assert_allclose(one, plain, atol=0.02 * np.abs(plain).max())


def test_the_jitter_has_the_law_of_its_strength(images):
    (base,) = [shift._Features(images)._base]
    for strength in (0.25, 1.0):
        move, scale = shift.move_and_scale(base.names, "color", "strength", strength)
        view = shift.shifts.shift(base, move, scale).sample(jax.random.key(0), 2000)
        half = np.array(3 * [0.8 * strength] + [0.2 * strength])
        middle = np.array([1.0, 1.0, 1.0, 0.0])
        np.testing.assert_allclose(view.alpha.min(axis=0), middle - half, atol=0.01)
        np.testing.assert_allclose(view.alpha.max(axis=0), middle + half, atol=0.01)
        assert {*view.held} == {"jitter"} and view.held["jitter"].all()


def test_gated_views_do_not_change(images):
    (row, *_) = linearization.run(images).rows
    assert row.at == {"step": 0.1, "parameters": "all"}
    assert 0 < row.values["relative_error"] < 1
    assert row.values["cosine"] > 0.5


def test_a_transformation_without_alpha_has_no_rows(tmp_path):
    changes = IMAGES | {"augmentation.differentiate": (), "penalty.weight": 0.0}
    settings = resolve(image_config(tmp_path, changes))
    none = make_subject(settings, tmp_path / "run", initial_state(settings))
    assert linearization.run(none) == ({}, [])
    assert nuisance_prediction.run(none) == ({}, [])


def test_given_weights_are_a_checkpoint_at_step_0(images):
    ((step, variables),) = invariance._checkpoints(images)
    assert step == 0
    assert variables is images.variables


def test_the_order_of_the_nuisance_is_that_of_alpha(subject):
    assert make_transformation(subject.settings).names == NUISANCE
    assert [name for name in PARAMETERS if name in NUISANCE] == list(NUISANCE)


class Recorder:
    """Settings that note which keys of the evaluation are read."""

    def __init__(self, settings, read):
        self._settings, self._read = settings, read

    def __getattr__(self, name):
        return getattr(self._settings, name)

    @property
    def evaluation(self):
        chosen, read = self._settings.evaluation, self._read

        class Noted:
            def __getattr__(self, name):
                read.add(name)
                return getattr(chosen, name)

        return Noted()


@pytest.mark.parametrize("name", keys.EXPERIMENTS)
@pytest.mark.parametrize("kind", ["spirograph", "images"])
def test_what_an_experiment_reads_is_known(subject, images, kind, name):
    known = {"spirograph": subject, "images": images}[kind]
    read = set()
    settings = Recorder(known.settings, read)
    fresh = Subject(
        settings,
        known.workdir,
        FrozenEncoder(settings, parallel.all_devices()),
        known.variables,
        num_views=known.num_views,
    )
    read.clear()
    EXPERIMENTS[name](fresh)
    assert read
    for key in read - {"batch_size"}:  # it changes no number
        assert name in keys.READERS.get(key, (name,)), key
