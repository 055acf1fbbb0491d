"""An image run from end to end: what is measured, written, loaded and embedded."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from archives import CIFAR10, cache_download, cifar10_archive, draw, register_checksum
from sklearn.linear_model import LogisticRegression
from tiny import image_arrays, image_config

import invariance_jax
from invariance_jax import data, embed, evaluate, models, report, train
from invariance_jax.runs.workdir import read_config
from invariance_jax.runtime.preemption import Preempted
from invariance_jax.training import protocols
from invariance_jax.training.components import (
    Examples,
    make_examples,
    make_transformation,
)
from invariance_jax.training.frozen import FrozenEncoder
from invariance_jax.training.settings import resolve

CHANGES = {
    "evaluation.families": ("all", "color", "crop"),
    "evaluation.baselines": ("pixels", "untrained"),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """The work directory of a run, and what the evaluation returned."""
    workdir = tmp_path_factory.mktemp("images") / "run"
    config = image_config(data_dir, CHANGES)
    train.run(config, workdir)
    return workdir, evaluate.run(config, workdir)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the work directory to change."""
    return Path(shutil.copytree(run[0], tmp_path / "run"))


def means(results):
    return {name: entry["mean"] for name, entry in results["summary"].items()}


def test_names_of_the_summary(run):
    linear = ("accuracy", "cross_entropy")
    expected = {"loss.final", "penalty.final"}
    for part in ("", ".color", ".crop"):
        for name in ("within", "total", "normalized"):
            expected |= {f"variance.{name}{part}"}
        expected |= {f"gradient_norm{part}@{m}" for m in (1, 3)}
    for part in ("", ".color", ".crop", ".ensemble"):
        expected |= {f"{metric}{part}@{m}" for metric in linear for m in (1, 3)}
    for part in ("", ".pixels", ".untrained"):
        plain = (*linear, "gradient_norm", "knn5", "knn5_majority")
        expected |= {f"{metric}{part}@plain" for metric in plain}
    assert {*run[1]["summary"]} == expected
    assert np.isfinite(list(means(run[1]).values())).all()


def test_raw_pixels_are_those_of_scikit_learn(run, data_dir):
    settings = resolve(image_config(data_dir))
    (x, y), (x_test, y_test) = (make_examples(settings, s) for s in ("train", "test"))
    pixels, pixels_test = (part.reshape(len(part), -1) / 255 for part in (x, x_test))
    oracle = LogisticRegression(C=1 / (2 * 1e-3 * len(x)), tol=1e-8, max_iter=10_000)
    expected = oracle.fit(pixels, y).score(pixels_test, y_test)
    assert means(run[1])["accuracy.pixels@plain"] == pytest.approx(expected)


def test_logistic_regression_was_fitted_to_the_minimum(run):
    values = means(run[1])
    norms = [value for name, value in values.items() if name.startswith("gradient")]
    assert max(norms) < 1e-3


def test_one_view_is_its_own_ensemble(run):
    values = means(run[1])
    for metric in ("accuracy", "cross_entropy"):
        single = values[f"{metric}@1"]
        assert values[f"{metric}.ensemble@1"] == pytest.approx(single, abs=1e-5)
    assert values["cross_entropy.ensemble@3"] != values["cross_entropy@3"]


def test_plain_results_are_those_of_the_loaded_encoder(run, data_dir):
    encode, config = invariance_jax.load(str(run[0]))
    settings = resolve(config)
    splits = [make_examples(settings, split) for split in ("train", "test")]
    h, h_test = (np.asarray(jax.jit(encode)(jnp.asarray(x))) for x, _ in splits)
    scored = protocols.fit_and_score(settings, h, splits[0].y, h_test, splits[1].y)
    accuracy = means(run[1])["accuracy@plain"]
    assert scored.values["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_loading_reads_no_data_set(run, data_dir, monkeypatch):
    monkeypatch.setattr(data.tfds, "describe", None)
    monkeypatch.setattr(data, "load_arrays", None)
    encode, config = invariance_jax.load(str(run[0]))
    images = jnp.linspace(0, 1, 2 * 300).reshape(2, 10, 10, 3)
    h = encode(images)
    assert h.shape == (2, 16)
    assert config.data.num_classes == 3
    # The loaded encoder normalizes: bytes and shares of 255 are the same image.
    whole = np.asarray(images * 255).round().astype(np.uint8)
    np.testing.assert_allclose(
        encode(jnp.asarray(whole)), encode(jnp.asarray(whole) / 255), atol=1e-5
    )


def test_the_probe_sees_a_share_of_the_labels(data_dir):
    config = image_config(data_dir, {"evaluation.label_fraction": 0.2})
    settings = resolve(config)
    seen = protocols.probe_examples(settings, make_examples(settings, "train"))
    counts = np.bincount(seen.y)
    assert len(seen.x) == len(seen.y) == counts.sum() == pytest.approx(24, abs=3)
    assert (counts > 0).all()


def test_the_online_probe_logs_accuracy(run):
    rows = map(json.loads, (run[0] / "metrics.jsonl").read_text().splitlines())
    found = [row for row in rows if "probe_accuracy" in row]
    assert [row["step"] for row in found] == [10, 20]
    assert all(0 <= row["probe_accuracy"] <= 1 for row in found)


def test_samples_count_every_test_example(run):
    with np.load(run[0] / "samples.npz") as samples:
        counts, views = samples["confusion"], samples["views"]
    np.testing.assert_array_equal(counts.sum(axis=1), [15, 15, 15])
    accuracy = np.trace(counts) / 45
    assert accuracy == pytest.approx(means(run[1])["accuracy@3"], abs=1e-6)
    assert views.dtype == np.uint8
    assert views.shape == (4, 10, 8, 8, 3)


def test_the_report_shows_classification(run, tmp_path):
    page = report.run([run[0]], tmp_path).read_text()
    table = (tmp_path / "tables" / "classification.csv").read_text().splitlines()
    first = [line.split(",")[0].strip('"') for line in table]
    assert first[:4] == ["M", "plain", "1", "3"]
    assert any(line.startswith('"untrained, plain"') for line in table)
    for name in ("accuracy", "confusion", "views", "training"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 0
    assert "Predicted against true classes" in page


def test_embeddings_are_those_of_the_loaded_encoder(copy):
    files = embed.run(None, copy)
    assert [file.name for file in files] == [
        "embeddings_train_1_views.npz",
        "embeddings_test_1_views.npz",
    ]
    with np.load(files[0]) as content:
        assert content["features"].shape == (120, 16)
        assert content["features"].dtype == np.float32
        made_by = json.loads(str(content["settings"]))
    assert made_by["step"] == 20
    assert made_by["split"] == "train"
    assert made_by["config"]["embedding"]["num_views"] == 1


def test_embeddings_are_in_the_order_of_the_set(copy):
    _, file = embed.run(None, copy)
    with np.load(file) as content:
        np.testing.assert_array_equal(
            content["labels"], image_arrays(1, num_examples=45)[1]
        )


def test_plain_embeddings_are_those_of_the_loaded_encoder(copy, data_dir):
    changes = {"embedding.num_views": 0, "embedding.splits": ("test",)}
    config = image_config(data_dir, CHANGES | changes)
    (file,) = embed.run(config, copy)
    test = make_examples(resolve(config), "test", in_order=True)
    encode, _ = invariance_jax.load(str(copy))
    with np.load(file) as content:
        np.testing.assert_allclose(content["features"], encode(test.x), atol=1e-5)
        np.testing.assert_array_equal(content["labels"], test.y)


def test_an_embedding_that_was_stopped_goes_on(copy, monkeypatch):
    features = FrozenEncoder.features

    def stopped(*arguments, stream, **settings):
        if stream == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return features(*arguments, stream=stream, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoder, "features", stopped)
        with pytest.raises(Preempted):
            embed.run(None, copy)
    (written,) = copy.glob("embeddings_*.npz")
    before = written.stat().st_mtime_ns
    files = embed.run(None, copy)
    assert written.stat().st_mtime_ns == before
    assert all(file.exists() for file in files) and len(files) == 2


def test_an_embedding_is_never_overwritten(copy):
    files = embed.run(None, copy)
    before = files[1].read_bytes()
    files[0].unlink()
    config = read_config(copy)
    config.evaluation.seed = 1
    with pytest.raises(ValueError, match="test_1_views.npz exists"):
        embed.run(config, copy)
    assert files[1].read_bytes() == before
    assert not files[0].exists()


def test_nothing_is_embedded_without_a_run(tmp_path, data_dir):
    with pytest.raises(ValueError, match="holds no run"):
        embed.run(image_config(data_dir), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the weights of a ResNet-18, and its variables."""
    encoder = models.create_encoder("resnet18")
    blank = jnp.zeros((1, 8, 8, 3))
    init = jax.jit(lambda key: encoder.init(key, blank, train=False))
    variables = init(jax.random.key(5))
    path = tmp_path_factory.mktemp("weights") / "resnet18.npz"
    state_dict = models.weights.to_torch_state_dict(variables)
    models.weights.save_state_dict(path, state_dict)
    return path, variables


def weights_config(data_dir, path, **changes):
    given = {"encoder.name": "resnet18", "encoder.weights": str(path)}
    fewer = {"data.train_examples": 12, "data.test_examples": 12, "batch_size": 4}
    fewer |= {"evaluation.variance_examples": 4, "evaluation.num_views": (1,)}
    return image_config(data_dir, given | fewer | changes)


def test_imported_weights_are_evaluated(weights, data_dir, tmp_path):
    path, variables = weights
    config = weights_config(data_dir, path)
    results = evaluate.run(config, tmp_path / "run")
    assert results["settings"]["step"] == 0
    encode, _ = invariance_jax.load(str(tmp_path / "run"))
    images = jnp.asarray(image_arrays(3, num_examples=2)[0])
    settings = resolve(config)
    plain = make_transformation(settings).plain(images)
    encoder = models.create_encoder("resnet18")
    expected = encoder.apply(variables, plain, train=False)
    np.testing.assert_allclose(encode(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("program", [train, evaluate])
def test_weights_of_another_network_are_refused(program, weights, data_dir, tmp_path):
    config = weights_config(data_dir, weights[0], **{"encoder.name": "resnet34"})
    with pytest.raises(ValueError, match=r"encoder.weights is .*resnet18"):
        program.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation.label_fraction": 0.01},
        {
            "evaluation.experiments": ("label_fraction",),
            "evaluation.label_fractions": (0.0126, 1.0),
        },
    ],
    ids=["of every probe", "smallest of the experiment"],
)
def test_a_share_that_leaves_a_class_empty_is_refused_before_training(
    data_dir, tmp_path, changes
):
    config = image_config(data_dir, {**changes, "evaluation.neighbors": ()})
    with pytest.raises(ValueError, match=r"label fraction .* leaves class \d empty"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_only_the_color_family_may_be_evaluated(run, copy, data_dir):
    config = image_config(data_dir, {"evaluation.families": ("color",)})
    values = means(evaluate.run(config, copy))
    assert "accuracy.color@3" in values
    assert not [name for name in values if name.startswith("accuracy@3")]
    assert not [name for name in values if "ensemble" in name]
    assert values["variance.normalized"] == pytest.approx(
        means(run[1])["variance.normalized"], rel=1e-5
    )


def test_cifar_goes_from_the_download_cache_to_the_report(tmp_path, monkeypatch):
    archive, data_dir = tmp_path / "cifar-10-binary.tar.gz", tmp_path / "sets"
    cifar10_archive(archive, draw(0, 120), draw(1, 40))
    register_checksum(monkeypatch, CIFAR10, archive)
    cache_download(archive, data_dir)
    changes = {"data.name": "cifar10", "steps": 4, "logging.probe_every_steps": 0}
    config = image_config(data_dir, changes)
    train.run(config, tmp_path / "run")
    results = evaluate.run(config, tmp_path / "run")
    assert results["settings"]["test_examples"] == 40
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert settings["data"]["train_examples"] == 120 - 30
    assert settings["data"]["source_size"] == [32, 32]
    assert settings["data"]["mean"] == [0.4914, 0.4822, 0.4465]
    page = report.run([tmp_path / "run"], tmp_path / "run")
    assert "accuracy" in page.read_text()


def test_examples_that_are_sorted_by_class_are_shuffled(tmp_path):
    images, labels = image_arrays(0, num_examples=60)
    order = np.argsort(labels, kind="stable")
    split = images[order], labels[order]
    data.prepare_arrays("sorted", tmp_path, train=split, test=split)
    changes = {"data.name": "sorted", "data.test_examples": 30}
    changes |= {"data.validation_examples": 20}
    settings = resolve(image_config(tmp_path, changes))
    test = make_examples(settings, "test")
    assert len(test.x) == len(test.y) == 30
    assert np.bincount(test.y, minlength=3).min() >= 5
    assert {*test.first(9).y} == {0, 1, 2}
    ordered = make_examples(settings, "test", in_order=True)
    assert (np.diff(ordered.y) >= 0).all()
    np.testing.assert_array_equal(np.sort(test.y), ordered.y)
    same = [image.tobytes() for image in ordered.x]
    assert sorted(same) == sorted(image.tobytes() for image in test.x)


def test_examples_keep_their_labels_together():
    found = Examples(np.arange(5), np.arange(5) * 2).first(2)
    np.testing.assert_array_equal(found.x * 2, found.y)
    assert len(Examples(np.arange(5), np.arange(5)).first(None).x) == 5
