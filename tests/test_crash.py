"""What is killed at random moments ends with the bits of what is not.

A run on Spirograph; one that streams its images, with any number of threads, against
one that has them in memory; a preparation. `python -m pytest --all tests/test_crash.py
--kills=30` kills more often.
"""

import json
import random
import signal
import time

import numpy as np
import processes
import pytest
from PIL import Image
from processes import CONFIG, SMALL
from tiny import image_config

from invariance_jax import data

SEED = 0
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)

# Many calls, rows and checkpoints, so that most moments are amid one of them.
FREQUENT = processes.config_flags("""
    steps=120 steps_per_call=2 logging.every_steps=5 logging.probe_every_steps=40
    checkpoints.every_steps=3 checkpoints.keep=2 checkpoints.keep_every_steps=60
""")
IMAGES = processes.config_flags("""
    data.name=bars data.train_examples=None data.validation_examples=30
    data.test_examples=None data.store_size=12 evaluation.experiments=invariance
    logging.probe_train_examples=60
""")
# The sums of two sources differ in the last bit otherwise.
AS_A_RUN = {"JAX_DISABLE_MOST_OPTIMIZATIONS": None, "XLA_FLAGS": None}


def start(workdir, config, *changes):
    arguments = ["launch.py", config, f"--workdir={workdir}", *SMALL, *FREQUENT]
    # With a cache folder of its own, that kills may hit too.
    own = {"XDG_CACHE_HOME": str(workdir.parent / "cache")}
    own |= AS_A_RUN if changes else {}
    return processes.start(
        [*arguments, *changes], JAX_COMPILATION_CACHE_DIR=None, **own
    )


@pytest.mark.parametrize("source", ["spirograph", "stream"])
def test_kills_at_random_moments_change_nothing(source, tmp_path, request):
    config, changes, streamed = CONFIG, [], lambda: []
    if source == "stream":
        image_config(tmp_path)  # writes the set
        config = "--config=configs/fashion_mnist.py:smoke"
        changes = [*IMAGES, f"--config.data.data_dir={tmp_path}"]

        def streamed():
            threads = generator.choice([1, 8])
            return ["--config.data.source=stream", f"--config.data.threads={threads}"]

    whole = tmp_path / "whole" / "run"
    statuses, outputs = processes.finish(start(whole, config, *changes))
    assert statuses == [0], outputs[0]
    total = len(processes.rows(whole))
    workdir, generator = tmp_path / "run", random.Random(SEED)
    kills, seen = request.config.getoption("--kills"), []
    for kill in range(kills):
        number = SIGNALS[kill % len(SIGNALS)]
        (process,) = start(workdir, config, *changes, *streamed())
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
    last = start(workdir, config, *changes, *streamed())
    statuses, outputs = processes.finish(last)
    assert statuses == [0], (seen, outputs[0])
    processes.assert_same_run(workdir, whole, step=120)
    found, expected = (
        json.loads((path / "results.json").read_text())["rows"]
        for path in (workdir, whole)
    )
    assert found == expected
    print(*seen, sep="\n")


def prepared(data_dir):
    """Returns the labels and the bytes of all images of a set."""
    pictures = data.open_pictures(
        "mine", "train", data_dir=data_dir, validation_examples=0, size=8
    )
    records = pictures.store.records
    return pictures.labels.tolist(), [records.read(n) for n in range(len(records))]


def test_a_preparation_that_is_killed_goes_on(tmp_path, request):
    noise = np.random.default_rng(SEED).integers(0, 256, (2, 1500, 16, 16, 3), np.uint8)
    for name, images in zip("ab", noise, strict=True):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / "train" / name / f"{number}.png")

    def begin(data_dir):
        flags = [f"--train={tmp_path / 'train'}", f"--data_dir={tmp_path / data_dir}"]
        return processes.start(["-m", "invariance_jax.data", "mine", *flags])

    before = time.monotonic()
    statuses, outputs = processes.finish(begin("whole"))
    assert statuses == [0], outputs
    seconds, generator = time.monotonic() - before, random.Random(SEED)
    for _ in range(request.config.getoption("--kills")):
        (process,) = begin("killed")
        time.sleep(generator.uniform(0.5, 1) * seconds)
        process.send_signal(generator.choice(SIGNALS))
        processes.finish([process])
    if not (tmp_path / "killed" / "mine" / "1.0.0").exists():
        statuses, outputs = processes.finish(begin("killed"))
        assert statuses == [0], outputs
    assert prepared(tmp_path / "killed") == prepared(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed" / "mine").iterdir()] == ["1.0.0"]
