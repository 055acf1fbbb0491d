"""Benchmarks of the hot paths: `python -m invariance_jax.benchmarks NAME`.

README.md in this folder lists them, with the command and the numbers of each.
"""

NAMES = "render augment steps penalty loss probe scaling restart".split()
ON_GPU, NEED_TORCH = ("gpu", "gpu_peers"), ("steps", "probe", "gpu_peers")


def check_names(arguments: list[str], has_torch: bool) -> list[str]:
    """Returns the benchmarks that the command line names.

    Args:
      arguments: what the flags leave of it.
      has_torch: whether PyTorch is installed; else `all` leaves out what needs it.

    Raises:
      ValueError: if there is no such benchmark, or it needs PyTorch.
    """
    choices = (*NAMES, *ON_GPU, "all")
    if len(arguments) != 1 or arguments[0] not in choices:
        found = " ".join(arguments) or "nothing"
        raise ValueError(
            f"the benchmark is {found!r}; expected one of {', '.join(choices)}."
        )
    if arguments == ["all"]:
        return [name for name in NAMES if has_torch or name not in NEED_TORCH]
    if arguments[0] in NEED_TORCH and not has_torch:
        raise ValueError(
            f"the benchmark {arguments[0]} compares with PyTorch, which is not "
            "installed; expected python -m pip install -e '.[benchmarks]' before it."
        )
    return arguments
