"""Training steps on a GPU against PyTorch's, tuned and as the authors write it."""

from collections.abc import Iterator

from invariance_jax.benchmarks import gpu
from invariance_jax.benchmarks.runs import configuration
from invariance_jax.benchmarks.steps import against_torch
from invariance_jax.benchmarks.timing import Options, Row


def run(options: Options) -> Iterator[Row]:
    """Yields PyTorch over ours: tuned, in bfloat16, and then the authors' in float32.

    Raises:
      ValueError: if there is no GPU, or no such precision.
    """
    gpu.check_gpu(0.4)
    few = options._replace(timer=options.timer.at_most(5))
    for precision in gpu.chosen(gpu.PRECISIONS, options.cases):
        config, tuned = configuration("spirograph"), precision == "bfloat16"
        config.precision = precision
        yield from against_torch(few, config, device="cuda", tuned=tuned)
