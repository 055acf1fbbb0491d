"""Embeddings and exported encoders: what is written, nothing overwritten."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import image_arrays, image_config, tiny_config

import invariance_jax
from invariance_jax import embed, evaluate, export, models, train
from invariance_jax.models.weights import load_state_dict
from invariance_jax.runs.workdir import read_config
from invariance_jax.runtime.preemption import Preempted
from invariance_jax.settings import resolve
from invariance_jax.tasks import make_task
from invariance_jax.training.frozen import FrozenEncoder

pytestmark = pytest.mark.usefixtures("compiled_once", "compiled_fast")

# Nothing but what these programs read.
SHORT = {"steps": 2, "checkpoints.every_steps": 2, "logging.probe_every_steps": 0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory, compiled_once, compiled_fast):
    workdir = tmp_path_factory.mktemp("embed") / "run"
    train.run(image_config(data_dir, {**SHORT, "encoder.final": "norm_relu"}), workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_embeddings_are_of_plain_images_in_the_order_of_the_set(workdir):
    files = embed.run(None, workdir)
    names = [f"embeddings_{split}_plain.npz" for split in ("train", "test")]
    assert [file.name for file in files] == names
    encode, config = invariance_jax.load(workdir)
    task = make_task(resolve(config))
    for file, split in zip(files, ("train", "test"), strict=True):
        x, y = task.examples(split, in_order=True)
        with np.load(file) as content:
            assert {*content.files} == {"features", "labels", "settings"}
            assert content["features"].dtype == np.float32
            np.testing.assert_allclose(content["features"], encode(x), atol=1e-5)
            np.testing.assert_array_equal(content["labels"], y)
            made_by = json.loads(str(content["settings"]))
        assert (made_by["step"], made_by["split"]) == (2, split)
        assert made_by["config"]["embedding"]["num_views"] is None
    np.testing.assert_array_equal(y, image_arrays(1, num_examples=45)[1])


def test_embeddings_may_be_averages_over_views(workdir):
    config = read_config(workdir)
    config.embedding.num_views, config.embedding.splits = 3, ("validation",)
    (file,) = embed.run(config, workdir)
    assert file.name == "embeddings_validation_3_views.npz"
    with np.load(file) as content:
        assert content["features"].shape == (30, 16)


def test_spirograph_has_one_view_as_no_image_is_plain(tmp_path):
    train.run(tiny_config(SHORT), tmp_path / "run")
    _, file = embed.run(None, tmp_path / "run")
    assert file.name == "embeddings_test_1_views.npz"
    with np.load(file) as content:
        assert content["features"].shape == (70, 16)
        assert content["targets"].shape == (70, 4)


def test_an_embedding_that_was_stopped_goes_on(workdir, monkeypatch):
    plain, calls = FrozenEncoder.plain, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoder, "plain", stopped)
        with pytest.raises(Preempted):
            embed.run(None, workdir)
    (written,) = workdir.glob("embeddings_*.npz")
    before = written.stat().st_mtime_ns
    files = embed.run(None, workdir)
    assert written.stat().st_mtime_ns == before
    assert all(file.exists() for file in files) and len(files) == 2


def test_an_embedding_is_never_overwritten(workdir):
    files = embed.run(None, workdir)
    before = files[1].read_bytes()
    files[0].unlink()
    config = read_config(workdir)
    config.evaluation.seed = 1
    with pytest.raises(ValueError, match=r"test_plain\.npz exists"):
        embed.run(config, workdir)
    assert files[1].read_bytes() == before
    assert not files[0].exists()


def test_nothing_is_embedded_or_exported_without_a_run(tmp_path, data_dir):
    with pytest.raises(ValueError, match="holds no run"):
        embed.run(image_config(data_dir), tmp_path / "new")
    with pytest.raises(ValueError, match="holds no run"):
        export.run(tmp_path / "new", tmp_path / "encoder.npz")
    assert not [*tmp_path.iterdir()]


def mlp_of_pytorch(tensors, images):
    """The module in the documentation of `export`, in NumPy; images [N, 3, S, S]."""
    x = images.reshape(len(images), -1)
    for layer in range(sum(name.endswith("weight") for name in tensors) // 2):
        x = x @ tensors[f"layers.{layer}.weight"].T
        norm = {
            leaf: tensors[f"norms.{layer}.{leaf}"]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        }
        x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5)
        x = np.maximum(x * norm["weight"] + norm["bias"], 0)
    return x


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_an_mlp_is_that_of_pytorch(workdir, tmp_path, ending):
    path = export.run(workdir, tmp_path / "new" / f"encoder.{ending}")
    tensors = load_state_dict(path)
    assert tensors["layers.0.weight"].shape == (16, 3 * 8 * 8)
    assert tensors["norms.1.num_batches_tracked"] == 0
    variables, config = evaluate.load_variables(workdir)
    assert len(tensors) == 2 * (1 + 5)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)
    encoder = models.create_encoder("mlp", width=16, depth=2, final="norm_relu")
    expected = encoder.apply(variables, jnp.asarray(images), train=False)
    found = mlp_of_pytorch(tensors, images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_resnet_is_read_back_as_it_was(data_dir, tmp_path):
    encoder = models.create_encoder("resnet18")
    variables = encoder.init(models_key(), jnp.zeros((1, 8, 8, 3)), train=False)
    given = tmp_path / "given.npz"
    tensors = models.weights.to_torch_state_dict(variables)
    models.weights.save_state_dict(given, tensors)
    changes = {"encoder.name": "resnet18", "encoder.weights": str(given)}
    changes |= {"evaluation.experiments": ("invariance",), "evaluation.num_views": (1,)}
    changes |= {"data.train_examples": 16, "evaluation.variance_examples": 4}
    evaluate.run(image_config(data_dir, changes), tmp_path / "run")
    path = export.run(tmp_path / "run", tmp_path / "encoder.safetensors")
    found = load_state_dict(path)
    assert "layer1.0.conv1.weight" in found
    assert [*found] != [] and {*found} == {*tensors}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def models_key():
    import jax

    return jax.random.key(5)


def test_an_export_overwrites_nothing_and_names_the_file(workdir, tmp_path):
    path = tmp_path / "encoder.npz"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"encoder\.npz exists"):
        export.run(workdir, path)
    assert path.read_bytes() == b"mine"
    for out in (None, tmp_path / "encoder.pth"):
        with pytest.raises(ValueError, match=r"--out is .*; expected a file .*npz"):
            export.run(workdir, out)
    with pytest.raises(ValueError, match="no checkpoint of step 7"):
        export.run(workdir, tmp_path / "other.npz", step=7)
