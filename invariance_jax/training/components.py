"""The parts of a run that the settings name: data, transformation, networks."""

from typing import Any

import numpy as np

from invariance_jax.data import make_targets
from invariance_jax.models import ProjectionHead, create_encoder
from invariance_jax.training.steps import Networks
from invariance_jax.transforms import Transformation, spirograph


def make_transformation(settings: Any) -> Transformation:
    """Returns the transformation of a run.

    Args:
      settings: the result of `training.settings.resolve`.

    Returns:
      The transformation.
    """
    data = settings.data
    return spirograph.make_transformation(
        targets=data.targets,
        bounds=np.array(settings.derived.bounds),
        image_size=data.image_size,
        num_points=data.num_points,
        extent=data.extent,
        normalization=data.normalization,
    )


def make_examples(settings: Any, split: str) -> np.ndarray:
    """Returns the examples of a split.

    Args:
      settings: the result of `training.settings.resolve`.
      split: "train", "validation" or "test".

    Returns:
      float32 `[N, T]`, the targets, which also make the images.
    """
    return make_targets(
        split,
        num_examples=settings.data[f"{split}_examples"],
        seed=settings.data.seed,
        targets=settings.data.targets,
        bounds=np.array(settings.derived.bounds),
    )


def make_networks(settings: Any, *, axis_name: str | None = None) -> Networks:
    """Returns the encoder, in both forms, and the projection head.

    The head normalizes over the whole batch, as in the paper, whatever the group size
    of the encoder.

    Args:
      settings: the result of `training.settings.resolve`.
      axis_name: the mapped axis of the replicas; None: one replica.

    Returns:
      The modules.
    """

    def encoder(tangent: str) -> Any:
        return create_encoder(
            settings.encoder.name,
            width=settings.encoder.width,
            depth=settings.encoder.depth,
            final=settings.encoder.final,
            norm_group_size=settings.batchnorm.group_size,
            norm_tangent=tangent,
            precision=settings.precision,
            axis_name=axis_name,
        )

    return Networks(
        encoder("coupled"),
        encoder(settings.penalty.batch_statistics),
        ProjectionHead(
            output=settings.encoder.projection,
            axis_name=axis_name,
        ),
    )
