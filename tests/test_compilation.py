"""Compiled programs on the disk: where they are kept, and that they are used again."""

import logging
import os
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny import tiny_config

from invariance_jax import embed, evaluate, train
from invariance_jax.runtime.compilation import compilation_kept

NAMES = [
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_enable_xla_caches",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
]
SMALL = {"steps": 4, "checkpoints.every_steps": 2, "logging.probe_every_steps": 0}


def settings(chosen=None):
    return SimpleNamespace(compilation_cache=chosen)


def configured():
    return {name: getattr(jax.config, name) for name in NAMES}


def compile_something():
    """Compiles a program that has not been compiled in this process."""
    return jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))


def missed(caplog, run):
    """Returns how many programs a call did not find."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="jax._src.compiler"):
        run()
    return sum("PERSISTENT COMPILATION CACHE MISS" in text for text in caplog.messages)


@pytest.fixture
def outside(tmp_path):
    """A cache that the user has configured."""
    folder = tmp_path / "outside"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def test_it_is_kept_in_the_work_directory(tmp_path):
    with compilation_kept(settings(), tmp_path):
        compile_something()
    assert list((tmp_path / "compilation_cache").glob("*-cache"))


def test_it_is_kept_where_the_key_says(tmp_path):
    with compilation_kept(settings(str(tmp_path / "a")), tmp_path / "run"):
        compile_something()
    assert list((tmp_path / "a").glob("*-cache"))
    assert not (tmp_path / "run").exists()


def test_it_is_not_kept_if_it_is_off(tmp_path, outside):
    with compilation_kept(settings("off"), tmp_path / "run"):
        compile_something()
    assert not outside.exists()
    assert not (tmp_path / "run").exists()


def test_what_the_user_configured_stands(tmp_path, outside):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    before = configured()
    with compilation_kept(settings(), tmp_path / "run"):
        assert configured() == before
        compile_something()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    assert list(outside.glob("*-cache"))
    assert not (tmp_path / "run").exists()


def test_the_key_goes_before_what_the_user_configured(tmp_path, outside):
    with compilation_kept(settings(str(tmp_path / "a")), tmp_path / "run"):
        compile_something()
    assert list((tmp_path / "a").glob("*-cache"))
    assert not outside.exists()


@pytest.mark.parametrize("chosen", [None, "off", "elsewhere"])
def test_the_configuration_of_jax_is_restored(tmp_path, chosen):
    chosen = chosen and chosen.replace("elsewhere", str(tmp_path))
    before = configured()
    with pytest.raises(KeyError), compilation_kept(settings(chosen), tmp_path):
        raise KeyError
    assert configured() == before
    found = {path.name for path in tmp_path.iterdir()}
    compile_something()
    assert {path.name for path in tmp_path.iterdir()} == found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work directory of a whole run."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train.run(tiny_config(SMALL), workdir)
    return workdir


@pytest.fixture
def untrained(trained, tmp_path):
    """The same as if the machine had gone away before the last checkpoint."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "4")
    return workdir


def test_another_start_compiles_nothing(untrained, caplog):
    assert missed(caplog, lambda: train.run(tiny_config(SMALL), untrained)) == 0
    assert (untrained / "checkpoints" / "4").is_dir()


def test_a_run_goes_on_over_half_written_files(untrained, caplog):
    for path in (untrained / "compilation_cache").iterdir():
        os.truncate(path, path.stat().st_size // 2)
    assert missed(caplog, lambda: train.run(tiny_config(SMALL), untrained)) > 0
    assert (untrained / "checkpoints" / "4").is_dir()


@pytest.mark.parametrize(
    ("program", "part"), [(train, "_Run"), (evaluate, "_evaluate"), (embed, "_embed")]
)
def test_every_program_keeps_them(trained, tmp_path, monkeypatch, program, part):
    def look(*_):
        folders.append(jax.config.jax_compilation_cache_dir)
        raise KeyError

    folders = []
    monkeypatch.setattr(program, part, look)
    workdir = shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(KeyError):
        program.run(tiny_config(SMALL), workdir)
    assert folders == [str(workdir / "compilation_cache")]


def test_seeds_share_the_folder_of_the_parent(tmp_path, monkeypatch):
    def look(seeds, *_):
        cache = jax.config.jax_compilation_cache_dir
        folders.extend((seed.workdir.name, cache) for seed in seeds)
        return SimpleNamespace(train=lambda: None)

    folders = []
    monkeypatch.setattr(train, "_Run", look)
    train.run(tiny_config(SMALL | {"seeds": 2}), tmp_path)
    shared = str(tmp_path / "compilation_cache")
    assert folders == [("seed_0", shared), ("seed_1", shared)]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_half_written_files_do_not_break_a_start(tmp_path, share, caplog):
    with compilation_kept(settings(), tmp_path):
        expected = compile_something()
    files = list((tmp_path / "compilation_cache").glob("*-cache"))
    whole = {path: path.stat().st_size for path in files}
    for path, size in whole.items():
        os.truncate(path, int(share * size))
    with caplog.at_level(logging.INFO), compilation_kept(settings(), tmp_path):
        assert (compile_something() == expected).all()
    # Written anew, so that the next start finds them.
    assert all(path.stat().st_size > share * whole[path] for path in files)
    assert caplog.text.count("is half-written: removed") == len(files)


def test_files_of_a_shared_folder_are_left_to_jax(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    torn = folder / "jit_of_another_process-cache"
    torn.write_bytes(b"half")
    with compilation_kept(settings(str(folder)), tmp_path):
        compile_something()
    assert torn.read_bytes() == b"half"
