"""Every key of a configuration: type, range, default, unit and meaning, declared once.

Checks, help (`--mode=keys`), the tests of bad values, the defaults of keys that an
older run lacks and what may change between two starts of a run follow from it.
Files in `configs/` and the command line change values; they never add a key.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

from invariance_jax.losses.invariance import LIMIT_SHAPES, NORMALIZATIONS
from invariance_jax.models.registry import ENCODERS, PRECISIONS
from invariance_jax.models.resnet import STEMS
from invariance_jax.transforms import spirograph
from invariance_jax.transforms.laws import FAMILIES as DIFFERENTIABLE

EXPERIMENTS = (
    "downstream",
    "averaging",
    "invariance",
    "linearization",
    "nuisance_prediction",
    "shift",
    "label_fraction",
)
"""The built-in experiments, in the order in which they are measured and reported."""

WITH_SIMILARITIES = ("simclr", "dcl", "moco_v3")
"""The built-in methods that compare each example to all others."""

WITH_PROBE = ("downstream", "averaging", "shift", "label_fraction")
"""Those of them that need targets or labels."""

_WITH_FEATURES = (*WITH_PROBE, "nuisance_prediction")
_OF_VIEWS = ("invariance", "linearization")

MOST = 2**31 - 1
"""The largest integer of a key, unless it says another: indices are int32."""


class Key(NamedTuple):
    """What the declaration of a key says beside its type and default.

    Attributes:
      meaning: one or two sentences; quoted words are the names that it may be.
      unit: of a number; empty where it counts what the meaning says.
      above: numbers are greater than this.
      least: numbers are this or more.
      below: numbers are less than this.
      most: numbers are this or less.
      choices: the names that it, or each entry of a tuple, may be.
      own: whether MODULE:FUNCTION may stand in place of a name.
      path: whether it is a file or folder, made absolute.
      increasing: whether the entries of a tuple increase.
      empty: whether a tuple may be empty.
      free: whether it may change between two starts of a run.
      readers: the experiments whose numbers it changes; None: all of them.
    """

    meaning: str
    unit: str = ""
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    own: bool = False
    path: bool = False
    increasing: bool = False
    empty: bool = False
    free: bool = False
    readers: tuple[str, ...] | None = None


def key(default: Any, meaning: str, **options: Any) -> Any:
    """Declares a key; the options are the attributes of `Key`."""
    metadata = {"key": Key(meaning, **options)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(factory: type, *, free: bool = False) -> Any:
    """Declares a section; the keys of a free one may change between two starts."""
    return field(default_factory=factory, metadata={"free": free})


def _pair(low: float, high: float, unit: str) -> Any:
    return key((low, high), "Ends of the uniform distribution.", unit=unit)


_KWARGS = "Keyword arguments of {}, if it is MODULE:FUNCTION."


@dataclass(slots=True)
class Method:
    """The self-supervised objective."""

    name: str = key(
        "simclr",
        'The objective: "simclr" (the paper) or another of training.methods, or '
        "MODULE:FUNCTION, which returns a Method.",
        choices=(
            *WITH_SIMILARITIES,
            "byol",
            "simsiam",
            "barlow_twins",
            "vicreg",
        ),
        own=True,
    )
    kwargs: dict[str, Any] = key(
        {},
        "Keyword arguments of the function of this name: widths of the heads, weights, "
        "momentum; those that are not given are its paper's, which training.methods "
        "declares.",
    )


@dataclass(slots=True)
class Penalty:
    """The invariance penalty."""

    kind: str = key(
        "gradient",
        '"gradient" (the paper), or "consistency": the squared distance of n(h) of the '
        "two views, without a derivative.",
        choices=("gradient", "consistency"),
    )
    weight: float = key(
        0.01,
        "Weight in the loss, lambda of the paper; 0: no penalty.",
        least=0,
    )
    example_limit: float | None = key(
        None, "Largest penalty of one example in one direction; 0: no limit.", least=0
    )
    batch_limit: float | None = key(
        None,
        "Largest value of the batch mean, above which its gradient is zero; 0: no "
        "limit.",
        least=0,
    )
    limit_shape: str = key(
        "hard",
        'How example_limit c acts on a penalty q: "hard" cuts it off at c, "log" is '
        "c log(1 + q / c).",
        choices=LIMIT_SHAPES,
    )
    estimator: str = key(
        "directional",
        '"directional": the squared derivative; "sign" (the paper): that of one random '
        "sign projection, the same in expectation.",
        choices=("directional", "sign"),
    )
    parameters: tuple[str, ...] = key(
        (),
        'Parameters along which the derivative is taken, as "h" or "rback" of '
        'Spirograph, "hue" or "crop.top" of images; (): all.',
        empty=True,
    )
    at: str = key(
        "h",
        'Where the penalty acts: the representation "h" (the paper) or the projection '
        '"z".',
        choices=("h", "z"),
    )
    views: int = key(
        1, "Penalized views: 1 (the paper), or 2, whose mean is taken.", least=1, most=2
    )
    every_steps: int = key(
        1, "Steps from one with the penalty, n times as heavy, to the next.", least=1
    )
    directions: int = key(
        1,
        "K, directions alpha' - alpha per example and step.",
        least=1,
        most=10_000,
    )
    normalization: str = key(
        "l2",
        'What the squared change is measured against: "l2" (the paper), "none" or '
        '"batch".',
        choices=NORMALIZATIONS,
    )
    warmup_steps: int = key(
        0, "Steps over which the weight rises linearly from 0.", least=0
    )
    batch_statistics: str = key(
        "coupled",
        '"coupled" differentiates batch statistics along alpha, "example" holds them.',
        choices=("coupled", "example"),
    )


@dataclass(slots=True)
class Encoder:
    """The network from images to representations."""

    name: str = key(
        "resnet18",
        "Architecture, or MODULE:FUNCTION, which returns a flax module.",
        choices=ENCODERS,
        own=True,
    )
    kwargs: dict[str, Any] = key({}, _KWARGS.format("encoder.name"))
    stem: str = key(
        "cifar",
        'First layers of a ResNet: "cifar" (3x3, stride 1) or "imagenet" (7x7, '
        "max-pool).",
        choices=STEMS,
    )
    weights: str | None = key(
        None,
        "File of a PyTorch state dict to start from, .npz or .safetensors.",
        path=True,
    )
    width: int = key(512, "Features per layer of the MLP.", least=1, most=65_536)
    depth: int = key(3, "Layers of the MLP.", least=1, most=1000)
    final: str = key(
        "linear",
        'End of the MLP: "linear" or "norm_relu".',
        choices=("linear", "norm_relu"),
    )
    rematerialize: bool = key(
        False,
        "Whether the backward pass computes the activations within a residual block "
        "again: less memory, more time.",
    )
    projection: int | None = key(
        None,
        "Features of the projection z; None: those of the method's paper (simclr: "
        "128).",
        least=1,
        most=65_536,
    )


@dataclass(slots=True)
class BatchNorm:
    """Batch normalization of the encoder."""

    group_size: int = key(
        0,
        "Examples that share statistics, counted over all devices; 0: the whole batch.",
        least=0,
    )


@dataclass(slots=True)
class Optimizer:
    """Optimizer and learning rate."""

    name: str = key("lars", "Optimizer.", choices=("lars", "adamw"))
    learning_rate: float = key(
        1.5,
        "Peak learning rate for a batch of 256; it grows in proportion to batch_size.",
        above=0,
        most=1e6,
    )
    schedule: str = key(
        "paper",
        '"paper" (per epoch, ten epochs of warm-up) or "warmup_cosine" (per step).',
        choices=("paper", "warmup_cosine"),
    )
    warmup_fraction: float = key(
        0.1,
        'Share of the steps in which "warmup_cosine" rises from 0.',
        least=0,
        below=1,
    )
    weight_decay: float = key(1e-6, "Weight decay of all parameters.", least=0)
    momentum: float = key(0.9, "Momentum of LARS.", least=0, below=1)
    trust_coefficient: float = key(1e-3, "Trust coefficient of LARS.", above=0)
    exclude: tuple[str, ...] = key(
        (),
        "Parameters without weight decay and without the layer-wise rate of LARS: "
        '"bias", "norm" (scale and bias of normalization).',
        choices=("bias", "norm"),
        empty=True,
    )
    clip_norm: float | None = key(
        None, "Largest norm of the gradient of all parameters; None: no limit.", above=0
    )


@dataclass(slots=True)
class Bounds:
    """Spirograph: the distribution of each parameter."""

    m: tuple[float, float] = _pair(2.0, 5.0, "plane units")
    b: tuple[float, float] = _pair(0.1, 1.1, "plane units")
    h: tuple[float, float] = _pair(0.5, 2.5, "plane units")
    sigma: tuple[float, float] = _pair(0.25, 1.0, "squared plane units")
    rfore: tuple[float, float] = _pair(0.4, 1.0, "intensity")
    rback: tuple[float, float] = _pair(0.0, 0.6, "intensity")
    gfore: tuple[float, float] = _pair(0.4, 1.0, "intensity")
    gback: tuple[float, float] = _pair(0.0, 0.6, "intensity")
    bfore: tuple[float, float] = _pair(0.4, 1.0, "intensity")
    bback: tuple[float, float] = _pair(0.0, 0.6, "intensity")


@dataclass(slots=True)
class Data:
    """The data set."""

    name: str = key(
        "spirograph",
        '"spirograph", or an image set: "cifar10", "cifar100", "mnist", '
        '"fashion_mnist", "svhn_cropped" or one that was prepared.',
    )
    data_dir: str | None = key(
        None, "Folder of the prepared image sets.", path=True, free=True
    )
    train_examples: int | None = key(
        100_000,
        "Training examples; None: all images that are not held out.",
        least=1,
        most=2**30,
    )
    validation_examples: int = key(
        20_000,
        "Validation examples; images are held out of the training split.",
        least=0,
        most=2**30,
    )
    test_examples: int | None = key(
        20_000, "Test examples; None: all images.", least=1, most=2**30, free=True
    )
    image_size: int | None = key(
        32,
        "Side of a view; None: the shorter side of the set's images.",
        unit="pixels",
        least=1,
        most=4096,
    )
    num_classes: int | None = key(
        None, "Classes of an image set; None: read from it.", least=1, most=10_000_000
    )
    source_size: tuple[int, int] | None = key(
        None,
        "Rows and columns of an image set; None: read from it.",
        unit="pixels",
        least=1,
        most=65_536,
    )
    channels: int | None = key(
        None, "Channels of an image set; None: read from it.", least=1, most=3
    )
    mean: tuple[float, float, float] | None = key(
        None,
        "Mean of each channel of an image set; None: read from it.",
        unit="intensity in [0, 1]",
        least=0,
        most=1,
    )
    std: tuple[float, float, float] | None = key(
        None,
        "Standard deviation of each channel; None: read from the set.",
        unit="intensity in [0, 1]",
        above=0,
        most=1,
    )
    seed: int = key(0, "Spirograph: seed of the targets.", least=0, most=2**32 - 1)
    targets: tuple[str, ...] = key(
        ("m", "b", "sigma", "rfore"),
        "Spirograph: the regression targets; the other parameters are the nuisance.",
        choices=spirograph.PARAMETERS,
    )
    bounds: Bounds = section(Bounds)
    num_points: int = key(40, "Spirograph: points on the curve.", least=2, most=100_000)
    extent: float = key(
        6.0, "Spirograph: half side of the shown square.", unit="plane units", above=0
    )
    normalization: str = key(
        "row",
        'Spirograph: where the maximum intensity becomes 1, "row" (the released code) '
        'or "image".',
        choices=spirograph.NORMALIZATIONS,
    )


@dataclass(slots=True)
class Augmentation:
    """Views of images; Spirograph reads none of these keys."""

    name: str = key(
        "image",
        '"image": crop, flip, affine map and colours as the keys below say; or '
        "MODULE:FUNCTION, which returns a Transformation and reads none of them.",
        choices=("image",),
        own=True,
    )
    kwargs: dict[str, Any] = key({}, _KWARGS.format("augmentation.name"))
    differentiate: tuple[str, ...] = key(
        ("color",), "Parts that are differentiated.", choices=DIFFERENTIABLE, empty=True
    )
    crop: bool = key(True, "Whether views are random resized crops.")
    crop_area: tuple[float, float] = key(
        (0.08, 1.0), "Ends of the crop's share of the area.", above=0, most=1
    )
    crop_aspect: tuple[float, float] = key(
        (3 / 4, 4 / 3), "Ends of the crop's width over height.", above=0
    )
    resampling: str = key(
        "lanczos3", "Kernel of the resize.", choices=("lanczos3", "bilinear")
    )
    flip: bool = key(True, "Whether every second view is flipped horizontally.")
    rotation: float = key(
        0.0, "Half width of the angle of the affine map.", unit="radians", least=0
    )
    scaling: float = key(0.0, "Half width of its scale about 1.", least=0, below=1)
    shear: float = key(0.0, "Half width of its shear.", least=0)
    translation: float = key(
        0.0, "Half width of its shift.", unit="sides of the image", least=0
    )
    colorize: bool = key(
        False, "Whether grey images get random foreground and background colours."
    )
    strength: float = key(
        0.5,
        "Colour jitter: brightness, contrast and saturation 1 +- .8 strength, hue "
        "+- .2 strength turns.",
        least=0,
    )
    jitter_probability: float = key(
        0.8, "Share of the views that are jittered.", least=0, most=1
    )
    gray_probability: float = key(
        0.2, "Share of the views that are made grey.", least=0, most=1
    )


@dataclass(slots=True)
class Checkpoints:
    """What is kept of the training."""

    every_steps: int = key(
        1000, "Steps between checkpoints; the last one is always written.", least=1
    )
    keep: int = key(2, "Newest checkpoints that are kept.", least=1)
    keep_every_steps: int | None = key(
        None,
        "Steps between checkpoints that are kept for good, which the experiment "
        "invariance measures too; None: none.",
        least=1,
    )


@dataclass(slots=True)
class Logging:
    """What is written while a run trains."""

    every_steps: int = key(100, "Steps between rows of metrics.jsonl.", least=1)
    probe_every_steps: int = key(
        1000,
        "Steps between online probes (error or accuracy, normalized variance); 0: "
        "never.",
        least=0,
    )
    probe_train_examples: int = key(
        4000, "Training examples of the online probe.", least=1
    )
    probe_validation_examples: int = key(
        1000, "Validation examples of the online probe.", least=2
    )
    profile_steps: str = key(
        "",
        'Steps "a:b", from a to before b and counted from 0, of which a trace is '
        "written to profile/ in the work directory; empty: none.",
    )
    wandb_project: str | None = key(
        None,
        "Project of Weights & Biases that also gets the rows; WANDB_MODE in the "
        'environment chooses "online" or "offline".',
    )


@dataclass(slots=True)
class Evaluation:
    """What is measured of a trained encoder."""

    experiments: tuple[str, ...] = key(
        ("downstream", "averaging", "invariance"),
        'What is measured; "all": every built-in experiment; MODULE:FUNCTION: one of '
        "your own.",
        choices=(*EXPERIMENTS, "all"),
        own=True,
        readers=(),
    )
    split: str = key(
        "test",
        'The split: "test", or "validation" to choose settings.',
        choices=("validation", "test"),
    )
    network: str = key(
        "online",
        'The network that is evaluated, embedded, exported and loaded: "online", or '
        '"target", the exponential average that moco_v3 and byol have.',
        choices=("online", "target"),
    )
    num_views: tuple[int, ...] = key(
        (1, 2, 3, 4, 5, 10, 20, 30),
        "Numbers M of averaged views.",
        least=1,
        most=100_000,
        increasing=True,
        readers=_WITH_FEATURES,
    )
    families: tuple[str, ...] = key(
        ("all",),
        'Views that are averaged: "all", and of images "color" and "crop" (with flip '
        "and affine map).",
        choices=("all", "color", "crop"),
        readers=("averaging", "invariance"),
    )
    l2: float = key(
        1e-8,
        "L2 weight of the probe: ridge, for images logistic.",
        least=0,
        readers=WITH_PROBE,
    )
    l2_grid: tuple[float, ...] = key(
        (),
        "L2 weights among which a second probe chooses its own, on the last tenth of "
        "the training examples; (): there is none.",
        least=0,
        empty=True,
        readers=("downstream", "averaging"),
    )
    train_examples: int | None = key(
        None,
        "Training examples of the probe; None: all.",
        least=1,
        readers=_WITH_FEATURES,
    )
    test_examples: int | None = key(
        None, "Examples of the split that are measured; None: all.", least=2
    )
    label_fraction: float = key(
        1.0,
        "Images: share of the labels that the probe sees, the same in each class.",
        above=0,
        most=1,
        readers=_WITH_FEATURES,
    )
    neighbors: tuple[int, ...] = key(
        (20, 200),
        "Images: neighbours k of the kNN probe.",
        least=1,
        increasing=True,
        empty=True,
        readers=("downstream",),
    )
    neighbor_temperature: float = key(
        0.07,
        "Temperature of the kNN probe's weights.",
        above=0,
        readers=("downstream",),
    )
    baselines: tuple[str, ...] = key(
        (),
        "What is evaluated beside the encoder.",
        choices=("pixels", "untrained"),
        empty=True,
        readers=("downstream",),
    )
    batch_size: int = key(1000, "Examples per call and device.", least=1, readers=())
    variance_views: int = key(
        16,
        "Views per example from which the variance of n(h) is measured.",
        least=2,
        most=100_000,
        readers=_OF_VIEWS,
    )
    variance_examples: int = key(
        1000,
        "Examples from which the variance of n(h) is measured.",
        least=2,
        readers=_OF_VIEWS,
    )
    shifts: tuple[tuple[str, str, tuple[float, ...]], ...] = key(
        (
            ("h", "move", (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5)),
            ("background", "move", (0.0, 0.1, 0.2, 0.3, 0.4)),
            ("h", "widen", (1.25, 1.5)),
        ),
        "Shifts of the distribution of a parameter, rows (what, how, values): what is "
        'a parameter, "foreground" or "background"; "move" adds a value, "widen" '
        "multiplies the distance from the middle. Of images ('color', 'strength', "
        "values).",
        empty=True,
        readers=("shift",),
    )
    label_fractions: tuple[float, ...] = key(
        (0.05, 0.1, 0.2, 0.5, 1.0),
        "Shares of the training examples that the probe of label_fraction sees: of "
        "images the same in each class, of Spirograph the first ones.",
        above=0,
        most=1,
        increasing=True,
        readers=("label_fraction",),
    )
    linearization_steps: tuple[float, ...] = key(
        (0.01, 0.03, 0.1, 0.3, 1.0),
        "Lengths of the step from alpha to another draw, as shares of it, at which "
        "linearization compares the first-order change with the true one.",
        above=0,
        most=1,
        readers=("linearization",),
    )
    nuisance_l2: tuple[float, ...] = key(
        (1e-6, 1e-4, 1e-2, 1.0),
        "L2 weights among which nuisance_prediction chooses on held-out examples.",
        least=0,
        readers=("nuisance_prediction",),
    )
    seed: int = key(
        0, "Seed of the views that are drawn for evaluation.", least=0, most=2**32 - 1
    )


@dataclass(slots=True)
class Embedding:
    """What `--mode=embed` writes."""

    splits: tuple[str, ...] = key(
        ("train", "test"),
        "Splits whose representations are written.",
        choices=("train", "validation", "test"),
    )
    num_views: int | None = key(
        None,
        "Averaged views; 0: the plain image. None: the plain image, or one view where "
        "none is plain (Spirograph).",
        least=0,
        most=100_000,
    )


@dataclass(slots=True)
class Config:
    """A configuration. The defaults are the paper's Spirograph run, less a length."""

    seed: int = key(
        0,
        "Seed of initialization, data order and views.",
        least=0,
        most=2**32 - 1,
    )
    seeds: int = key(
        1,
        "Runs, with seeds seed, seed + 1, ..., aggregated with a standard error.",
        least=1,
        most=10_000,
        free=True,
    )
    batch_size: int = key(512, "Examples per step over all devices.", least=2)
    epochs: int | None = key(
        None, "Length of training; give this or steps.", unit="epochs", least=1
    )
    steps: int | None = key(
        None, "Length of training; give this or epochs.", unit="steps", least=1
    )
    temperature: float = key(0.5, "Temperature of the contrastive loss.", above=0)
    precision: str = key(
        "float32",
        '"float32", or "bfloat16" for the encoder\'s products and convolutions.',
        choices=tuple(PRECISIONS),
    )
    steps_per_call: int = key(
        100,
        "Most training steps that one call to the devices runs.",
        least=1,
        free=True,
    )
    deterministic: bool = key(
        False,
        "Whether GPUs use only operations that repeat their bits (CPUs and TPUs always "
        "do).",
    )
    compilation_cache: str | None = key(
        None,
        'Folder in which compiled programs are kept for the next start; "off": none. '
        "None: the user's cache folder.",
        path=True,
        free=True,
    )
    average_views: int = key(
        1,
        "Views on each side of the loss whose representations are averaged; the "
        "penalty acts on the first of each side.",
        least=1,
        most=1000,
    )
    microbatches: int = key(
        1,
        "Parts into which each device splits its share of the batch, one after the "
        "other in memory; the loss still sees the whole batch. Exact where "
        "batchnorm.group_size divides a part, or nothing normalizes.",
        least=1,
    )
    similarity_block: int = key(
        0, "Anchors per block of the loss's similarities; 0: all at once.", least=0
    )
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
    """What follows from the keys; `check.resolve` computes it.

    Attributes:
      steps: of the whole run.
      steps_per_epoch: batches that the training examples fill.
      peak_learning_rate: that of the batch.
      profile_steps: finished steps before the first and after the last traced one; ():
        none.
    """

    steps: int
    steps_per_epoch: int
    peak_learning_rate: float
    profile_steps: tuple[int, ...]


@dataclass(slots=True)
class Settings(Config):
    """A configuration that was checked and completed: the result of `resolve`."""

    derived: Derived = field(default=Derived(0, 0, 0.0, ()))


class Declared(NamedTuple):
    """A key of the configuration.

    Attributes:
      name: dotted.
      type: its annotation.
      default: the value that it has if nobody changes it.
      key: the rest of its declaration.
    """

    name: str
    type: Any
    default: Any
    key: Key


def _declared(node: Any, prefix: str, free: bool) -> Iterator[Declared]:
    for one in fields(node):
        value, name = getattr(node, one.name), prefix + one.name
        if is_dataclass(value):
            inner = free or one.metadata["free"]
            yield from _declared(value, f"{name}.", inner)
        elif "key" in one.metadata:
            found: Key = one.metadata["key"]
            yield Declared(
                name, one.type, value, found._replace(free=free or found.free)
            )


KEYS: dict[str, Declared] = {one.name: one for one in _declared(Config(), "", False)}
"""Dotted name -> declaration, of every key."""


def flatten(config: Config) -> dict[str, Any]:
    """Returns dotted name -> value of every key of a configuration."""
    return {name: get(config, name) for name in KEYS}


def get(config: Config, name: str) -> Any:
    """Returns the value of a key.

    Args:
      config: a configuration.
      name: dotted.
    """
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def change(config: Config, name: str, value: Any) -> None:
    """Sets a key of a configuration; `resolve` checks the value.

    Args:
      config: a configuration.
      name: dotted.
      value: the new one.

    Raises:
      ValueError: if there is no such key; it names the closest.
    """
    if name not in KEYS:
        raise ValueError(f"{name} is not a key; {closest(name, KEYS)}.")
    *sections, last = name.split(".")
    holder: Any = config
    for part in sections:
        holder = getattr(holder, part)
    setattr(holder, last, value)


def closest(name: str, names: Any) -> str:
    """Returns a hint, "the closest is NAME", at what a misspelt name may mean.

    Args:
      name: as it was found.
      names: those that there are.
    """
    (found,) = difflib.get_close_matches(name, [*names], n=1, cutoff=0.0)
    return f"the closest is {found}"


def to_dict(config: Config) -> dict[str, Any]:
    """Returns a configuration as nested dictionaries, without what is derived."""
    return _nested(flatten(config))


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        holder = nested
        for part in sections:
            holder = holder.setdefault(part, {})
        holder[last] = value
    return nested


def from_dict(nested: dict[str, Any]) -> Config:
    """Returns the configuration of nested dictionaries, such as those of JSON.

    A key that is missing, as it is younger than the run, has its default.

    Args:
      nested: section -> key -> value.

    Raises:
      ValueError: if it has a key that there is not; it names the closest.
    """
    config = Config()

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            inner = isinstance(value, dict) and prefix + name not in KEYS
            if inner:
                walk(value, f"{prefix}{name}.")
            else:
                change(config, prefix + name, tuples(value))

    walk(nested, "")
    return config


def tuples(tree: Any) -> Any:
    """Returns what JSON read with tuples for the lists that it made of them."""
    if isinstance(tree, dict):
        return {name: tuples(value) for name, value in tree.items()}
    return tuple(map(tuples, tree)) if isinstance(tree, list | tuple) else tree
