"""Traces: of exactly the steps that were asked for, or of none."""

import contextlib
import logging
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

from invariance_jax import train
from invariance_jax.runtime.profiling import Profiler
from invariance_jax.training import parallel

SMALL = {"steps": 12, "encoder.depth": 1, "logging.probe_every_steps": 0}


@pytest.fixture
def events(monkeypatch):
    """What the profiler of JAX is asked for, in its order."""
    found = []

    @contextlib.contextmanager
    def trace(folder):
        found.append(Path(folder).name)
        try:
            yield
        finally:
            found.append("stop")

    monkeypatch.setattr(jax.profiler, "trace", trace)
    monkeypatch.setattr(jax, "block_until_ready", lambda _: found.append("wait"))
    return found


def reach(profiler, steps):
    """Calls the profiler as the training loop does, in calls of one step."""
    with profiler:
        for step in steps:
            profiler.before(step, None)
            profiler.after(step + 1, None)


@pytest.mark.parametrize(
    ("ends", "first_step", "process", "traced"),
    [
        ((2, 5), 0, 0, True),
        ((2, 5), 2, 0, True),
        ((), 0, 0, False),
        ((2, 5), 0, 1, False),
    ],
)
def test_the_main_process_traces_what_is_asked_for_and_waits_for_the_steps(
    events, tmp_path, monkeypatch, ends, first_step, process, traced
):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    reach(Profiler(ends, tmp_path, first_step=first_step), range(first_step, 12))
    assert events == ["wait", "profile", "wait", "stop"] * traced


@pytest.mark.parametrize("first_step", [3, 5, 9])
def test_steps_that_are_past_are_logged(events, tmp_path, caplog, first_step):
    with caplog.at_level(logging.INFO):
        profiler = Profiler((2, 5), tmp_path, first_step=first_step)
    reach(profiler, range(first_step, 12))
    assert not events
    assert f"no trace of steps (2, 5): resumed at step {first_step}" in caplog.text


def test_an_error_ends_the_trace(events, tmp_path):
    profiler = Profiler((2, 5), tmp_path, first_step=0)
    with pytest.raises(KeyError):
        with profiler:
            profiler.before(2, None)
            raise KeyError
    assert events[-1] == "stop"


def test_a_run_is_traced_between_the_ends(events, tmp_path, monkeypatch):
    make_train = parallel.make_train

    def make(*arguments, **settings):
        steps = make_train(*arguments, **settings)

        def note(state, key, step, num_steps):
            events.append(num_steps)
            return steps(state, key, step, num_steps)

        return note

    monkeypatch.setattr(parallel, "make_train", make)
    train.run(tiny_config(SMALL | {"logging.profile_steps": "3:7"}), tmp_path)
    events = [event for event in events if event != "wait"]
    assert events == [3, "profile", 2, 2, "stop", 3, 2]


def test_a_trace_is_written(tmp_path):
    with Profiler((1, 2), tmp_path, first_step=0) as profiler:
        profiler.before(1, None)
        jax.block_until_ready(jax.numpy.ones(3) + 1)
        profiler.after(2, None)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
