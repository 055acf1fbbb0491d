"""Benchmarks of the hot paths: `python -m invariance_jax.benchmarks NAME`.

README.md in this folder lists them with their commands and results.
"""

NAMES = (
    *("render", "augment", "decode", "steps", "penalty", "loss", "probe", "scaling"),
    *("restart", "gpu", "gpu_peers"),
)
"""Benchmarks: the module NAME has `time_NAME`, which yields rows of the table."""

MODULES = {"penalty": "steps", "scaling": "steps", "gpu_peers": "gpu"}
"""NAME -> module, if that has another name."""

ON_GPU, NEED_TORCH = ("gpu", "gpu_peers"), ("steps", "probe", "gpu_peers")


def check_names(arguments: list[str], has_torch: bool) -> list[str]:
    """Returns the named benchmarks; "all" are those that can run here without a GPU."""
    if len(arguments) != 1 or arguments[0] not in (*NAMES, "all"):
        found = " ".join(arguments) or "nothing"
        raise ValueError(
            f"the benchmark is {found!r}; expected one of {', '.join(NAMES)}, all."
        )
    unavailable = () if has_torch else NEED_TORCH
    if arguments == ["all"]:
        return [name for name in NAMES if name not in (*ON_GPU, *unavailable)]
    if arguments[0] in unavailable:
        raise ValueError(
            f"the benchmark {arguments[0]} compares with PyTorch, which is not "
            "installed; expected python -m pip install -e '.[benchmarks]' before it."
        )
    return arguments
