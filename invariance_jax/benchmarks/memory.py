"""What a training step takes of the memory, and what rematerialization saves of it.

The bytes are those that the compiled program asks for beside its arguments and results,
on the device at hand; nothing of it runs. What the saving costs is timed.
"""

import jax
from ml_collections import ConfigDict

from invariance_jax.benchmarks.penalty import check_finite, make_steps
from invariance_jax.benchmarks.step import make_config
from invariance_jax.benchmarks.timing import Comparison, alternate
from invariance_jax.training.components import make_examples
from invariance_jax.training.memory import compile_train
from invariance_jax.training.settings import resolve

BATCH_SIZE = 64


def run(config: ConfigDict, *, repeats: int, min_seconds: float) -> list[Comparison]:
    """Prints the memory of steps of a ResNet-50, and returns what saving it costs.

    Args:
      config: a configuration of Spirograph with the keys of `configs/base.py`; what a
        recipe of `benchmarks.peers` says is replaced.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.

    Returns:
      The time of a penalized step of a ResNet-18 with rematerialization against that
      of one without.
    """
    for penalized in (False, True):
        for rematerialize in (False, True):
            size = temporary_bytes(_make(config, "resnet50", penalized, rematerialize))
            print(
                f"resnet50, batch {BATCH_SIZE}, "
                f"{'penalized' if penalized else 'plain'}"
                f"{', rematerialized' if rematerialize else ''}: {size / 1e6:.0f} MB",
                flush=True,
            )
    saving, keeping = (
        make_steps(_make(config, "resnet18", True, rematerialize), 1)
        for rematerialize in (True, False)
    )
    times = alternate(saving, keeping, repeats=repeats, min_seconds=min_seconds)
    for steps in (saving, keeping):
        check_finite(steps())
    names = "step, resnet18", "penalized, rematerialized", "penalized"
    return [Comparison(*names, *times, False)]


def temporary_bytes(config: ConfigDict) -> int:
    """Returns what the compiled step of a run takes beside arguments and results.

    Args:
      config: a configuration with the keys of `configs/base.py`.

    Returns:
      Bytes, on one device.
    """
    settings = resolve(config)
    examples = make_examples(settings, "train").x
    compiled = compile_train(settings, examples, jax.local_devices()[:1])
    return int(compiled.memory_analysis().temp_size_in_bytes)


def _make(
    config: ConfigDict, encoder: str, penalized: bool, rematerialize: bool
) -> ConfigDict:
    own = make_config(config, encoder, batch_size=BATCH_SIZE, penalized=penalized)
    own.encoder.rematerialize = rematerialize
    return own
