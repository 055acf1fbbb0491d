"""What is said to XLA before the first device is used, each in a new process."""

import os

import jax
import processes
import pytest
from tiny import tiny_config

from invariance_jax import train
from invariance_jax.runtime import devices

FLAGS = "--xla_gpu_deterministic_ops=true --xla_gpu_exclude_nondeterministic_ops=true"
OTHER = "--xla_dump_hlo_as_text=true"

# The options that XLA compiles with, once it has read its flags.
OPTIONS = """
from jax.extend.backend import get_compile_options
def options():
    return get_compile_options(1, 1).SerializeAsString()
"""


def python(code, xla_flags=""):
    """Returns what some code prints in a process of its own."""
    (output,) = processes.run(["-c", code], XLA_FLAGS=xla_flags)
    return output


PREPARE = """
import os
from invariance_jax.runtime.devices import make_deterministic
{before}
make_deterministic({value})
print(os.environ["XLA_FLAGS"])
"""
TOO_LATE = "import jax; jax.devices()"


@pytest.mark.parametrize(
    ("before", "flags", "expected"),
    [("", OTHER, f"{OTHER} {FLAGS}"), ("", FLAGS, FLAGS), (TOO_LATE, "", "")],
)
def test_the_flags_are_added_once_to_those_of_the_user(before, flags, expected):
    found = python(PREPARE.format(value=True, before=before), flags)
    assert found.strip() == expected


def test_the_flags_reach_the_compiler():
    code = PREPARE.format(value="{}", before="") + OPTIONS
    code += "import jax; jax.devices(); print(options())"
    lines = [python(code.format(value)).splitlines() for value in (True, False)]
    expected = python(OPTIONS + "print(options())", FLAGS).strip()
    assert lines[0][-1] == expected
    assert lines[1][-1] != expected


def test_a_gpu_that_was_used_before_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    devices.make_deterministic(True)
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(train, "resolve", None)  # training asks before anything else
    with pytest.raises(ValueError, match="deterministic is True, but .* its GPUs alr"):
        train.run(tiny_config({"deterministic": True}), tmp_path / "run")
    assert "XLA_FLAGS" not in os.environ


def test_whether_devices_were_used_is_known():
    code = "from invariance_jax.runtime.devices import have_started as started\n"
    code += "import jax; n = jax.config.jax_num_cpu_devices\n"
    code += "print(started(), started(), jax.config.jax_num_cpu_devices == n)\n"
    code += "jax.devices(); print(started(), jax.config.jax_num_cpu_devices == n)"
    assert python(code).split() == ["False", "False", "True", "True", "True"]


@pytest.mark.parametrize("count", [0, -1, 10**9])
def test_as_many_devices_as_no_machine_has_are_not_simulated(count):
    with pytest.raises(ValueError, match=f"is {count}; expected 1 to 4096"):
        devices.simulate(count)
