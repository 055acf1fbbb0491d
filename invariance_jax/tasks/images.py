"""Images as a task: classification, or no probe where they have no labels.

Foster, Pukdee, Rainforth (ICLR 2021), section 5: multinomial logistic regression.
"""

import functools
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from invariance_jax import data, evaluation
from invariance_jax.evaluation import LinearProbe
from invariance_jax.settings import Settings, plugins
from invariance_jax.settings.rules import make_image_views
from invariance_jax.settings.schema import KEYS, WITH_PROBE
from invariance_jax.tasks.task import Examples, Task
from invariance_jax.transforms import (
    Squashed,
    Transformation,
    check_transformation,
    image,
)
from invariance_jax.types import Array

_ORDER_SEED = 1
_DEFAULT = KEYS["evaluation.experiments"].default
_AUGMENTATION = "augmentation.name"

MOST_BYTES = 2**32
"""Of features, beyond which probes take them to the device in blocks."""

_OWN: dict[tuple[object, str], Transformation] = {}
"""The users' own that this process has made and checked, which takes seconds."""


class ImageTask(Task):
    """An example is an image, uint8; the probe is logistic regression of its label."""

    def __init__(self, settings: Settings):
        """As of a `Task`; refuses probes that need labels where there are none."""
        super().__init__(settings)
        self._num_classes = settings.data.num_classes or 0
        self.metric = "accuracy" if self._num_classes else ""
        asked = settings.evaluation.experiments
        vain = {*asked} & {*WITH_PROBE}
        if vain and not self._num_classes and asked != _DEFAULT:
            raise ValueError(
                f"evaluation.experiments is {asked!r}; expected none of "
                f"{', '.join(WITH_PROBE)}, as the images of {settings.data.name} have "
                "no labels."
            )

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or their numbers; () without labels."""
        chosen = self.settings.data
        if not self._num_classes:
            return ()
        names = data.describe(chosen.name, data_dir=chosen.data_dir).class_names
        return names or tuple(map(str, range(self._num_classes)))

    def examples(self, split: str, *, in_order: bool = False) -> Examples:
        """Returns the images and labels of a split, decoded now or when asked for."""
        chosen = self.settings.data
        of_set: dict[str, Any] = {
            "data_dir": chosen.data_dir,
            "validation_examples": chosen.validation_examples,
        }
        if not (chosen.source == "stream" or chosen.store_size or chosen.max_corrupt):
            pixels, labels = data.load_arrays(chosen.name, split, **of_set)
            rows = self._rows(split, len(pixels), in_order)
            return Examples(pixels[rows], None if labels is None else labels[rows])
        pictures = data.open_pictures(
            chosen.name,
            split,
            **of_set,
            size=chosen.store_size,
            max_corrupt=chosen.max_corrupt,
            threads=chosen.threads,
        )
        pictures = pictures[self._rows(split, len(pictures), in_order)]
        if chosen.source == "memory":
            pictures = pictures.in_memory(f"Decoding {chosen.name} {split}")
        return Examples(pictures, pictures.labels)

    def _rows(self, split: str, count: int, in_order: bool) -> np.ndarray:
        """Returns which images of a split are used, in which order."""
        wanted = getattr(self.settings.data, f"{split}_examples")
        rows = np.random.RandomState(_ORDER_SEED).permutation(count)[:wanted]
        return np.sort(rows) if in_order else rows

    def stand_ins(self, count: int) -> np.ndarray | Squashed:
        """Returns black images."""
        pixels = np.zeros((count, *self._described().image_shape), np.uint8)
        if self.settings.data.store_size is None:
            return pixels
        return Squashed(pixels, np.full((count, 2), pixels.shape[1], np.int32))

    def _described(self) -> data.Description:
        """Returns what the settings know of the set; no file is read."""
        chosen = self.settings.data
        train, test = chosen.train_examples, chosen.test_examples
        assert train and test and chosen.source_size and chosen.channels
        assert chosen.mean and chosen.std
        return data.Description(
            chosen.name,
            (*chosen.source_size, chosen.channels),
            chosen.num_classes,
            train + chosen.validation_examples,
            test,
            chosen.mean,
            chosen.std,
        )

    def _make_transformation(self, family: str) -> Transformation:
        augmentation, info = self.settings.augmentation, self._described()
        name = augmentation.name
        if not plugins.is_own(name):
            return make_image_views(self.settings, family)
        made_of = plugins.load(_AUGMENTATION, name), repr((info, augmentation.kwargs))
        if made_of in _OWN:
            return _OWN[made_of]
        own = plugins.call(_AUGMENTATION, name, info, **augmentation.kwargs)
        if not isinstance(own, Transformation):
            raise ValueError(
                f"augmentation.name is {name!r}, which returned {own!r}; expected an "
                "invariance_jax.transforms.Transformation."
            )
        random, shape = np.random.RandomState(0), (4, *info.image_shape)
        noise = random.randint(0, 256, shape, np.uint8)
        try:
            check_transformation(own, jnp.asarray(noise))
        except ValueError as error:
            raise ValueError(f"augmentation.name is {name!r}: {error}") from error
        _OWN[made_of] = _of_pixels(own)
        return _OWN[made_of]

    def shiftable(self) -> Transformation | None:
        """Returns colour jitter of strength 1; None of an own augmentation."""
        if plugins.is_own(self.settings.augmentation.name):
            return None
        chosen, there = self.settings.data, self._described()
        return image.make_transformation(
            source_size=there.image_shape[:2],
            image_size=chosen.image_size or min(there.image_shape[:2]),
            mean=there.mean,
            std=there.std,
            strength=1.0,
            jitter_probability=1.0,
            gray_probability=0.0,
            crop=False,
            flip=False,
            resampling=self.settings.augmentation.resampling,
            squashed=chosen.store_size is not None,
        )

    def probe_examples(self, train: Examples) -> Examples:
        """See `Task.probe_examples`."""
        train, chosen = super().probe_examples(train), self.settings.evaluation
        if train.y is None or chosen.label_fraction == 1:
            return train
        rows = self._share("label_fraction", train.y, chosen.label_fraction)
        return Examples(train.x[rows], train.y[rows])

    def labeled(self, y: np.ndarray, fraction: float) -> np.ndarray:
        """Returns the same share of each class."""
        return self._share("label_fractions", y, fraction)

    def _share(self, key: str, y: np.ndarray, fraction: float) -> np.ndarray:
        try:
            return data.label_fraction(y, fraction, seed=self.settings.evaluation.seed)
        except ValueError as error:
            raise ValueError(f"evaluation.{key}: {error}") from error

    def fit(self, h: np.ndarray, y: np.ndarray) -> LinearProbe:
        """Returns multinomial logistic regression, in blocks if h is large."""
        l2, count = self.settings.evaluation.l2, self._num_classes
        if h.nbytes > MOST_BYTES:
            return evaluation.fit_logistic_in_blocks(h, y, num_classes=count, l2=l2)
        features, labels = jnp.asarray(h), jnp.asarray(y)
        return evaluation.fit_logistic(features, labels, num_classes=count, l2=l2)

    def select(
        self, h: np.ndarray, y: np.ndarray, h_test: np.ndarray, y_test: np.ndarray
    ) -> dict[str, float]:
        """See `Task.select`; with the l2."""
        if not self.settings.evaluation.l2_grid or h.nbytes > MOST_BYTES:
            return {}
        probe, l2 = evaluation.fit_logistic_selected(
            jnp.asarray(h),
            jnp.asarray(y),
            num_classes=self._num_classes,
            l2=self.settings.evaluation.l2_grid,
            num_held_out=max(len(h) // 10, 1),
        )
        return self.score(probe, h_test, y_test).values | {"l2": l2}

    def quality(self, predictions: Array, y: Array) -> dict[str, float]:
        """Returns accuracy, and cross_entropy in nats."""
        return {
            "accuracy": float(evaluation.accuracy(predictions, y)),
            "cross_entropy": float(evaluation.cross_entropy(predictions, y)),
        }

    def displayed(self, images: Array) -> np.ndarray:
        """Undoes the normalization; an own augmentation may have made none."""
        pixels = np.asarray(images, np.float64)
        own = plugins.is_own(self.settings.augmentation.name)
        if not (own and -0.01 <= pixels.min() and pixels.max() <= 1.01):
            there = self._described()
            pixels = pixels * np.array(there.std) + np.array(there.mean)
        return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)


def _of_pixels(own: Transformation) -> Transformation:
    """Returns a user's own transformation, which sees uint8 images, also if squashed.

    Floating ones, in [0, 1], are those that `evaluate.load` may be given.
    """

    def pixels(x: Array | Squashed) -> Array:
        images = x.pixels if isinstance(x, Squashed) else x
        if not jnp.issubdtype(images.dtype, jnp.floating):
            return images
        return jnp.rint(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)

    plain = own.plain
    return replace(
        own,
        apply=lambda x, view: own.apply(pixels(x), view),
        plain=None if plain is None else lambda x: plain(pixels(x)),
    )
