"""Benchmarks of the hot paths: `python -m invariance_jax.benchmarks NAME`.

README.md in this folder lists them with their commands and results.
"""

MODULES = {
    "render": "render",
    "augment": "augment",
    "decode": "decode",
    "steps": "steps",
    "penalty": "steps",
    "loss": "loss",
    "probe": "probe",
    "scaling": "steps",
    "restart": "restart",
    "gpu": "gpu",
    "gpu_peers": "gpu",
}
"""NAME -> module in this folder whose function `time_NAME` yields rows of the table."""

ON_GPU, NEED_TORCH = ("gpu", "gpu_peers"), ("steps", "probe", "gpu_peers")


def check_names(arguments: list[str], has_torch: bool) -> list[str]:
    """Returns the named benchmarks; "all" are those that can run here without a GPU."""
    if len(arguments) != 1 or arguments[0] not in (*MODULES, "all"):
        found = " ".join(arguments) or "nothing"
        raise ValueError(
            f"the benchmark is {found!r}; expected one of {', '.join(MODULES)}, all."
        )
    unavailable = () if has_torch else NEED_TORCH
    if arguments == ["all"]:
        return [name for name in MODULES if name not in (*ON_GPU, *unavailable)]
    if arguments[0] in unavailable:
        raise ValueError(
            f"the benchmark {arguments[0]} compares with PyTorch, which is not "
            "installed; expected python -m pip install -e '.[benchmarks]' before it."
        )
    return arguments
