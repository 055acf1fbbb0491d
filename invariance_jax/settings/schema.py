"""Every key of a configuration: type, range, default, unit and meaning, declared once.

Checks, help (`--mode=keys`), the tests of bad values, the defaults of keys that an
older run lacks and what may change between two starts of a run follow from it.
Files in `configs/` and the command line change values; they never add a key.
"""

import copy
import difflib
import operator
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple, TypeVar

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
"""The built-in methods that compare each example to all others."""

METHODS = (*WITH_SIMILARITIES, "byol", "simsiam", "barlow_twins", "vicreg", "emp_ssl")
"""The built-in methods."""

WITH_PROBE = ("downstream", "averaging", "shift", "label_fraction")
"""The experiments that need targets or labels."""

_WITH_FEATURES = (*WITH_PROBE, "nuisance_prediction")
_OF_VIEWS = ("invariance", "linearization", "poincare_ratio")

MOST = 2**31 - 1
"""The largest integer of a key, unless it says another: indices are int32."""

OFF = "off"
"""The value of `compilation_cache` that keeps nothing."""

T = TypeVar("T")


class Key(NamedTuple):
    """The declaration of a key; its meaning is the text below it."""

    name: str  # dotted
    type: Any  # its annotation
    default: Any
    section: type  # the class that declares it
    unit: str = ""
    above: float | None = None  # numbers, also those of a tuple, are greater than this
    least: float | None = None  # or this
    below: float | None = None  # less than this
    most: float | None = None  # or this
    choices: tuple[str, ...] = ()  # the names that it, or an entry of a tuple, may be
    own: bool = False  # whether MODULE:FUNCTION may stand in place of a name
    path: bool = False  # whether it is a file or folder, made absolute
    increasing: bool = False  # whether the entries of a tuple increase
    empty: bool = False  # whether a tuple may be empty
    free: bool = False  # whether it may change between two starts of a run
    readers: tuple[str, ...] | None = None  # experiments that it changes; None: all


def key(default: T, **options: object) -> T:
    """Declares a key that has more than a type and a default: options of `Key`."""
    if isinstance(default, dict):
        return field(default_factory=lambda: copy.copy(default), metadata=options)
    return field(default=default, metadata=options)


def section(factory: type[T], *, free: bool = False) -> T:
    """Declares a section; the keys of a free one may change between two starts."""
    return field(default_factory=factory, metadata={"free": free})


@dataclass(slots=True)
class Method:
    """The self-supervised objective."""

    name: str = key("simclr", choices=METHODS, own=True)
    """Objective: "simclr" (the paper) or another of training.methods, or
    MODULE:FUNCTION, which returns a Method."""
    kwargs: dict[str, Any] = key({})
    """Keyword arguments of the function of this name: widths of the heads, weights,
    momentum; what is not given is its paper's, as training.methods declares it."""


@dataclass(slots=True)
class Penalty:
    """The invariance penalty."""

    kind: str = key(
        "gradient", choices=("gradient", "consistency", "total_effect", "mixed")
    )
    """What it squares: "gradient" (the paper); without a derivative "consistency", the
    distance of n(h) of the two views, or "total_effect", half of it where one parameter
    is drawn anew; or "mixed", the gradient along some parameters and the full change
    along the others, as largest_ratio says."""
    weight: float = key(0.01, least=0)
    """Weight in the loss, lambda of the paper; 0: no penalty."""
    example_limit: float | None = key(None, least=0)
    """Largest penalty of one example in one direction; 0: no limit."""
    batch_limit: float | None = key(None, least=0)
    """Largest batch mean, above which its gradient is zero; 0: no limit."""
    limit_shape: str = key("hard", choices=LIMIT_SHAPES)
    """How example_limit c acts on a penalty q: "hard" cuts it off at c, "log" is
    c log(1 + q / c)."""
    estimator: str = key("directional", choices=("directional", "sign"))
    """What is squared: "directional", the derivative; "sign" (the paper), that of one
    random sign projection, the same in expectation."""
    parameters: tuple[str, ...] = key((), empty=True)
    """Parameters along which it is taken, as "h" or "rback" of Spirograph, "hue" or
    "crop.top" of images; (): all, as "consistency" needs."""
    parameter_weights: tuple[float, ...] = key((), least=0, empty=True)
    """How often "total_effect" draws each of these parameters, relative to the others;
    (): all alike."""
    largest_ratio: float = key(3.0, above=0)
    """Of "mixed": the gradient is taken along parameters whose derivative bound of the
    total effect is less than so many times the effect itself."""
    ratio_every_steps: int = key(50, least=1)
    """Of "mixed": steps from one measurement of this ratio to the next."""
    at: str = key("h")
    """Where it acts: the representation "h" (the paper), the projection "z", or a block
    of the encoder, the mean over its places: "layer3" of a ResNet, "block3" of a vision
    transformer, "bn2" of the MLP."""
    every_steps: int = key(1, least=1)
    """Steps from one with the penalty, n times as heavy, to the next."""
    directions: int = key(1, least=1, most=10_000)
    """K, directions alpha' - alpha per example and step."""
    normalization: str = key("l2", choices=NORMALIZATIONS)
    """What the change is measured against: "l2" (the paper), "none", or "batch", the
    total variance of h: a ratio that neither shrinking nor a cone of h lowers."""
    warmup_steps: int = key(0, least=0)
    """Steps over which the weight rises linearly from 0."""
    batch_statistics: str = key("coupled", choices=("coupled", "example"))
    """Along alpha, "coupled" differentiates batch statistics, "example" holds them."""


@dataclass(slots=True)
class Encoder:
    """The network from images to representations."""

    name: str = key("resnet18", choices=ENCODERS, own=True)
    """Architecture, or MODULE:FUNCTION, which returns a flax module."""
    kwargs: dict[str, Any] = key({})
    """Keyword arguments of encoder.name, if it is MODULE:FUNCTION."""
    stem: str = key("cifar", choices=STEMS)
    """Start of a ResNet: "cifar" (3x3, stride 1) or "imagenet" (7x7, max-pool)."""
    weights: str | None = key(None, path=True)
    """File of a PyTorch state dict to start from, .npz or .safetensors."""
    width: int | None = key(None, least=1, most=65_536)
    """Channels of the first stage of a ResNet (64), features per layer of the MLP (512)
    or of a vision transformer (192, 384); None: those."""
    depth: int | None = key(None, least=1, most=200)
    """Layers of the MLP (3) or blocks of a vision transformer (12); None: those."""
    patch_size: int = key(4, least=1, unit="pixels")
    """Side of the patches of a vision transformer."""
    pool: str = key("token", choices=POOLS)
    """End of a vision transformer: the class "token" or the "mean" of the patches."""
    final: str = key("linear", choices=("linear", "norm_relu"))
    """End of the MLP: "linear" or "norm_relu"."""
    rematerialize: bool = False
    """Whether the backward pass computes the activations within a residual block again:
    less memory, more time."""
    projection: int | None = key(None, least=1, most=65_536)
    """Features of the projection z; None: the method's paper's (simclr: 128)."""


@dataclass(slots=True)
class BatchNorm:
    """Batch normalization of the encoder."""

    group_size: int = key(0, least=0)
    """Examples that share statistics, counted over all devices; 0: the whole batch."""


@dataclass(slots=True)
class Optimizer:
    """Optimizer and learning rate."""

    name: str = key("lars", choices=("lars", "sgd", "adamw"))
    """Optimizer."""
    learning_rate: float = key(1.5, above=0, most=1e6)
    """Peak learning rate for a batch of 256; it grows in proportion to batch_size."""
    schedule: str = key("paper", choices=("paper", "warmup_cosine"))
    """Form: "paper" (per epoch, ten of them warm-up) or "warmup_cosine" (per step)."""
    warmup_fraction: float = key(0.1, least=0, below=1)
    """Share of the steps in which "warmup_cosine" rises from 0."""
    weight_decay: float = key(1e-6, least=0)
    """Weight decay of all parameters."""
    weight_decay_end: float | None = key(None, least=0)
    """Where the weight decay of adamw ends, half a cosine from where it begins; None:
    it stays."""
    momentum: float = key(0.9, least=0, below=1)
    """Momentum of LARS and SGD."""
    trust_coefficient: float = key(1e-3, above=0)
    """Trust coefficient of LARS."""
    clip_trust: bool = False
    """Whether the layer-wise rate of LARS stands in place of the learning rate, which
    limits it (LARC)."""
    exclude: tuple[str, ...] = key((), choices=("bias", "norm"), empty=True)
    """Parameters without weight decay and without the layer-wise rate of LARS: "bias",
    "norm" (scale and bias of normalization)."""
    excluded_rate: float = key(1.0, least=0)
    """Learning rate of these parameters over that of the others."""
    clip_norm: float | None = key(None, above=0)
    """Largest norm of the gradient of all parameters; None: no limit."""


@dataclass(slots=True)
class Bounds:
    """Spirograph: ends of the uniform distribution of each parameter."""

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
    """The set "spirograph", or images: "cifar10", "cifar100", "mnist", "fashion_mnist",
    "svhn_cropped" or a set that was prepared."""
    data_dir: str | None = key(None, path=True, free=True)
    """Folder of the prepared image sets."""
    train_examples: int | None = key(100_000, least=1, most=2**30)
    """Training examples; None: all images that are not held out."""
    validation_examples: int = key(20_000, least=0, most=2**30)
    """Validation examples; images are held out of the training split."""
    test_examples: int | None = key(20_000, least=1, most=2**30, free=True)
    """Test examples; None: all images."""
    source: str = key("memory", choices=("memory", "stream"), free=True)
    """Where the training images are: "memory", that of each device, or "stream", on
    disk; they are decoded while the devices compute. Both give the same numbers."""
    store_size: int | None = key(None, unit="pixels", least=1, most=4096)
    """Side S of a square that each image is squashed to when it is decoded; crops keep
    to the aspect that it had. None: the images of the set have one size."""
    max_corrupt: int = key(0, least=0, free=True)
    """Images of a split that may be unreadable, counted in each process from its start:
    each is named, and the next one of its class stands in its place. More of them stop
    the run."""
    threads: int | None = key(None, least=1, most=4096, free=True)
    """Threads that decode images in each process; None: one for each core."""
    prefetch: int = key(4, least=1, most=1000, free=True)
    """Batches that a stream decodes ahead of the step."""
    image_size: int | None = key(32, unit="pixels", least=1, most=4096)
    """Side of a view; None: the shorter side of the set's images."""
    num_classes: int | None = key(None, least=1, most=10_000_000)
    """Classes of an image set; None: read from it."""
    source_size: tuple[int, int] | None = key(None, unit="pixels", least=1, most=65_536)
    """Rows and columns of an image set; None: read from it."""
    channels: int | None = key(None, least=1, most=3)
    """Channels of an image set; None: read from it."""
    mean: tuple[float, float, float] | None = key(
        None, unit="intensity in [0, 1]", least=0, most=1
    )
    """Mean of each channel of an image set; None: read from it."""
    std: tuple[float, float, float] | None = key(
        None, unit="intensity in [0, 1]", above=0, most=1
    )
    """Standard deviation of each channel; None: read from the set."""
    seed: int = key(0, least=0, most=2**32 - 1)
    """Spirograph: seed of the targets."""
    targets: tuple[str, ...] = key(
        ("m", "b", "sigma", "rfore"), choices=spirograph.PARAMETERS
    )
    """Spirograph: the regression targets; the other parameters are the nuisance."""
    bounds: Bounds = section(Bounds)
    num_points: int = key(40, least=2, most=100_000)
    """Spirograph: points on the curve."""
    extent: float = key(6.0, unit="plane units", above=0)
    """Spirograph: half side of the shown square."""
    normalization: str = key("row", choices=spirograph.NORMALIZATIONS)
    """Spirograph: where the maximum intensity becomes 1, "row" (the released code) or
    "image"."""


@dataclass(slots=True)
class Augmentation:
    """Views of images; Spirograph reads none of these keys."""

    name: str = key("image", choices=("image",), own=True)
    """Views: "image", with crop, flip, affine map and colours as the keys below say; or
    MODULE:FUNCTION, which returns a Transformation and reads none of them."""
    kwargs: dict[str, Any] = key({})
    """Keyword arguments of augmentation.name, if it is MODULE:FUNCTION."""
    recipe: str = key("simclr_cifar", choices=(*RECIPES,))
    """Whose values take the place of None in this section: "simclr_cifar" (the paper's
    own), "simclr_imagenet" or "byol_imagenet", whose two views differ."""
    second_view: dict[str, Any] = key({})
    """Probabilities of the second view that are not those of the first, such as
    blur_probability=0.1; evaluation draws first views."""
    differentiate: tuple[str, ...] = key(("color",), choices=DIFFERENTIABLE, empty=True)
    """Parts that are differentiated."""
    crop: bool = True
    """Whether views are random resized crops."""
    crop_area: tuple[float, float] = key((0.08, 1.0), above=0, most=1)
    """Ends of the crop's share of the area."""
    crop_aspect: tuple[float, float] = key((3 / 4, 4 / 3), above=0)
    """Ends of the crop's width over height."""
    resampling: str = key("lanczos3", choices=("lanczos3", "bilinear"))
    """Kernel of the resize."""
    flip: bool = True
    """Whether every second view is flipped horizontally."""
    rotation: float = key(0.0, unit="radians", least=0)
    """Half width of the angle of the affine map."""
    scaling: float = key(0.0, least=0, below=1)
    """Half width of its scale about 1."""
    shear: float = key(0.0, least=0)
    """Half width of its shear."""
    translation: float = key(0.0, unit="sides of the image", least=0)
    """Half width of its shift."""
    colorize: bool = False
    """Whether grey images get random foreground and background colours."""
    strength: float | None = key(None, least=0)
    """Colour jitter: brightness, contrast and saturation 1 +- .8 strength, hue +- .2
    strength turns; None: the recipe's, .5 or 1."""
    jitter_ranges: tuple[float, float, float, float] | None = key(None, least=0)
    """The .8, .8, .8 and .2 of the colour jitter; None: the recipe's."""
    jitter_probability: float = key(0.8, least=0, most=1)
    """Share of the views that are jittered."""
    gray_probability: float = key(0.2, least=0, most=1)
    """Share of the views that are made grey."""
    blur_probability: float | None = key(None, least=0, most=1)
    """Share of the views that are blurred; None: the recipe's, 0, .5 or 1."""
    blur_sigma: tuple[float, float] = key((0.1, 2.0), unit="pixels", above=0)
    """Ends of the standard deviation of the blur."""
    solarize_probability: float | None = key(None, least=0, most=1)
    """Share of the views of which bright values are inverted; None: the recipe's."""
    solarize_threshold: float = key(0.5, least=0, most=1)
    """The value from which on solarization inverts."""
    erase_probability: float = key(0.0, least=0, most=1)
    """Share of the views of which a box is filled with the mean colour."""
    erase_area: tuple[float, float] = key((0.02, 0.33), above=0, most=1)
    """Ends of that box's share of the area."""
    more_size: int | None = key(None, unit="pixels", least=1, most=4096)
    """Side of the views of more_views; None: data.image_size."""
    more_area: tuple[float, float] | None = key(None, above=0, most=1)
    """Ends of the share of the area of their crops; None: crop_area."""


@dataclass(slots=True)
class Checkpoints:
    """What is kept of the training."""

    every_steps: int = key(1000, least=1)
    """Steps between checkpoints; the last one is always written."""
    keep: int = key(2, least=1)
    """Newest checkpoints that are kept."""
    keep_every_steps: int | None = key(None, least=1)
    """Steps between checkpoints that are kept for good, which the experiment invariance
    measures too; None: none."""


@dataclass(slots=True)
class Logging:
    """What is written while a run trains."""

    every_steps: int = key(100, least=1)
    """Steps between rows of metrics.jsonl."""
    probe_every_steps: int = key(1000, least=0)
    """Steps between online probes (quality, normalized variance); 0: never."""
    probe_train_examples: int = key(4000, least=1)
    """Training examples of the online probe."""
    probe_validation_examples: int = key(1000, least=2)
    """Validation examples of the online probe."""
    profile_steps: str = ""
    """Steps "a:b", from a to before b and counted from 0, of which a trace is written
    to profile/ in the work directory; empty: none."""
    wandb_project: str | None = None
    """Project of Weights & Biases that also gets the rows; WANDB_MODE in the
    environment chooses "online" or "offline"."""


@dataclass(slots=True)
class Evaluation:
    """What is measured of a trained encoder."""

    experiments: tuple[str, ...] = key(
        ("downstream", "averaging", "invariance"),
        choices=(*EXPERIMENTS, "all"),
        own=True,
        readers=(),
    )
    """What is measured; "all": every built-in experiment; MODULE:FUNCTION: one of your
    own."""
    split: str = key("test", choices=("validation", "test"))
    """The split: "test", or "validation" to choose settings."""
    network: str = key("online", choices=("online", "target"))
    """The network that is evaluated, embedded, exported and loaded: "online", or
    "target", the exponential average that moco_v3 and byol have."""
    num_views: tuple[int, ...] = key(
        (1, 2, 3, 4, 5, 10, 20, 30),
        least=1,
        most=100_000,
        increasing=True,
        readers=_WITH_FEATURES,
    )
    """Numbers M of averaged views."""
    families: tuple[str, ...] = key(
        ("all",), choices=("all", "color", "crop"), readers=("averaging", "invariance")
    )
    """Views that are averaged: "all", and of images "color" and "crop" (with flip and
    affine map)."""
    l2: float = key(1e-8, least=0, readers=WITH_PROBE)
    """L2 weight of the probe: ridge, for images logistic."""
    l2_grid: tuple[float, ...] = key(
        (), least=0, empty=True, readers=("downstream", "averaging")
    )
    """L2 weights among which a second probe chooses its own, on the last tenth of the
    training examples, if features take less than 4 GB; (): there is none."""
    lbfgs_steps: tuple[int, ...] = key(
        (), least=1, increasing=True, empty=True, readers=("downstream", "averaging")
    )
    """Spirograph: steps of L-BFGS from 0 after which the probe is measured as well, 500
    for the authors'; (): after none."""
    train_examples: int | None = key(None, least=1, readers=_WITH_FEATURES)
    """Training examples of the probe; None: all."""
    test_examples: int | None = key(None, least=2)
    """Examples of the split that are measured; None: all."""
    label_fraction: float = key(1.0, above=0, most=1, readers=_WITH_FEATURES)
    """Images: share of the labels that the probe sees, the same in each class."""
    neighbors: tuple[int, ...] = key(
        (20, 200), least=1, increasing=True, empty=True, readers=("downstream",)
    )
    """Images: neighbours k of the kNN probe."""
    neighbor_temperature: float = key(0.07, above=0, readers=("downstream",))
    """Temperature of the kNN probe's weights."""
    baselines: tuple[str, ...] = key(
        (), choices=("pixels", "untrained"), empty=True, readers=("downstream",)
    )
    """What is evaluated beside the encoder."""
    batch_size: int = key(1000, least=1, readers=())
    """Examples per call and device."""
    variance_views: int = key(16, least=2, most=100_000, readers=_OF_VIEWS)
    """Views per example from which the variance of n(h) is measured."""
    variance_examples: int = key(1000, least=2, readers=_OF_VIEWS)
    """Examples from which the variance of n(h) is measured."""
    shifts: tuple[tuple[str, str, tuple[float, ...]], ...] = key(
        (
            ("h", "move", (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5)),
            ("background", "move", (0.0, 0.1, 0.2, 0.3, 0.4)),
            ("h", "widen", (1.25, 1.5)),
        ),
        empty=True,
        readers=("shift",),
    )
    """Shifts of the distribution of a parameter, rows (what, how, values): what is a
    parameter, "foreground" or "background"; "move" adds a value, "widen" multiplies the
    distance from the middle. Of images ('color', 'strength', values)."""
    label_fractions: tuple[float, ...] = key(
        (0.05, 0.1, 0.2, 0.5, 1.0),
        above=0,
        most=1,
        increasing=True,
        readers=("label_fraction",),
    )
    """Shares of the training examples that the probe of label_fraction sees: of images
    the same in each class, of Spirograph the first ones."""
    linearization_steps: tuple[float, ...] = key(
        (0.01, 0.03, 0.1, 0.3, 1.0), above=0, most=1, readers=("linearization",)
    )
    """Lengths of the step from alpha to another draw, as shares of it, at which
    linearization compares the first-order change with the true one."""
    nuisance_l2: tuple[float, ...] = key(
        (1e-6, 1e-4, 1e-2, 1.0), least=0, readers=("nuisance_prediction",)
    )
    """L2 weights among which nuisance_prediction chooses on held-out examples."""
    seed: int = key(0, least=0, most=2**32 - 1)
    """Seed of the views that are drawn for evaluation."""


@dataclass(slots=True)
class Embedding:
    """What `--mode=embed` writes."""

    splits: tuple[str, ...] = key(
        ("train", "test"), choices=("train", "validation", "test")
    )
    """Splits whose representations are written."""
    num_views: int | None = key(None, least=0, most=100_000)
    """Averaged views; 0: the plain image. None: the plain image, or one view where none
    is plain (Spirograph)."""


@dataclass(slots=True)
class Config:
    """A configuration. The defaults are the paper's Spirograph run, less a length."""

    seed: int = key(0, least=0, most=2**32 - 1)
    """Seed of initialization, data order and views."""
    seeds: int = key(1, least=1, most=10_000, free=True)
    """Runs, with seeds seed, seed + 1, ..., aggregated with a standard error."""
    batch_size: int = key(512, least=2)
    """Examples per step over all devices."""
    epochs: int | None = key(None, unit="epochs", least=1)
    """Length of training; give this or steps."""
    steps: int | None = key(None, unit="steps", least=1)
    """Length of training; give this or epochs."""
    temperature: float = key(0.5, above=0)
    """Temperature of the loss of simclr, dcl and moco_v3; the others have none."""
    precision: str = key("float32", choices=tuple(PRECISIONS))
    """Dtype of the encoder's products, convolutions and activations: "float32", in
    which GPUs round products to TF32, or "bfloat16". All else stays in float32."""
    steps_per_call: int = key(100, least=1, free=True)
    """Most training steps that one call to the devices runs."""
    deterministic: bool = False
    """Whether GPUs use only operations that repeat their bits (CPUs and TPUs always
    do)."""
    compilation_cache: str | None = key(None, path=True, free=True)
    """Folder in which compiled programs are kept for the next start; "off": none. None:
    the user's cache folder."""
    average_views: int = key(1, least=1, most=100)
    """Views on each side of the loss whose representations are averaged; the penalty
    acts on the first one."""
    more_views: int = key(0, least=0, most=100)
    """Views of each example beside the two, without a penalty: each stands in for one
    of the two in a loss of its own (multi-crop); emp_ssl takes all as its patches."""
    microbatches: int = key(1, least=1)
    """Parts into which each device splits its share of the batch, one after the other
    in memory; the loss still sees the whole batch. Exact where batchnorm.group_size
    divides a part, or nothing normalizes."""
    similarity_block: int = key(0, least=0)
    """Anchors per block of the loss's similarities; 0: all at once."""
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
    """What follows from the keys; `rules.resolve` computes it."""

    steps: int  # of the whole run
    steps_per_epoch: int  # batches that the training examples fill
    peak_learning_rate: float  # that of the batch
    profile_steps: tuple[int, ...]  # finished before and after those traced; (): none


@dataclass(slots=True)
class Settings(Config):
    """A configuration that was checked and completed: the result of `resolve`."""

    derived: Derived = field(default=Derived(0, 0, 0.0, ()))


def _keys(holder: Any, prefix: str, free: bool) -> Iterator[Key]:
    for one in fields(holder):
        value, name = getattr(holder, one.name), prefix + one.name
        options = {**one.metadata, "free": free or one.metadata.get("free", False)}
        if is_dataclass(value):
            yield from _keys(value, f"{name}.", options["free"])
        else:
            yield Key(name, one.type, value, type(holder), **options)


KEYS: dict[str, Key] = {one.name: one for one in _keys(Config(), "", False)}
"""Dotted name -> declaration, of every key."""

SECTIONS = {
    name.rpartition(".")[0]: one.section for name, one in KEYS.items() if "." in name
}
"""Dotted name -> class, of every section; one comes before those within it."""


def get(config: Config, name: str) -> Any:
    """Returns the value of a key, or a section."""
    return operator.attrgetter(name)(config)


def flatten(config: Config) -> dict[str, Any]:
    """Returns dotted name -> value of every key of a configuration."""
    return {name: get(config, name) for name in KEYS}


def change(config: Config, name: str, value: object) -> None:
    """Sets a key of a configuration; `resolve` checks the value."""
    if name not in KEYS:
        raise ValueError(f"{name} is not a key; {closest(name, KEYS)}.")
    *sections, last = name.split(".")
    setattr(get(config, ".".join(sections)) if sections else config, last, value)


def closest(name: str, names: Iterable[str]) -> str:
    """Returns a hint at what a misspelt name may mean, "the closest is NAME"."""
    found = difflib.get_close_matches(name, [*names], n=1, cutoff=0.4)
    return f"the closest is {found[0]}" if found else "no name is close to it"


def to_dict(config: Config) -> Json:
    """Returns a configuration as nested dictionaries, without what is derived."""
    nested = asdict(config)
    nested.pop("derived", None)
    return nested


GONE = {"penalty.views": 1}
"""Keys of older runs that are no more -> what is done now."""


def from_dict(nested: Json) -> Config:
    """Returns the configuration of nested dictionaries, such as those of JSON.

    A key that is missing, as it is younger than the run, has its default. Raises
    ValueError if one that is no more had another value than `GONE` says.
    """
    config = Config()

    def walk(node: Json, prefix: str) -> None:
        for name, value in node.items():
            key = prefix + name
            if isinstance(value, dict) and key not in KEYS:
                walk(value, f"{key}.")
            elif key not in GONE:
                change(config, key, tuples(value))
            elif value != GONE[key]:
                raise ValueError(f"{key} is {value!r}, which this version does not do")

    walk(nested, "")
    return config


def tuples(tree: Any) -> Any:
    """Returns what JSON read with tuples for the lists that it made of them."""
    if isinstance(tree, dict):
        return {name: tuples(value) for name, value in tree.items()}
    return tuple(map(tuples, tree)) if isinstance(tree, list | tuple) else tree
