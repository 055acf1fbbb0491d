"""A run that is killed at random moments ends with the bits of one that is not.

`python -m pytest tests/test_crash.py --kills=30` kills more often.
"""

import json
import random
import signal
import time

import processes
import pytest
from processes import CONFIG, SMALL

SEED = 0
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)

# Many calls, rows and checkpoints, so that most moments are amid one of them.
FREQUENT = [
    f"--config.{change}"
    for change in (
        "steps=120",
        "steps_per_call=2",
        "logging.every_steps=5",
        "logging.probe_every_steps=40",
        "checkpoints.every_steps=3",
        "checkpoints.keep=2",
        "checkpoints.keep_every_steps=60",
    )
]


def start(workdir):
    arguments = ["launch.py", CONFIG, f"--workdir={workdir}", *SMALL, *FREQUENT]
    # With a cache folder of its own, that kills may hit too.
    own = {"XDG_CACHE_HOME": str(workdir.parent / "cache")}
    return processes.start(arguments, JAX_COMPILATION_CACHE_DIR=None, **own)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work directory of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    statuses, outputs = processes.finish(start(workdir))
    assert statuses == [0], outputs[0]
    return workdir


def test_kills_at_random_moments_change_nothing(whole, tmp_path, request):
    total = len(processes.rows(whole))
    workdir, generator = tmp_path / "run", random.Random(SEED)
    kills, seen = request.config.getoption("--kills"), []
    for kill in range(kills):
        number = generator.choice(SIGNALS)
        (process,) = start(workdir)
        if generator.random() < 0.2:  # while it starts
            moment = generator.uniform(0, 5)
        else:  # so far into training, the last time amid the evaluation
            count = (kill + 1) * total // kills
            processes.wait_for_rows(workdir, count, while_running=process)
            moment = generator.uniform(0, 2 if kill + 1 == kills else 0.2)
        time.sleep(moment)
        process.send_signal(number)
        (status,), (output,) = processes.finish([process])
        seen.append((kill, number.name, status))
        # Finished before, killed, or asked to stop; before the handlers are in, a
        # signal ends the process as ever.
        expected = (0, 75, 130, *(-number for number in SIGNALS))
        assert status in expected, (seen, output)
    assert -signal.SIGKILL in {status for _, _, status in seen}, seen
    assert {75, 130} & {status for _, _, status in seen}, seen
    statuses, outputs = processes.finish(start(workdir))
    assert statuses == [0], (seen, outputs[0])
    processes.assert_same_run(workdir, whole, step=120)
    summaries = [
        json.loads((path / "results.json").read_text())["summary"]
        for path in (workdir, whole)
    ]
    assert summaries[0] == summaries[1]
    # Nothing half-written is left; a stop may have saved another one but the last.
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert all(name.isdecimal() for name in names) and len(names) == 3
    assert {"60", "120"} <= names
    print(*seen, sep="\n")
