"""Signals: noticed, and answered by a checkpoint from which the run goes on."""

import os
import signal
import threading

import pytest
from test_train import SMOKE, assert_same_run, rows
from tiny import tiny_config

from invariance_jax import evaluate, train
from invariance_jax.runtime import preemption
from invariance_jax.runtime.preemption import Preempted, Watch
from invariance_jax.training import parallel
from invariance_jax.training.frozen import FrozenEncoder

pytestmark = pytest.mark.usefixtures("compiled_once")


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_noticed_and_does_not_end_the_process(number):
    with Watch() as watch:
        assert not watch.is_asked()
        send(number)
        assert watch.is_asked()
        assert number.name in watch.reason
        with pytest.raises(Preempted, match=number.name):
            watch.stop_if_asked()


def test_the_first_signal_is_the_reason():
    with Watch() as watch:
        send(signal.SIGUSR2)
        send(signal.SIGTERM)
        assert watch.reason == "SIGUSR2"


def test_former_handlers_come_back():
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    with Watch():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in preemption.SIGNALS} == before


def test_what_an_inner_watch_notices_the_outer_one_knows():
    with Watch() as outer:
        with Watch():
            send(signal.SIGTERM)
        assert outer.reason == "SIGTERM"


def test_what_an_outer_watch_noticed_the_inner_one_knows():
    with Watch():
        send(signal.SIGUSR1)
        with Watch() as inner:
            assert inner.is_asked()


def test_a_handler_of_another_owner_gets_nothing():
    received = []
    former = signal.signal(signal.SIGUSR2, lambda *_: received.append(1))
    try:
        with Watch():
            send(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert not received


def test_a_thread_notices_nothing_and_works():
    found = []

    def work():
        with Watch() as watch:
            found.append(watch.is_asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work directory of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train.run(tiny_config(SMOKE), workdir)
    return workdir


def signal_after(monkeypatch, calls, number=signal.SIGTERM):
    """Sends a signal while that call to the devices is under way."""
    make = parallel.make_train
    left = [calls]

    def make_train(*arguments, **settings):
        steps = make(*arguments, **settings)

        def counted(*arguments):
            left[0] -= 1
            if left[0] == 0:
                send(number)
            return steps(*arguments)

        return counted

    monkeypatch.setattr(parallel, "make_train", make_train)


# With logging every 10 steps, calls of 4: at 4 and 8 a row is pending, at 10 none.
PENDING = {"steps_per_call": 4, "logging.every_steps": 10}


@pytest.fixture(scope="module")
def pending(tmp_path_factory):
    """The work directory of such a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("pending") / "run"
    train.run(tiny_config(SMOKE | PENDING), workdir)
    return workdir


@pytest.mark.parametrize(("calls", "step"), [(1, 4), (2, 8), (3, 10), (9, 28)])
def test_a_stopped_run_continues_to_the_same_bits(
    pending, tmp_path, monkeypatch, calls, step
):
    config = SMOKE | PENDING
    with monkeypatch.context() as patch:
        signal_after(patch, calls)
        with pytest.raises(Preempted, match=f"SIGTERM; saved at step {step}, the same"):
            train.run(tiny_config(config), tmp_path / "run")
    train.run(tiny_config(config), tmp_path / "run")
    assert_same_run(tmp_path / "run", pending)


def test_a_run_that_is_stopped_again_and_again_continues_to_the_same_bits(
    whole, tmp_path, monkeypatch
):
    for _ in range(100):
        with monkeypatch.context() as patch:
            signal_after(patch, 2, signal.SIGUSR1)
            try:
                train.run(tiny_config(SMOKE), tmp_path)
            except Preempted:
                continue
        break
    assert_same_run(tmp_path, whole)


def test_the_time_counts_over_all_starts(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_after(patch, 8)
        with pytest.raises(Preempted):
            train.run(tiny_config(SMOKE), tmp_path)
    before = max(row.get("seconds", 0.0) for row in rows(tmp_path))
    train.run(tiny_config(SMOKE), tmp_path)
    seconds = [row["seconds"] for row in rows(tmp_path) if "seconds" in row]
    assert seconds == sorted(seconds)
    assert seconds[-1] > before > 0


def test_a_signal_with_the_last_step_finishes_the_run(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_after(patch, 12)
        train.run(tiny_config(SMOKE), tmp_path)
    assert_same_run(tmp_path, whole)


def test_an_evaluation_stops_and_starts_again(whole, monkeypatch):
    features = FrozenEncoder.features

    def stopped(*arguments, **settings):
        send(signal.SIGUSR2)
        return features(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoder, "features", stopped)
        with pytest.raises(Preempted, match="SIGUSR2"):
            evaluate.run(tiny_config(SMOKE), whole)
    assert not (whole / "results.json").exists()
    assert evaluate.run(tiny_config(SMOKE), whole)["n"] == 1
    (whole / "results.json").unlink()
    (whole / "samples.npz").unlink()
