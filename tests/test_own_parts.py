"""Own parts: checked before training; their code: recorded, changed, failing."""

import functools
import json
import logging
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import own_parts
import processes
import pytest
from tiny import tiny_config

from configs import run as of_run
from invariance_jax import embed, evaluate, train
from invariance_jax.models import BatchNorm
from invariance_jax.runtime.preemption import Preempted
from invariance_jax.settings import plugins, resolve
from invariance_jax.training import cost
from invariance_jax.training.build import build, initial_state
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


def encoder(name, /, **kwargs):
    return {"encoder.name": f"own_parts:{name}", "encoder.kwargs": kwargs}


def method(name, /, **kwargs):
    return {"method.name": f"own_parts:{name}", "method.kwargs": kwargs}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (method("nothing"), "returned None; expected a Method"),
        (method("summed"), r"returns float32\[\] for 16 exa"),
        (method("gone"), "own_parts has no gone"),
        ({"method.name": "no_such:f"}, "no_such cannot be imported"),
        (method("nameless") | {"penalty.at": "z"}, "penalty.at is 'z'; expected 'h'"),
        (
            method("remembering", tau=1),
            r"with \(features=\.\.\., axis_name=\.\.\., tau=\.\.\.\): got an",
        ),
        (
            method("remembering", features=3),
            "method.kwargs is .*; expected no features, which the run passes",
        ),
        (
            encoder("flat", tau=1),
            r"cannot be called with \(axis_name=\.\.\., tau=\.\.\.\): got an",
        ),
        (
            encoder("flat", name="x"),
            r"cannot be called with \(axis_name=\.\.\., name=\.\.\.\): got an",
        ),
        (
            encoder("flat", axis_name=None),
            "encoder.kwargs is .*; expected no axis_name, which the run passes",
        ),
        (encoder("flat"), r"expected h \[B, D\]"),
        (encoder("nothing"), "returned None; expected a flax"),
        (encoder("stubborn"), "reverse over forward mode"),
        (encoder("endless"), "are not finite"),
        (encoder("broken"), "RuntimeError: out of ideas"),
        (encoder("changing"), r"191.* h of shape \(16, 192\)"),
        (
            encoder("changing", collection="cache"),
            r"\(16, 8, 8, 3\): ScopeCollectionNotFound",
        ),
        (
            encoder("changing", collection="batch_stats"),
            "batch_stats change their shapes or dtypes",
        ),
    ],
)
def test_a_part_that_is_not_what_it_should_be_is_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        check_own_parts(build(resolve(tiny_config(changes))), 1)


@pytest.fixture
def check_method(monkeypatch):
    """Checks a user's method with other fields."""

    def check(fields, changes=None, *, num_devices=1):
        def own(**kwargs):
            return own_parts.remembering(**kwargs)._replace(**fields)

        monkeypatch.setattr(own_parts, "changed", own, raising=False)
        settings = resolve(tiny_config(method("changed") | (changes or {})))
        check_own_parts(build(settings), num_devices)

    return check


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"update": lambda *_: {"mean": 1.0}}, "changes the shapes or dtypes"),
        (
            {"update": lambda memory, _: {**memory, "rows": memory["rows"] / 2}},
            "changes the shapes or dtypes of the memory",
        ),
        ({"momentum": 0.9}, "momentum is 0.9; expected a function"),
        ({"momentum": lambda step: step + jnp.ones(2)}, "expected one number"),
        ({"momentum": lambda step: 1.5}, "momentum is 1.5; expected one number"),
        ({"momentum": lambda step: -0.5 * (step > 0)}, "momentum is -0.5; expected"),
        ({"momentum": lambda step: 1 / (step - step)}, "momentum is inf; expected"),
        ({"momentum": lambda step: 0.9 if step > 1 else 1.0}, "momentum .*: Tracer"),
        ({"momentum": lambda step: step["a"]}, r"momentum or .* h \(16, 16\): TypeErr"),
        ({"joint": lambda *_, axis_name: 0.0}, r"joint returns float32\[\] for"),
        ({"loss": None}, "loss is None; expected a function"),
        (
            {"loss": lambda *_, axis_name: jnp.ones(16, bool)},
            r"bool\[16\] for .* floating \[B\]",
        ),
        ({"constant_rate": "p"}, "constant_rate is 'p'; expected .* Dense_0, Dense_1"),
        ({"heads": own_parts.Changing("cache")}, "ScopeCollectionNotFound"),
    ],
)
def test_a_function_of_a_method_that_does_not_fit_is_refused(
    fields, expected, check_method
):
    expected = f"method.name is 'own_parts:changed', whose .*{expected}"
    with pytest.raises(ValueError, match=expected):
        check_method(fields)


@pytest.mark.parametrize("batch_size", [16, 17])
def test_numbers_are_checked_for_few_examples_even_of_a_prime_batch(
    batch_size, check_method
):
    def loss(own, *_, axis_name):
        return jnp.where(len(own) == batch_size, jnp.ones(len(own)), jnp.nan)

    fields = {"heads": own_parts.Counting(), "loss": loss, "update": None}
    with pytest.raises(ValueError, match="not finite for 8 random examples"):
        check_method(fields, {"batch_size": batch_size})


def of_eight(own, other, *_, axis_name):
    """A loss of eight similarities, for which there must be as many rows."""
    return jnp.mean(jax.lax.top_k(own @ other.T, 8)[0], axis=1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"heads": BatchNorm(group_size=8)},
        {"loss": None, "joint": lambda outputs, *, axis_name: outputs[0][:, 0]},
        {"memory": np.zeros(4), "update": lambda memory, _: memory.at[0].set(1.0)},
    ],
    ids=["no parameters", "groups", "joint", "memory"],
)
def test_a_method_that_training_accepts_passes_the_check(fields, check_method):
    check_method(
        {"heads": own_parts.Counting(), "loss": of_eight, "update": None, **fields}
    )


def test_the_memory_is_an_input_of_every_program(check_method):
    """A large one would take long, and much memory, as a constant."""
    traced = []

    def update(memory, _):
        traced.append(isinstance(memory, jax.core.Tracer))
        return memory

    fields = {"heads": own_parts.Counting(), "loss": of_eight}
    check_method(fields | {"memory": np.zeros(4), "update": update})
    assert all(traced)


def test_keys_that_an_own_method_is_not_told_are_said(check_method, caplog):
    check_method({}, {"similarity_block": 4})
    assert "similarity_block is 4, which method.name" in caplog.text


def test_a_method_is_checked_for_the_examples_of_one_device(check_method):
    check_method({}, num_devices=4)
    with pytest.raises(ValueError, match=r"whose heads, loss, .* h \(4, 16\): .*top_k"):
        check_method({"loss": of_eight, "heads": own_parts.Counting()}, num_devices=4)


def test_an_encoder_is_checked_for_the_examples_of_one_device():
    alone, spans = (
        build(resolve(tiny_config(encoder("grouped", spans=spans))))
        for spans in (False, True)
    )
    check_own_parts(alone, 2)
    check_own_parts(spans, 4)
    with pytest.raises(ValueError, match=r"\(4, 8, 8, 3\): ValueError: group_size is"):
        check_own_parts(alone, 4)


@pytest.mark.parametrize("name", ["counting", "grouped"])
@pytest.mark.parametrize("more", [{}, {"microbatches": 2}, {"more_views": 2}], ids=str)
def test_an_encoder_without_parameters_or_in_groups_makes_a_step(name, more):
    parts = build(resolve(tiny_config(encoder(name) | more)))
    check_own_parts(parts, 1)
    assert cost.count_operations(parts) > 0
    state, x = initial_state(parts), jnp.asarray(parts.task.stand_ins(16))
    draws = parts.make_draw()(parts.key, 0)
    new, _ = jax.jit(parts.make_step())(state, x, draws)
    jax.tree.map(
        lambda old, new: np.testing.assert_equal(new.dtype, old.dtype), state, new
    )
    if name == "counting":
        passes = 2 + ("more_views" in more)  # one for all further views
        assert new.batch_stats["encoder"]["count"] == passes
