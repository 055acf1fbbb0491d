"""Package metadata. `python -m pip install .` installs all that the programs need."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# The oldest jax that is supported is the one that Python 3.11 installs: CI tests it
# and, on Python 3.12, the newest.
REQUIREMENTS = [
    "absl-py>=2.0",
    "array-record>=0.8.6",
    "chex>=0.1.92",
    # With fsspec and importlib-resources, which the part epath imports.
    "etils[epath]>=1.10",
    "flax>=0.12.8",
    # For tensorflow-datasets, which imports it and does not require it.
    "importlib-resources>=6.0",
    "jax>=0.10.2",
    "jinja2>=3.1.6",
    "matplotlib>=3.10",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pandas>=3.0",
    "pillow>=12.0",
    "protobuf>=5.0",
    "scipy>=1.15",
    "seaborn>=0.13.2",
    "tensorboardX>=2.6.4",
    # Without TensorFlow, which it does not require.
    "tensorflow-datasets>=4.9.10",
    "tqdm>=4.66",
]

EXTRAS = {
    # What the benchmarks measure against.
    "benchmarks": ["grain>=0.2.18", "torch>=2.6"],
    "cuda12": ["jax[cuda12]"],
    "cuda13": ["jax[cuda13]"],
    # Decodes JPEG files faster than Pillow, to the same pixels.
    "jpeg": ["simplejpeg>=1.8"],
    "slurm": ["submitit>=1.5.4"],
    "tpu": ["jax[tpu]"],
    "wandb": ["wandb>=0.20"],
    "test": [
        # For the training loop of losses/README.md.
        "equinox>=0.13",
        "mypy>=2.0",
        # Types of pandas, for mypy.
        "pandas-stubs>=3.0",
        "pytest>=9.0",
        # Two processes in CI.
        "pytest-xdist>=3.6",
        # The formatter's style may change with the minor version.
        "ruff==0.17.*",
        "safetensors>=0.5",
        "scikit-learn>=1.6",
        "simplejpeg>=1.8",
        "submitit>=1.5.4",
        "wandb>=0.20",
    ],
}

ROOT = Path(__file__).parent

_INIT = (ROOT / "invariance_jax" / "__init__.py").read_text(encoding="utf-8")
(VERSION,) = re.findall(r'^__version__ = "(.+)"$', _INIT, re.MULTILINE)

setup(
    name="invariance_jax",
    version=VERSION,
    description=(
        "Transformation invariance in contrastive representation learning, in JAX: "
        "gradient penalty, feature averaging, differentiable transformations"
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["invariance_jax", "invariance_jax.*"]),
    package_data={
        "invariance_jax": ["py.typed"],
        "invariance_jax.report": ["page.html", "paper.csv", "report.mplstyle"],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
