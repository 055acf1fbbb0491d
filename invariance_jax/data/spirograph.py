"""The images of Spirograph as a TFDS set, for other frameworks.

Foster, Pukdee, Rainforth (ICLR 2021), section 5. This package renders new images for
every view and needs the targets only. For other frameworks, importing this module
registers the TFDS set `spirograph`, one image per example with a fixed nuisance:

    import invariance_jax.data.spirograph
    import tensorflow_datasets as tfds

    source = tfds.data_source("spirograph", split="train", data_dir=...)

The first call renders and writes the set, without TensorFlow. An example has the
features `image`, `parameters` (columns in the order of `PARAMETERS`) and `targets`.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from invariance_jax.data import writing
from invariance_jax.data.sets import FORMAT
from invariance_jax.data.targets import make_targets
from invariance_jax.transforms.spirograph import PARAMETERS, render
from invariance_jax.types import Array

TARGETS = ("m", "b", "sigma", "rfore")
"""The regression targets of the paper."""

_IMAGE_SIZE = 32

# Number of images rendered at once.
_BATCH_SIZE = 2000


def make_parameters(split: str, *, num_examples: int) -> np.ndarray:
    """Returns the parameters of the images of a split, float32 `[N, 10]`."""
    nuisance = tuple(name for name in PARAMETERS if name not in TARGETS)
    columns = [  # seed 0 for the targets, 1 for the nuisance
        make_targets(split, num_examples=num_examples, seed=seed, targets=names)
        for seed, names in enumerate((TARGETS, nuisance))
    ]
    order = [(TARGETS + nuisance).index(name) for name in PARAMETERS]
    return np.concatenate(columns, axis=1)[:, order]


class Spirograph(tfds.core.GeneratorBasedBuilder):
    """The builder of the TFDS set `spirograph`, in the format array_record."""

    VERSION = tfds.core.Version("1.0.0")
    NUM_EXAMPLES = {"train": 100_000, "test": 20_000}

    def __init__(self, *, file_format: str | None = None, **kwargs: Any) -> None:
        """Constructs the builder as TFDS does, but with another default file format."""
        super().__init__(file_format=file_format or FORMAT, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Spirograph curves whose shape and colours are given by ten "
                "parameters. Four are regression targets, six are nuisance."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_IMAGE_SIZE, _IMAGE_SIZE, 3)),
                    "parameters": _floats(len(PARAMETERS)),
                    "targets": _floats(len(TARGETS)),
                }
            ),
            supervised_keys=("image", "targets"),
            homepage="https://arxiv.org/abs/2010.09515",
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[object]]:
        return {
            split: self._generate_examples(split, num_examples)
            for split, num_examples in self.NUM_EXAMPLES.items()
        }

    def _generate_examples(self, split: str, num_examples: int) -> Iterator[object]:
        parameters = make_parameters(split, num_examples=num_examples)
        targets = parameters[:, [PARAMETERS.index(name) for name in TARGETS]]
        for start in range(0, num_examples, _BATCH_SIZE):
            images = _render(parameters[start : start + _BATCH_SIZE])
            for index, image in enumerate(writing.encode(np.asarray(images)), start):
                row = {"parameters": parameters[index], "targets": targets[index]}
                yield index, {"image": image, **row}


def _floats(count: int) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=(count,), dtype=np.float32)


@jax.jit
def _render(parameters: Array) -> Array:
    return jnp.round(255 * render(parameters, image_size=_IMAGE_SIZE)).astype(jnp.uint8)
