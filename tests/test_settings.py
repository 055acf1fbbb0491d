"""Settings: what every key refuses, generated from its declaration; what goes together.

A new key is tested without a new test: each is given values of every wrong type and
from beyond each end of its range.
"""

import json
import math
import types
import typing

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny import tiny_config

from configs import base, cifar10, imagenet
from configs.examples import rotate_and_blur
from invariance_jax.settings import (
    KEYS,
    change,
    check_devices,
    flatten,
    from_dict,
    resolve,
    to_dict,
)
from invariance_jax.settings.command_line import key_help, meanings
from invariance_jax.settings.rules import make_image_views
from invariance_jax.settings.schema import EXPERIMENTS
from invariance_jax.training.build import build

NAN, INF = math.nan, math.inf

# Values that no key of a type takes, whatever its range.
WRONG = {
    int: ["1", 2.5, True, NAN, INF, 10**12, -(10**12), (1,), {}],
    float: ["1", True, NAN, INF, -INF, 1e39, 1e-46, -1e300, (1.0,), {}],
    str: [1, 2.5, True, (), {}],
    bool: [1, 0, "True", None, ()],
    tuple: [1, "a", True, {}, (None,), ((),), ({},)],
    dict: [1, "width", (), {"a b": 1}, {1: 2}, {"f": print}],
}


def kind(annotation):
    """Returns the plain type of an annotation, and whether it may be None."""
    arguments = typing.get_args(annotation)
    optional = isinstance(annotation, types.UnionType)
    if optional:
        (annotation,) = (one for one in arguments if one is not types.NoneType)
    return typing.get_origin(annotation) or annotation, optional, annotation


def bad_values(declared):
    """Yields what a key must refuse."""
    plain, optional, annotation = kind(declared.type)
    yield from WRONG[plain]
    if not optional:
        yield None
    key, of = declared, typing.get_args(annotation)
    beyond = [] if key.above is None else [key.above, key.above - 1]
    beyond += [] if key.least is None else [key.least - 1]
    beyond += [] if key.below is None else [key.below, key.below + 1]
    beyond += [] if key.most is None else [key.most + 1]
    if plain is tuple:
        entry = declared.default[0] if declared.default else None
        fixed = Ellipsis not in of
        if fixed or not key.empty:
            yield ()
        if fixed:
            yield (0.5,) * (len(of) + 1)
        if of[0] in (int, float):
            number = of[0](entry or key.least or 1)
            count = len(of) if fixed else 2
            beyond = [NAN, "x", None, *beyond]
            yield from ((number,) * (count - 1) + (value,) for value in beyond)
        if key.increasing:
            yield (2, 1)
            yield (1, 1)
        if key.choices:
            yield ("no such name",)
            yield (key.choices[0],) * 2
    elif plain in (int, float):
        yield from (plain(value) if abs(value) < INF else value for value in beyond)
    if key.choices and plain is str:
        yield from ("no such name", "", key.choices[0].upper())
    if key.path:
        yield ""
    if key.own:
        yield from (["a:"], [":b"], "a:b c") if plain is str else ((":b",), ("a:",))


BAD = [(name, value) for name, one in KEYS.items() for value in bad_values(one)]


def message(changes):
    with pytest.raises(ValueError) as caught:
        resolve(tiny_config(changes))
    return str(caught.value)


@pytest.mark.parametrize("name", KEYS)
def test_a_key_refuses_what_it_cannot_mean_by_name(name):
    values = [value for key, value in BAD if key == name]
    for value in values:
        text = message({name: value})
        assert text.startswith(f"{name} is {value!r}; expected "), text
        assert "\n" not in text
        assert text.endswith((".", "None."))


@pytest.mark.parametrize("name", KEYS)
def test_a_default_is_in_range_and_has_a_meaning(name):
    declared = KEYS[name]
    needed = {} if "steps" in name or "epochs" in name else {name: declared.default}
    if not name.startswith(("data.", "batch_size", "logging.", "embedding.")):
        resolve(tiny_config(needed))
    assert meanings()[name].endswith(".")


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("batch_size", np.int64(16), 16),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", 1, 1.0),
        ("penalty.weight", np.int32(1), 1.0),
        ("evaluation.num_views", np.array([1, 4]), (1, 4)),
        ("evaluation.num_views", [1, 4], (1, 4)),
        ("deterministic", np.bool_(True), True),
        ("encoder.kwargs", {}, {}),
    ],
)
def test_numbers_are_what_they_are_not_their_type(name, value, kept):
    found = flatten(resolve(tiny_config({name: value})))[name]
    assert found == kept
    assert type(found) is type(kept)


def test_all_bad_keys_are_listed_at_once():
    text = message({"temperature": 0.0, "seed": -1, "encoder.name": "resnet20"})
    assert [line.split(" is ")[0] for line in text.splitlines()] == [
        "seed",
        "temperature",
        "encoder.name",
    ]
    assert "the closest is resnet" in text


def test_a_config_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="config is dict; expected"):
        resolve({"seed": 1})


@pytest.mark.parametrize("name", ["penalty", "data", "data.bounds"])
@pytest.mark.parametrize("value", [None, {"weight": 1.0}, 3])
def test_a_section_that_is_replaced_is_refused_by_name(name, value):
    config = tiny_config()
    *outer, last = name.split(".")
    setattr(config.data if outer else config, last, value)
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected the section"):
        resolve(config)


def test_a_misspelt_key_is_refused():
    config = base.get_config()
    with pytest.raises(AttributeError):
        config.penalty.wieght = 0.1
    with pytest.raises(
        ValueError, match=r"wieght is not a key; the closest is penalty"
    ):
        change(config, "penalty.wieght", 0.1)


def test_a_configuration_survives_json():
    config = tiny_config({"encoder.kwargs": {"a": 1}, "penalty.parameters": ("h",)})
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    with pytest.raises(ValueError, match=r"penalty\.wieght is not a key"):
        from_dict({"penalty": {"wieght": 1}})


def test_keys_that_are_no_more_are_read_where_they_had_no_effect():
    assert from_dict({"penalty": {"views": 1, "weight": 2}}).penalty.weight == 2
    with pytest.raises(ValueError, match=r"penalty.views is 2, which this version"):
        from_dict({"penalty": {"views": 2}})


def test_further_views_are_checked_with_the_others():
    config = cifar10.get_config("smoke")
    config.more_views, config.augmentation.more_area = 2, (0.3, 0.05)
    with pytest.raises(ValueError, match=r"^augmentation.more_area must be .*0.05"):
        resolve(config)


def test_parameters_of_own_views_are_checked_when_they_are_built():
    config = rotate_and_blur.get_config("smoke")
    config.penalty.parameters = ("rotatoin",)
    with pytest.raises(
        ValueError, match=r"penalty.parameters is .*; expected some of "
    ):
        build(resolve(config))
    config.penalty.parameters, config.penalty.kind = (), "total_effect"
    config.penalty.parameter_weights = (1.0,)
    with pytest.raises(ValueError, match="parameter_weights is .*a weight for each of"):
        build(resolve(config))


def test_a_key_that_a_run_lacks_has_its_default():
    nested = to_dict(tiny_config())
    del nested["penalty"]["every_steps"], nested["method"]
    assert from_dict(nested) == tiny_config()


def test_resolving_leaves_the_configuration_alone():
    config = tiny_config({"penalty.batch_limit": 0.0, "data.data_dir": "~/sets"})
    before = flatten(config)
    settings = resolve(config)
    assert flatten(config) == before
    assert settings.penalty.batch_limit is None
    assert settings.data.data_dir.endswith("/sets")
    assert settings.data.data_dir.startswith("/")


GROUPS = {"batchnorm.group_size": 4}
HALVES = {"microbatches": 2, **GROUPS}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 20, "epochs": 2}, "steps, epochs is (20, 2); expected exactly one"),
        ({"steps": None}, "steps, epochs is (None, None); expected exactly one"),
        ({"seed": 2**32 - 1, "seeds": 2}, "seed is 4294967295; expected the last"),
        ({"batch_size": 201}, "batch_size is 201; expected at most 200 examples"),
        ({"microbatches": 3}, "microbatches is 3; expected a divisor of 16"),
        ({**HALVES, "penalty.at": "z"}, "microbatches is 2; expected 1, as"),
        ({"microbatches": 2}, "batchnorm.group_size is 0; expected the examples of a"),
        (
            {**HALVES, "penalty.normalization": "batch"},
            "microbatches is 2; expected 1, as penalty.normalization 'batch' needs",
        ),
        ({"batchnorm.group_size": 1}, "batchnorm.group_size is 1; expected 0, or"),
        ({"batchnorm.group_size": 3}, "batchnorm.group_size is 3; expected 0, or"),
        ({"penalty.warmup_steps": 21}, "penalty.warmup_steps is 21; expected at most"),
        *[
            ({"logging.profile_steps": text}, f"logging.profile_steps is {text!r}; exp")
            for text in ("3", "3:", "a:b", "3:3", "5:3", "0:21", "-1:3", "3:5:7")
        ],
        ({"data.train_examples": None}, "data.train_examples is None; expected an int"),
        ({"data.train_examples": 2**30}, "data.train_examples is 1073741824; expected"),
        ({"data.test_examples": 1}, "data.test_examples is 1; expected 2 or more"),
        ({"data.validation_examples": 0}, "logging.probe_every_steps is 10; expected"),
        ({"data.targets": ("m", "size")}, "data.targets is ('m', 'size'); expected"),
        ({"data.targets": ("m", "m")}, "data.targets is ('m', 'm'); expected"),
        ({"data.bounds.b": (1.1, 0.1)}, "data.bounds.b must be finite and ordered"),
        ({"data.bounds.b": (0.0, 1.0)}, "data.bounds.b must stay above 0"),
        ({"embedding.num_views": 0}, "embedding.num_views is 0; expected M >= 1"),
        ({"evaluation.families": ("all", "color")}, "evaluation.families is ('all', "),
        ({"penalty.parameters": ("rbak",)}, "penalty.parameters is ('rbak',); expect"),
        ({"penalty.parameters": ("sigma",)}, "penalty.parameters is ('sigma',); exp"),
        (
            {"penalty.kind": "consistency", "penalty.directions": 2},
            "penalty.directions is 2; expected 1, the only one of penalty.ki",
        ),
        (
            {"penalty.kind": "mixed", "penalty.batch_statistics": "example"},
            "penalty.batch_statistics is 'example'; expected 'coupled', the only one",
        ),
        (
            {"penalty.parameter_weights": (1.0, 2.0)},
            "penalty.parameter_weights is (1.0, 2.0); expected (), the only one",
        ),
        (
            {"penalty.kind": "total_effect", "penalty.parameter_weights": (1.0, 2.0)},
            "penalty.parameter_weights is (1.0, 2.0); expected a weight for each of h",
        ),
        ({"encoder.kwargs": {"a": 1}}, "encoder.kwargs is {'a': 1}; expected {}, as"),
        (
            {"encoder.name": "a:b", "penalty.batch_statistics": "example"},
            "penalty.batch_statistics is 'example'; expected 'coupled', as encoder",
        ),
        (
            {"augmentation.name": "a:b"},
            "augmentation.name is 'a:b'; expected 'image', as data.name is",
        ),
        ({"encoder.weights": "w.npz"}, "encoder.weights is '"),
        (
            {"encoder.name": "resnet18", "encoder.width": 512},
            "encoder.width is 512; expected at most 256 for resnet18, or None",
        ),
        (
            {"encoder.name": "vit_tiny", "encoder.width": 96},
            "encoder.width is 96; expected a multiple of 64",
        ),
        (
            {"encoder.name": "vit_tiny", "encoder.patch_size": 3},
            "encoder.patch_size is 3; expected a divisor of data.image_size, 8",
        ),
        (
            {"encoder.name": "vit_tiny", "augmentation.more_size": 6},
            "augmentation.more_size is 6; expected a multiple of encoder.patch_size",
        ),
        (
            {"augmentation.more_size": 6},
            "augmentation.more_size is 6; expected 8 or None, as an MLP takes",
        ),
        (
            {"optimizer.name": "sgd", "optimizer.clip_trust": True},
            "optimizer.clip_trust is True; expected False, as optimizer.name is 'sgd'",
        ),
        (
            {"optimizer.excluded_rate": 0.5},
            "optimizer.excluded_rate is 0.5; expected 1.0, as optimizer.exclude is",
        ),
        (
            {"optimizer.name": "lars", "optimizer.weight_decay_end": 0.1},
            "optimizer.weight_decay_end is 0.1; expected None, as optimizer.name is",
        ),
        (
            {"optimizer.learning_rate": 1e30},
            "optimizer.learning_rate is 1e+30; expected a number, more than 0",
        ),
        ({"evaluation.shifts": (("x", "move", (0.1,)),)}, "evaluation.shifts is ('x',"),
        ({"evaluation.shifts": (("h", "move", ()),)}, "evaluation.shifts is ('h', "),
        (
            {
                "evaluation.experiments": ("shift",),
                "evaluation.shifts": (("m", "move", (0.1,)),),
            },
            "evaluation.shifts is ('m', 'move', (0.1,)); expected a nuisance",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(changes, expected):
    assert message(changes).startswith(expected)


def test_the_microbatches_of_a_run_without_a_penalty_are_free():
    changes = {**HALVES, "penalty.at": "z", "penalty.weight": 0.0}
    resolve(tiny_config(changes))


@pytest.mark.parametrize(
    ("devices", "changes", "expected"),
    [
        (3, {}, "batch_size is 16; expected a multiple of the 3 devices"),
        (
            2,
            {"batch_size": 24, "batchnorm.group_size": 8},
            "a divisor or a multiple of",
        ),
        (
            4,
            {"microbatches": 8, **GROUPS},
            "microbatches is 8; expected a divisor of the 4",
        ),
        (1, {"microbatches": 4, "batchnorm.group_size": 8}, "each of 4 microbatches"),
    ],
)
def test_a_batch_that_does_not_fit_the_devices_is_refused(devices, changes, expected):
    with pytest.raises(ValueError, match=expected):
        check_devices(resolve(tiny_config(changes)), devices)


@pytest.mark.parametrize("group_size", [0, 2, 4, 8, 16])
def test_groups_that_fit_the_devices_pass(group_size):
    check_devices(resolve(tiny_config({"batchnorm.group_size": group_size})), 4)


def test_a_recipe_takes_the_place_of_none():
    config = cifar10.get_config("smoke")
    config.augmentation.recipe = "byol_imagenet"
    views = make_image_views(resolve(config))
    assert_allclose(views.bounds[:, 1], [1.4, 1.4, 1.2, 0.1])
    both = [views.sampler(None, 500, second=one) for one in (False, True)]
    acts = [draw(jax.random.key(0)).held["acts"] for draw in both]
    found = [[one[name].mean() for name in ("blur", "solarize")] for one in acts]
    assert_allclose(found, [[1, 0], [0.1, 0.2]], atol=0.06)
    config.augmentation.strength = 0.25
    config.augmentation.blur_probability = 0.0
    config.augmentation.solarize_probability = 0.0
    views = make_image_views(resolve(config))
    assert_allclose(views.bounds[:, 1], [1.2, 1.2, 1.1, 0.05])
    assert views.sample_for is None  # what is given goes for both views
    config.augmentation.second_view = {"flip": 0.5}
    with pytest.raises(ValueError, match=r"augmentation.second_view is .*jitter_prob"):
        resolve(config)


def test_what_follows_is_derived():
    settings = resolve(tiny_config({"steps": None, "epochs": 3, "batch_size": 32}))
    assert settings.derived.steps_per_epoch == 6
    assert settings.derived.steps == 18
    assert settings.derived.peak_learning_rate == pytest.approx(0.03 / 8)
    traced = resolve(tiny_config({"logging.profile_steps": "3:5"}))
    assert traced.derived.profile_steps == (3, 5)


def test_help_names_type_default_unit_and_range():
    text = key_help("penalty.weight")
    assert text.startswith("penalty.weight: float = 0.01\n")
    assert "Takes a number" in text
    assert "[radians]" in key_help("augmentation.rotation")
    assert len(key_help().splitlines()) > 2 * len(KEYS)
    with pytest.raises(ValueError, match="no key starts with 'penality'"):
        key_help("penality")


def test_readers_are_experiments():
    for one in KEYS.values():
        assert {*(one.readers or ())} <= {*EXPERIMENTS}


STILL = {"augmentation.jitter_probability": 0.0, "penalty.weight": 0.1}
BLURRED = {"augmentation.differentiate": ("blur",), "penalty.weight": 0.1}
OF_SECOND = "augmentation.second_view"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data.store_size": 9, "data.source_size": (8, 8)}, "data.source_size is (8,"),
        ({OF_SECOND: {"blur_probability": 2.0}}, f"{OF_SECOND} is "),
        (
            {OF_SECOND: {"jitter_probability": 0.8}, **STILL},
            "augmentation.differentiate",
        ),
        (
            {OF_SECOND: {"blur_probability": 0.5}, **BLURRED},
            "augmentation.differentiate",
        ),
        (
            {"encoder.name": "vit_tiny", "encoder.patch_size": 5},
            "encoder.patch_size is 5; expected a divisor of data.image_size, 32",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together_for_images_is_refused(changes, expected):
    config = cifar10.get_config("smoke")
    for key, value in changes.items():
        change(config, key, value)
    with pytest.raises(ValueError) as caught:
        resolve(config)
    assert str(caught.value).startswith(expected)


def test_further_views_of_an_mlp_may_have_the_size_of_the_set():
    config = cifar10.get_config("smoke")
    for key, value in {"encoder.name": "mlp", "augmentation.more_size": 32}.items():
        change(config, key, value)
    assert resolve(config).data.image_size == 32


def test_squashed_images_have_the_side_that_they_are_squashed_to():
    config = imagenet.get_config("simclr")
    change(config, "data.store_size", 160)
    assert resolve(config).data.source_size == (160, 160)
