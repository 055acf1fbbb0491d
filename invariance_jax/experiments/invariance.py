"""Invariance: the variance of n(h) over views of the same example."""

from invariance_jax.experiments.subject import TEST, Measured, Subject


def run(subject: Subject) -> Measured:
    """Returns within, total and normalized variance of each family of views."""
    values: dict[str, float] = {}
    chosen = subject.settings.evaluation
    x = subject.test.x[: chosen.variance_examples]
    for family in dict.fromkeys(("all", *chosen.families)):
        variance = subject.encoder.variance(
            subject.variables, x, stream=TEST, family=family
        )
        part = "" if family == "all" else f".{family}"
        values |= {
            f"variance.{n}{part}": float(v) for n, v in variance._asdict().items()
        }
    return Measured(values, [])
