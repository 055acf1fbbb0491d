"""The parts of a run that the settings name: data, transformation, networks."""

from typing import Any, NamedTuple

import numpy as np

from invariance_jax import data
from invariance_jax.models import ProjectionHead, create_encoder
from invariance_jax.training import images
from invariance_jax.training.fractions import one_in
from invariance_jax.training.objective import Networks
from invariance_jax.transforms import Transformation, spirograph

_ORDER_SEED = 1


class Examples(NamedTuple):
    """A split of a data set.

    Attributes:
      x: what the transformation takes: float32 `[N, T]` Spirograph targets, or images
        uint8 `[N, H, W, 1 or 3]`.
      y: what a probe predicts: float32 `[N, T]` targets, or labels int32 `[N]`.
    """

    x: np.ndarray
    y: np.ndarray

    def first(self, count: int | None) -> "Examples":
        """Returns the first examples, all of them if count is None."""
        return Examples(self.x[:count], self.y[:count])


def is_regression(settings: Any) -> bool:
    """Returns whether the probes of a run predict numbers, not classes.

    Args:
      settings: the result of `training.settings.resolve`.
    """
    return bool(settings.data.name == "spirograph")


def make_transformation(settings: Any, family: str = "all") -> Transformation:
    """Returns the transformation of a run.

    Args:
      settings: the result of `training.settings.resolve`.
      family: "all", or for images the part of it that is one of `images.FAMILIES`.

    Returns:
      The transformation.
    """
    if not is_regression(settings):
        return images.make_transformation(settings.data, settings.augmentation, family)
    return spirograph.make_transformation(
        targets=settings.data.targets,
        bounds=np.array(settings.derived.bounds),
        image_size=settings.data.image_size,
        num_points=settings.data.num_points,
        extent=settings.data.extent,
        normalization=settings.data.normalization,
    )


def make_examples(settings: Any, split: str, *, in_order: bool = False) -> Examples:
    """Returns the examples of a split.

    Images come in a fixed random order, so that the first of them are a fair sample of
    a set that is sorted by class.

    Args:
      settings: the result of `training.settings.resolve`.
      split: "train", "validation" or "test".
      in_order: whether the same images come in the order of the set instead.

    Returns:
      The examples; of Spirograph, the targets also make the images.

    Raises:
      ValueError: if an image set cannot be read.
    """
    count = settings.data[f"{split}_examples"]
    if is_regression(settings):
        targets = _targets(settings, split, count)
        return Examples(targets, targets)
    pixels, labels = data.load_arrays(
        settings.data.name,
        split,
        data_dir=settings.data.data_dir,
        validation_examples=settings.data.validation_examples,
    )
    chosen = np.random.RandomState(_ORDER_SEED).permutation(len(pixels))[:count]
    chosen = np.sort(chosen) if in_order else chosen
    return Examples(pixels[chosen], labels[chosen])


def make_stand_ins(settings: Any) -> np.ndarray:
    """Returns two examples that have the shape of the data set's, without reading it.

    Args:
      settings: the result of `training.settings.resolve`.

    Returns:
      As `Examples.x`, N = 2.
    """
    if is_regression(settings):
        return _targets(settings, "train", 2)
    return np.zeros((2, *settings.data.source_size, 3), np.uint8)


def _targets(settings: Any, split: str, count: int) -> np.ndarray:
    return data.make_targets(
        split,
        num_examples=count,
        seed=settings.data.seed,
        targets=settings.data.targets,
        bounds=np.array(settings.derived.bounds),
    )


def make_networks(settings: Any, *, axis_name: str | None = None) -> Networks:
    """Returns the encoder and the projection head, both in both forms.

    The head normalizes over the whole batch, as in the paper, whatever the group size
    of the encoder. Where only some examples are penalized, these and the others of a
    group normalize on their own.

    Args:
      settings: the result of `training.settings.resolve`.
      axis_name: the mapped axis of the replicas; None: one replica.

    Returns:
      The modules.
    """

    def encoder(tangent: str, group_size: int) -> Any:
        return create_encoder(
            settings.encoder.name,
            stem=settings.encoder.stem,
            width=settings.encoder.width,
            depth=settings.encoder.depth,
            final=settings.encoder.final,
            norm_group_size=group_size,
            norm_tangent=tangent,
            precision=settings.precision,
            rematerialize=settings.encoder.rematerialize,
            axis_name=axis_name,
        )

    def head(tangent: str) -> Any:
        return ProjectionHead(
            output=settings.encoder.projection, tangent=tangent, axis_name=axis_name
        )

    statistics = settings.penalty.batch_statistics
    group_size = settings.batchnorm.group_size
    count = one_in(settings.penalty.fraction)
    return Networks(
        encoder("coupled", group_size),
        encoder(statistics, group_size // count),
        head("coupled"),
        head(statistics),
        encoder("coupled", group_size - group_size // count) if count > 1 else None,
    )
