"""Bad values: each refused with one line that names the key, the value, the remedy."""

import json

import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from tiny import tiny_config

from configs import base
from invariance_jax.training import keys
from invariance_jax.training.settings import check_devices, flatten, resolve

OPTIONAL = {key for key, value in flatten(base.get_config()) if value is None}
NUMBERS = sorted(keys.NUMBERS)

BAD = [
    ("batch_size", 2.5, "an integer"),
    ("batch_size", 16.0, "an integer"),
    ("batch_size", "16", "an integer"),
    ("batch_size", True, "an integer"),
    ("batch_size", None, "an integer"),
    ("batch_size", 0, "a positive number"),
    ("batch_size", 1, "2 examples or more"),
    ("batch_size", 201, "at most 200 examples"),
    ("seeds", 0, "a positive number"),
    ("seed", -1, "0 or a positive number"),
    ("steps", 2.5, "an integer"),
    ("steps", 0, "a positive number"),
    ("temperature", 0.0, "a positive number"),
    ("temperature", float("nan"), "a number"),
    ("temperature", float("inf"), "a number"),
    ("precision", "float16", "one of 'float32', 'bfloat16'"),
    ("microbatches", 0, "a positive number"),
    ("microbatches", 3, "a divisor of 16"),
    ("similarity_block", -1, "0 or a positive number"),
    ("encoder.rematerialize", 1, "True or False"),
    ("penalty.every_steps", 0, "a positive number"),
    ("penalty.fraction", 0.4, "1, 1/2, 1/3, ..."),
    ("penalty.fraction", 1.5, "1, 1/2, 1/3, ..."),
    ("penalty.weight", -0.1, "0 or a positive number"),
    ("penalty.weight", "large", "a number"),
    ("penalty.example_limit", -0.5, "0 or a positive number"),
    ("penalty.batch_limit", -1.0, "0 or a positive number"),
    ("penalty.kind", "consistent", "did you mean 'consistency'?"),
    ("penalty.estimator", "signs", "did you mean 'sign'?"),
    ("penalty.limit_shape", "soft", "one of 'hard', 'smooth'"),
    ("penalty.at", "H", "one of 'h', 'z'"),
    ("penalty.views", 0, "a positive number"),
    ("penalty.views", 3, "1 or 2"),
    ("penalty.parameters", "h", "a tuple of names"),
    ("penalty.parameters", ("h", "h"), "each name once"),
    ("average_views", 0, "a positive number"),
    ("penalty.directions", 0, "a positive number"),
    ("penalty.normalization", "L2", "one of 'l2', 'none', 'batch'"),
    ("penalty.warmup_steps", 21, "at most 20 steps"),
    ("penalty.batch_statistics", "held", "one of 'coupled', 'example'"),
    ("encoder.name", "resnet20", "did you mean 'resnet"),
    ("encoder.width", 0, "a positive number"),
    ("encoder.final", None, "one of 'linear', 'norm_relu'"),
    ("batchnorm.group_size", 3, "0 or a divisor of 16"),
    ("batchnorm.group_size", 32, "0 or a divisor of 16"),
    ("optimizer.name", "adam", "did you mean 'adamw'?"),
    ("optimizer.schedule", "cosine", "did you mean 'warmup_cosine'?"),
    ("optimizer.warmup_fraction", 1.0, "a number in [0, 1)"),
    ("optimizer.momentum", -0.1, "a number in [0, 1)"),
    ("evaluation.l2_grid", (-1.0,), "a tuple of numbers, 0 or more"),
    ("evaluation.l2_grid", 1e-4, "a tuple of numbers, 0 or more"),
    ("data.name", None, "a text"),
    ("data.name", 10, "a text"),
    ("data.data_dir", 3, "a text"),
    ("compilation_cache", 3, "a text"),
    ("deterministic", 1, "True or False"),
    ("logging.wandb_project", 1, "a text"),
    ("logging.profile_steps", None, "a text"),
    *[
        ("logging.profile_steps", value, "two increasing steps a:b, b at most 20")
        for value in ("3", "3:", "a:b", "3:3", "5:3", "0:21", "-1:3", "3:5:7")
    ],
    ("data.train_examples", None, "an integer"),
    ("encoder.stem", "imagnet", "did you mean 'imagenet'?"),
    ("encoder.weights", 1, "a text"),
    ("data.image_size", 8.0, "an integer"),
    ("data.targets", "m", "a tuple"),
    ("data.bounds.b", 0.5, "(lower end, upper end)"),
    ("data.bounds.b", (0.1, 0.5, 1.1), "(lower end, upper end)"),
    ("data.bounds.b", ("0.1", 1.1), "(lower end, upper end)"),
    ("checkpoints.every_steps", 0, "a positive number"),
    ("logging.probe_every_steps", -1, "0 or a positive number"),
    ("evaluation.split", "train", "one of 'validation', 'test'"),
    ("evaluation.num_views", (0, 1), "an increasing tuple, M >= 1"),
    ("evaluation.num_views", (), "an increasing tuple, M >= 1"),
    ("evaluation.num_views", 3, "an increasing tuple, M >= 1"),
    ("evaluation.num_views", (1, 1), "an increasing tuple, M >= 1"),
    ("evaluation.num_views", (3, 1), "an increasing tuple, M >= 1"),
    ("evaluation.num_views", (1, 2.5), "an increasing tuple, M >= 1"),
    ("evaluation.num_views", (True,), "an increasing tuple, M >= 1"),
    ("evaluation.variance_views", 1, "2 views or more"),
    ("evaluation.variance_views", "4", "an integer"),
    ("evaluation.families", ("all", "color"), '("all",)'),
    ("evaluation.families", "all", "a tuple of names"),
    ("evaluation.families", ("all", "all"), "each name once"),
    ("evaluation.label_fraction", 1.5, "a number in [0, 1]"),
    ("evaluation.label_fraction", 0.0, "a share in (0, 1]"),
    ("evaluation.families", (), "one name or more"),
    ("embedding.splits", (), "one name or more"),
    ("embedding.num_views", 0, "as no image is plain"),
    ("data.validation_examples", 0, "a positive number"),
]


def changed(changes):
    """Returns the tiny configuration with values of any type."""
    config = tiny_config()
    with config.ignore_type():
        for key, value in changes.items():
            *sections, name = key.split(".")
            section = config
            for part in sections:
                section = section[part]
            section[name] = value
    return config


def message(changes):
    with pytest.raises(ValueError) as caught:
        resolve(changed(changes))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("key", "value", "expected"), BAD, ids=str)
def test_a_bad_value_is_refused_by_name(key, value, expected):
    text = message({key: value})
    assert text.startswith(f"{key} is {value!r}; expected ")
    assert expected in text


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_is_not_a_text(key):
    assert message({key: "a"}).startswith(f"{key} is 'a'; expected ")


@pytest.mark.parametrize("key", sorted({*NUMBERS} - OPTIONAL))
def test_a_number_that_is_needed_is_not_left_empty(key):
    assert message({key: None}).startswith(f"{key} is None; expected ")


@pytest.mark.parametrize("key", sorted({*NUMBERS} - {*keys.REAL}))
def test_what_is_counted_is_whole(key):
    assert message({key: 2.5}) == f"{key} is 2.5; expected an integer."


@pytest.mark.parametrize(
    ("key", "values", "wrong", "close"),
    [
        ("evaluation.families", ("all", "colour"), "colour", "color"),
        ("evaluation.baselines", ("pixel",), "pixel", "pixels"),
        ("embedding.splits", ("train", "tests"), "tests", "test"),
        ("penalty.parameters", ("h", "rbak"), "rbak", "rback"),
    ],
)
def test_a_wrong_name_in_a_tuple_meets_the_closest(key, values, wrong, close):
    text = message({key: values})
    assert text.startswith(f"{key} is {wrong!r}; expected one of ")
    assert text.endswith(f"did you mean {close!r}?")


def test_every_key_of_the_base_is_checked():
    assert {*keys.KEYS} == {key for key, _ in flatten(base.get_config())}


def test_exactly_the_placeholders_may_be_empty():
    assert {*keys.OPTIONAL} == OPTIONAL


def test_an_unknown_key_names_the_closest_one():
    text = message({"penalty.wieght": 0.1})
    assert text == "penalty.wieght is not a key; the closest is penalty.weight."


def test_a_key_in_the_wrong_section_names_the_right_one():
    text = message({"learning_rate": 0.1})
    assert text == "learning_rate is not a key; the closest is optimizer.learning_rate."


def test_a_missing_key_is_named():
    config = tiny_config()
    del config.penalty.weight
    with pytest.raises(ValueError, match=r"^penalty\.weight is missing"):
        resolve(config)


def test_a_missing_parameter_is_named():
    config = tiny_config()
    del config.data.bounds.h
    with pytest.raises(ValueError, match=r"^data\.bounds\.h is missing"):
        resolve(config)


def test_an_unknown_parameter_in_the_bounds_is_refused():
    text = message({"data.bounds.sgima": (0.1, 1.0)})
    assert text == "data.bounds.sgima is not a key; the closest is data.bounds.sigma."


def test_an_unknown_target_is_refused():
    text = message({"data.targets": ("m", "size")})
    assert text.startswith("data.targets names the unknown parameter 'size'; expected")


def test_a_target_named_twice_is_refused():
    text = message({"data.targets": ("m", "m")})
    assert text.startswith("data.targets must name each parameter once")


def test_all_parameters_as_targets_leave_no_nuisance():
    names = tuple(key.rsplit(".")[-1] for key in keys.BOUNDS)
    text = message({"data.targets": names})
    assert text.startswith("data.targets must name 1 to 9 parameters")


@pytest.mark.parametrize("bounds", [(1.1, 0.1), (float("nan"), 1.0)])
def test_bounds_that_are_not_ordered_are_refused(bounds):
    text = message({"data.bounds.b": bounds})
    assert text.startswith("data.bounds.b must be finite and ordered; found")


@pytest.mark.parametrize("name", ["b", "sigma"])
def test_bounds_that_reach_0_are_refused(name):
    text = message({f"data.bounds.{name}": (0.0, 1.0)})
    assert text == f"data.bounds.{name} must stay above 0; found (0.0, 1.0)."


def test_steps_and_epochs_exclude_each_other():
    assert "exactly one of them" in message({"steps": 20, "epochs": 2})
    assert "exactly one of them" in message({"steps": None})


@pytest.mark.parametrize(
    ("devices", "changes", "expected"),
    [
        (3, {}, "batch_size is 16; expected a multiple of the 3 devices."),
        (
            2,
            {"batch_size": 24, "batchnorm.group_size": 8},
            "batchnorm.group_size is 8; expected a divisor or a multiple of the 12 "
            "examples that each of the 2 devices has.",
        ),
        (
            4,
            {"microbatches": 8},
            "microbatches is 8; expected a divisor of the 4 examples that each of the "
            "4 devices has.",
        ),
        (
            4,
            {"microbatches": 4, "penalty.fraction": 0.25},
            "microbatches is 4; expected a divisor of the 4 examples that each of the "
            "4 devices has, into parts of a multiple of 4.",
        ),
        (
            1,
            {"microbatches": 4, "batchnorm.group_size": 8},
            "batchnorm.group_size is 8; expected a divisor of the 4 examples of each "
            "of the 4 microbatches.",
        ),
    ],
)
def test_a_batch_that_does_not_fit_the_devices_is_refused(devices, changes, expected):
    with pytest.raises(ValueError) as caught:
        check_devices(resolve(tiny_config(changes)), devices)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"penalty.at": "z"},
            "microbatches is 2; expected 1, as the head normalizes over the whole "
            "batch and penalty.at is 'z'.",
        ),
        (
            {"penalty.normalization": "batch"},
            "microbatches is 2; expected 1, as penalty.normalization 'batch' is the "
            "variance of the whole batch.",
        ),
    ],
    ids=["z", "batch"],
)
def test_parts_that_need_the_whole_batch_are_refused(changes, expected):
    assert message({"microbatches": 2, **changes}) == expected
    resolve(tiny_config({"microbatches": 2, "penalty.weight": 0.0, **changes}))


def test_groups_hold_examples_that_are_penalized():
    text = message({"penalty.fraction": 0.25, "batchnorm.group_size": 2})
    assert text == (
        "batchnorm.group_size is 2; expected a multiple of 4, as penalty.fraction is "
        "1/4."
    )


@pytest.mark.parametrize("group_size", [0, 2, 4, 8, 16])
def test_groups_that_fit_the_devices_pass(group_size):
    check_devices(resolve(tiny_config({"batchnorm.group_size": group_size})), 4)


def test_a_group_of_part_of_the_replicas_is_refused():
    # 6 devices hold 4 of 24 examples: groups of 8 are 2 devices, groups of 24 all.
    for size in (8, 24):
        changes = {"batch_size": 24, "batchnorm.group_size": size}
        check_devices(resolve(tiny_config(changes)), 6)


def test_steps_are_given_or_follow_from_the_epochs():
    assert resolve(tiny_config()).derived.steps == 20
    by_epochs = resolve(tiny_config({"steps": None, "epochs": 3})).derived
    assert (by_epochs.steps_per_epoch, by_epochs.steps) == (12, 36)


def test_peak_learning_rate_is_for_256_examples():
    settings = resolve(tiny_config({"batch_size": 128}))
    assert settings.derived.peak_learning_rate == pytest.approx(0.015)


def test_bounds_are_in_the_order_of_the_parameters():
    bounds = resolve(tiny_config({"data.bounds.sigma": (0.3, 0.4)})).derived.bounds
    assert tuple(bounds[3]) == (0.3, 0.4)
    assert len(bounds) == 10


def test_parameters_of_the_penalty_are_those_of_the_nuisance():
    resolve(tiny_config({"penalty.parameters": ("h", "bback")}))
    text = message({"penalty.parameters": ("sigma",)})
    assert text.startswith(
        "penalty.parameters is 'sigma'; expected one of 'h', 'rback'"
    )
    changes = {"data.targets": ("m", "b"), "penalty.parameters": ("sigma",)}
    resolve(tiny_config(changes))


@pytest.mark.parametrize(
    ("key", "value", "neutral"),
    [
        ("penalty.estimator", "sign", "'directional'"),
        ("penalty.parameters", ("h",), "()"),
        ("penalty.views", 2, "1"),
        ("penalty.directions", 3, "1"),
        ("penalty.batch_statistics", "example", "'coupled'"),
    ],
)
def test_what_consistency_has_no_use_for_is_refused(key, value, neutral):
    text = message({"penalty.kind": "consistency", key: value})
    assert text == (
        f"{key} is {value!r}; expected {neutral}, as penalty.kind 'consistency' takes "
        "no derivative."
    )


@pytest.mark.parametrize("nothing", [(), []])
def test_consistency_is_accepted(nothing):
    resolve(changed({"penalty.kind": "consistency", "penalty.parameters": nothing}))


@pytest.mark.parametrize("value", [0, 0.0, None])
@pytest.mark.parametrize("name", ["example_limit", "batch_limit"])
def test_a_limit_of_0_is_none(name, value):
    config = changed({f"penalty.{name}": value})
    assert resolve(config).penalty[name] is None
    assert config.penalty[name] == value


def test_whole_numbers_serve_as_real_ones():
    settings = resolve(changed({"penalty.weight": 1, "temperature": 1}))
    assert settings.penalty.weight == 1


def test_settings_are_frozen():
    settings = resolve(tiny_config())
    assert isinstance(settings, FrozenConfigDict)
    with pytest.raises(AttributeError):
        settings.batch_size = 3


def test_settings_are_plain_json():
    content = json.loads(json.dumps(resolve(tiny_config()).to_dict()))
    assert content["derived"]["steps"] == 20


def test_flatten_names_every_leaf():
    config = ConfigDict({"b": {"d": 1, "c": None}, "a": (1, 2)})
    assert list(flatten(config)) == [("a", (1, 2)), ("b.c", None), ("b.d", 1)]
