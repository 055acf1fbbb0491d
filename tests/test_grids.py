"""The grids of the experiments: what is refused before anything runs."""

import pytest
from test_settings import message
from tiny import image_config, tiny_config

from invariance_jax.training.settings import resolve

ALL = {"evaluation.experiments": ("all",)}


def shifted(*rows, **changes):
    return ALL | {"evaluation.shifts": rows, **changes}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


def image_message(data_dir, changes):
    with pytest.raises(ValueError) as caught:
        resolve(image_config(data_dir, {"evaluation.shifts": (), **ALL, **changes}))
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("linearization_steps", (0.1, 0.0), "shares in (0, 1]"),
        ("linearization_steps", (0.1, 1.5), "shares in (0, 1]"),
        ("linearization_steps", (), "a tuple of numbers, 0 or more"),
        ("linearization_steps", ("a",), "a tuple of numbers, 0 or more"),
        ("label_fractions", (0.0, 0.5), "increasing shares in (0, 1]"),
        ("label_fractions", (0.5, 1.1), "increasing shares in (0, 1]"),
        ("label_fractions", (0.5, 0.2), "increasing shares in (0, 1]"),
        ("label_fractions", (0.5, 0.5), "increasing shares in (0, 1]"),
        ("nuisance_l2", (-1.0,), "a tuple of numbers, 0 or more"),
        ("nuisance_l2", (float("inf"),), "a tuple of numbers, 0 or more"),
        ("nuisance_l2", (float("nan"),), "a tuple of numbers, 0 or more"),
        ("shifts", "h", "a tuple of rows"),
        ("shifts", None, "a tuple of rows"),
    ],
)
def test_a_bad_grid_is_refused_by_name(key, value, expected):
    text = message({f"evaluation.{key}": value})
    assert text == f"evaluation.{key} is {value!r}; expected {expected}."


@pytest.mark.parametrize(
    "row",
    [
        "h",
        ("h", "move"),
        ("h", "move", 0.5),
        ("h", "move", ()),
        ("h", "move", ("0.5",)),
        ("h", "move", (float("nan"),)),
        ("h", "move", (True,)),
    ],
)
def test_a_row_of_another_form_is_refused(row):
    text = message({"evaluation.shifts": (row,)})
    assert text.startswith(f"evaluation.shifts is {row!r}; expected (what, how, numb")


@pytest.mark.parametrize(
    ("row", "wrong", "close"),
    [
        (("hh", "move", (0.1,)), "hh", "h"),
        (("h", "wide", (2.0,)), "wide", "widen"),
        (("colour", "strength", (0.1,)), "colour", "color"),
        (("backgroud", "move", (0.1,)), "backgroud", "background"),
    ],
)
def test_a_wrong_name_meets_the_closest(row, wrong, close):
    text = message({"evaluation.shifts": (row,)})
    assert text.startswith(f"evaluation.shifts is {wrong!r}; expected one of ")
    assert text.endswith(f"did you mean {close!r}?")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("m", "move", (0.1,)), "a nuisance parameter: m is a target"),
        (("foreground", "widen", (2.0,)), "a nuisance parameter: rfore is a target"),
        (("color", "strength", (0.5,)), '"move" or "widen" of Spirograph'),
        (("h", "widen", (1.5, -1.0)), "factors of 0 or more to widen by"),
        (("color", "strength", (0.5, 1.3)), "strengths from 0 to 1.25"),
        (("color", "strength", (-0.5,)), "strengths from 0 to 1.25"),
    ],
)
def test_a_shift_that_is_none_is_refused(row, expected):
    text = message(shifted(row))
    assert text == f"evaluation.shifts is {row!r}; expected {expected}."


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (("sigma", "move", (0.1, -0.25)), "sigma"),
        (("sigma", "widen", (1.7,)), "sigma"),
        (("b", "move", (-0.1,)), "b"),
    ],
)
def test_a_law_that_reaches_0_is_refused(row, name):
    # sigma is in (0.25, 1), b in (0.1, 1.1).
    text = message(shifted(row, **{"data.targets": ("m", "h")}))
    expected = f"laws of {name} that stay above 0"
    assert text == f"evaluation.shifts is {row!r}; expected {expected}."


def test_laws_that_stay_above_0_pass():
    rows = ("sigma", "move", (-0.2, 3.0)), ("sigma", "widen", (1.6, 0.0))
    rows += ("h", "move", (-2.0,)), ("foreground", "move", (0.1,))
    resolve(tiny_config(shifted(*rows, **{"data.targets": ("m", "b")})))


def test_no_shift_passes():
    resolve(tiny_config(shifted()))


def test_what_is_not_measured_may_belong_to_another_data_set():
    resolve(tiny_config({"evaluation.shifts": (("color", "strength", (0.1,)),)}))
    resolve(tiny_config({"evaluation.shifts": (("m", "move", (0.1,)),)}))


def test_images_have_shifts_of_the_jitter_only(data_dir):
    row = ("h", "move", (0.1,))
    text = image_message(data_dir, {"evaluation.shifts": (row,)})
    expected = '("color", "strength", numbers) of images'
    assert text == f"evaluation.shifts is {row!r}; expected {expected}."
    resolve(image_config(data_dir, shifted(("color", "strength", (0.0, 1.0)))))


def test_a_share_that_cannot_reach_every_class_is_refused(data_dir):
    # Half an example of each of 3 classes is needed, of 120.
    fractions = 0.0124, 1.0
    text = image_message(data_dir, {"evaluation.label_fractions": fractions})
    assert text == (
        f"evaluation.label_fractions is {fractions!r}; expected 0.0125 at least, for "
        "an example of each of 3 classes."
    )
    enough = {"evaluation.label_fractions": (0.0126, 1.0), "evaluation.shifts": ()}
    resolve(image_config(data_dir, ALL | enough))
    fewer = enough | {"evaluation.train_examples": 60}
    assert "expected 0.025 at least" in image_message(data_dir, fewer)
    half = enough | {"evaluation.label_fraction": 0.5}
    assert "expected 0.025 at least" in image_message(data_dir, half)
