"""The code of own parts: recorded, and what happens when it changes or fails."""

import functools
import json
import logging
import shutil
import sys
import types

import numpy as np
import processes
import pytest
from tiny import tiny_config

from configs import run as of_run
from invariance_jax import embed, evaluate, train
from invariance_jax.runtime.preemption import Preempted
from invariance_jax.settings import plugins, resolve
from invariance_jax.training.build import build
from invariance_jax.training.own_parts import check_own_parts

ENCODER = """
import flax.linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.{act}(nn.Dense(8)(images.reshape(len(images), -1)))

def net(*, axis_name=None):
    return Net()
"""
EXPERIMENTS = """
import numpy as np
from invariance_jax.experiments import ExperimentResult, Row
from invariance_jax.runtime.preemption import Preempted

def breaks(context):
    raise KeyError("no such thing")

def fails(context):
    raise OSError("no room")

def stops(context):
    raise Preempted("SIGTERM: stopped", 75)

def alone():
    return ExperimentResult([])

def size(context):
    return ExperimentResult([Row("size", np.abs(context.features("test")).mean())])
"""


def write(folder, act):
    (folder / "parts_of_a_user.py").write_text(ENCODER.format(act=act))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a module, and the run of its encoder in `run`."""
    folder = tmp_path_factory.mktemp("own")
    write(folder, "gelu")
    (folder / "experiments_of_a_user.py").write_text(EXPERIMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        train.run(own(), folder / "run")
        evaluate.run(own(), folder / "run")
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of it, on the path of the modules."""
    copy = shutil.copytree(made, tmp_path / "own")
    monkeypatch.delitem(sys.modules, "parts_of_a_user", raising=False)
    monkeypatch.syspath_prepend(copy)
    return copy


def own(**evaluation):
    changes = {f"evaluation.{key}": value for key, value in evaluation.items()}
    of_encoder = {"encoder.name": "parts_of_a_user:net", "encoder.final": "linear"}
    quick = {"logging.probe_every_steps": 0, "evaluation.experiments": ("invariance",)}
    return tiny_config(of_encoder | quick | changes)


def test_code_that_has_changed_is_said_and_measured_again(folder, caplog):
    caplog.set_level(logging.INFO)
    evaluate.run(None, folder / "run")
    assert "invariance is already measured" in caplog.text
    assert "has changed" not in caplog.text
    caplog.clear()
    write(folder, "relu")
    del sys.modules["parts_of_a_user"]
    evaluate.run(None, folder / "run")
    text = "the file of encoder.name has changed since the run began"
    assert caplog.text.count(text) == 1
    assert "invariance was measured by other code" in caplog.text
    assert "invariance took" in caplog.text


def test_other_code_is_said_by_embedding_and_by_a_resumed_run(folder, caplog):
    before = json.loads((folder / "run" / "config.json").read_text())["sources"]
    assert {*before} == {"encoder.name"}
    for program in (embed.run, train.run):
        work = shutil.copytree(folder / "run", folder / program.__module__)
        write(folder, "relu")
        program(own(), work)
        assert f"{work}: the file of encoder.name has changed" in caplog.text
    after = json.loads((work / "config.json").read_text())["sources"]
    assert after == before  # of its first start


def test_experiments_that_fail_are_named_when_the_others_are_measured(folder):
    names = [f"experiments_of_a_user:{name}" for name in ("breaks", "fails", "size")]
    with pytest.raises(ValueError) as caught:
        evaluate.run(own(experiments=("invariance", *names)), folder / "run")
    found = [line.split(", which raised ")[1] for line in str(caught.value).split("\n")]
    assert found == ["KeyError: 'no such thing'", "OSError: no room"]
    found = json.loads((folder / "run" / "results.json").read_text())["summary"]
    assert {"size", "variance.normalized"} <= {*found}


def test_an_experiment_that_takes_no_context_is_refused_before_training(folder):
    settings = resolve(own(experiments=("experiments_of_a_user:alone",)))
    expected = r"'experiments_of_a_user:alone', which cannot be called with \(context\)"
    with pytest.raises(ValueError, match=expected):
        train.checked_parts(settings, 1)


def test_a_stop_within_an_experiment_is_one(folder):
    with pytest.raises(Preempted, match="SIGTERM"):
        evaluate.run(own(experiments=("experiments_of_a_user:stops",)), folder / "run")


def test_code_is_that_which_was_loaded(folder, tmp_path):
    name = "parts_of_a_user:net"
    before = plugins.source("encoder.name", name)
    write(folder, "relu")
    assert plugins.source("encoder.name", name) == before != ""
    del sys.modules["parts_of_a_user"]
    assert plugins.source("encoder.name", name) != before


def test_parts_without_a_file_have_no_hash(monkeypatch):
    notebook = types.ModuleType("notebook_of_a_user")
    exec("def net(): pass", notebook.__dict__)
    notebook.partial = functools.partial(notebook.net)
    monkeypatch.setitem(sys.modules, "notebook_of_a_user", notebook)
    for name in ("net", "partial"):
        assert plugins.source("encoder.name", f"notebook_of_a_user:{name}") == ""


def test_the_configuration_of_a_run_is_one_to_change(folder):
    config = of_run.get_config(str(folder / "run"))
    assert config.encoder.name == "parts_of_a_user:net"
    config.evaluation.experiments = ("experiments_of_a_user:size",)
    found = evaluate.run(config, folder / "run")["summary"]
    assert np.isfinite(found["size"]["mean"])


def test_the_command_line_names_it(tmp_path):
    done = processes.launch("--mode=evaluate", "--workdir=x", "--config.seed=1")
    assert "--config=configs/run.py:WORKDIR" in done.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precision", "bfloat16"),
        ("batchnorm.group_size", 8),
        ("encoder.rematerialize", True),
    ],
)
def test_keys_that_an_own_encoder_is_not_told_are_said(folder, key, value, caplog):
    changes = {"encoder.name": "parts_of_a_user:net", key: value}
    check_own_parts(build(resolve(tiny_config(changes))), 1)
    assert f"{key} is {value!r}, which encoder.name" in caplog.text


def test_a_module_that_ends_the_program_cannot_be_imported(folder):
    (folder / "script_of_a_user.py").write_text("raise SystemExit(3)")
    with pytest.raises(ValueError, match="be imported from .*: SystemExit: 3. Start"):
        plugins.load("encoder.name", "script_of_a_user:net")


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"seed": -1}, ["seed is -1", "encoder.name", "evaluation.experiments"]),
        ({"seed": 2**32 - 1, "seeds": 2}, ["seed is", "encoder.name", "evaluation"]),
        ({"method.name": "a:b"}, ["encoder.name is", "method.name", "evaluation"]),
        (
            {"data.name": "flowers", "data.data_dir": "/nowhere"},
            ["data.name: 'flowers' is not prepared", "encoder.name", "evaluation"],
        ),
        (
            {
                "batch_size": 64,
                "microbatches": 3,
                "penalty.parameters": ("foo",),
                "penalty.warmup_steps": 10**6,
            },
            ["microb", "penalty.par", "penalty.warm", "encoder.name", "evaluation"],
        ),
    ],
    ids=str,
)
def test_parts_that_cannot_be_imported_are_named_beside_bad_keys(changes, lines):
    own = {"encoder.name": "nowhere:f", "evaluation.experiments": ("nothing:g",)}
    with pytest.raises(ValueError) as caught:
        train.checked_parts(resolve(tiny_config(own | changes)), 1)
    found = str(caught.value).splitlines()
    assert len(found) == len(lines)
    assert all(map(str.startswith, found, lines))
    assert found[-1].endswith("add that folder to PYTHONPATH.")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("seedz=2 encoder.name=a:b", ["seedz is not a key", "a cannot be imported"]),
        (
            "penalti.weight=1 seedz=2 deterministic=maybe seed=-1 encoder.name=a:b",
            [
                "penalti.weight is not a key; the closest is --config.penalty.weight",
                "seedz is not a key; the closest is --config.seed",
                "seed is -1; expected",
                "deterministic is 'maybe'; expected True or False.",
                "a cannot be imported",
            ],
        ),
        ("seeds=x augmentation.flip=2", ["seeds is 'x'", "augmentation.flip is '2'"]),
        ("encoder.kwargs=a=1,a=2", ["encoder.kwargs is 'a=1,a=2'; expected keyword"]),
    ],
)
def test_errors_of_all_kinds_are_listed_at_once(words, expected):
    changes = [f"--config.{word}" for word in words.split()]
    config = "--config=configs/spirograph.py:smoke"
    found = processes.launch("--mode=check", config, *changes).stderr.splitlines()
    assert len(found) == len(expected)
    assert all(text in line for text, line in zip(expected, found, strict=True))
