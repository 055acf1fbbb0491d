"""Who owns a work directory, and the configuration that it keeps."""

import json
import shlex
import sys
from unittest import mock

import jax
import pytest
from tiny import tiny_config

from invariance_jax import __version__
from invariance_jax.runs import workdir as workdirs
from invariance_jax.runs.workdir import FORMAT, claim, one_per_seed, read_config
from invariance_jax.runtime.files import write_json
from invariance_jax.settings import KEYS, flatten, resolve


def settings(changes=None):
    return resolve(tiny_config(changes))


def content(workdir):
    return json.loads((workdir / "config.json").read_text())


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    workdir = tmp_path / "a" / "b"
    owner = claim(settings(), workdir)
    assert owner.workdir == workdir
    owner.check()
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_the_configuration_comes_back_with_what_was_derived_and_where_it_ran(tmp_path):
    claim(settings(), tmp_path)
    assert flatten(read_config(tmp_path)) == flatten(settings())
    found = content(tmp_path)
    assert (found["format"], found["derived"]["steps"]) == (FORMAT, 20)
    assert found["environment"]["versions"]["invariance_jax"] == __version__
    assert {"git_commit", "python", "devices"} <= {*found["environment"]}
    assert len(found["environment"]["devices"]) == 4


def test_the_command_can_be_used_again(monkeypatch):
    words = ["launch.py", "--workdir=a b", "--config.data.targets=('m', 'b')", "$HOME"]
    monkeypatch.setattr(sys, "argv", words)
    assert shlex.split(workdirs.provenance()["command"]) == ["python", *words]


def test_seeds_that_were_trained_one_by_one_can_be_joined(tmp_path):
    for seed in range(2):
        (tmp_path / f"seed_{seed}" / "checkpoints" / "20").mkdir(parents=True)
    claim(settings({"seeds": 2}), tmp_path)
    assert content(tmp_path)["command"]


def test_a_finished_run_keeps_who_trained_it(tmp_path, monkeypatch):
    for name, last in (("first", 10), ("second", 20), ("third", 20)):
        monkeypatch.setattr(sys, "argv", [name])
        claim(settings(), tmp_path)
        expected = "second" if name == "third" else name
        assert content(tmp_path)["command"] == f"python {expected}"
        (tmp_path / "checkpoints" / str(last)).mkdir(parents=True, exist_ok=True)


def test_the_commit_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("INVARIANCE_JAX_COMMIT", "0123")
    assert workdirs.provenance()["environment"]["git_commit"] != "0123"
    monkeypatch.setattr(workdirs.subprocess, "run", mock.Mock(side_effect=OSError))
    assert workdirs.provenance()["environment"]["git_commit"] == "0123"


def test_of_two_starts_at_once_one_owns_the_folder(tmp_path, monkeypatch):
    owners = []

    def write(path, content):
        monkeypatch.undo()
        workdirs.write_json(path, content)
        owners.append(claim(settings(), tmp_path))  # before the first goes on

    monkeypatch.setattr(workdirs, "write_json", write)
    first, (second,) = claim(settings(), tmp_path), owners
    second.check()
    with pytest.raises(OSError, match="was started a second time"):
        first.check()


# In the order of the keys: the first that differs is named.
OTHER = {
    "batch_size": 32,
    "temperature": 0.3,
    "precision": "bfloat16",
    "deterministic": True,
    "penalty.weight": 0.2,
    "penalty.batch_limit": 3.0,
    "encoder.name": "resnet18",
    "optimizer.learning_rate": 0.1,
    "data.train_examples": 300,
    "data.targets": ("m", "b"),
}


@pytest.mark.parametrize("key", OTHER)
def test_another_training_key_is_refused_by_name(tmp_path, key):
    claim(settings(), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    old, new = flatten(settings())[key], OTHER[key]
    names = [*OTHER]
    later = {name: OTHER[name] for name in names[names.index(key) :]}
    for changes in ({key: new}, later):
        with pytest.raises(ValueError) as caught:
            claim(settings(changes), tmp_path)
        assert f"holds a run with {key} = {old!r}, found {new!r}" in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == before


FREE = {
    "steps_per_call": 1,
    "compilation_cache": "/elsewhere",
    "checkpoints.keep": 9,
    "logging.profile_steps": "2:5",
    "evaluation.num_views": (1, 2, 5),
    "data.data_dir": "/elsewhere",
    "data.test_examples": 50,
    "embedding.num_views": 3,
}


@pytest.mark.parametrize("key", FREE)
def test_keys_that_are_free_may_change(tmp_path, key):
    assert KEYS[key].free
    claim(settings(), tmp_path)
    claim(settings({key: FREE[key]}), tmp_path)
    assert flatten(read_config(tmp_path))[key] == FREE[key]


def test_seeds_can_be_added_to_several(tmp_path):
    claim(settings({"seeds": 2}), tmp_path)
    claim(settings({"seeds": 3}), tmp_path)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1)])
def test_one_seed_and_several_do_not_share_a_folder(tmp_path, old, new):
    claim(settings({"seeds": old}), tmp_path)
    with pytest.raises(ValueError, match=f"seeds = {old}, found {new}"):
        claim(settings({"seeds": new}), tmp_path)


def test_a_run_whose_numbers_were_drawn_in_another_way_does_not_go_on(tmp_path):
    claim(settings(), tmp_path)
    for change, name in (
        (jax.default_prng_impl("rbg"), "jax_default_prng_impl = 'threefry2x32'"),
        (jax.enable_x64(True), "jax_enable_x64 = False, found True"),
        (jax.threefry_partitionable(False), "jax_threefry_partitionable = True"),
    ):
        with change, pytest.raises(ValueError, match=f"holds a run with {name}.*JAX_"):
            claim(settings(), tmp_path)
    claim(settings(), tmp_path)


@pytest.mark.parametrize("name", ["file", "file/new"])
def test_a_file_is_refused(tmp_path, name):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"file is a file; expected a folder"):
        claim(settings(), tmp_path / name)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("path", ["s3://a/b", "foo://a/b", "http://a/b"])
def test_another_scheme_is_refused(path):
    for call in (lambda: claim(settings(), path), lambda: read_config(path)):
        with pytest.raises(ValueError, match=f"workdir is {path}; expected a folder"):
            call()


@pytest.mark.parametrize("name", ["try[1]", "a*b/run", "what?"])
def test_a_path_that_a_library_takes_for_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"expected a path without \[, \? and \*"):
        claim(settings(), tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert claim(settings(), "~/run").workdir == tmp_path / "run"


@pytest.mark.parametrize("name", workdirs.OUTPUTS)
def test_what_a_run_would_overwrite_is_refused_without_a_configuration(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name} but no config.json"):
        claim(settings(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("number", [1, 2, FORMAT + 1])
def test_another_format_names_the_version_to_use(tmp_path, number):
    versions = {"versions": {"invariance_jax": "9.8.7"}}
    for rest, version in ({}, "of the version"), ({"environment": versions}, "9"):
        (tmp_path / "config.json").write_text(json.dumps({"format": number, **rest}))
        expected = (
            f"format {number}, this version reads 3; use invariance_jax {version}"
        )
        for call in (read_config, lambda path: claim(settings(), path)):
            with pytest.raises(ValueError, match=expected):
                call(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("", '{"format": 3, "conf', "[]", '{"format": 3}', "3"),
        '{"format": 3, "config": 3, "jax": {}}',
        '{"format": 3, "config": {"no_key": 3}, "jax": {}}',
    ],
)
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json cannot be read") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_each_seed_has_a_folder_if_there_are_several(tmp_path):
    ((config, path),) = one_per_seed(tiny_config({"seed": 4}), tmp_path)
    assert (config.seed, path) == (4, tmp_path)
    several = tiny_config({"seed": 4, "seeds": 3})
    runs = one_per_seed(several, tmp_path)
    assert [path.name for _, path in runs] == ["seed_4", "seed_5", "seed_6"]
    assert [(one.seed, one.seeds) for one, _ in runs] == [(4, 1), (5, 1), (6, 1)]
    assert {one.batch_size for one, _ in runs} == {16}
    assert (several.seed, several.seeds) == (4, 3)


def test_a_file_is_replaced_in_one_move(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workdirs.os, "access", lambda *_: False)  # root writes anywhere
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written"):
        workdirs.check(settings(), tmp_path / "runs" / "new")
    assert not (tmp_path / "runs").exists()
