"""The seeded target vectors of the Spirograph data set."""

import numpy as np
import pytest

from invariance_jax.data.spirograph import SPLITS, make_targets
from invariance_jax.transforms.spirograph import BOUNDS, PARAMETERS

SETTINGS = {"num_examples": 50, "seed": 0, "targets": ("m", "b", "sigma", "rfore")}


def make(split: str = "train", **changes: object) -> np.ndarray:
    return make_targets(split, **{**SETTINGS, **changes})


def test_shape_dtype_and_law_of_each_column() -> None:
    targets = ("rfore", "m")
    x = make(num_examples=20_000, targets=targets)
    assert x.shape == (20_000, 2) and x.dtype == np.float32
    low, high = BOUNDS[[PARAMETERS.index(name) for name in targets]].T
    assert np.all(x >= low.astype(np.float32)) and np.all(x <= high.astype(np.float32))
    unit = (x - low) / (high - low)
    # a uniform law: 4 standard errors of the first two moments
    np.testing.assert_allclose(unit.mean(axis=0), 1 / 2, atol=4 * 0.289 / 141)
    np.testing.assert_allclose(unit.var(axis=0), 1 / 12, atol=4 * 0.0745 / 141)
    assert abs(np.corrcoef(unit.T)[0, 1]) < 4 / 141


def test_bounds_move_the_law() -> None:
    bounds = BOUNDS.copy()
    bounds[PARAMETERS.index("b")] = [0.6, 0.7]
    moved, usual = make(bounds=bounds), make()
    assert 0.6 <= moved[:, 1].min() and moved[:, 1].max() <= 0.7
    np.testing.assert_allclose(moved[:, 1], 0.6 + 0.1 * (usual[:, 1] - 0.1), rtol=1e-6)
    np.testing.assert_array_equal(moved[:, [0, 2, 3]], usual[:, [0, 2, 3]])


def test_same_seed_gives_the_same_examples_and_another_seed_others() -> None:
    np.testing.assert_array_equal(make(), make())
    assert not np.any(make() == make(seed=1))


def test_splits_share_no_example() -> None:
    values = np.concatenate([make(split)[:, 0] for split in SPLITS])
    assert len(np.unique(values)) == len(values)


def test_larger_split_begins_with_the_smaller() -> None:
    np.testing.assert_array_equal(make(num_examples=80)[:50], make())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"split": "dev"}, "split must be one of .* found 'dev'"),
        ({"num_examples": 0}, "num_examples must be positive; found 0"),
        ({"targets": ("m", "a")}, "targets must be some of m, b, .* found 'a'"),
    ],
    ids=str,
)
def test_bad_input_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
