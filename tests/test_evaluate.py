"""The evaluation program: what it writes, how seeds are joined, what load returns."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

import invariance_jax
from invariance_jax import evaluate, evaluation, train
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.training import parallel, start
from invariance_jax.training.components import make_examples, make_transformation
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.protocols import fit_and_score
from invariance_jax.training.settings import resolve

CHANGES = {"seeds": 2, "logging.probe_every_steps": 0, "checkpoints.keep": 2}
TARGETS = ("m", "b", "sigma", "rfore")


def config(**changes):
    return tiny_config(CHANGES | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work directory of two seeds, and what the evaluation returned."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    train.run(config(), workdir)
    return workdir, evaluate.run(config(), workdir)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the work directory to change."""
    return Path(shutil.copytree(run[0], tmp_path / "run"))


def read(path):
    return json.loads((path / "results.json").read_text())


def means(results):
    return {name: entry["mean"] for name, entry in results["summary"].items()}


def test_results_are_written_as_they_are_returned(run):
    workdir, results = run
    assert read(workdir) == json.loads(json.dumps(results))


def test_names_of_the_summary_are_those_that_are_promised(run):
    expected = {"loss.final", "penalty.final", "mse.constant"}
    expected |= {f"variance.{name}" for name in ("within", "total", "normalized")}
    for views in (1, 3):
        expected |= {f"mse@{views}", f"mse.ensemble@{views}"}
        expected |= {f"{kind}.{t}@{views}" for kind in ("mse", "r2") for t in TARGETS}
    assert {*run[1]["summary"]} == expected


def test_every_number_is_finite(run):
    assert np.isfinite(list(means(run[1]).values())).all()


def test_settings_say_how_it_was_measured(run):
    settings = read(run[0])["settings"]
    assert settings["split"] == "test"
    assert settings["num_views"] == [1, 3]
    assert settings["targets"] == list(TARGETS)
    assert (settings["train_examples"], settings["test_examples"]) == (200, 70)
    assert settings["step"] == 20


def test_seeds_are_joined_with_the_standard_error_of_their_mean(run):
    workdir, results = run
    each = [means(read(workdir / f"seed_{seed}")) for seed in (0, 1)]
    assert (results["n"], results["seeds"], results["format"]) == (2, [0, 1], 1)
    for name, entry in results["summary"].items():
        first, second = (values[name] for values in each)
        assert entry["n"] == 2
        assert entry["mean"] == pytest.approx((first + second) / 2, rel=1e-12)
        # ddof 1: half the difference of two values.
        expected = abs(first - second) / 2
        assert entry["standard_error"] == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert results["summary"]["mse@1"]["standard_error"] > 0


def test_one_seed_has_no_standard_error(run):
    entries = read(run[0] / "seed_0")["summary"].values()
    assert {(entry["standard_error"], entry["n"]) for entry in entries} == {(None, 1)}


def test_the_mean_error_is_that_over_the_targets(run):
    values = means(run[1])
    for views in (1, 3):
        tasks = [values[f"mse.{name}@{views}"] for name in TARGETS]
        assert values[f"mse@{views}"] == pytest.approx(np.mean(tasks), rel=1e-9)


def test_error_and_explained_variance_belong_together(run):
    values = means(read(run[0] / "seed_0"))
    y = make_examples(resolve(config()), "test").y
    for number, name in enumerate(TARGETS):
        expected = 1 - values[f"mse.{name}@1"] / y[:, number].astype(np.float64).var()
        assert values[f"r2.{name}@1"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_constant_predictor_is_the_variance_of_the_targets(run):
    y = make_examples(resolve(config()), "test").y.astype(np.float64)
    assert means(run[1])["mse.constant"] == pytest.approx(y.var(axis=0).mean())


def test_final_metrics_are_those_of_the_last_row(run):
    workdir, _ = run
    lines = (workdir / "seed_1" / "metrics.jsonl").read_text().splitlines()
    values = means(read(workdir / "seed_1"))
    assert values["loss.final"] == json.loads(lines[-1])["loss"]
    assert values["penalty.final"] == json.loads(lines[-1])["penalty"]


def test_seeds_trained_different_networks(run):
    values = [means(read(run[0] / f"seed_{seed}"))["loss.final"] for seed in (0, 1)]
    assert values[0] != values[1]


def features(encode, x, stream, views):
    settings = resolve(config())
    key = jax.random.fold_in(jax.random.key(settings.evaluation.seed), stream)
    transformation = make_transformation(settings)
    return evaluation.average_features(
        key, encode, transformation, jnp.asarray(x), num_views=views
    )


def test_load_gives_the_encoder_that_was_evaluated(run):
    workdir, _ = run
    encode, loaded = invariance_jax.load(workdir / "seed_1")
    settings = resolve(loaded)
    assert (settings.seed, settings.batch_size) == (1, 16)
    splits = [make_examples(settings, split).x for split in ("train", "test")]
    h, h_test = (features(encode, x, n, (1, 3)) for n, x in enumerate(splits))
    values = means(read(workdir / "seed_1"))
    for number, views in enumerate((1, 3)):
        arrays = h[number], splits[0], h_test[number], splits[1]
        fitted = fit_and_score(settings, *arrays).values
        for name in TARGETS:
            expected = values[f"mse.{name}@{views}"]
            assert fitted[f"mse.{name}"] == pytest.approx(expected, rel=2e-3)


def test_the_loaded_encoder_is_the_checkpoint_on_running_statistics(run):
    workdir, _ = run
    encode, loaded = invariance_jax.load(str(workdir / "seed_0"))
    images = jax.random.uniform(jax.random.key(0), (5, 8, 8, 3))
    h = encode(images)
    assert (h.shape, h.dtype) == ((5, 16), jnp.float32)
    # On running statistics an example does not depend on the others.
    np.testing.assert_allclose(encode(images[:2]), h[:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(encode)(images), h, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda images: jnp.sum(encode(images)))(images)
    assert float(jnp.abs(gradient).max()) > 0


def test_an_older_checkpoint_is_another_encoder(run):
    images = jnp.ones((1, 8, 8, 3))
    newest, older, same = (
        evaluate.load(run[0] / "seed_0", step=step)[0](images)
        for step in (None, 10, 20)
    )
    assert not np.allclose(newest, older)
    np.testing.assert_array_equal(newest, same)


def test_devices_do_not_change_the_features(run):
    workdir, _ = run
    settings = resolve(config())
    checkpoints = Checkpoints(workdir / "seed_0")
    state = checkpoints.restore(start.initial_state(settings))
    checkpoints.close()
    x = make_examples(settings, "test").x[:33]
    one, four = (
        FrozenEncoder(settings, parallel.all_devices(count)).features(
            encoder_variables(state), x, num_views=(1, 3), stream=1
        )
        for count in (1, 4)
    )
    assert one.shape == (2, 33, 16)
    np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5)


def test_samples_hold_views_and_predictions(run):
    workdir, _ = run
    with np.load(workdir / "seed_0" / "samples.npz") as archive:
        samples = {name: archive[name] for name in archive.files}
    assert samples["views"].shape == (4, 10, 8, 8, 3)
    assert samples["views"].dtype == np.uint8
    y = make_examples(resolve(config()), "test").y
    np.testing.assert_array_equal(samples["true"], y)
    values = means(read(workdir / "seed_0"))
    for name, views in [("predicted_single", 1), ("predicted", 3)]:
        mse = np.square(samples[name] - y).mean(axis=0)
        found = [values[f"mse.{target}@{views}"] for target in TARGETS]
        np.testing.assert_allclose(mse, found, rtol=1e-4)


def test_a_row_of_views_is_one_example_under_several_draws(run):
    with np.load(run[0] / "seed_0" / "samples.npz") as archive:
        views = archive["views"]
    for row in views:
        assert len(np.unique(row.reshape(10, -1), axis=0)) == 10


def test_evaluation_keys_may_change(copy):
    changes = {"evaluation.num_views": (2,), "evaluation.split": "validation"}
    shutil.rmtree(copy / "seed_1")
    single = copy / "seed_0"
    one = tiny_config(CHANGES | {"seeds": 1} | changes)
    before = (single / "config.json").read_bytes()
    results = evaluate.run(one, single)
    assert "mse@2" in results["summary"]
    assert "mse@1" not in results["summary"]
    assert results["settings"]["test_examples"] == 60
    # What trained the run stays; what measured it stands with the numbers.
    assert (single / "config.json").read_bytes() == before
    assert read(single)["settings"]["num_views"] == [2]
    assert {"command", "environment"} <= {*results}
    assert evaluate.run(None, single)["settings"]["num_views"] == (1, 3)


def test_another_training_key_is_refused(copy):
    before = (copy / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run with temperature = 0\.2"):
        evaluate.run(config(temperature=0.3), copy)
    assert (copy / "results.json").read_bytes() == before


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        evaluate.run(config(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_seed_that_is_missing_is_named(copy):
    shutil.rmtree(copy / "seed_1")
    with pytest.raises(ValueError, match="seed_1 holds no run"):
        evaluate.run(config(), copy)


def test_a_run_without_a_checkpoint_is_named(copy):
    shutil.rmtree(copy / "seed_0" / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint in .*seed_0"):
        evaluate.run(config(), copy)


def test_load_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        invariance_jax.load(tmp_path)


def test_load_refuses_a_step_that_was_not_kept(run):
    with pytest.raises(ValueError, match=r"no checkpoint of step 3 in"):
        invariance_jax.load(run[0] / "seed_0", step=3)


def test_load_of_several_seeds_asks_for_one(run):
    with pytest.raises(ValueError, match=r"2 seeds.*seed_0"):
        invariance_jax.load(run[0])
