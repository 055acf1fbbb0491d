"""The image task: classification, or no probe if the images have no labels.

Foster, Pukdee, Rainforth (ICLR 2021), section 5: multinomial logistic regression.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import data, evaluation
from invariance_jax.evaluation import LinearProbe
from invariance_jax.settings import Settings, plugins
from invariance_jax.settings.schema import KEYS, WITH_PROBE
from invariance_jax.settings.views import make_image_views
from invariance_jax.tasks.task import Examples, Task
from invariance_jax.transforms import Squashed, Transformation, check_transformation
from invariance_jax.types import Array

_ORDER_SEED = 1
_DEFAULT = KEYS["evaluation.experiments"].default
_AUGMENTATION = "augmentation.name"

MOST_BYTES = 2**32
"""Bytes of features above which a probe moves them to the device in blocks."""

_USER_VIEWS: dict[tuple[object, str], Transformation] = {}
"""Cache of users' own transformations, because a check takes seconds."""


class ImageTask(Task):
    """An example is an image, uint8; the probe is logistic regression of its label."""

    def __init__(self, settings: Settings):
        """See `Task`; refuses experiments that need labels if there are no labels."""
        super().__init__(settings)
        self._num_classes = settings.data.num_classes or 0
        self.metric = "accuracy" if self._num_classes else ""
        experiments = settings.evaluation.experiments
        with_probe = {*experiments} & {*WITH_PROBE}
        if with_probe and not self._num_classes and experiments != _DEFAULT:
            raise ValueError(
                f"evaluation.experiments is {experiments!r}; expected none of "
                f"{', '.join(WITH_PROBE)}, as the images of {settings.data.name} have "
                "no labels."
            )

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or their numbers; () without labels."""
        options = self.settings.data
        if not self._num_classes:
            return ()
        names = data.describe(options.name, data_dir=options.data_dir).class_names
        return names or tuple(map(str, range(self._num_classes)))

    def examples(self, split: str, *, in_order: bool = False) -> Examples:
        """Returns the images and labels of a split, decoded now or on demand."""
        options = self.settings.data
        common: dict[str, Any] = {
            "data_dir": options.data_dir,
            "validation_examples": options.validation_examples,
        }
        is_stream = options.source == "stream"
        if not (is_stream or options.store_size or options.max_corrupt):
            pixels, labels = data.load_arrays(options.name, split, **common)
            rows = self._rows(split, len(pixels), in_order)
            return Examples(pixels[rows], None if labels is None else labels[rows])
        pictures = data.open_pictures(
            options.name,
            split,
            **common,
            size=options.store_size,
            max_corrupt=options.max_corrupt,
            threads=options.threads,
        )
        rows = pictures.rows[self._rows(split, len(pictures), in_order)]
        pictures = data.Pictures(pictures.store, rows)  # a split of its own
        if options.source == "memory":
            pictures = pictures.in_memory(f"Decoding {options.name} {split}")
        return Examples(pictures, pictures.labels)

    def _rows(self, split: str, count: int, in_order: bool) -> np.ndarray:
        """Returns the indices of the images of a split that a run uses, in order."""
        num_used = getattr(self.settings.data, f"{split}_examples")
        rows = np.random.RandomState(_ORDER_SEED).permutation(count)[:num_used]
        return np.sort(rows) if in_order else rows

    def stand_ins(self, count: int) -> np.ndarray | Squashed:
        """Returns black images."""
        pixels = np.zeros((count, *self._description().image_shape), np.uint8)
        if self.settings.data.store_size is None:
            return pixels
        return Squashed(pixels, np.full((count, 2), pixels.shape[1], np.int32))

    def _description(self) -> data.Description:
        """Returns the description of the set in the settings; reads no file."""
        options = self.settings.data
        train, test = options.train_examples, options.test_examples
        assert train and test and options.source_size and options.channels
        assert options.mean and options.std
        return data.Description(
            options.name,
            (*options.source_size, options.channels),
            options.num_classes,
            train + options.validation_examples,
            test,
            options.mean,
            options.std,
        )

    def _make_transformation(self, family: str) -> Transformation:
        augmentation, info = self.settings.augmentation, self._description()
        name = augmentation.name
        if not plugins.is_own(name):
            return make_image_views(self.settings, family)
        cache_key = plugins.load(_AUGMENTATION, name), repr((info, augmentation.kwargs))
        if cache_key in _USER_VIEWS:
            return _USER_VIEWS[cache_key]
        own = plugins.call(_AUGMENTATION, name, info, **augmentation.kwargs)
        if not isinstance(own, Transformation):
            raise ValueError(
                f"augmentation.name is {name!r}, which returned {own!r}; expected an "
                "invariance_jax.transforms.Transformation."
            )
        own, random = _with_uint8_input(own), np.random.RandomState(0)
        x = self.stand_ins(4)
        pixels = x.pixels if isinstance(x, Squashed) else x
        noise = random.randint(0, 256, pixels.shape, np.uint8)
        x = x._replace(pixels=noise) if isinstance(x, Squashed) else noise
        with plugins.blaming(_AUGMENTATION, name, fault="whose check raised"):
            check_transformation(own, jax.tree.map(jnp.asarray, x))
        _USER_VIEWS[cache_key] = own
        return _USER_VIEWS[cache_key]

    def shiftable(self) -> Transformation | None:
        """Returns colour jitter of strength 1; None for a user's own augmentation."""
        is_own = plugins.is_own(self.settings.augmentation.name)
        return None if is_own else make_image_views(self.settings, "shift")

    def probe_examples(self, train: Examples) -> Examples:
        """See `Task.probe_examples`; checks the number of neighbours of kNN."""
        train = super().probe_examples(train)
        fraction = self.settings.evaluation.label_fraction
        if train.y is None or fraction == 1:
            return train
        rows = self._share("label_fraction", train.y, fraction)
        neighbors = self.settings.evaluation.neighbors
        if len(rows) < max(neighbors, default=0):
            raise ValueError(
                f"evaluation.neighbors is {neighbors}; expected at most {len(rows)}, "
                "the number of examples that the probe is fitted on."
            )
        return Examples(train.x[rows], train.y[rows])

    def labeled(self, y: np.ndarray, fraction: float) -> np.ndarray:
        """Returns the indices of the same share of each class."""
        return self._share("label_fractions", y, fraction)

    def _share(self, key: str, y: np.ndarray, fraction: float) -> np.ndarray:
        try:
            return data.label_fraction(y, fraction, seed=self.settings.evaluation.seed)
        except ValueError as error:
            raise ValueError(f"evaluation.{key}: {error}") from error

    def fit(self, h: np.ndarray, y: np.ndarray) -> LinearProbe:
        """Returns a logistic regression probe, fitted in blocks if h is large."""
        l2, count = self.settings.evaluation.l2, self._num_classes
        if h.nbytes > MOST_BYTES:
            return evaluation.fit_logistic_in_blocks(h, y, num_classes=count, l2=l2)
        features, labels = jnp.asarray(h), jnp.asarray(y)
        return evaluation.fit_logistic(features, labels, num_classes=count, l2=l2)

    def select(
        self, h: np.ndarray, y: np.ndarray, h_test: np.ndarray, y_test: np.ndarray
    ) -> dict[str, float]:
        """See `Task.select`; returns the selected l2 too, and {} if h is large."""
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

    def displayed(self, images: Array | np.ndarray) -> np.ndarray:
        """Undoes the normalization too; a user's own augmentation may have none."""
        pixels = np.asarray(images, np.float64)
        own = plugins.is_own(self.settings.augmentation.name)
        if not (own and -0.01 <= pixels.min() and pixels.max() <= 1.01):
            info = self._description()
            pixels = pixels * np.array(info.std) + np.array(info.mean)
        return super().displayed(pixels)


def _with_uint8_input(own: Transformation) -> Transformation:
    """Returns a user's transformation that takes `Squashed` and float images too."""

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
