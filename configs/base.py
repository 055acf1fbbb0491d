"""Every key of a configuration, with its default, meaning and unit.

The other files in this folder change values, they never add a key. Keys that default to
a placeholder are optional: empty unless a value is given.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the configuration with all keys; a length must be added.

    The defaults are those of the paper's Spirograph run.
    """
    config = ConfigDict()

    # Seed of initialization, data order and views.
    config.seed = 0
    # Number of runs, with seeds seed, seed + 1, ..., aggregated with a standard error.
    config.seeds = 1
    # Whether the seeds of an MLP train as one on a machine with one device, if they fit
    # into its memory.
    config.seeds_together = True
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
    # Whether GPUs use only operations that repeat their bits (CPUs and TPUs always do).
    config.deterministic = False
    # Folder in which compiled programs are kept for the next start; "off": none (if
    # empty: JAX's own if that is configured, else compilation_cache/ in the work
    # directory).
    config.compilation_cache = placeholder(str)

    # K, views on each side of the contrastive loss whose representations are averaged,
    # each with batch statistics of its own; the penalty acts on the first of each side.
    config.average_views = 1
    # Parts into which each device splits its share of the batch, one after the other in
    # memory; the contrastive loss still has all negatives. Exact where
    # batchnorm.group_size divides a part, or nothing normalizes. Not with penalty.at
    # "z" or penalty.normalization "batch", which need the whole batch.
    config.microbatches = 1
    # Anchors per block of the contrastive loss's similarities; 0: all at once.
    config.similarity_block = 0

    config.penalty = ConfigDict()
    # "gradient" (the paper), or "consistency": the squared distance of n(h) of the two
    # views, without a derivative.
    config.penalty.kind = "gradient"
    # Weight of the invariance penalty in the loss, lambda of the paper; 0 is SimCLR.
    config.penalty.weight = 0.01
    # Largest value of one example's penalty in one direction (0 or empty: none).
    config.penalty.example_limit = placeholder(float)
    # Largest value of the batch mean; above it the gradient is zero (0 or empty: none).
    config.penalty.batch_limit = placeholder(float)
    # "hard" cuts an example's penalty off at the limit c, "smooth" is q / (1 + q / c).
    config.penalty.limit_shape = "hard"
    # "directional" is the squared derivative, "sign" (the paper) that of one random
    # sign projection, the same in expectation.
    config.penalty.estimator = "directional"
    # Names of the parameters along which the derivative is taken (all if empty), as
    # "h" or "rback" of Spirograph, "hue" or "crop.top" of images.
    config.penalty.parameters = ()
    # Where the penalty acts: "h" (the paper) or the projection "z".
    config.penalty.at = "h"
    # Views that are penalized: 1 (the paper) or 2, of which the mean is taken.
    config.penalty.views = 1
    # Share of the examples that are penalized: 1, 1/2, 1/3, ... (every n-th one).
    config.penalty.fraction = 1.0
    # Steps from one with the penalty, n times as heavy, to the next; 1: every step.
    config.penalty.every_steps = 1
    # K, directions alpha' - alpha per example and step.
    config.penalty.directions = 1
    # "l2" (the paper), "none" or "batch": what the squared change is measured against.
    config.penalty.normalization = "l2"
    # Steps over which the weight rises linearly from 0.
    config.penalty.warmup_steps = 0
    # "coupled" differentiates batch statistics along alpha, "example" holds them (at
    # "z" those of the head too).
    config.penalty.batch_statistics = "coupled"

    config.encoder = ConfigDict()
    # "resnet18", "resnet34", "resnet50" or "mlp".
    config.encoder.name = "resnet18"
    # First layers of a ResNet: "cifar" (3x3, stride 1) or "imagenet" (7x7, max-pool).
    config.encoder.stem = "cifar"
    # File of a PyTorch state dict to start from, .npz or .safetensors (none if empty).
    config.encoder.weights = placeholder(str)
    # Features per layer, layers, and end of the MLP: "linear" or "norm_relu".
    config.encoder.width = 512
    config.encoder.depth = 3
    config.encoder.final = "linear"
    # Whether the backward pass computes the activations within each residual block
    # again instead of keeping them: less memory, more time.
    config.encoder.rematerialize = False
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
    # "spirograph", or a TFDS image set: "cifar10", "cifar100", "mnist",
    # "fashion_mnist", "svhn_cropped" or one that has been prepared.
    config.data.name = "spirograph"
    # Folder of the prepared image sets (that of TFDS if empty).
    config.data.data_dir = placeholder(str)
    # Examples per split. Images: all if empty; the validation split is held out of the
    # training split.
    config.data.train_examples = 100_000
    config.data.validation_examples = 20_000
    config.data.test_examples = 20_000
    # Pixels per side of a view (images: those of the set if empty).
    config.data.image_size = 32
    # Of an image set, read from it if empty: number of classes, pixels (rows, columns),
    # mean and standard deviation of each channel in [0, 1].
    config.data.num_classes = placeholder(int)
    config.data.source_size = placeholder(tuple)
    config.data.mean = placeholder(tuple)
    config.data.std = placeholder(tuple)
    # Spirograph, to the end of this section. Seed of the target vectors of all splits.
    config.data.seed = 0
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
    # Points on the curve, half side of the shown square.
    config.data.num_points = 40
    config.data.extent = 6.0
    # Region whose maximum intensity becomes 1: "row" (the paper's code) or "image".
    config.data.normalization = "row"

    # Views of images; Spirograph reads none of this section.
    config.augmentation = ConfigDict()
    # What is differentiated: some of "crop", "affine", "colorize", "color".
    config.augmentation.differentiate = ("color",)
    # Random resized crop: share of the area, width over height, resampling ("lanczos3"
    # or "bilinear").
    config.augmentation.crop = True
    config.augmentation.crop_area = (0.08, 1.0)
    config.augmentation.crop_aspect = (3 / 4, 4 / 3)
    config.augmentation.resampling = "lanczos3"
    # Horizontal flip, of every second view.
    config.augmentation.flip = True
    # Half widths of an affine map about the identity: angle in radians, scale, shear,
    # shift in sides of the image.
    config.augmentation.rotation = 0.0
    config.augmentation.scaling = 0.0
    config.augmentation.shear = 0.0
    config.augmentation.translation = 0.0
    # Random foreground and background colours for a grey image.
    config.augmentation.colorize = False
    # Colour jitter: brightness, contrast, saturation 1 +- .8 strength, hue +- .2
    # strength turns; shares of the views that are jittered, and that are made grey.
    config.augmentation.strength = 0.5
    config.augmentation.jitter_probability = 0.8
    config.augmentation.gray_probability = 0.2

    config.checkpoints = ConfigDict()
    # Steps between checkpoints; the last one is always written.
    config.checkpoints.every_steps = 1000
    # Newest checkpoints that are kept.
    config.checkpoints.keep = 2
    # Steps between checkpoints that are kept for good, which "invariance" measures too
    # (none if empty).
    config.checkpoints.keep_every_steps = placeholder(int)

    config.logging = ConfigDict()
    # Steps between rows of metrics.jsonl.
    config.logging.every_steps = 100
    # Steps between online probes: error (images: accuracy) and normalized variance; 0:
    # never.
    config.logging.probe_every_steps = 1000
    # Training and validation examples of the online probe.
    config.logging.probe_train_examples = 4000
    config.logging.probe_validation_examples = 1000
    # Steps "a:b", from a to before b and counted from 0, of which a trace is written to
    # profile/ in the work directory (none if empty).
    config.logging.profile_steps = ""
    # Project of Weights & Biases that also gets the rows (none if empty); WANDB_MODE in
    # the environment chooses "online" or "offline".
    config.logging.wandb_project = placeholder(str)

    config.evaluation = ConfigDict()
    # What is measured: some of "downstream", "averaging", "invariance",
    # "linearization", "nuisance_prediction", "shift", "label_fraction" of the trained
    # encoder, and of the comparisons of short runs (section studies) "penalty_weight",
    # "directions", "limits", "normalization", "placement", "savings",
    # "baselines"; or "all".
    config.evaluation.experiments = ("downstream", "averaging", "invariance")
    # "test", or "validation" to choose settings.
    config.evaluation.split = "test"
    # Numbers M of averaged views, increasing.
    config.evaluation.num_views = (1, 2, 3, 4, 5, 10, 20, 30)
    # Views that are averaged: "all", and of images also "color" and "crop" (with flip
    # and affine map).
    config.evaluation.families = ("all",)
    # L2 weight of the probe: ridge, for images logistic.
    config.evaluation.l2 = 1e-8
    # L2 weights among which a second probe chooses its own, on the last tenth of the
    # training examples; (): there is none.
    config.evaluation.l2_grid = ()
    # Training examples of the probe (all if empty).
    config.evaluation.train_examples = placeholder(int)
    # Examples of the split on which the probe is measured (all if empty).
    config.evaluation.test_examples = placeholder(int)
    # Images: share of the labels that the probe sees, the same in each class.
    config.evaluation.label_fraction = 1.0
    # Images: neighbours k of the kNN probe, and temperature of its weights.
    config.evaluation.neighbors = (20, 200)
    config.evaluation.neighbor_temperature = 0.07
    # What is evaluated beside the encoder, some of "pixels", "untrained".
    config.evaluation.baselines = ()
    # Examples per call.
    config.evaluation.batch_size = 1000
    # Views per example and examples from which the variance of n(h) is measured.
    config.evaluation.variance_views = 16
    config.evaluation.variance_examples = 1000
    # Shifts of the law of a parameter, rows (what, how, values): what is a parameter,
    # "foreground" or "background"; "move" adds a value to it, "widen" multiplies the
    # distance from the middle of its law. Of images ("color", "strength", values).
    config.evaluation.shifts = (
        ("h", "move", (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5)),
        ("background", "move", (0.0, 0.1, 0.2, 0.3, 0.4)),
        ("h", "widen", (1.25, 1.5)),
    )
    # Shares of the training examples that the probe of "label_fraction" sees: of images
    # the same in each class, of Spirograph the first ones.
    config.evaluation.label_fractions = (0.05, 0.1, 0.2, 0.5, 1.0)
    # Lengths of the step from alpha to another draw, as shares of it, at which
    # "linearization" compares the first-order change with the true one.
    config.evaluation.linearization_steps = (0.01, 0.03, 0.1, 0.3, 1.0)
    # L2 weights among which "nuisance_prediction" chooses on held-out examples.
    config.evaluation.nuisance_l2 = (1e-6, 1e-4, 1e-2, 1.0)
    # Seed of the views that are drawn for evaluation.
    config.evaluation.seed = 0

    config.studies = ConfigDict()
    # Steps of each run of a study.
    config.studies.steps = 500
    # The split on which the runs of a study are evaluated, and how many examples their
    # probes are fitted on and measured on.
    config.studies.split = "validation"
    config.studies.train_examples = 10_000
    config.studies.test_examples = 5000
    # Weights of "penalty_weight"; 0 is always one of them.
    config.studies.weights = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)

    config.embedding = ConfigDict()
    # Splits whose representations `--mode=embed` writes.
    config.embedding.splits = ("train", "test")
    # Averaged views; 0: the plain image.
    config.embedding.num_views = 1
    return config
