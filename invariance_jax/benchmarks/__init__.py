"""Benchmarks of the hot paths: `python -m invariance_jax.benchmarks NAME`.

README.md in this folder lists them, with the command and the numbers of each.
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
"""Name -> module in this folder, whose function `time_NAME` yields rows of a table."""

ON_GPU, NEED_TORCH = ("gpu", "gpu_peers"), ("steps", "probe", "gpu_peers")


def check_names(arguments: list[str], has_torch: bool) -> list[str]:
    """Returns the benchmarks that are named; "all" are those that can run here."""
    if len(arguments) != 1 or arguments[0] not in (*MODULES, "all"):
        found = " ".join(arguments) or "nothing"
        raise ValueError(
            f"the benchmark is {found!r}; expected one of {', '.join(MODULES)}, all."
        )
    lacking = () if has_torch else NEED_TORCH
    if arguments == ["all"]:
        return [name for name in MODULES if name not in (*ON_GPU, *lacking)]
    if arguments[0] in lacking:
        raise ValueError(
            f"the benchmark {arguments[0]} compares with PyTorch, which is not "
            "installed; expected python -m pip install -e '.[benchmarks]' before it."
        )
    return arguments
