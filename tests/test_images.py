"""Image sets in the settings: bad values, and what is read from the set."""

import os
from types import SimpleNamespace

import pytest
from test_settings import changed

from invariance_jax.data import loading
from invariance_jax.training.settings import resolve

SET = {
    "name": "little",
    "image_shape": (28, 24, 1),
    "num_classes": 4,
    "num_train": 300,
    "num_test": 80,
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
}
IMAGES = {
    "data.name": "little",
    "data.train_examples": None,
    "data.test_examples": None,
    "data.image_size": None,
    "encoder.name": "mlp",
    "evaluation.neighbors": (5,),
}
COMPLETE = {
    "data.train_examples": 100,
    "data.test_examples": 40,
    "data.num_classes": 4,
    "data.source_size": (28, 24),
    "data.mean": (0.1, 0.2, 0.3),
    "data.std": (0.4, 0.5, 0.6),
}

BAD = [
    ("data.source_size", 28, "2 numbers"),
    ("data.mean", (0.5, 0.5), "3 numbers"),
    ("data.std", ("a", 1, 2), "3 numbers"),
    ("augmentation.crop", 1, "True or False"),
    ("augmentation.crop_area", 0.5, "(lower, upper)"),
    ("augmentation.jitter_probability", 1.5, "a number in [0, 1]"),
    ("augmentation.rotation", -1.0, "0 or a positive number"),
    ("augmentation.differentiate", "color", "a tuple of names"),
    (
        "augmentation.differentiate",
        (),
        "a part that is switched on, as penalty.weight is not 0",
    ),
    ("evaluation.neighbors", (20, 5), "an increasing tuple, k >= 1"),
    ("data.num_classes", 5, "4, that of little, or nothing"),
    ("data.source_size", (28, 28), "(28, 24), that of little, or nothing"),
    (
        "evaluation.neighbors",
        (5, 241),
        "at most the 240 examples that the probe is fitted on",
    ),
    ("data.validation_examples", 300, "less than the 300 training images of little"),
    ("data.train_examples", 241, "at most 240, what little has"),
    ("data.test_examples", 81, "at most 80, what little has"),
]


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Describes the set without a file; the list says how often it was asked."""
    calls = []

    def describe(name, *, data_dir):
        calls.append((name, data_dir))
        return SimpleNamespace(**SET)

    monkeypatch.setattr(loading, "describe", describe)
    return calls


def settings(changes=None):
    return resolve(changed(IMAGES | (changes or {})))


@pytest.mark.parametrize(("key", "value", "expected"), BAD, ids=str)
def test_a_bad_value_is_refused_by_name(key, value, expected):
    with pytest.raises(ValueError) as caught:
        settings({key: value})
    assert str(caught.value) == f"{key} is {value!r}; expected {expected}."


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data.std": (0.1, 0.0, 0.1)}, "data.std"),
        ({"augmentation.crop_area": (0.5, 0.1)}, "augmentation.crop_area"),
        ({"augmentation.resampling": "nearest"}, "augmentation.resampling"),
        (
            {"augmentation.differentiate": ("colorize",)},
            "augmentation.differentiate",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_transformation_refuses_names_the_key(changes, key, asked):
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
    with pytest.raises(ValueError, match="a part that is switched on"):
        settings(changes)
    settings(changes | {"penalty.weight": 0.0})
    settings(changes | {"augmentation.differentiate": ("color", "crop")})


def test_consistency_needs_nothing_to_derive_along():
    settings({"augmentation.differentiate": (), "penalty.kind": "consistency"})


def test_parameters_of_the_penalty_are_those_of_the_transformation(asked):
    settings({"penalty.parameters": ("hue", "brightness")} | COMPLETE)
    with pytest.raises(ValueError) as caught:
        settings({"penalty.parameters": ("crop.tpo",)})
    text = "penalty.parameters is 'crop.tpo'; expected one of 'brightness', 'contrast'"
    assert str(caught.value).startswith(text)
    crop = {"augmentation.differentiate": ("color", "crop")}
    with pytest.raises(ValueError, match="did you mean 'crop.top'"):
        settings({"penalty.parameters": ("crop.tpo",)} | crop)
    assert not asked
    settings({"penalty.parameters": ("crop.top",)} | crop)


def test_a_penalty_along_parameters_that_are_off_is_refused():
    off = {
        "augmentation.differentiate": ("color", "crop"),
        "augmentation.jitter_probability": 0.0,
    }
    settings(off | {"penalty.parameters": ("hue", "crop.top")})
    with pytest.raises(
        ValueError, match="penalty.parameters is .'hue',.; expected one"
    ):
        settings(off | {"penalty.parameters": ("hue",)})


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
    with pytest.raises(ValueError) as caught:
        settings(NO_VALIDATION | {key: value})
    assert str(caught.value).startswith(f"{key} is {value!r}; expected none of the")


def test_neighbors_are_counted_among_the_labels_that_are_seen():
    changes = {"evaluation.neighbors": (20,), "evaluation.label_fraction": 0.1}
    settings(changes)
    with pytest.raises(
        ValueError, match=r"neighbors is \(20,\); expected at most the 10"
    ):
        settings(changes | {"evaluation.train_examples": 100})


def test_empty_keys_are_read_from_the_set(asked):
    found = settings({"data.data_dir": "somewhere"})
    assert found.data.train_examples == 300 - 60
    assert found.data.test_examples == 80
    assert found.data.num_classes == 4
    assert tuple(found.data.source_size) == (28, 24)
    assert found.data.image_size == 24
    assert tuple(found.data.mean) == SET["mean"]
    assert tuple(found.data.std) == SET["std"]
    assert found.derived.steps_per_epoch == 240 // 16
    # The set is decoded once per folder, whatever the name of the folder.
    assert asked == [("little", os.path.abspath("somewhere"))]
    assert found.data.data_dir == asked[0][1]


def test_values_that_are_given_are_kept():
    changes = {"data.train_examples": 90, "data.mean": (0.0, 0.0, 0.0)}
    found = settings(changes | {"data.image_size": 16})
    assert found.data.train_examples == 90
    assert tuple(found.data.mean) == (0.0, 0.0, 0.0)
    assert found.data.image_size == 16


def test_a_complete_configuration_needs_no_set(asked):
    settings(COMPLETE)
    assert not asked


def test_a_bad_value_is_refused_before_the_set_is_touched(asked):
    with pytest.raises(ValueError, match="optimizer.name"):
        settings({"optimizer.name": "sgd"})
    with pytest.raises(ValueError, match=r"steps is .* and epochs"):
        settings({"steps": None})
    assert not asked
