"""The devices of a process, and options that XLA reads at their first use."""

import os

import jax

_DETERMINISTIC = (
    "--xla_gpu_deterministic_ops=true",
    "--xla_gpu_exclude_nondeterministic_ops=true",
)

_MAX_SIMULATED = 4096  # devices, each of which XLA creates


def all_devices(count: int | None = None) -> tuple[jax.Device, ...]:
    """Returns the devices of all processes, or the first `count` of them.

    If JAX_PLATFORMS leaves out the CPU, it is added: probes run there in float64.
    """
    platforms = jax.config.values["jax_platforms"] or "cpu"
    lacks_cpu = "cpu" not in platforms.split(",")
    if lacks_cpu and not have_started():
        jax.config.update("jax_platforms", f"{platforms},cpu")
    try:
        devices = jax.devices()
        jax.devices("cpu")
        if devices[0].platform == "cpu" and lacks_cpu:
            raise RuntimeError("only the CPU")
    except (AssertionError, RuntimeError) as error:  # JAX has no type of its own for it
        raise ValueError(
            f"JAX_PLATFORMS is {platforms!r}, and jax finds no such device or no "
            f"CPU beside it{f' ({error})' if str(error) else ''}; expected a platform "
            "of this machine, such as cpu, or no value."
        ) from error
    if count is not None and not 0 < count <= len(devices):
        raise ValueError(
            f"asked for {count} devices; expected 1 to {len(devices)}, their number."
        )
    return tuple(devices[:count])


def simulate(count: int) -> None:
    """Makes this process use `count` simulated CPU devices and no others."""
    if not 0 < count <= _MAX_SIMULATED:
        raise ValueError(f"--check_devices is {count}; expected 1 to {_MAX_SIMULATED}.")
    if not have_started():
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    used, platform = jax.device_count(), jax.default_backend()
    if (used, platform) != (count, "cpu"):
        raise ValueError(
            f"this process has used {used} {platform} devices already; expected no use "
            f"before {count} are simulated."
        )


def make_deterministic(deterministic: bool) -> None:
    """If True, sets the XLA flags of deterministic operations, which are read once."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    missing = [flag for flag in _DETERMINISTIC if flag not in flags]
    if not (deterministic and missing):
        return
    if not have_started():
        os.environ["XLA_FLAGS"] = " ".join([*flags, *missing])
    elif jax.default_backend() == "gpu":
        raise ValueError(
            "deterministic is True, but this process has used its GPUs already; "
            f"expected no use before, or XLA_FLAGS='{' '.join(_DETERMINISTIC)}' "
            "in its environment."
        )


def have_started() -> bool:
    """Returns whether this process has used a device."""
    # JAX has no public function for this, but refuses to change this number afterwards.
    count = jax.config.values["jax_num_cpu_devices"]
    try:
        jax.config.update("jax_num_cpu_devices", count + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", count)
    return False
