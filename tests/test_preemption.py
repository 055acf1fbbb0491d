"""Signals: noted, and answered by a checkpoint from which the run goes on."""

import itertools
import signal
import threading

import processes
import pytest
from tiny import tiny_config

from invariance_jax import evaluate, train
from invariance_jax.runtime import preemption
from invariance_jax.runtime.preemption import Preempted, watch_signals
from invariance_jax.training import parallel
from invariance_jax.training.frozen import FrozenEncoder

pytestmark = pytest.mark.usefixtures("compiled_once")

STEPS = 30
SMALL = {"steps": STEPS, "checkpoints.every_steps": 15, "logging.probe_every_steps": 0}
# With logging every 10 steps, calls of 4: at 4 and 8 a row is pending, at 10 none.
PENDING = {"steps_per_call": 4, "logging.every_steps": 10}


def send(number):
    signal.raise_signal(number)  # to this thread: answered before it returns


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_noted_and_does_not_end_the_process(number):
    before = signal.getsignal(number)
    with watch_signals():
        assert not preemption.stop_is_asked()
        send(number)
        assert preemption.stop_is_asked()
        with pytest.raises(Preempted, match=number.name) as caught:
            preemption.stop_if_asked()
    assert signal.getsignal(number) == before
    assert caught.value.status == (130 if number == signal.SIGINT else 75)


def test_the_first_signal_is_the_reason():
    with watch_signals():
        send(signal.SIGUSR2)
        send(signal.SIGTERM)
        assert str(preemption.stop("now")).startswith("SIGUSR2: now")


def test_what_is_noted_within_is_known_until_the_outer_end():
    with watch_signals():
        with watch_signals():
            send(signal.SIGTERM)
        with watch_signals():
            assert preemption.stop_is_asked()
    with watch_signals():
        assert not preemption.stop_is_asked()


def test_a_thread_notes_nothing_and_works():
    found = []

    def work():
        with watch_signals():
            found.append(preemption.stop_is_asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work directory of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train.run(tiny_config(SMALL | PENDING), workdir)
    return workdir


def run_until_signal(monkeypatch, workdir, calls, number):
    """Sends a signal while that call to the devices is under way."""
    make, made = parallel.make_train, itertools.count(1)

    def make_train(*arguments):
        steps = make(*arguments)

        def counted(*arguments):
            if next(made) == calls:
                send(number)
            return steps(*arguments)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "make_train", make_train)
        train.run(tiny_config(SMALL | PENDING), workdir)


@pytest.mark.parametrize(
    ("calls", "step", "name"), [(2, 8, "SIGINT"), (3, 10, "SIGUSR2")]
)
def test_a_stopped_run_continues_to_the_same_bits(
    whole, tmp_path, monkeypatch, calls, step, name
):
    number = getattr(signal, name)
    with pytest.raises(Preempted, match=f"{name}: .* is saved at step {step}; the sam"):
        run_until_signal(monkeypatch, tmp_path, calls, number)
    train.run(tiny_config(SMALL | PENDING), tmp_path)
    processes.assert_same_run(tmp_path, whole, step=STEPS)


def test_a_run_that_is_stopped_again_and_again_continues_to_the_same_bits(
    whole, tmp_path, monkeypatch
):
    starts, before = 1, 0.0
    while True:
        try:
            run_until_signal(monkeypatch, tmp_path, 2, signal.SIGUSR1)
            break
        except Preempted:
            starts += 1
            rows = processes.rows(tmp_path, without=())
            seconds = [row.get("seconds", 0.0) for row in rows]
            # The time counts over all starts.
            assert max(seconds, default=0.0) >= before
            before = max(seconds, default=0.0)
    assert starts > 3
    processes.assert_same_run(tmp_path, whole, step=STEPS)


def test_an_evaluation_stops_and_starts_again(whole, monkeypatch):
    features = FrozenEncoder.features

    def stopped(*arguments, **settings):
        send(signal.SIGUSR2)
        return features(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoder, "features", stopped)
        with pytest.raises(Preempted, match="SIGUSR2"):
            evaluate.run(tiny_config(SMALL), whole)
    assert not (whole / "results.json").exists()
    assert evaluate.run(tiny_config(SMALL), whole)["n"] == 1


PROGRAM = """
import signal, time
from invariance_jax.runtime.preemption import watch_signals
with watch_signals():
    print("ready", flush=True)
    if {blocked}:
        # A call that Python's handlers wait for, as those to the devices.
        import ctypes
        ctypes.CDLL(None).sleep(30)
    time.sleep(30)
"""


@pytest.mark.parametrize("blocked", [False, True])
def test_a_second_interrupt_ends_the_process_at_once(blocked):
    (process,) = processes.start(["-c", PROGRAM.format(blocked=blocked)])
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert first == "SIGINT: stopping as soon as possible (Ctrl-C again: at once)\n"
        assert process.stdout.read().startswith("SIGINT again: ended at once")
    finally:
        process.kill()
        process.communicate()
