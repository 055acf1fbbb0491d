"""Devices for tests that spread a batch: four on CPUs, what there is with --device."""

import jax
import pytest

AXIS = "replicas"


def devices(count: int) -> list[jax.Device]:
    """Returns so many devices; a test that asks for more than there are is skipped."""
    found = jax.devices()
    if len(found) < count:
        pytest.skip(f"needs {count} devices")
    return found[:count]


def over_devices(step, replicas, in_axes):
    """Returns a step of one replica, mapped over so many devices."""
    return jax.pmap(step, AXIS, in_axes=in_axes, devices=devices(replicas))


def over_vmap(step, replicas, in_axes):
    """Returns a step of one replica, mapped within one device."""
    return jax.jit(jax.vmap(step, in_axes, axis_name=AXIS))
