"""Settings: what every key refuses, generated from its declaration; what goes together.

A new key is tested without a new test: each is given values of every wrong type and
from beyond each end of its range.
"""

import json
import math
import re

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
from invariance_jax.settings.schema import EXPERIMENTS, get
from invariance_jax.settings.values import parts
from invariance_jax.settings.views import make_image_views
from invariance_jax.training.build import build

NAN, INF = math.nan, math.inf

# Values that no key of a type takes, whatever its range.
WRONG = {
    int: ["1", 2.5, True, NAN, INF, 10**12, -(10**12), (1,), {}],
    float: ["1", True, NAN, INF, -INF, 1e39, 1e-46, -1e300, (1.0,), {}],
    str: [1, 2.5, True, (), {}],
    bool: [1, 0, "True", None, ()],
    tuple: [1, "a", True, {}, (None,), ((),), ({},)],
    dict: [
        *(1, "width", (), {"a b": 1}, {1: 2}, {"f": print}),
        *({"x": NAN}, {"x": [NAN]}, {"x": {1: 2}}, {"x": [{None: 1}]}),
    ],
}


def bad_values(key):
    """Yields what a key must refuse."""
    plain, of, optional = parts(key.type)
    yield from WRONG[plain]
    if not optional:
        yield None
    beyond = [] if key.above is None else [key.above, key.above - 1]
    beyond += [] if key.least is None else [key.least - 1]
    beyond += [] if key.below is None else [key.below, key.below + 1]
    beyond += [] if key.most is None else [key.most + 1]
    if plain is tuple:
        entry = key.default[0] if key.default else None
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


def message(changes, config=None):
    """Returns the error of a configuration, the tiny one, with some keys changed."""
    config = config or tiny_config()
    for name, value in changes.items():
        change(config, name, value)
    with pytest.raises(ValueError) as caught:
        resolve(config)
    return str(caught.value)


@pytest.mark.parametrize("name", KEYS)
def test_a_key_refuses_what_it_cannot_mean_by_name(name):
    for value in bad_values(KEYS[name]):
        text = message({name: value})
        assert text.startswith(f"{name} is {value!r}; expected "), text
        assert "\n" not in text
        assert text.endswith((".", "None."))


@pytest.mark.parametrize("name", KEYS)
def test_a_default_is_in_range_and_has_a_meaning(name):
    needed = {} if "steps" in name or "epochs" in name else {name: KEYS[name].default}
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
        ("method.kwargs", {"x": [1, {"y": [INF]}]}, {"x": (1, {"y": (INF,)})}),
    ],
)
def test_numbers_are_what_they_are_not_their_type(name, value, kept):
    found = flatten(resolve(tiny_config({name: value})))[name]
    assert found == kept
    assert type(found) is type(kept)


def test_functions_in_keyword_arguments_are_refused_with_the_reason():
    text = message({"encoder.kwargs": {"transforms": [print, len]}})
    assert "which config.json can record (no functions)" in text


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
    section, _, last = name.rpartition(".")
    setattr(get(config, section) if section else config, last, value)
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected the section"):
        resolve(config)


def test_a_misspelt_key_is_refused():
    config = base.get_config()
    with pytest.raises(AttributeError):
        config.penalty.wieght = 0.1
    with pytest.raises(ValueError, match="wieght is not a key; the closest is penalty"):
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


def test_parameters_of_own_views_are_checked_when_they_are_built():
    config = rotate_and_blur.get_config("smoke")
    config.penalty.parameters = ("rotatoin",)
    with pytest.raises(ValueError, match=r"penalty.parameters is .* expected some of"):
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
HALVES = {**GROUPS, "microbatches": 2}
VIT = {"encoder.name": "vit_tiny"}
SHIFTS = "evaluation.shifts"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": 2, "seed": 2**32 - 1}, "the last"),
        ({"batch_size": 201}, "at most 200 examples"),
        ({"microbatches": 3}, "a divisor of 16"),
        ({"penalty.at": "z", **HALVES}, "1, as penalty.at 'z' needs"),
        ({"penalty.normalization": "batch", **HALVES}, "1, as penalty.normalization"),
        ({"microbatches": 2, "batchnorm.group_size": 0}, "a number of examples, not 0"),
        ({"batchnorm.group_size": 1}, "0, or"),
        ({"batchnorm.group_size": 3}, "0, or"),
        ({"penalty.warmup_steps": 21}, "at most"),
        *[
            ({"logging.profile_steps": text}, "two increasing steps a:b, b at most 20")
            for text in ("3", "3:", "a:b", "3:3", "5:3", "0:21", "-1:3", "3:5:7")
        ],
        ({"data.train_examples": None}, "an integer"),
        ({"data.train_examples": 2**30}, "fewer"),
        ({"data.test_examples": 1}, "2 or more"),
        ({"evaluation.label_fraction": 0.5}, "1.0, as Spirograph has no labels"),
        ({"embedding.num_views": 0}, "M >= 1"),
        ({"evaluation.families": ("all", "color")}, "('all',)"),
        ({"penalty.parameters": ("rbak",)}, "some of h, "),
        ({"penalty.parameters": ("sigma",)}, "some of h, "),
        (
            {"penalty.kind": "consistency", "penalty.directions": 2},
            "1, as penalty.kind",
        ),
        (
            {"penalty.kind": "mixed", "penalty.batch_statistics": "example"},
            "'coupled', as penalty.kind is 'mixed'",
        ),
        ({"penalty.parameter_weights": (1.0, 2.0)}, "(), as penalty.kind is"),
        (
            {"penalty.kind": "total_effect", "penalty.parameter_weights": (1.0, 2.0)},
            "a weight for each of h",
        ),
        ({"encoder.kwargs": {"a": 1}}, "{}, as"),
        (
            {"encoder.name": "a:b", "penalty.batch_statistics": "example"},
            "'coupled', as encoder",
        ),
        ({"augmentation.name": "a:b"}, "'image', as data.name is"),
        ({"encoder.weights": "/w.npz"}, "None, as encoder.name is"),
        (
            {"encoder.name": "resnet18", "encoder.width": 512},
            "at most 256 for resnet18, or None",
        ),
        ({**VIT, "encoder.width": 96}, "a multiple of 64"),
        ({**VIT, "encoder.patch_size": 3}, "a divisor of data.image_size, 8"),
        ({**VIT, "augmentation.more_size": 6}, "a multiple of encoder.patch_size"),
        ({"augmentation.more_size": 6}, "8 or None, as an MLP takes"),
        (
            {"optimizer.name": "sgd", "optimizer.clip_trust": True},
            "False, as optimizer.name is 'sgd'",
        ),
        ({"optimizer.excluded_rate": 0.5}, "1.0, as optimizer.exclude is"),
        (
            {"optimizer.name": "lars", "optimizer.weight_decay_end": 0.1},
            "None, as optimizer.name is",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(changes, expected):
    *_, (name, value) = changes.items()
    assert message(changes).startswith(f"{name} is {value!r}; expected {expected}")


@pytest.mark.parametrize(
    ("row", "experiment", "expected"),
    [
        (("x", "move", (0.1,)), "downstream", "(one of m, b"),
        (("x", "move", (0.1,)), "shift", "(one of m, b"),
        (("h", "move", ()), "downstream", "(one of m, b"),
        (("m", "move", (0.1,)), "shift", "a nuisance parameter"),
    ],
    ids=str,
)
def test_a_shift_that_cannot_be_is_refused(row, experiment, expected):
    text = message({"evaluation.experiments": (experiment,), SHIFTS: (row,)})
    assert text.startswith(f"{SHIFTS} is {row!r}; expected {expected}")


def test_the_microbatches_of_a_run_without_a_penalty_are_free():
    changes = {**HALVES, "penalty.at": "z", "penalty.weight": 0.0}
    resolve(tiny_config(changes))


@pytest.mark.parametrize(
    ("devices", "changes", "expected"),
    [
        (3, {}, "batch_size is 16; expected a multiple of the 3 devices"),
        (2, {"batch_size": 24, "batchnorm.group_size": 8}, "a divisor or a multiple"),
        (4, {**GROUPS, "microbatches": 8}, "microbatches is 8; .* a divisor of the 4"),
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
    assert "Value: a number, 0 or more." in " ".join(text.split())
    assert "[radians]" in key_help("augmentation.rotation")
    assert len(key_help().splitlines()) > 2 * len(KEYS)
    with pytest.raises(ValueError, match="no key starts with 'penality'"):
        key_help("penality")


def test_readers_are_experiments():
    for one in KEYS.values():
        assert {*(one.readers or ())} <= {*EXPERIMENTS}


STILL = {"augmentation.jitter_probability": 0.0, "penalty.weight": 0.1}
BLURRED = {"augmentation.differentiate": ("blur",), "penalty.weight": 0.1}
FURTHER = {"more_views": 2, "augmentation.more_area": (0.3, 0.05)}
PATCHES = {"encoder.name": "vit_tiny", "encoder.patch_size": 5}
OF_SECOND = "augmentation.second_view"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data.store_size": 9, "data.source_size": (8, 8)}, "data.source_size is .8,"),
        ({OF_SECOND: {"blur_probability": 2.0}}, f"{OF_SECOND} is [^\n]*$"),
        ({OF_SECOND: {"jitter_probability": 0.8}, **STILL}, "augmentation.different"),
        ({OF_SECOND: {"blur_probability": 0.5}, **BLURRED}, "augmentation.different"),
        (FURTHER, "augmentation.more_area must be .*0.05"),
        # No size of further views was given.
        (PATCHES, "encoder.patch_size is 5; expected a divisor .*image_size, 32.$"),
    ],
    ids=str,
)
def test_what_does_not_go_together_for_images_is_refused(changes, expected):
    assert re.match(expected, message(changes, cifar10.get_config("smoke")))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 20, "epochs": 2}, "steps, epochs is (20, 2); expected exactly one"),
        ({"steps": None}, "steps, epochs is (None, None); expected exactly one"),
        ({"data.bounds.b": (1.1, 0.1)}, "data.bounds.b must be finite and ordered"),
        ({"data.bounds.b": (0.0, 1.0)}, "data.bounds.b must stay above 0"),
    ],
    ids=str,
)
def test_the_length_and_the_bounds_have_errors_of_their_own(changes, expected):
    assert message(changes).startswith(expected)


def test_further_views_of_an_mlp_may_have_the_size_of_the_set():
    config = cifar10.get_config("smoke")
    config.encoder.name, config.augmentation.more_size = "mlp", 32
    assert resolve(config).data.image_size == 32


def test_squashed_images_have_the_side_that_they_are_squashed_to():
    config = imagenet.get_config("simclr")
    config.data.store_size = 160
    assert resolve(config).data.source_size == (160, 160)
