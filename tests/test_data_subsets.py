"""Subsets of a split that everybody finds again."""

import numpy as np
import pytest

from invariance_jax import data


def test_hold_out_is_the_same_for_ever():
    train, validation = data.hold_out(10, validation_examples=3)
    # Drawn with NumPy 2.4; `RandomState` promises the same for every version.
    assert validation.tolist() == [2, 4, 8]
    assert train.tolist() == [0, 1, 3, 5, 6, 7, 9]


def test_larger_hold_out_contains_the_smaller():
    _, few = data.hold_out(1000, validation_examples=10)
    train, many = data.hold_out(1000, validation_examples=100)
    assert {*few.tolist()} < {*many.tolist()}
    assert sorted([*train, *many]) == [*range(1000)]


LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 40, 9]))


@pytest.mark.parametrize(
    ("fraction", "counts"),
    [
        (1.0, [100, 40, 9]),
        (0.1, [10, 4, 1]),
        (0.06, [6, 2, 1]),
        (0.5, [50, 20, 5]),
    ],
)
def test_label_fraction_takes_a_share_of_each_class(fraction, counts):
    chosen = data.label_fraction(LABELS, fraction, seed=0)
    assert np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen]), counts)


def test_label_fractions_of_one_seed_are_nested():
    shares = [data.label_fraction(LABELS, f, seed=3) for f in (0.06, 0.1, 0.37, 1.0)]
    for small, large in zip(shares, shares[1:], strict=False):
        assert {*small.tolist()} < {*large.tolist()}


def test_label_fraction_of_many_classes_is_fast():
    labels = np.repeat(np.arange(200_000), 2)
    chosen = data.label_fraction(labels, 0.5, seed=0)
    np.testing.assert_array_equal(labels[chosen], np.arange(200_000))


def test_a_fraction_of_float32_is_not_rounded_again():
    labels, fraction = np.zeros(10, int), np.float32(0.35)  # a little less than 0.35
    assert len(data.label_fraction(labels, fraction, seed=0)) == 3


def test_label_fraction_depends_on_the_seed():
    first, second = (data.label_fraction(LABELS, 0.2, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, data.label_fraction(LABELS, 0.2, seed=0))


@pytest.mark.parametrize(
    ("labels", "fraction", "message"),
    [
        (LABELS, 0.05, "fraction 0.05 leaves class 2 empty: it has 9 examples"),
        (LABELS, 0.0, r"fraction must be in \(0, 1\]; found 0.0"),
        (LABELS, 1.5, r"fraction must be in \(0, 1\]; found 1.5"),
        (LABELS, float("nan"), "fraction must be in .*; found nan"),
        (LABELS, None, "fraction must be a number; found None"),
        (LABELS * 1.0, 0.5, r"integers \[N\]; found float64 \[149\]"),
        (LABELS[None], 0.5, r"integers \[N\]; found int64 \[1, 149\]"),
    ],
)
def test_bad_label_fraction_is_refused(labels, fraction, message):
    with pytest.raises(ValueError, match=message):
        data.label_fraction(labels, fraction, seed=0)
