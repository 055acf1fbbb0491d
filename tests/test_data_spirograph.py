"""The Spirograph data set: seeded target vectors, and the images as a TFDS set."""

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from reference import assert_uniform

from invariance_jax import data
from invariance_jax.data import __main__ as command
from invariance_jax.data import spirograph
from invariance_jax.data.spirograph import TARGETS, Spirograph, make_parameters
from invariance_jax.data.targets import SPLITS, make_targets
from invariance_jax.transforms.spirograph import BOUNDS, PARAMETERS, render

SETTINGS = {"num_examples": 50, "seed": 0, "targets": ("m", "b", "sigma", "rfore")}


def make(split="train", **changes):
    return make_targets(split, **{**SETTINGS, **changes})


def test_shape_dtype_and_distribution_of_each_column():
    targets = ("rfore", "m")
    x = make(num_examples=20_000, targets=targets)
    assert x.shape == (20_000, 2) and x.dtype == np.float32
    low, high = BOUNDS[[PARAMETERS.index(name) for name in targets]].T
    assert_uniform((x - low) / (high - low))


def test_bounds_move_the_distribution():
    bounds = BOUNDS.copy()
    bounds[PARAMETERS.index("b")] = [0.6, 0.7]
    moved, usual = make(bounds=bounds), make()
    assert 0.6 <= moved[:, 1].min() and moved[:, 1].max() <= 0.7
    np.testing.assert_allclose(moved[:, 1], 0.6 + 0.1 * (usual[:, 1] - 0.1), rtol=1e-6)
    np.testing.assert_array_equal(moved[:, [0, 2, 3]], usual[:, [0, 2, 3]])


def test_examples_depend_on_the_seed_and_a_larger_split_begins_with_a_smaller():
    larger = make(num_examples=np.int64(80), seed=np.uint32(0))
    np.testing.assert_array_equal(larger[:50], make())
    assert not np.any(make() == make(seed=1))


def test_splits_share_no_example():
    values = np.concatenate([make(split)[:, 0] for split in SPLITS])
    assert len(np.unique(values)) == len(values)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"split": "dev"}, "split must be one of .* found 'dev'"),
        ({"num_examples": 0}, "num_examples must be an integer of 1 or more; found 0"),
        ({"num_examples": 2.0}, "num_examples must be an integer of 1 or more"),
        ({"num_examples": 10**13}, "10000000000000 Spirograph targets take 3.2e"),
        ({"seed": -1}, "seed must be an integer of 0 or more; found -1"),
        ({"targets": ("m", "a")}, "targets must be some of m, b, .* found 'a'"),
    ],
    ids=str,
)
def test_bad_input_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a small version of the TFDS set."""
    folder = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spirograph, "NUM_EXAMPLES", {"train": 7, "test": 3})
        patch.setattr(spirograph, "_BATCH_SIZE", 4)
        tfds.data_source("spirograph", split="train", data_dir=folder)
    return folder


@pytest.mark.parametrize(("split", "num_examples"), [("train", 7), ("test", 3)])
def test_set_has_the_targets_and_draws_the_parameters(split, num_examples, prepared):
    examples = [*tfds.data_source("spirograph", split=split, data_dir=prepared)]
    parameters = np.stack([example["parameters"] for example in examples])
    targets = np.stack([example["targets"] for example in examples])
    images = np.stack([example["image"] for example in examples])
    assert {array.dtype for array in (parameters, targets)} == {np.dtype(np.float32)}
    columns = [PARAMETERS.index(name) for name in TARGETS]
    np.testing.assert_array_equal(parameters[:, columns], targets)
    expected = make_targets(split, num_examples=num_examples, seed=0, targets=TARGETS)
    np.testing.assert_array_equal(np.sort(targets, axis=0), np.sort(expected, axis=0))
    drawn = 255 * np.asarray(render(jnp.asarray(parameters)))
    assert images.dtype == np.uint8 and images.shape == (num_examples, 32, 32, 3)
    np.testing.assert_allclose(images, drawn, rtol=0, atol=0.5 + 1e-2)


def test_command_prepares_the_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Spirograph, "NUM_EXAMPLES", {"train": 2, "test": 1})
    command.main(["spirograph", f"--data_dir={tmp_path}"])
    assert f"MB in {tmp_path}/spirograph/1.0.0" in capsys.readouterr().out
    with pytest.raises(ValueError, match="source is for original files"):
        data.prepare("spirograph", data_dir=tmp_path / "other", source=tmp_path)


def test_parameters_of_the_set_follow_their_distribution():
    parameters = make_parameters("train", num_examples=20_000)
    assert parameters.shape == (20_000, 10) and parameters.dtype == np.float32
    low, high = BOUNDS.T
    assert_uniform((parameters - low) / (high - low))


def test_targets_and_nuisance_of_the_set_share_no_numbers():
    low, high = BOUNDS.T
    unit = (make_parameters("test", num_examples=50) - low) / (high - low)
    is_target = np.isin(PARAMETERS, TARGETS)
    targets, nuisance = unit[:, is_target].ravel(), unit[:, ~is_target].ravel()
    assert np.abs(targets[:, None] - nuisance[None]).min() > 1e-6
