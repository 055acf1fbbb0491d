"""Image sets in the settings: what is read from the set, and what must fit it."""

import os

import pytest
from tiny import tiny_config

from invariance_jax import data
from invariance_jax.settings import resolve

LITTLE = data.Description(
    "little", (28, 24, 1), 4, 300, 80, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
)
IMAGES = {
    "data.name": "little",
    "data.train_examples": None,
    "data.test_examples": None,
    "data.image_size": None,
    "evaluation.neighbors": (5,),
}
COMPLETE = {
    "data.train_examples": 100,
    "data.test_examples": 40,
    "data.num_classes": 4,
    "data.source_size": (28, 24),
    "data.channels": 1,
    "data.mean": (0.1, 0.2, 0.3),
    "data.std": (0.4, 0.5, 0.6),
}


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Describes the set without a file; the list says how often it was asked."""
    calls = []

    def describe(name, *, data_dir):
        calls.append((name, data_dir))
        return LITTLE

    monkeypatch.setattr(data, "describe", describe)
    return calls


def settings(changes=None):
    return resolve(tiny_config(IMAGES | (changes or {})))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.num_classes", 5, "4, as in little, or None"),
        ("data.channels", 3, "1, as in little, or None"),
        ("data.source_size", (28, 28), "(28, 24), as in little, or None"),
        (
            "data.validation_examples",
            300,
            "less than the 300 training images of little",
        ),
        ("data.train_examples", 241, "at most 240, the number of images in little"),
        ("data.test_examples", 81, "at most 80, the number of images in little"),
        (
            "evaluation.neighbors",
            (5, 241),
            "at most 240, as the probe is fitted on no more examples",
        ),
        (
            "evaluation.label_fraction",
            0.005,
            "0.008334 at least, for an example of each of 4 classes",
        ),
        (
            "augmentation.differentiate",
            (),
            "an operation that is switched on, as penalty.weight is not 0",
        ),
        ("evaluation.lbfgs_steps", (5,), "(), as the probe is logistic"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_set_is_refused(key, value, expected):
    with pytest.raises(ValueError) as caught:
        settings({key: value})
    assert str(caught.value) == f"{key} is {value!r}; expected {expected}."


def test_all_that_does_not_fit_the_set_is_said_at_once():
    changes = {"data.validation_examples": 300, "batch_size": 400}
    with pytest.raises(ValueError) as caught:
        settings(changes | {"evaluation.neighbors": (500,), "data.channels": 3})
    keys = [line.split()[0] for line in str(caught.value).split("\n")]
    split = ["data.validation_examples", "data.channels"]
    assert keys == [*split, "evaluation.neighbors", "batch_size"]
    assert str(caught.value).endswith("at most 300 examples.")  # more are never there


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"augmentation.crop_area": (0.5, 0.1)}, "augmentation.crop_area"),
        ({"augmentation.differentiate": ("colorize",)}, "augmentation.differentiate"),
        ({"penalty.parameters": ("crop.tpo",)}, "penalty.parameters"),
        ({"evaluation.experiments": ("shift",)}, "evaluation.shifts"),
    ],
    ids=str,
)
def test_what_needs_no_set_is_checked_before_it_is_asked(changes, key, asked):
    with pytest.raises(ValueError) as caught:
        settings(changes)
    assert str(caught.value).startswith(key)
    assert "\n" not in str(caught.value)
    assert not asked


@pytest.mark.parametrize(
    "changes",
    [{"augmentation.jitter_probability": 0.0}, {"augmentation.strength": 0.0}],
)
def test_a_penalty_along_nothing_is_refused(changes):
    crop = {"augmentation.differentiate": ("color", "crop")}
    with pytest.raises(ValueError, match="an operation that is switched on"):
        settings(changes)
    with pytest.raises(ValueError, match=r"penalty.parameters is \('hue',\); expected"):
        settings(changes | crop | {"penalty.parameters": ("hue",)})
    settings(changes | {"penalty.weight": 0.0})
    settings(changes | crop | {"penalty.parameters": ("hue", "crop.top")})


def test_consistency_needs_nothing_to_derive_along():
    settings({"augmentation.differentiate": (), "penalty.kind": "consistency"})


NO_VALIDATION = {"data.validation_examples": 0, "logging.probe_every_steps": 0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logging.probe_every_steps", 10),
        ("evaluation.split", "validation"),
        ("embedding.splits", ("train", "validation")),
    ],
)
def test_nothing_may_ask_for_a_validation_split_that_is_not_there(key, value):
    assert settings(NO_VALIDATION).data.train_examples == 300
    with pytest.raises(ValueError, match="expected no use of the") as caught:
        settings(NO_VALIDATION | {key: value})
    assert str(caught.value).startswith(f"{key} is {value!r}")


def test_neighbors_are_counted_among_the_labels_that_are_seen():
    changes = {"evaluation.neighbors": (20,), "evaluation.label_fraction": 0.1}
    settings(changes)
    with pytest.raises(ValueError, match=r"\(20,\); expected at most 12, as"):
        settings(changes | {"evaluation.train_examples": 100})


def test_empty_keys_are_read_from_the_set(asked):
    found = settings({"data.data_dir": "somewhere"}).data
    assert (found.train_examples, found.test_examples) == (300 - 60, 80)
    assert (found.num_classes, found.source_size, found.channels) == (4, (28, 24), 1)
    assert (found.image_size, found.mean, found.std) == (24, LITTLE.mean, LITTLE.std)
    assert found.data_dir == os.path.abspath("somewhere")
    assert asked == [("little", found.data_dir)]


def test_values_that_are_given_are_kept(asked):
    found = settings({**COMPLETE, "data.image_size": 16, "data.mean": (0.0,) * 3})
    assert found.data.train_examples == 100 and found.data.image_size == 16
    assert found.data.mean == (0.0, 0.0, 0.0)
    assert not asked  # it says all


def test_a_run_of_images_without_labels_needs_no_set_either(monkeypatch):
    changes = {**COMPLETE, "data.num_classes": None}
    assert settings(changes).data.num_classes == 4

    def describe(name, *, data_dir):
        raise ValueError(f"there is no {name}")

    monkeypatch.setattr(data, "describe", describe)
    assert settings(changes).data.num_classes is None
    with pytest.raises(ValueError, match="there is no little"):
        settings({**changes, "data.mean": None})


def test_a_known_set_is_not_looked_for(asked):
    changes = {"data.name": "cifar10", "data.validation_examples": 5000}
    found = settings(changes).data
    assert (found.train_examples, found.channels) == (45_000, 3)
    assert found.mean == (0.4914, 0.4822, 0.4465)
    assert not asked
