"""Image runs: measured, embedded, exported; without labels, with own parts."""

import errno
import json
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from archives import CIFAR10, cache_download, cifar10_archive, draw, register_checksums
from PIL import Image
from sklearn.linear_model import LogisticRegression
from tiny import image_arrays, image_config

import invariance_jax
from invariance_jax import data, embed, evaluate, export, models, train
from invariance_jax.models.weights import load_state_dict
from invariance_jax.runs.workdir import read_config
from invariance_jax.runtime.preemption import Preempted
from invariance_jax.settings import resolve
from invariance_jax.tasks import make_task
from invariance_jax.training.frozen import FrozenEncoder

pytestmark = pytest.mark.usefixtures("compiled_once")

CHANGES = {
    "evaluation.families": ("all", "crop"),
    "evaluation.baselines": ("pixels", "untrained"),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory, compiled_once):
    """The work directory of a run, and what the evaluation returned."""
    workdir = tmp_path_factory.mktemp("images") / "run"
    config = image_config(data_dir, CHANGES)
    train.run(config, workdir)
    return workdir, evaluate.run(config, workdir)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the work directory to change."""
    return Path(shutil.copytree(run[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def splits(data_dir, run):
    task = make_task(resolve(image_config(data_dir)))
    return [task.examples(split) for split in ("train", "test")]


def means(results):
    return {name: entry["mean"] for name, entry in results["summary"].items()}


def test_names_of_the_summary(run):
    linear = ("accuracy", "cross_entropy")
    expected = {"loss.final", "penalty.final"}
    for part in ("", ".crop"):
        names = ("within", "total", "normalized")
        expected |= {f"variance.{name}{part}" for name in names}
    for part in ("", ".crop", ".ensemble"):
        expected |= {f"{metric}{part}@{m}" for metric in linear for m in (1, 3)}
    for part in ("", ".pixels", ".untrained"):
        plain = (*linear, "knn5", "knn5_majority")
        expected |= {f"{metric}{part}@plain" for metric in plain}
    assert {*run[1]["summary"]} == expected
    assert np.isfinite(list(means(run[1]).values())).all()
    assert run[1]["settings"]["classes"] == ("0", "1", "2")


def test_raw_pixels_are_those_of_scikit_learn(run, splits):
    (x, y), (x_test, y_test) = splits
    pixels, pixels_test = (part.reshape(len(part), -1) / 255 for part in (x, x_test))
    oracle = LogisticRegression(C=1 / (2 * 1e-3 * len(x)), tol=1e-8, max_iter=10_000)
    expected = oracle.fit(pixels, y).score(pixels_test, y_test)
    assert means(run[1])["accuracy.pixels@plain"] == pytest.approx(expected)


def test_raw_pixels_that_do_not_fit_into_memory_are_refused(
    data_dir, copy, monkeypatch
):
    config = image_config(data_dir, CHANGES | {"evaluation.neighbors": (3,)})
    monkeypatch.setattr(data.limits, "machine_memory", lambda: 2 * 4 * 164 * 300)
    with pytest.raises(ValueError, match="pixels of 165 images take .*; leave them"):
        evaluate.run(config, copy)


def test_one_view_is_its_own_ensemble(run):
    values = means(run[1])
    for metric in ("accuracy", "cross_entropy"):
        single = values[f"{metric}@1"]
        assert values[f"{metric}.ensemble@1"] == pytest.approx(single, abs=1e-5)
    assert values["cross_entropy.ensemble@3"] != values["cross_entropy@3"]


def test_the_loaded_encoder_is_that_of_the_plain_results(run, splits, monkeypatch):
    for name in ("describe", "known", "load_arrays"):  # no set is read
        monkeypatch.setattr(data, name, None)
    encode, config = invariance_jax.load(str(run[0]))
    task = make_task(resolve(config))
    h, h_test = (np.asarray(jax.jit(encode)(jnp.asarray(x))) for x, _ in splits)
    scored = task.score(task.fit(h, splits[0].y), h_test, splits[1].y)
    expected = means(run[1])["accuracy@plain"]
    assert scored.values["accuracy"] == pytest.approx(expected, abs=1e-6)
    # It normalizes: bytes and shares of 255 are the same image.
    x = jnp.asarray(splits[1].x[:3])
    np.testing.assert_allclose(encode(x), encode(x / 255), atol=1e-5)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]; found 0 to 255: divide"):
        encode(np.array(255 * (x > 99), np.float32))
    with pytest.raises(ValueError, match=r"images x .* size of the data set .*10, 9"):
        encode(jnp.ones((2, 10, 9, 3)))


def test_the_online_probe_logs_accuracy(run):
    rows = map(json.loads, (run[0] / "metrics.jsonl").read_text().splitlines())
    found = [row for row in rows if "probe_accuracy" in row]
    assert [row["step"] for row in found] == [10, 20]
    assert all(0 <= row["probe_accuracy"] <= 1 for row in found)


def test_samples_show_plain_images_and_every_label(run, splits):
    with np.load(run[0] / "samples.npz") as archive:
        samples = {name: archive[name] for name in archive.files}
    counts, (x, y) = samples["confusion"], splits[1]
    np.testing.assert_array_equal(counts.sum(axis=1), [15, 15, 15])
    expected = means(run[1])["accuracy@3"]
    assert np.trace(counts) / 45 == pytest.approx(expected, abs=1e-6)
    assert samples["views"].shape == (4, 10, 8, 8, 3)
    assert samples["plain"].shape == (4, 8, 8, 3)
    assert samples["neighbors"].shape == (10, 8, 8, 8, 3)
    np.testing.assert_array_equal(samples["neighbors"][:4, 0], samples["plain"])
    np.testing.assert_array_equal(samples["neighbor_labels"][:, 0], y[:10])
    np.testing.assert_array_equal(samples["projection_labels"], y)
    assert samples["plain"].mean() == pytest.approx(x[:4].mean(), rel=0.05)


def test_embeddings_are_of_plain_images_in_the_order_of_the_set(copy):
    files = embed.run(None, copy)
    names = [f"embeddings_{split}_plain.npz" for split in ("train", "test")]
    assert [file.name for file in files] == names
    encode, config = invariance_jax.load(copy)
    task = make_task(resolve(config))
    for file, split in zip(files, ("train", "test"), strict=True):
        x, y = task.examples(split, in_order=True)
        with np.load(file) as content:
            assert {*content.files} == {"features", "labels", "settings"}
            assert content["features"].dtype == np.float32
            np.testing.assert_allclose(content["features"], encode(x), atol=1e-5)
            np.testing.assert_array_equal(content["labels"], y)
            made_by = json.loads(str(content["settings"]))
        assert (made_by["step"], made_by["split"]) == (20, split)
        assert made_by["config"]["embedding"]["num_views"] is None
    np.testing.assert_array_equal(y, image_arrays(1, num_examples=45)[1])


def test_embeddings_may_be_averages_over_views(copy):
    config = read_config(copy)
    config.embedding.num_views, config.embedding.splits = 3, ("validation",)
    (file,) = embed.run(config, copy)
    assert file.name == "embeddings_validation_3_views.npz"
    with np.load(file) as content:
        assert content["features"].shape == (30, 16)


def test_an_embedding_that_was_stopped_goes_on(copy, monkeypatch):
    plain, calls = FrozenEncoder.plain, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoder, "plain", stopped)
        with pytest.raises(Preempted):
            embed.run(None, copy)
    (written,) = copy.glob("embeddings_*.npz")
    before = written.stat().st_mtime_ns
    files = embed.run(None, copy)
    assert written.stat().st_mtime_ns == before
    assert all(file.exists() for file in files) and len(files) == 2


def test_another_split_is_embedded_beside_the_others(copy):
    before = [path.stat().st_mtime_ns for path in embed.run(None, copy)]
    config = read_config(copy)
    config.embedding.splits = (*config.embedding.splits, "validation")
    config.data.threads, config.logging.every_steps = 3, 7
    files = embed.run(config, copy)
    assert [path.stat().st_mtime_ns for path in files[:-1]] == before


def test_an_embedding_is_never_overwritten(copy):
    files = embed.run(None, copy)
    before = files[1].read_bytes()
    files[0].unlink()
    config = read_config(copy)
    config.evaluation.seed = 1
    with pytest.raises(ValueError, match=r"test_plain\.npz exists"):
        embed.run(config, copy)
    assert files[1].read_bytes() == before
    assert not files[0].exists()
    np.savez(files[1], mine=np.zeros(3))
    for content in (files[1].read_bytes(), b"torn", b""):
        files[1].write_bytes(content)
        with pytest.raises(ValueError, match=r"test_plain\.npz exists; move it"):
            embed.run(None, copy)


def test_nothing_is_embedded_or_exported_without_a_run(tmp_path, data_dir):
    with pytest.raises(ValueError, match="holds no run: there is no config.json"):
        embed.run(image_config(data_dir), tmp_path / "new")
    with pytest.raises(ValueError, match="holds no run"):
        export.run(tmp_path / "new", tmp_path / "encoder.npz")
    assert not [*tmp_path.iterdir()]


def mlp_of_pytorch(tensors, images):
    """The module that the page of data shows, in NumPy; images [N, 3, S, S]."""
    x = images.reshape(len(images), -1) @ tensors["layers.0.weight"].T
    norm = {name[8:]: array for name, array in tensors.items() if "norms.0" in name}
    x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5)
    x = np.maximum(x * norm["weight"] + norm["bias"], 0)
    return x @ tensors["layers.1.weight"].T + tensors["layers.1.bias"]


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_an_mlp_is_that_of_pytorch(copy, tmp_path, ending):
    path = export.run(copy, tmp_path / "new" / f"encoder.{ending}")
    tensors = load_state_dict(path)
    assert tensors["layers.0.weight"].shape == (16, 3 * 8 * 8)
    assert tensors["norms.0.num_batches_tracked"] == 0 and len(tensors) == 1 + 5 + 2
    *_, variables = evaluate.load_parts(copy)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)
    encoder = models.create_encoder("mlp", width=16, depth=2)
    expected = encoder.apply(variables, jnp.asarray(images), train=False)
    found = mlp_of_pytorch(tensors, images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_export_overwrites_nothing_and_names_the_file(copy, tmp_path):
    path = tmp_path / "encoder.npz"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"encoder\.npz exists"):
        export.run(copy, path)
    assert path.read_bytes() == b"mine"
    for out in (None, tmp_path / "encoder.pth"):
        with pytest.raises(ValueError, match=r"--out is .*; expected a file .*npz"):
            export.run(copy, out)
    with pytest.raises(ValueError, match="no checkpoint of step 7"):
        export.run(copy, tmp_path / "other.npz", step=7)


def test_a_full_disk_is_an_error_that_names_the_file(copy, tmp_path, monkeypatch):
    def full(file, **_):
        Path(file.name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {*copy.iterdir()}
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"No space left.*: '.*/embeddings_train_"):
        embed.run(None, copy)
    assert {*copy.iterdir()} == before
    with pytest.raises(OSError, match=r"No space left.*: '.*/out/encoder\.npz'"):
        export.run(copy, tmp_path / "out" / "encoder.npz")
    assert not any((tmp_path / "out").iterdir())


def test_only_the_color_family_may_be_evaluated(run, copy, data_dir):
    config = image_config(data_dir, {"evaluation.families": ("color",)})
    values = means(evaluate.run(config, copy))
    assert "accuracy.color@3" in values
    assert not [name for name in values if name.startswith("accuracy@3")]
    assert not [name for name in values if "ensemble" in name]
    assert values["variance.normalized"] == pytest.approx(
        means(run[1])["variance.normalized"], rel=1e-5
    )


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
    given = {"encoder.name": "resnet18", "encoder.width": None}
    given |= {"encoder.weights": str(path)}
    given |= {"evaluation.experiments": ("invariance",), "augmentation.crop": False}
    fewer = {"data.train_examples": 12, "data.test_examples": 12, "batch_size": 4}
    fewer |= {"evaluation.variance_examples": 4, "evaluation.num_views": (1,)}
    return image_config(data_dir, given | fewer | changes)


def test_imported_weights_are_evaluated_and_exported_again(weights, data_dir, tmp_path):
    path, variables = weights
    results = evaluate.run(weights_config(data_dir, path), tmp_path / "run")
    assert results["settings"]["step"] == 0
    encode, config = invariance_jax.load(str(tmp_path / "run"))
    images = jnp.asarray(image_arrays(3, num_examples=2)[0])
    plain = make_task(resolve(config)).transformation().plain(images)
    encoder = models.create_encoder("resnet18")
    expected = encoder.apply(variables, plain, train=False)
    np.testing.assert_allclose(encode(images), expected, rtol=1e-5, atol=1e-5)
    out = export.run(tmp_path / "run", tmp_path / "encoder.safetensors")
    found, given = (load_state_dict(file) for file in (out, path))
    assert {*found} == {*given} and "layer1.0.conv1.weight" in found
    for name, tensor in given.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_weights_of_another_network_are_refused(weights, data_dir, tmp_path):
    config = weights_config(data_dir, weights[0], **{"encoder.name": "resnet34"})
    with pytest.raises(ValueError, match=r"encoder.weights is .*resnet18"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_share_that_leaves_a_class_empty_is_refused_before_training(
    data_dir, tmp_path
):
    changes = {"evaluation.label_fraction": 0.0126, "evaluation.neighbors": ()}
    with pytest.raises(ValueError, match=r"label fraction .* leaves class \d empty"):
        train.run(image_config(data_dir, changes), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_cifar_goes_from_the_download_cache_to_the_results(tmp_path, monkeypatch):
    archive, data_dir = tmp_path / "cifar-10-binary.tar.gz", tmp_path / "sets"
    cifar10_archive(archive, draw(0, 120), draw(1, 40))
    register_checksums(monkeypatch, "cifar10", {CIFAR10: archive})
    cache_download(archive, data_dir)
    changes = {"data.name": "cifar10", "steps": 4, "logging.probe_every_steps": 0}
    changes |= {"data.train_examples": 90, "data.test_examples": 40}
    changes |= {"evaluation.experiments": ("downstream",), "augmentation.crop": False}
    config = image_config(data_dir, changes)
    train.run(config, tmp_path / "run")
    results = evaluate.run(config, tmp_path / "run")
    assert results["settings"]["test_examples"] == 40
    assert results["settings"]["classes"][0] == "class 0"
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert settings["data"]["source_size"] == [32, 32]
    assert settings["data"]["mean"] == [0.4914, 0.4822, 0.4465]


def test_a_flat_folder_of_images_trains_and_is_measured(tmp_path, caplog):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(image_arrays(0, num_examples=120)[0]):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    data.prepare_folder("photos", tmp_path / "sets", train=folder)
    changes = {"data.name": "photos", "data.validation_examples": 20}
    changes |= {"augmentation.crop": False}
    config = image_config(tmp_path / "sets", changes)
    workdir = tmp_path / "run"
    train.run(config, workdir)
    with caplog.at_level("INFO", logger="invariance_jax"):
        results = evaluate.run(config, workdir)
    assert "the data set has no labels: downstream, averaging left out" in caplog.text
    assert results["settings"]["experiments"] == ("invariance",)
    names = {f"variance.{name}" for name in ("within", "total", "normalized")}
    assert {*results["summary"]} == names | {"loss.final", "penalty.final"}
    with np.load(workdir / "samples.npz") as samples:
        pictures = {"views", "plain", "neighbors"}
        map_of = {"projection", "projection_explained"}
        assert {*samples.files} == pictures | map_of
    config.evaluation.experiments = ("all",)
    config.evaluation.shifts = ()
    more = evaluate.run(config, workdir)["settings"]["experiments"]
    rest = ("linearization", "poincare_ratio", "nuisance_prediction")
    assert more == ("invariance", *rest)
    for file in embed.run(config, workdir):
        with np.load(file) as content:
            assert {*content.files} == {"features", "settings"}


def test_own_parts_are_used_by_every_program(tmp_path, data_dir):
    experiments = ("averaging", "invariance", "shift", "own_parts:brightness")
    bare = {"normalizes": False, "has_plain": False}
    changes = {
        "encoder.name": "own_parts:layer",
        "encoder.kwargs": {"width": 7},
        "augmentation.name": "own_parts:brighten",
        "augmentation.kwargs": {"most": 3.0, **bare},
        "evaluation.experiments": experiments,
        "evaluation.shifts": (("color", "strength", (0.5,)),),
    }
    config, workdir = image_config(data_dir, changes), tmp_path / "run"
    train.run(config, workdir)
    found = evaluate.run(None, workdir)
    values = means(found)
    # No view is plain, and no strength of jitter is known.
    assert "accuracy@3" in values and "accuracy@plain" not in values
    assert 1.5 < values["brightness"] < 2.5
    measured = {row["experiment"] for row in found["rows"]}
    assert "own_parts:brightness" in measured and "shift" not in measured
    parameters = {row["at"].get("parameter") for row in found["rows"]}
    assert parameters == {None, "all", "factor"}
    with pytest.raises(ValueError, match="'own_parts:brighten', whose .* has no plain"):
        invariance_jax.load(workdir)
    # No names of PyTorch are known of it.
    out = export.run(workdir, tmp_path / "encoder.npz")
    names = {f"params.Dense_0.{leaf}" for leaf in ("bias", "kernel")}
    assert {*load_state_dict(out)} == names
    with np.load(embed.run(None, workdir)[1]) as content:
        assert content["features"].shape == (45, 7)
    written = "embeddings_test_1_views embeddings_train_1_views samples".split()
    assert sorted(path.stem for path in workdir.glob("*.npz")) == written
