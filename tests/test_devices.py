"""What is said to XLA before the first device is used, each in a new process."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

from invariance_jax import train
from invariance_jax.runtime import devices

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "--xla_gpu_deterministic_ops=true --xla_gpu_exclude_nondeterministic_ops=true"

# The options that XLA compiles with, once it has read its flags.
OPTIONS = """
from jax.extend.backend import get_compile_options
def options():
    return get_compile_options(1, 1).SerializeAsString()
"""


def python(code, xla_flags=""):
    """Returns what some code prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


PREPARE = """
import os
from invariance_jax.runtime.devices import make_deterministic
from configs import base
config = base.get_config()
config.deterministic = {value}
{before}
make_deterministic(config)
print(os.environ["XLA_FLAGS"])
"""


def test_the_flags_are_added_to_those_of_the_user():
    found = python(PREPARE.format(value=True, before=""), "--xla_dump_hlo_as_text=true")
    assert found.split() == ["--xla_dump_hlo_as_text=true", *FLAGS.split()]


def test_a_flag_that_is_there_is_not_added_again():
    found = python(PREPARE.format(value=True, before=""), FLAGS.split()[1])
    assert sorted(found.split()) == FLAGS.split()


def test_without_the_key_no_flag_is_set():
    assert python(PREPARE.format(value=False, before="")).strip() == ""


def test_flags_that_come_too_late_are_not_set():
    before = "import jax; jax.devices()"
    assert python(PREPARE.format(value=True, before=before)).strip() == ""


def test_the_flags_reach_the_compiler():
    code = PREPARE.format(value="{}", before="") + OPTIONS
    code += "import jax; jax.devices(); print(options())"
    lines = [python(code.format(value)).splitlines() for value in (True, False)]
    expected = python(OPTIONS + "print(options())", FLAGS).strip()
    assert lines[0][-1] == expected
    assert lines[1][-1] != expected


@pytest.fixture
def deterministic():
    return tiny_config({"deterministic": True})


def test_a_gpu_that_was_used_before_is_refused(monkeypatch, deterministic):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.devices()
    with pytest.raises(ValueError, match="deterministic is True, but .* its GPUs alr"):
        devices.make_deterministic(deterministic)
    assert "XLA_FLAGS" not in os.environ


def test_a_gpu_that_was_started_with_the_flags_is_not(monkeypatch, deterministic):
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    devices.make_deterministic(deterministic)


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("gpu", "cost not measured"),
        ("cpu", "nothing changes"),
        ("tpu", "a tpu repeats"),
    ],
)
def test_the_log_says_what_it_costs(monkeypatch, caplog, platform, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    with caplog.at_level(logging.INFO):
        devices.log_determinism(tiny_config({"deterministic": True}))
        devices.log_determinism(tiny_config())
    (text,) = caplog.messages
    assert text.startswith("deterministic: ") and expected in text


def test_training_asks_before_anything_else(monkeypatch, tmp_path, deterministic):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(train, "resolve", None)
    with pytest.raises(ValueError, match="deterministic is True"):
        train.run(deterministic, tmp_path / "run")


def test_whether_devices_were_used_is_known():
    code = "from invariance_jax.runtime.devices import have_started as started\n"
    code += "import jax; n = jax.config.jax_num_cpu_devices\n"
    code += "print(started(), started(), jax.config.jax_num_cpu_devices == n)\n"
    code += "jax.devices(); print(started(), jax.config.jax_num_cpu_devices == n)"
    assert python(code).split() == ["False", "False", "True", "True", "True"]
