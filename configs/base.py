"""Every key of a configuration, with its default, meaning and unit.

The other files in this folder change values, they never add a key. Keys that default to
a placeholder are optional: empty unless a value is given.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the configuration with all keys, set to the paper's Spirograph run."""
    config = ConfigDict()

    # Seed of initialization, data order and views.
    config.seed = 0
    # Number of runs, with seeds seed, seed + 1, ..., aggregated with a standard error.
    config.seeds = 1
    # Examples per step over all devices.
    config.batch_size = 512
    # Length of training: exactly one of epochs (over data.train_examples) and steps.
    config.epochs = placeholder(int)
    config.steps = placeholder(int)
    # Temperature of the contrastive loss.
    config.temperature = 0.5
    # "float32", or "bfloat16" for the encoder's products and convolutions.
    config.precision = "float32"
    # Most training steps that one call to the devices runs.
    config.steps_per_call = 100

    config.penalty = ConfigDict()
    # Weight of the invariance penalty in the loss, lambda of the paper; 0 is SimCLR.
    config.penalty.weight = 0.01
    # Largest value of one example's penalty in one direction (none if empty).
    config.penalty.example_limit = placeholder(float)
    # Largest value of the batch mean; above it the gradient is zero (none if empty).
    config.penalty.batch_limit = placeholder(float)
    # K, directions alpha' - alpha per example and step.
    config.penalty.directions = 1
    # "l2" (the paper), "none" or "batch": what the squared change is measured against.
    config.penalty.normalization = "l2"
    # Steps over which the weight rises linearly from 0.
    config.penalty.warmup_steps = 0
    # "coupled" differentiates batch statistics along alpha, "example" holds them.
    config.penalty.batch_statistics = "coupled"

    config.encoder = ConfigDict()
    # "resnet18", "resnet34", "resnet50" or "mlp".
    config.encoder.name = "resnet18"
    # Features per layer, layers, and end of the MLP: "linear" or "norm_relu".
    config.encoder.width = 512
    config.encoder.depth = 3
    config.encoder.final = "linear"
    # Features of the projection z.
    config.encoder.projection = 128

    config.batchnorm = ConfigDict()
    # Examples that share statistics, counted over all devices; 0: the whole batch.
    config.batchnorm.group_size = 0

    config.optimizer = ConfigDict()
    # "lars" or "adamw".
    config.optimizer.name = "lars"
    # Peak learning rate for a batch of 256; grows in proportion to batch_size.
    config.optimizer.learning_rate = 1.5
    # "paper" (per epoch, ten epochs of warm-up) or "warmup_cosine" (per step).
    config.optimizer.schedule = "paper"
    # Share of the steps in which "warmup_cosine" rises from 0.
    config.optimizer.warmup_fraction = 0.1
    # Weight decay, of all parameters.
    config.optimizer.weight_decay = 1e-6
    # Momentum and trust coefficient of LARS.
    config.optimizer.momentum = 0.9
    config.optimizer.trust_coefficient = 1e-3

    config.data = ConfigDict()
    # Only "spirograph".
    config.data.name = "spirograph"
    # Seed of the target vectors of all splits.
    config.data.seed = 0
    # Examples per split.
    config.data.train_examples = 100_000
    config.data.validation_examples = 20_000
    config.data.test_examples = 20_000
    # The regression targets; the other parameters are the nuisance.
    config.data.targets = ("m", "b", "sigma", "rfore")
    # Ends of the uniform law of each parameter: lengths, then colours in [0, 1].
    config.data.bounds = ConfigDict()
    config.data.bounds.m = (2.0, 5.0)
    config.data.bounds.b = (0.1, 1.1)
    config.data.bounds.h = (0.5, 2.5)
    config.data.bounds.sigma = (0.25, 1.0)
    for color in ("r", "g", "b"):
        config.data.bounds[color + "fore"] = (0.4, 1.0)
        config.data.bounds[color + "back"] = (0.0, 0.6)
    # Pixels per side, points on the curve, half side of the shown square.
    config.data.image_size = 32
    config.data.num_points = 40
    config.data.extent = 6.0
    # Region whose maximum intensity becomes 1: "row" (the paper's code) or "image".
    config.data.normalization = "row"

    config.checkpoints = ConfigDict()
    # Steps between checkpoints; the last one is always written.
    config.checkpoints.every_steps = 1000
    # Newest checkpoints that are kept.
    config.checkpoints.keep = 2
    # Steps between checkpoints that are kept for good (none if empty).
    config.checkpoints.keep_every_steps = placeholder(int)

    config.logging = ConfigDict()
    # Steps between rows of metrics.jsonl.
    config.logging.every_steps = 100
    # Steps between online probes: ridge error and normalized variance; 0: never.
    config.logging.probe_every_steps = 1000
    # Training and validation examples of the online probe.
    config.logging.probe_train_examples = 4000
    config.logging.probe_validation_examples = 1000

    config.evaluation = ConfigDict()
    # "test", or "validation" to choose settings.
    config.evaluation.split = "test"
    # Numbers M of averaged views, increasing.
    config.evaluation.num_views = (1, 2, 3, 4, 5, 10, 20, 30)
    # L2 weight of the ridge probe.
    config.evaluation.l2 = 1e-8
    # Training examples of the probe (all if empty).
    config.evaluation.train_examples = placeholder(int)
    # Examples per call.
    config.evaluation.batch_size = 1000
    # Views per example and examples from which the variance of n(h) is measured.
    config.evaluation.variance_views = 16
    config.evaluation.variance_examples = 1000
    # Seed of the views that are drawn for evaluation.
    config.evaluation.seed = 0
    return config
