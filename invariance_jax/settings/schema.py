"""Every key of a configuration: type, range, default, unit and meaning, declared once.

The declarations are the source of the checks, the help (`--mode=keys`), the tests of
bad values, the defaults of keys that an older run lacks, and the list of keys that may
change when a run is started again. Files in `configs/` and the command line change
values; they never add a key.
"""

import copy
import operator
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple, TypeVar

from flax.traverse_util import flatten_dict

from invariance_jax.arguments import closest
from invariance_jax.losses.invariance import LIMIT_SHAPES, NORMALIZATIONS
from invariance_jax.models.registry import ENCODERS, PRECISIONS
from invariance_jax.models.resnet import STEMS
from invariance_jax.models.vit import POOLS
from invariance_jax.transforms import spirograph
from invariance_jax.transforms.image import FAMILIES as DIFFERENTIABLE
from invariance_jax.transforms.image import RECIPES
from invariance_jax.types import Json

EXPERIMENTS = (
    "downstream",
    "averaging",
    "invariance",
    "linearization",
    "poincare_ratio",
    "nuisance_prediction",
    "shift",
    "label_fraction",
)
"""The built-in experiments, in the order in which they are measured and reported."""

WITH_SIMILARITIES = ("simclr", "dcl", "moco_v3")
"""The built-in methods whose loss compares each example to all others."""

METHODS = (*WITH_SIMILARITIES, "byol", "simsiam", "barlow_twins", "vicreg", "emp_ssl")
"""The built-in methods."""

WITH_PROBE = ("downstream", "averaging", "shift", "label_fraction")
"""The experiments that need targets or labels."""

_WITH_FEATURES = (*WITH_PROBE, "nuisance_prediction")
_WITH_VARIANCE = ("invariance", "linearization", "poincare_ratio")

MOST = 2**31 - 1
"""The largest value of an integer key without a limit of its own: indices are int32."""

OFF = "off"
"""The value of `compilation_cache` that switches the cache off."""

T = TypeVar("T")


class Key(NamedTuple):
    """The declaration of a key. The text below the declaration is its meaning."""

    name: str  # dotted
    type: Any  # its annotation
    default: Any
    section: type  # the class that declares it
    unit: str = ""
    # The four bounds hold for a number and for each number of a tuple.
    above: float | None = None  # exclusive lower bound
    least: float | None = None  # inclusive lower bound
    below: float | None = None  # exclusive upper bound
    most: float | None = None  # inclusive upper bound
    choices: tuple[str, ...] = ()  # allowed names, of the value or of a tuple's entries
    own: bool = False  # whether MODULE:FUNCTION is allowed in place of a name
    path: bool = False  # whether it is a file or folder; its path is made absolute
    increasing: bool = False  # whether a tuple must be strictly increasing
    empty: bool = False  # whether a tuple may be empty
    free: bool = False  # whether it may change when a run is started again
    readers: tuple[str, ...] | None = None  # experiments that depend on it; None: all


def key(default: T, **options: object) -> T:
    """Returns the field of a key with further options, which are fields of `Key`."""
    if isinstance(default, dict):
        return field(default_factory=lambda: copy.copy(default), metadata=options)
    return field(default=default, metadata=options)


def section(factory: type[T], *, free: bool = False) -> T:
    """Returns the field of a section; `free` holds for all keys of the section."""
    return field(default_factory=factory, metadata={"free": free})


@dataclass(slots=True)
class Method:
    """The self-supervised objective."""

    name: str = key("simclr", choices=METHODS, own=True)
    """Objective: "simclr" (the paper), another method of training.methods, or
    MODULE:FUNCTION, a function that returns a Method."""
    kwargs: dict[str, Any] = key({})
    """Keyword arguments of the method's function, such as widths of the heads, weights
    of loss terms and momentum. Other arguments keep their defaults in training.methods,
    which are the values of the method's paper."""


@dataclass(slots=True)
class Penalty:
    """The invariance penalty."""

    kind: str = key(
        "gradient", choices=("gradient", "consistency", "total_effect", "mixed")
    )
    """The change of n(h) that is squared. "gradient" (the paper): the first-order
    change. Without derivatives, "consistency": the difference of the two views, or
    "total_effect": the change when one parameter is drawn anew, halved after squaring.
    "mixed": first-order along some parameters, full change along the others."""
    weight: float = key(0.01, least=0)
    """Weight of the penalty in the loss, lambda of the paper; 0: no penalty."""
    example_limit: float | None = key(None, least=0)
    """Limit of the penalty of one example in one direction; 0 or None: no limit."""
    batch_limit: float | None = key(None, least=0)
    """Limit of the penalty's batch mean; above, no gradient. 0 or None: no limit."""
    limit_shape: str = key("hard", choices=LIMIT_SHAPES)
    """Penalty q under example_limit c: "hard" min(q, c), "log" c log(1 + q / c)."""
    estimator: str = key("directional", choices=("directional", "sign"))
    """Estimator of the squared derivative: "directional" is its squared norm; "sign"
    (the paper) is its squared projection on random signs, the same in expectation."""
    parameters: tuple[str, ...] = key((), empty=True)
    """Transformation parameters along which the penalty acts, such as "h" (the hole) or
    "rback" of Spirograph, "hue" or "crop.top" of images; (): all, which "consistency"
    needs."""
    parameter_weights: tuple[float, ...] = key((), least=0, empty=True)
    """Relative probability of each of these parameters to be the one that
    "total_effect" draws anew; (): equal."""
    largest_ratio: float = key(3.0, above=0)
    """For "mixed": the first-order change is used along a parameter if its
    derivative-based bound of the total effect is below this multiple of the effect."""
    ratio_every_steps: int = key(50, least=1)
    """For "mixed": steps between two measurements of bound and effect."""
    at: str = key("h")
    """The features that are penalized: the representation "h" (the paper), the
    projection "z", or the output of an encoder block, averaged over its positions:
    "layer3" of a ResNet, "block3" of a vision transformer, "bn2" of the MLP."""
    every_steps: int = key(1, least=1)
    """The penalty is in every n-th step only, with n times its weight; 1: in each."""
    directions: int = key(1, least=1, most=10_000)
    """K, the number of directions alpha' - alpha per example and step."""
    normalization: str = key("l2", choices=NORMALIZATIONS)
    """How the change is normalized: "l2" (the paper) takes that of n(h) = h / |h|,
    "none" that of h, "batch" divides the squared change of h by the total variance of h
    in the batch: shrinking h or collapsing it to a narrow cone does not lower it."""
    warmup_steps: int = key(0, least=0)
    """Steps over which the weight rises linearly from 0."""
    batch_statistics: str = key("coupled", choices=("coupled", "example"))
    """How the derivative along alpha treats batch statistics: "coupled" differentiates
    them, "example" holds them constant."""


@dataclass(slots=True)
class Encoder:
    """The network from images to representations."""

    name: str = key("resnet18", choices=ENCODERS, own=True)
    """Architecture, or MODULE:FUNCTION, a function that returns a flax module."""
    kwargs: dict[str, Any] = key({})
    """Keyword arguments of the function, if encoder.name is MODULE:FUNCTION."""
    stem: str = key("cifar", choices=STEMS)
    """Stem of a ResNet: "cifar" (3x3, stride 1) or "imagenet" (7x7, max-pool)."""
    weights: str | None = key(None, path=True)
    """File with the initial weights, a PyTorch state dict as .npz or .safetensors."""
    width: int | None = key(None, least=1, most=65_536)
    """Channels of the first stage of a ResNet (default 64), or features per layer of
    the MLP (512) or a vision transformer (tiny 192, small 384); None: the default."""
    depth: int | None = key(None, least=1, most=200)
    """Layers of the MLP or blocks of a vision transformer; None: 3 or 12."""
    patch_size: int = key(4, least=1, unit="pixels")
    """Side of the patches of a vision transformer."""
    pool: str = key("token", choices=POOLS)
    """Output of a vision transformer: the class "token" or "mean" of the patches."""
    final: str = key("linear", choices=("linear", "norm_relu"))
    """Last layer of the MLP: "linear", or "norm_relu" with BatchNorm and ReLU."""
    rematerialize: bool = False
    """Whether the backward pass recomputes residual blocks: less memory, more time."""
    projection: int | None = key(None, least=1, most=65_536)
    """Features of the projection z; None: as in the method's paper (simclr: 128)."""


@dataclass(slots=True)
class BatchNorm:
    """Batch normalization of the encoder."""

    group_size: int = key(0, least=0)
    """Examples that share batch statistics, over all devices; 0: the whole batch."""


@dataclass(slots=True)
class Optimizer:
    """Optimizer and learning rate."""

    name: str = key("lars", choices=("lars", "sgd", "adamw"))
    """Optimizer."""
    learning_rate: float = key(1.5, above=0, most=1e6)
    """Peak learning rate at batch size 256; it is multiplied by batch_size / 256."""
    schedule: str = key("paper", choices=("paper", "warmup_cosine"))
    """Learning-rate schedule, a warm-up followed by a cosine: "paper" changes it once
    an epoch, with ten epochs of warm-up; "warmup_cosine" changes it in every step."""
    warmup_fraction: float = key(0.1, least=0, below=1)
    """Fraction of the steps in which "warmup_cosine" rises from 0 to the peak."""
    weight_decay: float = key(1e-6, least=0)
    """Weight decay of all parameters that optimizer.exclude does not name."""
    weight_decay_end: float | None = key(None, least=0)
    """Final weight decay of adamw, reached along half a cosine; None: constant."""
    momentum: float = key(0.9, least=0, below=1)
    """Momentum of LARS and SGD."""
    trust_coefficient: float = key(1e-3, above=0)
    """Trust coefficient of LARS."""
    clip_trust: bool = False
    """Whether LARS replaces the learning rate by its layer-wise rate, at most the
    learning rate (LARC), in place of multiplying the two."""
    exclude: tuple[str, ...] = key((), choices=("bias", "norm"), empty=True)
    """Parameters without weight decay and without the layer-wise rate of LARS: "bias",
    "norm" (scale and bias of normalization layers)."""
    excluded_rate: float = key(1.0, least=0)
    """Learning rate of the excluded parameters, as a multiple of that of the others."""
    clip_norm: float | None = key(None, above=0)
    """Largest norm of the gradient of all parameters together; a larger gradient is
    scaled down. None: no limit."""


@dataclass(slots=True)
class Bounds:
    """Spirograph: lower and upper end of the parameter's uniform distribution."""

    m: tuple[float, float] = key((2.0, 5.0), unit="plane units")
    b: tuple[float, float] = key((0.1, 1.1), unit="plane units")
    h: tuple[float, float] = key((0.5, 2.5), unit="plane units")
    sigma: tuple[float, float] = key((0.25, 1.0), unit="squared plane units")
    rfore: tuple[float, float] = key((0.4, 1.0), unit="intensity")
    rback: tuple[float, float] = key((0.0, 0.6), unit="intensity")
    gfore: tuple[float, float] = key((0.4, 1.0), unit="intensity")
    gback: tuple[float, float] = key((0.0, 0.6), unit="intensity")
    bfore: tuple[float, float] = key((0.4, 1.0), unit="intensity")
    bback: tuple[float, float] = key((0.0, 0.6), unit="intensity")


@dataclass(slots=True)
class Data:
    """The data set."""

    name: str = "spirograph"
    """Data set: "spirograph", an image set that is downloaded ("cifar10", "cifar100",
    "mnist", "fashion_mnist", "svhn_cropped"), or the name of a prepared image set."""
    data_dir: str | None = key(None, path=True, free=True)
    """Folder of the prepared image sets; None: the folder of TensorFlow Datasets."""
    train_examples: int | None = key(100_000, least=1, most=2**30)
    """Number of training examples; None: all images that are not held out."""
    validation_examples: int = key(20_000, least=0, most=2**30)
    """Number of validation examples. Images are held out of the training split."""
    test_examples: int | None = key(20_000, least=1, most=2**30, free=True)
    """Number of test examples; None: all images of the test split."""
    source: str = key("memory", choices=("memory", "stream"), free=True)
    """Where training images are read from: "memory", the memory of each device, or
    "stream", the disk, decoded while the devices compute. The results are the same."""
    store_size: int | None = key(None, unit="pixels", least=1, most=4096)
    """Side of the square to which each image is resized when it is decoded. Area and
    aspect of crops refer to the original image. None: no resize; all images of the set
    must have one size."""
    max_corrupt: int = key(0, least=0, free=True)
    """Number of unreadable images of a split that each process tolerates. Each is
    logged and replaced by the next image of its class. One more stops the run."""
    threads: int | None = key(None, least=1, most=4096, free=True)
    """Number of threads that decode images in each process; None: one per core."""
    prefetch: int = key(4, least=1, most=1000, free=True)
    """Number of batches that a stream decodes ahead of the step."""
    image_size: int | None = key(32, unit="pixels", least=1, most=4096)
    """Side of a view; None: the shorter side of the set's images."""
    num_classes: int | None = key(None, least=1, most=10_000_000)
    """Number of classes of an image set; None: read from the set."""
    source_size: tuple[int, int] | None = key(None, unit="pixels", least=1, most=65_536)
    """Height and width of the images of an image set; None: read from the set."""
    channels: int | None = key(None, least=1, most=3)
    """Number of channels of an image set; None: read from the set."""
    mean: tuple[float, float, float] | None = key(
        None, unit="intensity in [0, 1]", least=0, most=1
    )
    """Mean of each channel of an image set; None: read from the set."""
    std: tuple[float, float, float] | None = key(
        None, unit="intensity in [0, 1]", above=0, most=1
    )
    """Standard deviation of each channel; None: read from the set."""
    seed: int = key(0, least=0, most=2**32 - 1)
    """Spirograph: seed from which the targets of all splits are drawn."""
    targets: tuple[str, ...] = key(
        ("m", "b", "sigma", "rfore"), choices=spirograph.PARAMETERS
    )
    """Spirograph: regression targets. The other parameters are nuisance parameters."""
    bounds: Bounds = section(Bounds)
    num_points: int = key(40, least=2, most=100_000)
    """Spirograph: number of points on the curve."""
    extent: float = key(6.0, unit="plane units", above=0)
    """Spirograph: half the side of the square that an image shows."""
    normalization: str = key("row", choices=spirograph.NORMALIZATIONS)
    """Spirograph: region whose maximum intensity is scaled to 1: each pixel "row" (the
    released code) or the whole "image"."""


@dataclass(slots=True)
class Augmentation:
    """Views of images. These keys have no effect on Spirograph."""

    name: str = key("image", choices=("image",), own=True)
    """Kind of views: "image" has crop, flip, affine map and colours, set by the keys
    below; MODULE:FUNCTION returns a Transformation and reads only kwargs of these."""
    kwargs: dict[str, Any] = key({})
    """Keyword arguments of the function, if augmentation.name is MODULE:FUNCTION."""
    recipe: str = key("simclr_cifar", choices=(*RECIPES,))
    """Published augmentation whose values replace None in this section: "simclr_cifar"
    (the paper), "simclr_imagenet", or "byol_imagenet", whose two views differ."""
    second_view: dict[str, Any] = key({})
    """Probabilities of the second view that differ from those of the first, such as
    blur_probability=0.1. Evaluation uses the probabilities of the first view."""
    differentiate: tuple[str, ...] = key(("color",), choices=DIFFERENTIABLE, empty=True)
    """Operations whose parameters are in alpha, along which the penalty can act."""
    crop: bool = True
    """Whether views are random resized crops."""
    crop_area: tuple[float, float] = key((0.08, 1.0), above=0, most=1)
    """Least and greatest area of a crop, as a fraction of the image's area."""
    crop_aspect: tuple[float, float] = key((3 / 4, 4 / 3), above=0)
    """Least and greatest aspect of a crop, width over height."""
    resampling: str = key("lanczos3", choices=("lanczos3", "bilinear"))
    """Interpolation kernel of the resize."""
    flip: bool = True
    """Whether views are flipped left to right with probability 1/2."""
    rotation: float = key(0.0, unit="radians", least=0)
    """Affine map: the angle of rotation is uniform in [-rotation, rotation]."""
    scaling: float = key(0.0, least=0, below=1)
    """Affine map: the scale factor is uniform in [1 - scaling, 1 + scaling]."""
    shear: float = key(0.0, least=0)
    """Affine map: the slope of the shear is uniform in [-shear, shear]."""
    translation: float = key(0.0, unit="sides of the image", least=0)
    """Affine map: each shift is uniform in [-translation, translation]."""
    colorize: bool = False
    """Whether grey images get random foreground and background colours."""
    strength: float | None = key(None, least=0)
    """Strength s of the colour jitter: factors of brightness, contrast and saturation
    are 1 +- .8 s, the hue shift is +- .2 s turns; None: as the recipe, .5 or 1."""
    jitter_ranges: tuple[float, float, float, float] | None = key(None, least=0)
    """Ranges of brightness, contrast, saturation and hue (turns) at strength 1, in
    place of .8, .8, .8 and .2; None: as the recipe."""
    jitter_probability: float = key(0.8, least=0, most=1)
    """Probability of the colour jitter."""
    gray_probability: float = key(0.2, least=0, most=1)
    """Probability that a view is converted to greyscale."""
    blur_probability: float | None = key(None, least=0, most=1)
    """Probability of the Gaussian blur; None: as the recipe, 0, .5 or 1."""
    blur_sigma: tuple[float, float] = key((0.1, 2.0), unit="pixels", above=0)
    """Least and greatest standard deviation of the blur."""
    solarize_probability: float | None = key(None, least=0, most=1)
    """Probability of solarization, which inverts bright values; None: as the recipe."""
    solarize_threshold: float = key(0.5, least=0, most=1)
    """Smallest value that solarization inverts, in [0, 1]."""
    erase_probability: float = key(0.0, least=0, most=1)
    """Probability that a random box of a view is filled with the mean colour."""
    erase_area: tuple[float, float] = key((0.02, 0.33), above=0, most=1)
    """Least and greatest area of the box, as a fraction of the view's area."""
    more_size: int | None = key(None, unit="pixels", least=1, most=4096)
    """Side of the further views (more_views); None: data.image_size."""
    more_area: tuple[float, float] | None = key(None, above=0, most=1)
    """crop_area of the further views; None: the same as crop_area."""


@dataclass(slots=True)
class Checkpoints:
    """Checkpoints of the training."""

    every_steps: int = key(1000, least=1)
    """Steps between checkpoints. The last step always writes one."""
    keep: int = key(2, least=1)
    """Number of newest checkpoints that are kept."""
    keep_every_steps: int | None = key(None, least=1)
    """Steps between checkpoints that are never removed; the experiment invariance
    measures them too. None: only the newest are kept."""


@dataclass(slots=True)
class Logging:
    """Metrics and traces that a run writes while it trains."""

    every_steps: int = key(100, least=1)
    """Steps between rows of metrics.jsonl."""
    probe_every_steps: int = key(1000, least=0)
    """Steps between online probes, which measure the quality of a probe and the
    normalized variance on validation examples; 0: never."""
    probe_train_examples: int = key(4000, least=1)
    """Number of training examples that the online probe is fitted on."""
    probe_validation_examples: int = key(1000, least=2)
    """Number of validation examples that the online probe is measured on."""
    profile_steps: str = ""
    """Range "a:b" of the steps that are profiled, counted from 0, without step b. The
    trace is written to profile/ in the work directory; empty: none."""
    wandb_project: str | None = None
    """Project of Weights & Biases to which the rows are sent as well. The environment
    variable WANDB_MODE chooses "online" or "offline"; None: no project."""


@dataclass(slots=True)
class Evaluation:
    """Measurements of a trained encoder."""

    experiments: tuple[str, ...] = key(
        ("downstream", "averaging", "invariance"),
        choices=(*EXPERIMENTS, "all"),
        own=True,
        readers=(),
    )
    """Experiments to run: names, "all" built-in ones, or your own MODULE:FUNCTION."""
    split: str = key("test", choices=("validation", "test"))
    """Measured split: "validation" to choose settings, "test" for final numbers."""
    network: str = key("online", choices=("online", "target"))
    """Network that is evaluated, embedded, exported and loaded: "online" is the trained
    one, "target" the exponential moving average of moco_v3 and byol."""
    num_views: tuple[int, ...] = key(
        (1, 2, 3, 4, 5, 10, 20, 30),
        least=1,
        most=100_000,
        increasing=True,
        readers=_WITH_FEATURES,
    )
    """Numbers M of views over which features are averaged."""
    families: tuple[str, ...] = key(
        ("all",), choices=("all", "color", "crop"), readers=("averaging", "invariance")
    )
    """Parts of the transformation from which the averaged views are drawn: "all"; for
    images also "color" alone, or "crop" alone (with flip and affine map)."""
    l2: float = key(1e-8, least=0, readers=WITH_PROBE)
    """L2 weight of the probe: ridge (Spirograph) or logistic regression (images)."""
    l2_grid: tuple[float, ...] = key(
        (), least=0, empty=True, readers=("downstream", "averaging")
    )
    """L2 weights from which a second probe selects the best one on the last tenth of
    the training examples, if the features take less than 4 GB; (): no second probe."""
    lbfgs_steps: tuple[int, ...] = key(
        (), least=1, increasing=True, empty=True, readers=("downstream", "averaging")
    )
    """Spirograph: numbers of L-BFGS steps, from weights 0, after which a probe is
    measured as well; the authors' probe has 500 steps. (): no such probe."""
    train_examples: int | None = key(None, least=1, readers=_WITH_FEATURES)
    """Number of training examples that the probe is fitted on; None: all."""
    test_examples: int | None = key(None, least=2)
    """Number of examples of the split that are measured; None: all."""
    label_fraction: float = key(1.0, above=0, most=1, readers=_WITH_FEATURES)
    """Images: fraction of the labels of each class that the probe is fitted on."""
    neighbors: tuple[int, ...] = key(
        (20, 200), least=1, increasing=True, empty=True, readers=("downstream",)
    )
    """Images: numbers k of neighbours of the kNN probe; (): no kNN probe."""
    neighbor_temperature: float = key(0.07, above=0, readers=("downstream",))
    """Temperature of the weights of the kNN probe's neighbours."""
    baselines: tuple[str, ...] = key(
        (), choices=("pixels", "untrained"), empty=True, readers=("downstream",)
    )
    """Features that are evaluated beside those of the trained encoder: "pixels" of the
    image, or features of the "untrained" encoder."""
    batch_size: int = key(1000, least=1, readers=())
    """Number of examples per device in one call of an evaluation."""
    variance_views: int = key(16, least=2, most=100_000, readers=_WITH_VARIANCE)
    """Number of views per example from which the variance of n(h) is measured."""
    variance_examples: int = key(1000, least=2, readers=_WITH_VARIANCE)
    """Number of examples from which the variance of n(h) is measured."""
    shifts: tuple[tuple[str, str, tuple[float, ...]], ...] = key(
        (
            ("h", "move", (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5)),
            ("background", "move", (0.0, 0.1, 0.2, 0.3, 0.4)),
            ("h", "widen", (1.25, 1.5)),
        ),
        empty=True,
        readers=("shift",),
    )
    """Shifts of the distribution of nuisance parameters: rows (name, kind, values). The
    name is a parameter, "foreground" or "background"; kind "move" adds the value, kind
    "widen" multiplies the distance from the middle by it. For images the row is
    ("color", "strength", values)."""
    label_fractions: tuple[float, ...] = key(
        (0.05, 0.1, 0.2, 0.5, 1.0),
        above=0,
        most=1,
        increasing=True,
        readers=("label_fraction",),
    )
    """Fractions of the training examples on which the experiment label_fraction fits
    its probe: the same in each class (images), or the first ones (Spirograph)."""
    linearization_steps: tuple[float, ...] = key(
        (0.01, 0.03, 0.1, 0.3, 1.0), above=0, most=1, readers=("linearization",)
    )
    """Fractions of the step from alpha to another draw alpha', at which the experiment
    linearization compares the first-order change of n(h) with the true one."""
    nuisance_l2: tuple[float, ...] = key(
        (1e-6, 1e-4, 1e-2, 1.0), least=0, readers=("nuisance_prediction",)
    )
    """L2 weights from which nuisance_prediction selects on held-out examples."""
    seed: int = key(0, least=0, most=2**32 - 1)
    """Seed of the views that are drawn for evaluation."""


@dataclass(slots=True)
class Embedding:
    """Representations that `--mode=embed` writes."""

    splits: tuple[str, ...] = key(
        ("train", "test"), choices=("train", "validation", "test")
    )
    """Splits whose representations are written."""
    num_views: int | None = key(None, least=0, most=100_000)
    """Number of views over which representations are averaged; 0: the plain image.
    None: the plain image, or one view for Spirograph, which has no plain image."""


@dataclass(slots=True)
class Config:
    """A configuration. The defaults are the paper's Spirograph run without a length."""

    seed: int = key(0, least=0, most=2**32 - 1)
    """Seed of initialization, data order and views."""
    seeds: int = key(1, least=1, most=10_000, free=True)
    """Number of runs, with seeds seed, seed + 1, ...; results have standard errors."""
    batch_size: int = key(512, least=2)
    """Number of examples per step, over all devices."""
    epochs: int | None = key(None, unit="epochs", least=1)
    """Length of training. Exactly one of steps and epochs must be set."""
    steps: int | None = key(None, unit="steps", least=1)
    """Length of training. Exactly one of steps and epochs must be set."""
    temperature: float = key(0.5, above=0)
    """Temperature of the loss of simclr, dcl and moco_v3; the others have none."""
    precision: str = key("float32", choices=tuple(PRECISIONS))
    """Dtype of the encoder's matrix products, convolutions and activations: "float32",
    where GPUs round products to TF32 and TPUs to bfloat16, or "bfloat16". All else is
    in float32."""
    steps_per_call: int = key(100, least=1, free=True)
    """Largest number of training steps in one call to the devices."""
    deterministic: bool = False
    """Whether GPUs use deterministic operations only, so that a run repeats bit by bit
    (on CPUs and TPUs it always does)."""
    compilation_cache: str | None = key(None, path=True, free=True)
    """Folder in which compiled programs are kept for the next start; "off": they are
    not kept. None: the user's cache folder."""
    average_views: int = key(1, least=1, most=100)
    """Number of views on each side of the loss whose representations are averaged. The
    penalty acts on the first view."""
    more_views: int = key(0, least=0, most=100)
    """Number of further views of each example (multi-crop), without a penalty. Each
    replaces one of the two main views in a loss of its own; emp_ssl takes all views as
    its patches."""
    microbatches: int = key(1, least=1)
    """Number of parts of a device's share of the batch that are encoded one after the
    other to save memory. The loss is of the whole batch. The gradient is exact if
    batchnorm.group_size divides a part or the encoder has no batch normalization."""
    similarity_block: int = key(0, least=0)
    """Anchors of the loss whose similarities are in memory at once; 0: all."""
    method: Method = section(Method)
    penalty: Penalty = section(Penalty)
    encoder: Encoder = section(Encoder)
    batchnorm: BatchNorm = section(BatchNorm)
    optimizer: Optimizer = section(Optimizer)
    data: Data = section(Data)
    augmentation: Augmentation = section(Augmentation)
    checkpoints: Checkpoints = section(Checkpoints, free=True)
    logging: Logging = section(Logging, free=True)
    evaluation: Evaluation = section(Evaluation, free=True)
    embedding: Embedding = section(Embedding, free=True)


class Derived(NamedTuple):
    """Quantities that `rules.resolve` computes from the keys."""

    steps: int  # of the whole run
    steps_per_epoch: int  # full batches in one pass over the training examples
    peak_learning_rate: float  # scaled by the batch size
    profile_steps: tuple[int, ...]  # (first profiled step, step after the last); or ()


@dataclass(slots=True)
class Settings(Config):
    """A configuration that `resolve` has checked and completed."""

    derived: Derived = field(default=Derived(0, 0, 0.0, ()))


def _keys(defaults: Any, prefix: str, free: bool) -> Iterator[Key]:
    """Yields the declarations of a configuration or section, nested ones included."""
    for entry in fields(defaults):
        value, name = getattr(defaults, entry.name), prefix + entry.name
        options = {**entry.metadata, "free": free or entry.metadata.get("free", False)}
        if is_dataclass(value):
            yield from _keys(value, f"{name}.", options["free"])
        else:
            yield Key(name, entry.type, value, type(defaults), **options)


KEYS: dict[str, Key] = {key.name: key for key in _keys(Config(), "", False)}
"""Dotted name -> declaration, of every key."""

SECTIONS = {
    name.rpartition(".")[0]: key.section for name, key in KEYS.items() if "." in name
}
"""Dotted name -> class, of every section; outer sections precede inner ones."""


def get(config: Config, name: str) -> Any:
    """Returns the value of a key or section, given its dotted name."""
    return operator.attrgetter(name)(config)


def flatten(config: Config) -> dict[str, Any]:
    """Returns dotted name -> value of every key of a configuration."""
    return {name: get(config, name) for name in KEYS}


def change(config: Config, name: str, value: object) -> None:
    """Sets a key of a configuration. The value is not checked until `resolve`."""
    if name not in KEYS:
        raise ValueError(f"{name} is not a key; {closest(name, KEYS)}.")
    *sections, last = name.split(".")
    setattr(get(config, ".".join(sections)) if sections else config, last, value)


def to_dict(config: Config) -> Json:
    """Returns a configuration as nested dictionaries, without derived quantities."""
    nested = asdict(config)
    nested.pop("derived", None)
    return nested


GONE = {"penalty.views": 1}
"""Removed keys that older runs may have -> the only value that is still accepted."""


def from_dict(nested: Json) -> Config:
    """Returns the configuration in nested dictionaries, such as those read from JSON.

    A missing key, which was added after the run, has its default.
    """
    config = Config()

    def is_key(path: tuple[str, ...], _: object) -> bool:
        return ".".join(path) in KEYS  # whose value may be a dictionary

    for name, value in flatten_dict({**nested}, is_leaf=is_key, sep=".").items():
        if name not in GONE:
            change(config, name, tuples(value))
        elif value != GONE[name]:
            raise ValueError(
                f"{name} is {value!r}, which this version does not support; "
                f"expected {GONE[name]!r}"
            )
    return config


def tuples(tree: Any) -> Any:
    """Returns a tree in which every list, as JSON reads a tuple, is a tuple."""
    if isinstance(tree, dict):
        return {name: tuples(value) for name, value in tree.items()}
    return tuple(map(tuples, tree)) if isinstance(tree, list | tuple) else tree
