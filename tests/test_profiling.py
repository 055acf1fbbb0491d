"""Traces: of exactly the steps that were asked for, or of none."""

import logging
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

from invariance_jax import train
from invariance_jax.runtime.profiling import Profiler
from invariance_jax.training import parallel
from invariance_jax.training.settings import resolve

SMALL = {"steps": 12, "encoder.depth": 1, "logging.probe_every_steps": 0}


def settings(steps):
    return resolve(tiny_config(SMALL | {"logging.profile_steps": steps}))


class Trace:
    """Stands for the profiler of JAX, and remembers what happens in which order."""

    def __init__(self, monkeypatch):
        self.events = []
        monkeypatch.setattr(
            jax.profiler,
            "start_trace",
            lambda folder: self.events.append(Path(folder).name),
        )
        monkeypatch.setattr(
            jax.profiler, "stop_trace", lambda: self.events.append("stop")
        )
        monkeypatch.setattr(
            jax, "block_until_ready", lambda _: self.events.append("wait")
        )


@pytest.fixture
def trace(monkeypatch):
    return Trace(monkeypatch)


def reach(profiler, steps):
    """Calls the profiler as the training loop does, in calls of one step."""
    with profiler:
        for step in steps:
            profiler.before(step, None)
            profiler.after(step + 1, None)


def test_a_trace_waits_for_the_steps_before_it_and_for_its_own(trace, tmp_path):
    reach(Profiler(settings("2:5"), tmp_path, first_step=0), range(12))
    assert trace.events == ["wait", "profile", "wait", "stop"]


def test_nothing_is_traced_unless_it_is_asked_for(trace, tmp_path):
    reach(Profiler(settings(""), tmp_path, first_step=0), range(12))
    assert not trace.events


@pytest.mark.parametrize("first_step", [3, 5, 9])
def test_steps_that_are_past_are_logged(trace, tmp_path, caplog, first_step):
    with caplog.at_level(logging.INFO):
        profiler = Profiler(settings("2:5"), tmp_path, first_step=first_step)
    reach(profiler, range(first_step, 12))
    assert not trace.events
    assert f"no trace: the run goes on at step {first_step} of (2, 5)" in caplog.text


def test_a_run_that_goes_on_before_them_has_a_trace(trace, tmp_path):
    reach(Profiler(settings("2:5"), tmp_path, first_step=2), range(2, 12))
    assert trace.events == ["wait", "profile", "wait", "stop"]


def test_an_error_ends_the_trace(trace, tmp_path):
    profiler = Profiler(settings("2:5"), tmp_path, first_step=0)
    with pytest.raises(KeyError), profiler:
        profiler.before(2, None)
        raise KeyError
    assert trace.events[-1] == "stop"


def test_only_one_process_writes(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    reach(Profiler(settings("2:5"), tmp_path, first_step=0), range(12))
    assert not trace.events


def test_calls_end_at_the_ends_of_a_trace():
    found = list(train.boundaries(settings("3:7"), 0))
    without = list(train.boundaries(settings(""), 0))
    assert found == sorted({*without, 3, 7})
    assert list(train.boundaries(settings("3:7"), 5))[0] == 7


def test_a_run_is_traced_between_the_ends(trace, tmp_path, monkeypatch):
    make_train = parallel.make_train

    def make(*arguments, **settings):
        steps = make_train(*arguments, **settings)

        def note(state, key, data, num_steps):
            trace.events.append(num_steps)
            return steps(state, key, data, num_steps)

        return note

    monkeypatch.setattr(parallel, "make_train", make)
    train.run(tiny_config(SMALL | {"logging.profile_steps": "3:7"}), tmp_path)
    events = [event for event in trace.events if event != "wait"]
    assert events == [3, "profile", 2, 2, "stop", 3, 2]


def test_a_trace_is_written(tmp_path):
    with Profiler(settings("1:2"), tmp_path, first_step=0) as profiler:
        profiler.before(1, None)
        jax.block_until_ready(jax.numpy.ones(3) + 1)
        profiler.after(2, None)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
