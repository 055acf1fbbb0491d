"""The memory of devices: what fits is known before training begins."""

import numpy as np
import pytest

from invariance_jax.training import memory


class Device:
    """A device that tells how much memory it has."""

    process_index = 0

    def __init__(self, memory):
        self._memory = memory

    def memory_stats(self):
        return self._memory

    def __str__(self):
        return "GPU 0"


@pytest.mark.parametrize("told", [None, {}, {"bytes_limit": 2000}])
def test_a_set_that_fits_or_an_unknown_memory_is_accepted(told):
    memory.check_data(np.zeros(1000, np.uint8), [Device(told)])


def test_a_set_that_is_too_large_is_refused_with_sizes_and_a_hint():
    data, devices = np.zeros(3_000_000, np.uint8), [Device({"bytes_limit": 5_000_000})]
    with pytest.raises(ValueError) as caught:
        memory.check_data(data, devices)
    assert "take 0.003 GB of the 0.005 GB of GPU 0" in str(caught.value)
    assert "lower data.train_examples" in str(caught.value)
