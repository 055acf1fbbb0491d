"""Tasks: examples of a split, probes, own augmentations, and images without labels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import image_arrays, image_config, tiny_config

from invariance_jax import data, evaluation, transforms
from invariance_jax.settings import resolve
from invariance_jax.tasks import Examples, make_task, open_set


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


def image_task(data_dir, **changes):
    return make_task(open_set(resolve(image_config(data_dir, changes))))


def spirograph_task(**changes):
    return make_task(resolve(tiny_config(changes)))


def unlabeled(settings):
    """The settings as they are of a set without labels."""
    settings.data.num_classes = None
    return settings


def test_the_headline_of_each_task(data_dir):
    task = spirograph_task()
    assert task.metric == "mse"
    assert task.targets == ("m", "b", "sigma", "rfore") and task.classes == ()
    task = image_task(data_dir)
    assert task.metric == "accuracy"
    assert task.targets == () and task.classes == ("0", "1", "2")


def test_class_names_are_those_of_the_set(tmp_path):
    split = image_arrays(0, num_examples=60)
    names = ["t-shirt", "trouser", "bag"]
    data.prepare_arrays("bars", tmp_path, train=split, test=split, class_names=names)
    assert image_task(tmp_path).classes == tuple(names)


def test_steps_of_lbfgs_come_near_the_exact_probe():
    generator = np.random.default_rng(0)
    h = generator.normal(size=(300, 6)) * np.logspace(0, -1, 6) + 2
    y = h @ generator.normal(size=(6, 4)) + generator.normal(size=(300, 4))
    task = spirograph_task()
    exact, early = task.fit(h, y), task.fit_in_steps(h, y, 5)
    late = task.fit_in_steps(h, y, 2000)
    np.testing.assert_allclose(late.kernel, exact.kernel, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(late.bias, exact.bias, rtol=1e-3, atol=1e-4)
    errors = [task.score(one, h, y).values["mse"] for one in (exact, late, early)]
    assert errors[0] <= errors[1] + 1e-12 < errors[0] * 1.0001 < errors[2]


def test_examples_of_spirograph_are_their_targets():
    task = spirograph_task()
    for split, count in (("train", 200), ("validation", 60), ("test", 70)):
        x, y = task.examples(split)
        assert x is y and x.shape == (count, 4)
    np.testing.assert_array_equal(task.stand_ins(3), task.examples("train").x[:3])


def test_examples_keep_their_labels_together():
    found = Examples(np.arange(5), np.arange(5) * 2).first(2)
    np.testing.assert_array_equal(found.x * 2, found.y)
    assert len(Examples(np.arange(5), None).first(None).x) == 5
    assert Examples(np.arange(5), None).first(2).y is None


def test_examples_that_are_sorted_by_class_are_shuffled(tmp_path):
    images, labels = image_arrays(0, num_examples=60)
    order = np.argsort(labels, kind="stable")
    split = images[order], labels[order]
    data.prepare_arrays("sorted", tmp_path, train=split, test=split)
    changes = {"data.name": "sorted", "data.test_examples": 30}
    task = image_task(tmp_path, **changes, **{"data.validation_examples": 20})
    test = task.examples("test")
    assert len(test.x) == len(test.y) == 30
    assert {*test.first(9).y} == {0, 1, 2}
    ordered = task.examples("test", in_order=True)
    assert (np.diff(ordered.y) >= 0).all()
    np.testing.assert_array_equal(np.sort(test.y), ordered.y)
    same = sorted(image.tobytes() for image in ordered.x)
    assert same == sorted(image.tobytes() for image in test.x)


def test_only_opening_reads_what_the_files_tell(data_dir, monkeypatch):
    settings = resolve(image_config(data_dir))
    opened = open_set(settings)
    assert len(opened.data.mean) == len(opened.data.std) == 3
    monkeypatch.setattr(data, "describe", None)
    monkeypatch.setattr(data, "load_arrays", None)
    assert open_set(opened) is opened
    task = make_task(opened)
    assert task.stand_ins(2).shape == (2, 10, 10, 3)
    view = task.transformation().sample(jax.random.key(0), 2)
    assert task.transformation().apply(task.stand_ins(2), view).shape == (2, 8, 8, 3)


def test_the_probe_sees_a_share_of_the_labels(data_dir):
    task = image_task(data_dir, **{"evaluation.label_fraction": 0.2})
    counts = np.bincount(task.probe_examples(task.examples("train")).y)
    assert counts.sum() == pytest.approx(24, abs=3) and (counts > 0).all()
    changes = {"evaluation.train_examples": 7, "evaluation.neighbors": ()}
    task = image_task(data_dir, **changes)
    assert len(task.probe_examples(task.examples("train")).x) == 7


def test_neighbors_are_at_most_the_share_of_the_labels(data_dir):
    changes = {"evaluation.label_fraction": 0.2}
    task = image_task(data_dir, **changes)
    train = task.examples("train")
    count = len(task.probe_examples(train).y)
    image_task(data_dir, **changes, **{"evaluation.neighbors": (count,)})
    task = image_task(data_dir, **changes, **{"evaluation.neighbors": (count + 1,)})
    expected = rf"neighbors is \({count + 1},\); expected at most {count}, the number"
    with pytest.raises(ValueError, match=expected):
        task.check_fractions(train)


def test_shares_of_images_are_those_of_each_class(data_dir):
    task = image_task(data_dir)
    y = task.examples("train").y
    for fraction in (0.2, 0.5):
        counts = np.bincount(y[task.labeled(y, fraction)], minlength=3)
        expected = [np.floor(fraction * (y == label).sum() + 0.5) for label in range(3)]
        assert counts.tolist() == expected
    np.testing.assert_array_equal(spirograph_task().labeled(y, 0.1), np.arange(12))


@pytest.mark.parametrize(
    ("key", "value", "asked"),
    [
        ("label_fraction", 0.0126, "downstream"),
        ("label_fractions", (0.0126, 1.0), "label_fraction"),
    ],
)
def test_a_share_that_leaves_a_class_empty_is_refused(data_dir, key, value, asked):
    changes = {f"evaluation.{key}": value, "evaluation.neighbors": ()}
    changes["evaluation.experiments"] = (asked,)
    task = image_task(data_dir, **changes)
    train = task.examples("train")
    with pytest.raises(ValueError, match=rf"^evaluation\.{key}: .*leaves class \d"):
        task.check_fractions(train)


def test_logistic_regression_is_fitted_to_the_minimum(data_dir):
    task = image_task(data_dir)
    x, y = task.examples("train")
    h = x.reshape(len(x), -1).astype(np.float32) / 255
    probe = task.fit(h, y)
    features, labels = jnp.asarray(h), jnp.asarray(y)
    objective = evaluation.logistic_objective(probe, features, labels, l2=1e-3)
    assert objective.gradient_norm < 1e-3
    scored = task.score(probe, h, y)
    right = np.mean(scored.predictions.argmax(axis=1) == y)
    assert scored.values["accuracy"] == pytest.approx(right)
    assert {*scored.values} == {"accuracy", "cross_entropy"}


def test_ridge_regression_is_that_of_float64():
    task = spirograph_task(**{"evaluation.l2": 0.1})
    y = task.examples("train").y
    h = np.random.default_rng(0).normal(1000, 1, (len(y), 5)).astype(np.float32)
    scored = task.score(task.fit(h, y), h, y)
    assert scored.predictions.dtype == np.float64
    wide = h.astype(float) - h.astype(float).mean(axis=0)
    mean = y.astype(float).mean(axis=0)
    # The mean is over the targets too.
    normal = wide.T @ wide / len(y) + 4 * 0.1 * np.eye(5)
    kernel = np.linalg.solve(normal, wide.T @ (y - mean) / len(y))
    error = np.square(wide @ kernel + mean - y).mean(axis=0)
    for name, expected, column in zip(task.targets, error, y.T, strict=True):
        assert scored.values[f"mse.{name}"] == pytest.approx(expected, rel=1e-6)
        r2 = 1 - expected / column.astype(float).var()
        assert scored.values[f"r2.{name}"] == pytest.approx(r2, abs=1e-6)
    assert scored.values["mse"] == pytest.approx(error.mean(), rel=1e-6)


def test_a_probe_chooses_its_l2_from_the_grid(data_dir):
    grid = (1e-6, 1e-3, 1.0)
    task = image_task(data_dir, **{"evaluation.l2_grid": grid})
    train, test = (task.examples(split) for split in ("train", "test"))
    h, h_test = (
        part.x[:, ::3, ::3, 0].reshape(len(part.x), -1).astype(np.float32) / 255
        for part in (train, test)
    )
    probe, l2 = evaluation.fit_logistic_selected(
        jnp.asarray(h), jnp.asarray(train.y), num_classes=3, l2=grid, num_held_out=12
    )
    expected = task.score(probe, h_test, test.y).values | {"l2": l2}
    assert task.select(h, train.y, h_test, test.y) == expected
    assert image_task(data_dir).select(h, train.y, h_test, test.y) == {}
    assert spirograph_task().select(h, train.y, h_test, test.y) == {}


def test_pictures_are_the_images_that_they_were(data_dir):
    task = image_task(data_dir, **{"data.image_size": 10})
    x = task.examples("test").x[:5]
    plain = task.transformation().plain(x)
    assert abs(float(plain.mean())) < 0.5  # normalized
    np.testing.assert_array_equal(task.displayed(plain), x)
    assert spirograph_task().displayed(jnp.array([[0.5, 1.2]])).tolist() == [[128, 255]]


def own_changes(name, **kwargs):
    return {"augmentation.name": f"own_parts:{name}", "augmentation.kwargs": kwargs}


@pytest.mark.parametrize("normalizes", [True, False])
def test_an_own_augmentation_makes_the_views(data_dir, normalizes):
    changes = own_changes("brighten", most=1.5, normalizes=normalizes)
    task = image_task(data_dir, **changes)
    own = task.transformation()
    assert own is task.transformation() and own.names == ("factor",)
    assert own.bounds.tolist() == [[1.0, 1.5]]
    assert task.stand_ins(2).shape == (2, 10, 10, 3)
    x = task.examples("test").x[:5]
    np.testing.assert_array_equal(task.displayed(own.plain(x)), x)
    assert task.shiftable() is None


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("nothing", {}, "returned None; expected an invariance_jax.transforms"),
        ("coupled", {}, "transformation check: .*independent"),
        ("of_sizes", {}, "sample_for with second=True must compile: TypeError"),
        ("brighten", {}, r"cannot be called with \(data\): missing a .*'most'"),
        ("dataless", {"most": 2}, r"with \(data, most=\.\.\.\): too many positional"),
        ("absent", {}, "own_parts has no absent"),
    ],
)
def test_what_is_no_augmentation_is_refused(data_dir, name, kwargs, expected):
    task = image_task(data_dir, **own_changes(name, **kwargs))
    with pytest.raises(ValueError, match=rf"augmentation.name is 'own_parts:{name}'.*"):
        task.transformation()
    with pytest.raises(ValueError, match=expected):
        task.transformation()


def test_images_without_labels_have_no_probe(data_dir, monkeypatch):
    task = make_task(unlabeled(open_set(resolve(image_config(data_dir)))))
    assert (task.metric, task.classes, task.targets) == ("", (), ())
    load = data.load_arrays
    monkeypatch.setattr(data, "load_arrays", lambda *a, **k: (load(*a, **k)[0], None))
    train = task.probe_examples(task.examples("train"))
    assert train.y is None and len(train.x) == 120
    task.check_fractions(train)


def test_probes_of_images_without_labels_are_refused_before_training(data_dir):
    asked = {"evaluation.experiments": ("invariance", "averaging")}
    settings = unlabeled(resolve(image_config(data_dir, asked)))
    expected = r"evaluation\.experiments is .*'averaging'.*; expected none of down"
    with pytest.raises(ValueError, match=expected):
        make_task(settings)
    for experiments in (("all",), ("invariance",)):
        settings.evaluation.experiments = experiments
        make_task(settings)


def test_families_are_parts_of_the_transformation(data_dir):
    task = image_task(data_dir)
    names = {family: task.transformation(family).names for family in ("color", "crop")}
    assert names == {"color": (), "crop": ()}  # nothing is differentiated
    x = jnp.asarray(task.examples("test").x[:4])
    view = task.transformation("crop").sample(jax.random.key(0), 4)
    cropped = task.transformation("crop").apply(x, view)
    assert not np.allclose(cropped, task.transformation().plain(x))
    assert math.isfinite(float(cropped.sum()))


def test_the_shifted_colours_are_those_of_every_plain_image(data_dir):
    base = image_task(data_dir).shiftable()
    assert base.names == transforms.color.JITTER_NAMES
    spirograph = spirograph_task()
    assert spirograph.shiftable() is spirograph.transformation()
