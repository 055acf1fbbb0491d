"""The keys of a configuration by what their values must be; `settings` checks them."""

from invariance_jax.losses.invariance import LIMIT_SHAPES, NORMALIZATIONS
from invariance_jax.models.registry import ENCODERS, PRECISIONS
from invariance_jax.models.resnet import STEMS
from invariance_jax.training import images
from invariance_jax.training.optimizers import OPTIMIZERS, SCHEDULES
from invariance_jax.transforms import spirograph

EXPERIMENTS = (
    "downstream",
    "averaging",
    "invariance",
    "linearization",
    "nuisance_prediction",
    "shift",
    "label_fraction",
)
"""What is measured of each trained encoder."""

STUDIES = (
    "penalty_weight",
    "directions",
    "limits",
    "normalization",
    "placement",
    "savings",
    "baselines",
)
"""Comparisons of short runs that differ in a few training keys."""

_WITH_PROBE = ("downstream", "averaging", "shift", "label_fraction")
_WITH_FEATURES = (*_WITH_PROBE, "nuisance_prediction")
_OF_VIEWS = ("invariance", "linearization")

READERS: dict[str, tuple[str, ...]] = {
    "baselines": ("downstream",),
    "batch_size": (),
    "experiments": (),
    "families": ("averaging", "invariance"),
    "l2": _WITH_PROBE,
    "l2_grid": ("downstream", "averaging"),
    "label_fraction": _WITH_FEATURES,
    "label_fractions": ("label_fraction",),
    "linearization_steps": ("linearization",),
    "neighbor_temperature": ("downstream",),
    "neighbors": ("downstream",),
    "nuisance_l2": ("nuisance_prediction",),
    "num_views": _WITH_FEATURES,
    "shifts": ("shift",),
    "train_examples": _WITH_FEATURES,
    "variance_examples": _OF_VIEWS,
    "variance_views": _OF_VIEWS,
}
"""Key of the evaluation -> the experiments whose numbers it changes; else all."""

WITHOUT_DERIVATIVE = {
    "penalty.estimator": "directional",
    "penalty.parameters": (),
    "penalty.views": 1,
    "penalty.directions": 1,
    "penalty.batch_statistics": "coupled",
    "penalty.fraction": 1.0,
}
"""The only values that go with the penalty.kind "consistency"."""

CHOICES = {
    "precision": tuple(PRECISIONS),
    "penalty.kind": ("gradient", "consistency"),
    "penalty.estimator": ("directional", "sign"),
    "penalty.limit_shape": LIMIT_SHAPES,
    "penalty.at": ("h", "z"),
    "penalty.normalization": NORMALIZATIONS,
    "penalty.batch_statistics": ("coupled", "example"),
    "encoder.name": ENCODERS,
    "encoder.stem": STEMS,
    "encoder.final": ("linear", "norm_relu"),
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "data.normalization": spirograph.NORMALIZATIONS,
    "evaluation.split": ("validation", "test"),
    "studies.split": ("validation", "test"),
}

SETS = {
    "evaluation.experiments": (*EXPERIMENTS, *STUDIES, "all"),
    "evaluation.families": images.FAMILIES,
    "evaluation.baselines": images.BASELINES,
    "embedding.splits": ("train", "validation", "test"),
}

POSITIVE = (
    "seeds batch_size average_views microbatches epochs steps temperature "
    "steps_per_call penalty.views penalty.every_steps penalty.fraction "
    "studies.steps studies.train_examples studies.test_examples "
    "evaluation.test_examples penalty.directions encoder.width encoder.depth "
    "encoder.projection optimizer.learning_rate optimizer.trust_coefficient "
    "data.train_examples data.test_examples data.image_size "
    "data.num_classes data.num_points data.extent "
    "checkpoints.every_steps checkpoints.keep "
    "checkpoints.keep_every_steps logging.every_steps logging.probe_train_examples "
    "logging.probe_validation_examples evaluation.train_examples "
    "evaluation.batch_size evaluation.variance_examples evaluation.variance_views "
    "evaluation.neighbor_temperature"
).split()

NOT_NEGATIVE = (
    "seed similarity_block penalty.weight penalty.warmup_steps penalty.example_limit "
    "penalty.batch_limit batchnorm.group_size "
    "optimizer.weight_decay data.validation_examples data.seed "
    "logging.probe_every_steps evaluation.l2 evaluation.seed embedding.num_views "
    "augmentation.strength augmentation.rotation augmentation.scaling "
    "augmentation.shear augmentation.translation"
).split()

# At least 0; less than 1, and at most 1.
SHARES = ("optimizer.momentum", "optimizer.warmup_fraction")
PROBABILITIES = (
    "augmentation.jitter_probability",
    "augmentation.gray_probability",
    "evaluation.label_fraction",
)

# The numbers that need not be whole.
REAL = (
    "temperature penalty.weight penalty.fraction "
    "penalty.example_limit penalty.batch_limit "
    "optimizer.learning_rate optimizer.trust_coefficient optimizer.weight_decay "
    "data.extent evaluation.l2 evaluation.neighbor_temperature augmentation.strength "
    "augmentation.rotation augmentation.scaling augmentation.shear "
    "augmentation.translation"
).split() + [*SHARES, *PROBABILITIES]

# What may be left empty.
OPTIONAL = (
    "epochs steps compilation_cache penalty.example_limit penalty.batch_limit "
    "encoder.weights data.data_dir data.num_classes data.source_size data.mean "
    "data.std checkpoints.keep_every_steps logging.wandb_project "
    "evaluation.train_examples evaluation.test_examples"
).split()

# What is read from an image set if it is left empty, though Spirograph needs it.
OF_IMAGES = ("data.train_examples", "data.test_examples", "data.image_size")

PATHS = ("compilation_cache", "data.data_dir", "encoder.weights")
TEXTS = ("data.name", "logging.profile_steps", "logging.wandb_project", *PATHS)
NUMBERS = (*POSITIVE, *NOT_NEGATIVE, *SHARES, *PROBABILITIES)
BOUNDS = tuple(f"data.bounds.{name}" for name in spirograph.PARAMETERS)
CHECKED_BY_IMAGES = tuple(
    "data.source_size data.mean data.std augmentation.differentiate "
    "augmentation.crop augmentation.crop_area augmentation.crop_aspect "
    "augmentation.resampling augmentation.flip augmentation.colorize "
    "evaluation.neighbors".split()
)
BOOLEANS = ("deterministic", "seeds_together", "encoder.rematerialize")

NUMBER_TUPLES = (
    "evaluation.l2_grid",
    "evaluation.label_fractions",
    "evaluation.linearization_steps",
    "evaluation.nuisance_l2",
    "studies.weights",
)

OTHERS = (
    "data.targets",
    "evaluation.num_views",
    "evaluation.shifts",
    "penalty.parameters",
)
KEYS = (
    *BOOLEANS,
    *NUMBER_TUPLES,
    *CHOICES,
    *SETS,
    *TEXTS,
    *NUMBERS,
    *BOUNDS,
    *CHECKED_BY_IMAGES,
    *OTHERS,
)
