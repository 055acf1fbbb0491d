"""Compiled programs on the disk: where they are kept, and that they are used again."""

import logging
import os
import shutil
import time

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny import tiny_config

from invariance_jax import embed, evaluate, train
from invariance_jax.runtime.compilation import cache_root, compilation_kept

NAMES = [
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_enable_xla_caches",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
]
SMALL = {"steps": 4, "checkpoints.every_steps": 2, "logging.probe_every_steps": 0}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The user's cache folder, in which only what a test has kept is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(folder):
    return sorted(folder.rglob("*-cache"))


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


def test_several_processes_on_cpus_keep_nothing(outside, home, tmp_path, monkeypatch):
    """Restarted, they would wait for one another forever, see `test_processes`."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for chosen in (None, str(tmp_path / "chosen")):
        with compilation_kept(chosen, tmp_path):
            compile_something()
    assert not [*kept(outside), *kept(home), *kept(tmp_path)]


def test_it_is_kept_in_the_users_folder_which_only_the_user_may_write_to(
    tmp_path, home
):
    for name in ("a", "b"):
        with compilation_kept(None, tmp_path / name):
            compile_something()
        assert not (tmp_path / name).exists()
    folders = [*(home / "invariance_jax").iterdir()]
    assert len(folders) == 2 and all(map(kept, folders))
    modes = {
        path.stat().st_mode & 0o777 for path in (home / "invariance_jax", *folders)
    }
    assert modes == {0o700}


def test_what_others_can_write_is_not_run(tmp_path, home):
    shared, mode = tmp_path / "shared", 0o720
    shared.mkdir()
    shared.chmod(mode)
    with pytest.raises(ValueError, match=f"has the mode {mode:o}: others may write to"):
        with compilation_kept(str(shared), tmp_path):
            pass
    cache_root().mkdir(parents=True)
    cache_root().chmod(mode)
    with pytest.raises(ValueError, match="others may write"):
        with compilation_kept(None, tmp_path):
            pass


def test_without_a_home_directory_nothing_is_kept(tmp_path, monkeypatch, home):
    monkeypatch.setattr("pathlib.Path.home", lambda: 1 / 0)
    with compilation_kept(None, tmp_path):
        pass
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", homeless)
    with compilation_kept(None, tmp_path):
        compile_something()
    assert not kept(tmp_path)


def test_it_is_kept_where_the_key_says_or_else_where_the_user_configured_it(
    tmp_path, outside, home
):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    before = configured()
    with compilation_kept(None, tmp_path):
        assert configured() == before
        compile_something()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    assert kept(outside) and not kept(home)
    shutil.rmtree(outside)
    with compilation_kept(str(tmp_path / "a"), tmp_path):
        compile_something()
    assert kept(tmp_path / "a")
    with compilation_kept("off", tmp_path):
        compile_something()
    assert not kept(outside) and not kept(home)


@pytest.mark.parametrize("chosen", [None, "off", "elsewhere"])
def test_the_configuration_of_jax_is_restored(tmp_path, chosen):
    chosen = chosen and chosen.replace("elsewhere", str(tmp_path))
    before = configured()
    with pytest.raises(KeyError), compilation_kept(chosen, tmp_path):
        raise KeyError
    assert configured() == before
    found = kept(tmp_path)
    compile_something()
    assert kept(tmp_path) == found


def test_what_was_not_used_for_long_is_removed(tmp_path, home):
    for name, age in (("old", 70), ("new", 50)):
        with compilation_kept(None, tmp_path / name):
            pass
        (folder,) = {*cache_root().iterdir()} - {cache_root() / "old"}
        folder = folder.rename(cache_root() / name)
        os.utime(folder, (0, time.time() - age * 86_400))
    with compilation_kept(None, tmp_path):
        pass
    names = {path.name for path in cache_root().iterdir()}
    assert len(names) == 2 and names & {"old", "new"} == {"new"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work directory of a whole run, and the cache folder that it left."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train.run(tiny_config(SMALL), folder / "run")
    return folder


def test_another_start_compiles_nothing(trained, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained / "cache"))
    last = trained / "run" / "checkpoints" / "4"
    shutil.rmtree(last)  # as if the machine had gone away before it
    assert missed(caplog, lambda: train.run(tiny_config(SMALL), trained / "run")) == 0
    assert last.is_dir()


@pytest.mark.parametrize(
    ("program", "part"),
    [(train, "_train_seed"), (evaluate, "_evaluate"), (embed, "_embed")],
)
def test_every_program_keeps_them(trained, tmp_path, monkeypatch, program, part):
    def look(*_, **__):
        folders.append(jax.config.jax_compilation_cache_dir)
        raise KeyError

    folders = []
    monkeypatch.setattr(program, part, look)
    workdir = shutil.copytree(trained / "run", tmp_path / "run")
    with pytest.raises(KeyError):
        program.run(tiny_config(SMALL), workdir)
    assert folders[0].startswith(str(cache_root()))


def test_what_a_killed_start_has_torn_is_written_anew(tmp_path, home):
    with compilation_kept(None, tmp_path):
        expected = compile_something()
        (running,) = home.rglob("running")  # as a killed start leaves it
        shutil.copy(running, tmp_path / "running")
    assert not running.exists()
    shutil.copy(tmp_path / "running", running)
    last = max(kept(home), key=lambda path: path.stat().st_mtime)
    size = last.stat().st_size
    os.truncate(last, size // 2)
    with compilation_kept(None, tmp_path):
        assert (compile_something() == expected).all()
    assert last.stat().st_size > size // 2
    assert not running.exists()


def test_files_of_a_shared_folder_are_left_to_jax(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    torn = folder / "jit_of_another_process-cache"
    torn.write_bytes(b"half")
    with compilation_kept(str(folder), tmp_path):
        compile_something()
    assert torn.read_bytes() == b"half"
