"""What must be said to XLA before a process uses its first device."""

import os

import jax

_DETERMINISTIC = (
    "--xla_gpu_deterministic_ops=true",
    "--xla_gpu_exclude_nondeterministic_ops=true",
)

_MOST = 4096  # devices that are simulated: XLA makes each of them


def all_devices(count: int | None = None) -> tuple[jax.Device, ...]:
    """Returns the devices of all processes, or the first of them."""
    try:
        found = jax.devices()
    except (AssertionError, RuntimeError) as error:  # JAX has no exception for it
        asked = jax.config.values["jax_platforms"]
        raise ValueError(
            f"JAX_PLATFORMS is {asked!r}, and jax finds no such device"
            f"{f' ({error})' if str(error) else ''}; expected a platform of this "
            "machine, or none: cpu always works."
        ) from error
    if count is not None and not 0 < count <= len(found):
        raise ValueError(
            f"asked for {count} devices; expected 1 to {len(found)}, what is there."
        )
    return tuple(found[:count])


def simulate(count: int) -> None:
    """Gives this process a number of CPU devices, and no others."""
    if not 0 < count <= _MOST:
        raise ValueError(f"--check_devices is {count}; expected 1 to {_MOST}.")
    if not have_started():
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    found = jax.device_count(), jax.default_backend()
    if found != (count, "cpu"):
        raise ValueError(
            f"this process has used {found[0]} {found[1]} devices already; expected "
            f"none before {count} are simulated."
        )


def make_deterministic(deterministic: bool) -> None:
    """Adds deterministic flags to XLA, which reads them once, if they are asked for."""
    found = os.environ.get("XLA_FLAGS", "").split()
    missing = [flag for flag in _DETERMINISTIC if flag not in found]
    if not (deterministic and missing):
        return
    if not have_started():
        os.environ["XLA_FLAGS"] = " ".join([*found, *missing])
    elif jax.default_backend() == "gpu":
        raise ValueError(
            "deterministic is True, but this process has used its GPUs already; "
            f"expected none before, or XLA_FLAGS='{' '.join(_DETERMINISTIC)}' "
            "in its environment."
        )


def have_started() -> bool:
    """Returns whether this process has used a device."""
    # JAX has no public question for it, but refuses to change this number afterwards.
    count = jax.config.values["jax_num_cpu_devices"]
    try:
        jax.config.update("jax_num_cpu_devices", count + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", count)
    return False
