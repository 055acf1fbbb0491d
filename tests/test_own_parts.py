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
    check_own_parts(build(resolve(tiny_config(changes))))
    assert f"{key} is {value!r}, which encoder.name" in caplog.text


def test_all_parts_that_cannot_be_imported_are_named_at_once():
    names = {"encoder.name": "nowhere:f", "method.name": "nothing:g"}
    with pytest.raises(ValueError) as caught:
        build(resolve(tiny_config(names)))
    assert len(str(caught.value).splitlines()) == 2
    assert str(caught.value).count("add that folder to PYTHONPATH") == 2


def test_a_module_that_ends_the_program_cannot_be_imported(folder):
    (folder / "script_of_a_user.py").write_text("raise SystemExit(3)")
    with pytest.raises(ValueError, match="be imported from .*: SystemExit: 3. Start"):
        plugins.load("encoder.name", "script_of_a_user:net")


def test_a_repeated_keyword_is_refused():
    words = "--mode=check", "--config=configs/examples/convnext.py"
    done = processes.launch(*words, "--config.encoder.kwargs=depth=1, depth=2")
    assert "encoder.kwargs is 'depth=1, depth=2'; expected keyword" in done.stderr


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"seed": -1}, ["seed is -1", "encoder.name", "evaluation.experiments"]),
        ({"seed": 2**32 - 1, "seeds": 2}, ["seed is", "encoder.name", "evaluation"]),
        ({}, ["encoder.name is", "evaluation.experiments is"]),
    ],
)
def test_parts_that_cannot_be_imported_are_named_beside_bad_keys(changes, lines):
    own = {"encoder.name": "nowhere:f", "evaluation.experiments": ("nothing:g",)}
    with pytest.raises(ValueError) as caught:
        train.checked_parts(resolve(tiny_config(own | changes)), 1)
    found = str(caught.value).splitlines()
    assert len(found) == len(lines)
    assert all(map(str.startswith, found, lines))


def test_a_set_that_is_not_prepared_is_named_beside_bad_keys(tmp_path):
    changes = {"data.name": "flowers", "data.data_dir": str(tmp_path)}
    with pytest.raises(ValueError) as caught:
        resolve(tiny_config(changes | {"microbatches": 3, "encoder.name": "nowhere:f"}))
    found = str(caught.value)
    assert "microbatches is 3" in found and "'flowers' is not prepared in" in found
    assert "nowhere cannot be imported" in found


def test_bad_keys_of_all_kinds_are_listed_at_once():
    flags = "temperature=-1", "deterministic=maybe", "flip=2", "seeds=x"
    done = processes.launch(
        "--mode=check",
        "--config=configs/spirograph.py:smoke",
        *(f"--config.{flag.replace('flip', 'augmentation.flip')}" for flag in flags),
    )
    assert done.returncode and len(done.stderr.splitlines()) == 4, done.stderr
    assert "deterministic is 'maybe'; expected True or False." in done.stderr
    changes = {"batch_size": 64, "microbatches": 3, "penalty.parameters": ("foo",)}
    with pytest.raises(ValueError) as caught:
        resolve(tiny_config(changes | {"penalty.warmup_steps": 10**6}))
    found = [line.split(" is ")[0] for line in str(caught.value).splitlines()]
    assert {"microbatches", "penalty.parameters", "penalty.warmup_steps"} <= {*found}


def test_misspelt_keys_and_bad_values_are_listed_at_once():
    done = processes.launch(
        "--mode=check",
        "--config=configs/spirograph.py:smoke",
        "--config.penalti.weight=1",
        "--config.seedz=2",
        "--config.deterministic=maybe",
        "--config.seed=-1",
        "--config.encoder.name=nowhere:f",
    )
    assert done.stderr.count("is not a key; the closest is") == 2
    assert "deterministic is 'maybe'; expected True or False." in done.stderr
    assert "nowhere cannot be imported" in done.stderr
    assert "seed is -1; expected" in done.stderr and done.stderr.count("\n") == 5


def test_misspelt_keys_are_listed_with_parts_that_cannot_be_imported():
    done = processes.launch(
        "--mode=check",
        "--config=configs/spirograph.py:smoke",
        "--config.seedz=2",
        "--config.encoder.name=nowhere:f",
    )
    assert "seedz is not a key" in done.stderr and done.stderr.count("\n") == 2
    assert "nowhere cannot be imported" in done.stderr
