"""The evaluation program: what it writes, how seeds are joined, what load returns."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SEEDS, tiny_config

import invariance_jax
from invariance_jax import embed, evaluate, evaluation
from invariance_jax.experiments import samples as samples_written
from invariance_jax.report.read import read_runs
from invariance_jax.runs import results
from invariance_jax.runtime.devices import all_devices
from invariance_jax.settings import resolve
from invariance_jax.tasks import make_task
from invariance_jax.training.frozen import FrozenEncoder

TARGETS = ("m", "b", "sigma", "rfore")
TASK = make_task(resolve(tiny_config()))


def config(**changes):
    return tiny_config(SEEDS | changes)


@pytest.fixture(scope="module")
def run(trained_seeds, tmp_path_factory):
    """The work directory of two seeds, and what the evaluation returned."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained_seeds, workdir)
    return workdir, evaluate.run(config(), workdir)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the work directory to change."""
    return Path(shutil.copytree(run[0], tmp_path / "run"))


def read(path):
    return json.loads((path / "results.json").read_text())


def means(results):
    return {name: entry["mean"] for name, entry in results["summary"].items()}


def test_the_summary_has_the_promised_names_and_finite_numbers(run):
    workdir, results = run
    assert read(workdir) == json.loads(json.dumps(results))
    expected = {"loss.final", "penalty.final", "mse.constant"}
    expected |= {f"variance.{name}" for name in ("within", "total", "normalized")}
    for views in (1, 3):
        expected |= {f"mse@{views}", f"mse.ensemble@{views}"}
        expected |= {f"{kind}.{t}@{views}" for kind in ("mse", "r2") for t in TARGETS}
    assert {*results["summary"]} == expected
    assert np.isfinite(list(means(results).values())).all()


def test_settings_say_how_it_was_measured(run):
    results = read(run[0])
    settings = results["settings"]
    assert (settings["split"], settings["num_views"]) == ("test", [1, 3])
    assert settings["targets"] == list(TARGETS) and "classes" not in settings
    assert (settings["train_examples"], settings["test_examples"]) == (200, 70)
    assert settings["step"] == 20
    assert results["format"] == 3
    assert [*results["experiments"]] == ["downstream", "averaging", "invariance"]


def test_seeds_are_joined(run):
    found, *seeds = (read(run[0] / name) for name in ("", "seed_0", "seed_1"))
    joined = results.aggregate(seeds)
    for name in ("n", "seeds", "rows", "summary"):
        assert found[name] == joined[name]
    assert found["summary"]["mse@1"]["standard_error"] > 0


def test_the_best_constant_has_the_variance_of_the_targets(run):
    y = TASK.examples("test").y.astype(np.float64)
    found = means(read(run[0] / "seed_0"))["mse.constant"]
    assert found == pytest.approx(y.var(axis=0).mean())


def test_final_metrics_are_those_of_the_last_row(run):
    workdir, _ = run
    lines = (workdir / "seed_1" / "metrics.jsonl").read_text().splitlines()
    values = means(read(workdir / "seed_1"))
    assert values["loss.final"] == json.loads(lines[-1])["loss"]
    assert values["penalty.final"] == json.loads(lines[-1])["penalty"]


def test_a_log_with_missing_rows_gives_no_final_metrics(copy, caplog):
    single, one = copy / "seed_1", config(seed=1, seeds=1)
    log = single / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0])
    found = evaluate.run(one, single)
    assert "mse@1" in found["summary"] and "loss.final" not in found["summary"]
    missing = f"{len(lines) - 1} of the {len(lines)} rows until step 20 are missing"
    assert f"{log}: {missing}" in caplog.text
    (reported,) = read_runs([single])
    assert np.isnan(reported.seconds)
    log.write_text("".join(lines))
    assert "loss.final" in evaluate.run(one, single)["summary"]
    (reported,) = read_runs([single])
    assert reported.seconds == json.loads(lines[-1])["seconds"]


def features(encode, x, stream, views):
    key = jax.random.fold_in(jax.random.key(config().evaluation.seed), stream)
    return evaluation.average_features(
        key, encode, TASK.transformation(), jnp.asarray(x), num_views=views
    )


def test_load_gives_the_encoder_that_was_evaluated(run):
    workdir, _ = run
    encode, loaded = invariance_jax.load(workdir / "seed_1")
    assert (loaded.seed, loaded.batch_size) == (1, 16)
    splits = [TASK.examples(split).x for split in ("train", "test")]
    h, h_test = (features(encode, x, n, (1, 3)) for n, x in enumerate(splits))
    values = means(read(workdir / "seed_1"))
    for number, views in enumerate((1, 3)):
        probe = TASK.fit(h[number], splits[0])
        fitted = TASK.score(probe, h_test[number], splits[1]).values
        for name in TARGETS:
            expected = values[f"mse.{name}@{views}"]
            assert fitted[f"mse.{name}"] == pytest.approx(expected, rel=2e-3)


def test_the_loaded_encoder_is_the_checkpoint_on_running_statistics(run):
    workdir, _ = run
    encode, _ = invariance_jax.load(str(workdir / "seed_0"))
    images = jax.random.uniform(jax.random.key(0), (5, 8, 8, 3))
    h = encode(images)
    assert (h.shape, h.dtype) == ((5, 16), jnp.float32)
    # On running statistics an example does not depend on the others.
    np.testing.assert_allclose(encode(images[:2]), h[:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(encode)(images), h, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda images: jnp.sum(encode(images)))(images)
    assert float(jnp.abs(gradient).max()) > 0
    normalized, bytes_ = (images - 0.5) / 0.25, jnp.full(images.shape, 255, jnp.uint8)
    for wrong in (255 * images, jnp.minimum(normalized, 2), bytes_):
        with pytest.raises(ValueError, match=r"in \[0, 1\]; found .* by 255"):
            encode(wrong)
    for shape in ((5, 3, 8, 8), (5, 8, 8, 1), (5, 9, 9, 3)):
        with pytest.raises(ValueError, match=r"must be \[B, 8, 8, 3\]; found \[5, "):
            encode(jnp.ones(shape))


def test_an_older_checkpoint_is_another_encoder(run):
    images = jnp.ones((1, 8, 8, 3))
    newest, older, same = (
        evaluate.load(run[0] / "seed_0", step=step)[0](images)
        for step in (None, 10, 20)
    )
    assert not np.allclose(newest, older)
    np.testing.assert_array_equal(newest, same)


def test_devices_do_not_change_the_features(run):
    parts, _, variables = evaluate.load_parts(run[0] / "seed_0")
    x = TASK.examples("test").x[:33]
    one, four = (
        FrozenEncoder(parts, all_devices(count)).features(
            variables, x, num_views=(1, 3), stream=1
        )
        for count in (1, 4)
    )
    assert one.shape == (2, 33, 16)
    np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def samples(run):
    with np.load(run[0] / "seed_0" / "samples.npz") as archive:
        return {name: archive[name] for name in archive.files}


def test_samples_hold_views_and_predictions(run, samples):
    views = samples["views"]
    assert (views.shape, views.dtype) == ((4, 10, 8, 8, 3), np.uint8)
    for row in views:  # one example under several draws
        assert len(np.unique(row.reshape(10, -1), axis=0)) == 10
    y = TASK.examples("test").y
    np.testing.assert_array_equal(samples["true"], y)
    values = means(read(run[0] / "seed_0"))
    for name, count in [("predicted_single", 1), ("predicted", 3)]:
        mse = np.square(samples[name] - y).mean(axis=0)
        found = [values[f"mse.{target}@{count}"] for target in TARGETS]
        np.testing.assert_allclose(mse, found, rtol=1e-4)


def test_samples_hold_a_projection_and_neighbours_of_one_view(run, samples):
    y = TASK.examples("test").y
    encode, _ = invariance_jax.load(run[0] / "seed_0")
    (h,) = features(encode, y, 1, (1,))
    h = np.asarray(h, np.float64)
    values = np.linalg.eigvalsh(np.cov(h.T))[::-1]
    explained = samples["projection_explained"]
    np.testing.assert_allclose(explained, values[:2] / values.sum(), rtol=1e-3)
    variance = samples["projection"].astype(np.float64).var(axis=0, ddof=1)
    np.testing.assert_allclose(variance, values[:2], rtol=1e-3)
    np.testing.assert_array_equal(samples["projection_targets"], y)
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    nearest = np.argsort(-unit[:10] @ unit.T)[:, :3]
    key = jax.random.fold_in(jax.random.key(0), 1)
    for query, rows in enumerate(nearest):
        view = evaluation.sample_view(
            key, TASK.transformation(), jnp.asarray(rows, jnp.int32), view=0
        )
        pictures = TASK.displayed(TASK.transformation().apply(y[rows], view))
        shown = samples["neighbors"][query, :3].astype(int)
        assert np.abs(shown - pictures).max() <= 1
    absent = {"plain", "confusion", "projection_labels", "neighbor_labels"}
    assert not absent & {*samples}


def test_samples_that_are_lost_are_written_again(copy, samples):
    single = copy / "seed_0"
    (single / "samples.npz").unlink()
    evaluate.run(config(seeds=1), single)
    with np.load(single / "samples.npz") as archive:
        assert {*archive.files} == {*samples}
        np.testing.assert_allclose(archive["predicted"], samples["predicted"])


def test_samples_are_those_of_the_split_that_is_measured(copy, samples):
    keys = {"split": "validation", "experiments": ("invariance",)}
    changes = {f"evaluation.{name}": value for name, value in keys.items()}
    evaluate.run(config(seeds=1, **changes), copy / "seed_0")
    with np.load(copy / "seed_0" / "samples.npz") as archive:
        assert "true" not in archive.files  # no predictions of another split
        assert not np.array_equal(archive["views"], samples["views"])


def test_an_interrupted_measurement_keeps_no_samples_of_another(copy, monkeypatch):
    shutil.rmtree(copy / "seed_1")
    keys = {"split": "validation", "experiments": ("averaging",)}
    changes = {f"evaluation.{name}": value for name, value in keys.items()}
    one, single = tiny_config(SEEDS | {"seeds": 1} | changes), copy / "seed_0"

    def stopped(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(samples_written, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(one, single)
    assert (single / "experiments" / "averaging.json").exists()
    evaluate.run(one, single)
    with np.load(single / "samples.npz") as archive:
        y = TASK.examples("validation").y
        np.testing.assert_array_equal(archive["true"], y)


def test_views_are_embedded_as_no_image_is_plain(copy):
    _, file = embed.run(None, copy / "seed_0")
    assert file.name == "embeddings_test_1_views.npz"
    encode, _ = invariance_jax.load(copy / "seed_0")
    y = TASK.examples("test").y
    with np.load(file) as content:
        (expected,) = features(encode, y, 1, (1,))
        np.testing.assert_allclose(content["features"], expected, atol=1e-4)
        np.testing.assert_array_equal(content["targets"], y)


def test_evaluation_keys_may_change(copy):
    changes = {"evaluation.num_views": (2,), "evaluation.split": "validation"}
    single = copy / "seed_0"
    before = (single / "config.json").read_bytes()
    results = evaluate.run(config(seeds=1, **changes), single)
    assert "mse@2" in results["summary"]
    assert "mse@1" not in results["summary"]
    assert results["settings"]["test_examples"] == 60
    # What trained the run stays; what measured it stands with the numbers.
    assert (single / "config.json").read_bytes() == before
    assert read(single)["settings"]["num_views"] == [2]
    assert {"command", "environment"} <= {*results}
    assert evaluate.run(None, single)["settings"]["num_views"] == (1, 3)


def test_a_seed_that_is_missing_is_named(copy):
    shutil.rmtree(copy / "seed_1")
    with pytest.raises(ValueError, match="seed_1 holds no run"):
        evaluate.run(config(), copy)


def test_load_of_several_seeds_asks_for_one(run):
    with pytest.raises(ValueError, match=r"2 seeds.*seed_0"):
        invariance_jax.load(run[0])
