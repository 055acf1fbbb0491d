"""Devices for tests that spread a batch: four on CPUs, what there is with --device."""

import jax
import pytest


def devices(count: int) -> list[jax.Device]:
    """Returns so many devices; a test that asks for more than there are is skipped."""
    found = jax.devices()
    if len(found) < count:
        pytest.skip(f"needs {count} devices")
    return found[:count]
