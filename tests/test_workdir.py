"""Who owns a work directory, and the configuration that it keeps."""

import json

import pytest
from tiny import tiny_config

from invariance_jax import __version__
from invariance_jax.runs.workdir import (
    FORMAT,
    claim,
    one_per_seed,
    read_config,
    read_start,
)
from invariance_jax.runtime.files import write_json
from invariance_jax.training.settings import flatten, resolve


def settings(changes=None):
    return resolve(tiny_config(changes))


def content(workdir):
    return json.loads((workdir / "config.json").read_text())


def edit(workdir, change):
    found = content(workdir)
    change(found)
    (workdir / "config.json").write_text(json.dumps(found))


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    workdir = tmp_path / "a" / "b"
    assert claim(settings(), workdir) == workdir
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_an_empty_folder_is_claimed(tmp_path):
    claim(settings(), tmp_path)
    assert content(tmp_path)["format"] == FORMAT


def test_the_configuration_comes_back(tmp_path):
    config = tiny_config()
    claim(resolve(config), tmp_path)
    assert dict(flatten(read_config(tmp_path))) == dict(flatten(config))


def test_what_was_derived_and_where_it_ran_is_kept(tmp_path):
    claim(settings(), tmp_path)
    found = content(tmp_path)
    assert found["derived"]["steps"] == 20
    assert found["environment"]["versions"]["invariance_jax"] == __version__
    assert {"git_commit", "python", "devices"} <= {*found["environment"]}
    assert len(found["environment"]["devices"]) == 4


def test_a_run_from_before_a_key_was_added_is_read(tmp_path):
    claim(settings(), tmp_path)
    edit(tmp_path, lambda found: found["config"].pop("compilation_cache"))
    assert resolve(read_config(tmp_path)) == settings()
    claim(settings(), tmp_path)


def test_the_same_run_claims_again(tmp_path):
    claim(settings(), tmp_path)
    claim(settings(), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 32),
        ("deterministic", True),
        ("data.bounds.m", (2.0, 4.0)),
        ("data.targets", ("m", "b")),
        ("data.train_examples", 300),
        ("data.validation_examples", 50),
        ("encoder.name", "resnet18"),
        ("optimizer.learning_rate", 0.1),
        ("penalty.batch_limit", 3.0),
        ("penalty.weight", 0.2),
        ("precision", "bfloat16"),
        ("seed", 1),
        ("steps", 30),
    ],
)
def test_another_training_key_is_refused_by_name(tmp_path, key, value):
    claim(settings(), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    old = dict(flatten(settings()))[key]
    with pytest.raises(ValueError) as caught:
        claim(settings({key: value}), tmp_path)
    assert f"holds a run with {key} = {old!r}, found {value!r}" in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_the_first_of_several_keys_is_named(tmp_path):
    claim(settings(), tmp_path)
    with pytest.raises(ValueError, match=r"with batch_size = 16, found 32;"):
        claim(settings({"temperature": 0.3, "batch_size": 32}), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps_per_call", 1),
        ("compilation_cache", "/elsewhere"),
        ("data.data_dir", "/elsewhere"),
        ("embedding.num_views", 3),
        ("data.test_examples", 50),
        ("checkpoints.every_steps", 5),
        ("checkpoints.keep", 9),
        ("logging.every_steps", 1),
        ("logging.profile_steps", "2:5"),
        ("logging.probe_every_steps", 0),
        ("evaluation.num_views", (1, 2, 5)),
        ("evaluation.split", "validation"),
        ("evaluation.l2", 1e-3),
    ],
)
def test_other_keys_may_change(tmp_path, key, value):
    claim(settings(), tmp_path)
    claim(settings({key: value}), tmp_path)
    assert dict(flatten(read_config(tmp_path)))[key] == value


def test_seeds_can_be_added_to_several(tmp_path):
    claim(settings({"seeds": 2}), tmp_path)
    claim(settings({"seeds": 3}), tmp_path)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1)])
def test_one_seed_and_several_do_not_share_a_folder(tmp_path, old, new):
    claim(settings({"seeds": old}), tmp_path)
    with pytest.raises(ValueError, match=f"seeds = {old}, found {new}"):
        claim(settings({"seeds": new}), tmp_path)


def test_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"file, a file; expected a folder"):
        claim(settings(), path)
    assert path.read_text() == "mine"


def test_another_object_store_is_refused():
    with pytest.raises(ValueError, match="workdir is s3:.*; expected a folder or gs:"):
        claim(settings(), "s3://a/b")


def test_every_start_has_a_name_of_its_own(tmp_path):
    names = []
    for _ in range(2):
        claim(settings(), tmp_path)
        names.append(read_start(tmp_path))
    assert names[0] != names[1]


def test_checkpoints_without_a_configuration_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="checkpoints but no config.json"):
        claim(settings(), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_folder_without_a_run_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="holds no run: there is no config.json"):
        read_config(tmp_path)


def test_a_newer_format_names_the_version_to_use(tmp_path):
    claim(settings(), tmp_path)

    def change(found):
        found["format"] = FORMAT + 1
        found["environment"]["versions"]["invariance_jax"] = "9.8.7"

    edit(tmp_path, change)
    with pytest.raises(ValueError, match=r"format 3.*use invariance_jax 9\.8\.7"):
        read_config(tmp_path)


def test_an_older_format_names_the_version_to_use(tmp_path):
    claim(settings(), tmp_path)

    def change(found):
        found["format"] = 1
        found["environment"]["versions"]["invariance_jax"] = "0.1.0"

    edit(tmp_path, change)
    with pytest.raises(ValueError, match=r"format 1.*use invariance_jax 0\.1\.0"):
        read_config(tmp_path)


def test_a_newer_format_may_say_nothing_else(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(ValueError, match=r"format 3, this version reads 2"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "text", ["", '{"format": 2, "conf', "[]", "{}", '{"format": 2}']
)
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_seed_stays_in_the_folder(tmp_path):
    ((config, path),) = one_per_seed(tiny_config({"seed": 4}), tmp_path)
    assert (config.seed, path) == (4, tmp_path)


def test_several_seeds_have_a_folder_each(tmp_path):
    runs = one_per_seed(tiny_config({"seed": 4, "seeds": 3}), tmp_path)
    assert [path.name for _, path in runs] == ["seed_4", "seed_5", "seed_6"]
    assert [(one.seed, one.seeds) for one, _ in runs] == [(4, 1), (5, 1), (6, 1)]
    assert {one.batch_size for one, _ in runs} == {16}


def test_the_parent_of_seeds_is_not_changed(tmp_path):
    config = tiny_config({"seeds": 2})
    one_per_seed(config, tmp_path)
    assert (config.seed, config.seeds) == (0, 2)


def test_a_file_is_replaced_in_one_move(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
