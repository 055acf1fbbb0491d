"""The examples of own parts train from `launch.py` and are used again by all modes."""

import json

import numpy as np
import processes
import pytest
from tiny import image_config

from invariance_jax import embed, evaluate, export

SHORT = """
    steps=4 epochs=None steps_per_call=2 batch_size=16 data.train_examples=100
    data.validation_examples=30 data.test_examples=40 data.image_size=8
    logging.every_steps=2 logging.probe_every_steps=0 checkpoints.every_steps=4
    evaluation.num_views=1,2 evaluation.train_examples=None evaluation.neighbors=5
    evaluation.variance_examples=10 evaluation.l2_grid=() evaluation.baselines=()
"""


def launch(*arguments):
    done = processes.launch(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("example", "kwargs", "part"),
    [
        ("convnext", "features=6, depth=1", "encoder"),
        ("align_and_spread", "weight=.5, t=2.", "method"),
        ("rotate_and_blur", "degrees=10., sigma=1.", "augmentation"),
    ],
)
def test_an_example_trains_and_is_used_again(example, kwargs, part, tmp_path):
    flags = [*processes.config_flags(SHORT), f"--config.{part}.kwargs={kwargs}"]
    if part == "augmentation":
        image_config(tmp_path / "sets")
        data = f"data.name=bars data.data_dir={tmp_path}/sets"
        flags += processes.config_flags(data)
    workdir = tmp_path / "run"
    config = f"--config=configs/examples/{example}.py:smoke"
    out = launch(config, f"--workdir={workdir}", *flags)
    assert len(out.splitlines()) <= 12
    content = json.loads((workdir / "config.json").read_text())["config"]
    assert content[part]["name"] == f"configs.examples.{example}:{example}"
    assert content[part]["kwargs"]
    summary = json.loads((workdir / "results.json").read_text())["summary"]
    assert np.isfinite(summary["variance.normalized"]["mean"])
    assert (workdir / "report.html").exists()
    evaluate.run(None, workdir)
    assert all(file.exists() for file in embed.run(None, workdir))
    assert export.run(workdir, tmp_path / "w.safetensors").exists()
    encode, _ = evaluate.load(workdir)
    size = 10 if part == "augmentation" else 8  # of a stored image, and of Spirograph's
    images = np.random.default_rng(0).uniform(size=(3, size, size, 3)).astype("f4")
    assert encode(images).shape[0] == 3
    if part == "augmentation":
        bytes_ = np.rint(images * 255).astype(np.uint8)
        found, expected = encode(bytes_ / np.float32(255)), encode(bytes_)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
