"""From a configuration to settings: checks of all values, and derived quantities.

Only the description of a prepared image set is read; nothing is downloaded, compiled or
written. An error lists all bad keys at once. Each line names the key, the value found
and what was expected.
"""

import copy
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from invariance_jax import data
from invariance_jax.data.limits import machine_memory
from invariance_jax.models.registry import RESNETS, VITS
from invariance_jax.models.vit import HEAD_FEATURES
from invariance_jax.settings import plugins
from invariance_jax.settings.schema import (
    KEYS,
    MOST,
    SECTIONS,
    WITH_SIMILARITIES,
    Augmentation,
    Config,
    Derived,
    Settings,
    change,
    flatten,
    get,
)
from invariance_jax.settings.values import Bad, convert, expectation
from invariance_jax.transforms import Transformation, image, shifts, spirograph
from invariance_jax.transforms.color import JITTER_NAMES

_FULL_STEP: dict[str, object] = {
    "penalty.estimator": "directional",
    "penalty.batch_statistics": "coupled",
}
_UNWEIGHTED: dict[str, object] = {"penalty.parameter_weights": ()}
_REQUIRED_BY_KIND: dict[str, dict[str, object]] = {
    "gradient": _UNWEIGHTED,
    "consistency": {
        **_FULL_STEP,
        **_UNWEIGHTED,
        "penalty.parameters": (),
        "penalty.directions": 1,
    },
    "total_effect": _FULL_STEP,
    "mixed": {**_FULL_STEP, **_UNWEIGHTED},
}
"""Kind of the penalty -> key -> the only value that this kind allows."""


class _Problems:
    """The errors of a configuration, one line for each bad key."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.lines: dict[str, str] = {}  # key -> its error

    def require(
        self, condition: bool, key: str, expected: str, value: object = ...
    ) -> None:
        """Adds an error unless a condition holds; `value` defaults to the key's."""
        if not condition:
            value = get(self._config, key) if value is ... else value
            self.lines.setdefault(key, f"{key} is {value!r}; expected {expected}.")

    def only(self, key: str, value: object, why: str) -> None:
        """Adds an error unless a key has the only value that other keys allow."""
        self.require(get(self._config, key) == value, key, f"{value!r}, as {why}")

    def stop(self) -> None:
        """Raises ValueError with all lines, if any, and those of `plugins.problems`."""
        if self.lines:
            lines = *self.lines.values(), *plugins.problems(self._config)
            raise ValueError("\n".join(lines))


def resolve(config: Config) -> Settings:
    """Returns the settings of a configuration, checked and completed.

    Limits of 0 become None, paths become absolute, and empty keys of an image set are
    read from its description. Raises ValueError with a line for each bad key.
    """
    if not isinstance(config, Config):
        raise ValueError(
            f"config is {type(config).__name__}; expected the Config that "
            "configs.base.get_config returns."
        )
    for name, kind in SECTIONS.items():
        if not isinstance(get(config, name), kind):
            raise ValueError(
                f"{name} is {get(config, name)!r}; expected the section of "
                "configs.base.get_config; change its keys, do not replace it."
            )
    settings = converted(config)
    settings.penalty.example_limit = settings.penalty.example_limit or None
    settings.penalty.batch_limit = settings.penalty.batch_limit or None
    problems = _Problems(settings)
    _check_objective(settings, problems)
    _check_optimizer(settings, problems)
    _check_validation(settings, problems)
    _check_own_parts(settings, problems)
    for row in settings.evaluation.shifts:
        _check_shift(row, settings, problems)
    if settings.data.name == "spirograph":
        _check_spirograph(settings, problems)
    else:
        _check_images(settings, problems)
    _check_sizes(settings, problems)
    _derive(settings, problems)
    return settings


def converted(config: Config) -> Settings:
    """Returns a configuration with each value in the type and range of its key."""
    settings, problems = Settings(), _Problems(config)
    for name, value in flatten(config).items():
        try:
            change(settings, name, convert(KEYS[name], value))
        except Bad as detail:
            problems.require(False, name, f"{expectation(KEYS[name])}{detail}")
    problems.stop()
    return settings


def _check_objective(settings: Settings, problems: _Problems) -> None:
    """Checks length, seeds, penalty, batch and method, for every data set."""
    require, penalty = problems.require, settings.penalty
    length = settings.steps, settings.epochs
    is_given_once = length.count(None) == 1
    expected = "exactly one of them to be given"
    require(is_given_once, "steps, epochs", expected, length)
    last = settings.seed + settings.seeds - 1
    require(last < 2**32, "seed", "the last seed, seed + seeds - 1, below 2**32")
    for name, value in _REQUIRED_BY_KIND[penalty.kind].items():
        problems.only(name, value, f"penalty.kind is {penalty.kind!r}")
    batch, group = settings.batch_size, settings.batchnorm.group_size
    expected = f"0, or a divisor of {batch} that is more than 1"
    divides = group == 0 or (group > 1 and batch % group == 0)
    require(divides, "batchnorm.group_size", expected)
    parts = settings.microbatches
    require(batch % parts == 0, "microbatches", f"a divisor of {batch}")
    encoder = settings.encoder
    is_linear = (encoder.depth, encoder.final) == (1, "linear")
    has_norm = encoder.name in RESNETS or (encoder.name == "mlp" and not is_linear)
    expected = "a number of examples, not 0, as microbatches is not 1"
    fits = parts == 1 or group > 0 or not has_norm
    require(fits, "batchnorm.group_size", expected)
    method = settings.method.name
    if not (method in WITH_SIMILARITIES or plugins.is_own(method)):
        why = f"method.name {method!r} computes no similarities"
        problems.only("similarity_block", 0, why)
    if penalty.weight > 0 and penalty.at == "z":
        problems.only("microbatches", 1, "penalty.at 'z' needs the whole batch")
    needs_batch = penalty.normalization == "batch" and penalty.kind != "consistency"
    if penalty.weight > 0 and needs_batch:
        why = "penalty.normalization 'batch' needs the whole batch"
        problems.only("microbatches", 1, why)


def _check_optimizer(settings: Settings, problems: _Problems) -> None:
    optimizer = settings.optimizer
    why = f"optimizer.name is {optimizer.name!r}"
    if optimizer.name != "adamw":
        problems.only("optimizer.weight_decay_end", None, why)
    if optimizer.name != "lars":
        problems.only("optimizer.clip_trust", False, why)
    if not optimizer.exclude:
        why = "optimizer.exclude is empty"
        problems.only("optimizer.excluded_rate", 1.0, why)


def _check_validation(settings: Settings, problems: _Problems) -> None:
    """Checks that no key uses the validation split if it is empty."""
    uses = {
        "logging.probe_every_steps": settings.logging.probe_every_steps > 0,
        "evaluation.split": settings.evaluation.split == "validation",
        "embedding.splits": "validation" in settings.embedding.splits,
    }
    for name, is_used in uses.items() if not settings.data.validation_examples else ():
        expected = "no use of the validation split, as data.validation_examples is 0"
        problems.require(not is_used, name, expected)


def _check_own_parts(settings: Settings, problems: _Problems) -> None:
    """Checks the keys that depend on whether a part is built in or MODULE:FUNCTION."""
    encoder, augmentation = settings.encoder, settings.augmentation
    only, statistics = problems.only, "penalty.batch_statistics"
    if plugins.is_own(encoder.name):
        only(statistics, "coupled", "encoder.name is MODULE:FUNCTION")
    else:
        only("encoder.kwargs", {}, f"encoder.name is {encoder.name!r}")
    if plugins.is_own(settings.method.name) and settings.penalty.at == "z":
        why = "method.name is MODULE:FUNCTION and penalty.at is 'z'"
        only(statistics, "coupled", why)
    # The run passes these itself; a value of the user would replace its own.
    for key, passed in (
        ("encoder.kwargs", ("axis_name",)),
        ("method.kwargs", ("features", "axis_name")),
    ):
        for name in passed:
            expected = f"no {name}, which the run passes itself"
            problems.require(name not in get(settings, key), key, expected)
    if plugins.is_own(augmentation.name):
        if settings.data.name == "spirograph":
            why = "data.name is 'spirograph', which makes its own views"
            only("augmentation.name", "image", why)
        why = "augmentation.name is MODULE:FUNCTION"
        only("evaluation.families", ("all",), why)
    else:
        only("augmentation.kwargs", {}, f"augmentation.name is {augmentation.name!r}")
    if encoder.name in RESNETS:
        expected = f"at most 256 for {encoder.name}, or None, which means 64"
        problems.require((encoder.width or 0) <= 256, "encoder.width", expected)
    else:
        why = f"encoder.name is {encoder.name!r} and weights are read for ResNets only"
        only("encoder.weights", None, why)


def _check_sizes(settings: Settings, problems: _Problems) -> None:
    require, encoder = problems.require, settings.encoder
    size = settings.data.image_size
    further = settings.augmentation.more_size
    expected = f"{size} or None, as an MLP takes images of one size"
    fits = encoder.name != "mlp" or further in (None, size)
    require(fits, "augmentation.more_size", expected)
    if encoder.name in VITS:
        divides = not (size or 0) % encoder.patch_size
        expected = f"a divisor of data.image_size, {size}"
        require(divides, "encoder.patch_size", expected)
        divides = not (further or 0) % encoder.patch_size
        expected = f"a multiple of encoder.patch_size, {encoder.patch_size}"
        require(divides, "augmentation.more_size", expected)
        divides = not (encoder.width or 0) % HEAD_FEATURES
        require(divides, "encoder.width", f"a multiple of {HEAD_FEATURES}")


def is_asked(settings: Settings, experiment: str) -> bool:
    """Returns whether `evaluation.experiments` names an experiment, or "all"."""
    return bool({experiment, "all"} & {*settings.evaluation.experiments})


def _check_shift(
    row: tuple[str, str, tuple[float, ...]], settings: Settings, problems: _Problems
) -> None:
    """Checks a row of evaluation.shifts, against the data set only if measured."""

    def require(condition: bool, expected: str) -> None:
        problems.require(condition, "evaluation.shifts", expected, row)

    name, kind, values = row
    names: tuple[str, ...] = (*spirograph.PARAMETERS, *shifts.GROUPS)
    if kind == "strength":
        names, most = ("color",), image.MAX_STRENGTH
        inside = all(0 <= strength <= most for strength in values)
        require(inside, f"strengths from 0 to {most}")
    if kind == "widen":
        positive = all(factor >= 0 for factor in values)
        require(positive, "factors of 0 or more to widen by")
    kinds = ("move", "widen", "strength")
    known = kind in kinds and name in names and len(values) > 0
    require(known, f"(one of {', '.join(names)}; one of {', '.join(kinds)}; numbers)")
    if not known or not is_asked(settings, "shift"):
        return
    if settings.data.name != "spirograph":
        require(kind == "strength", '("color", "strength", numbers) for images')
    elif kind == "strength":
        require(False, '"move" or "widen" for Spirograph')
    else:
        for parameter in shifts.GROUPS.get(name, (name,)):
            is_nuisance = parameter not in settings.data.targets
            require(is_nuisance, f"a nuisance parameter: {parameter} is a target")
            low, high = getattr(settings.data.bounds, parameter)
            # b and sigma must be positive for an image to exist.
            for value in values if parameter in ("b", "sigma") else ():
                widened = (low + high) / 2 - value * (high - low) / 2
                positive = (low + value if kind == "move" else widened) > 0
                require(positive, f"distributions of {parameter} that stay above 0")


def _check_spirograph(settings: Settings, problems: _Problems) -> None:
    require, section = problems.require, settings.data
    for name in ("train_examples", "test_examples", "image_size"):
        require(getattr(section, name) is not None, f"data.{name}", "an integer")
    count = section.validation_examples
    require(count > 0, "data.validation_examples", "a positive number")
    is_whole = settings.evaluation.families == ("all",)
    require(is_whole, "evaluation.families", "('all',)")
    for name, value in (("source", "memory"), ("store_size", None)):
        problems.only(f"data.{name}", value, "Spirograph is drawn on the devices")
    problems.only("evaluation.label_fraction", 1.0, "Spirograph has no labels")
    is_plain = settings.embedding.num_views == 0
    expected = "M >= 1, as Spirograph has no plain image"
    require(not is_plain, "embedding.num_views", expected)
    if not (section.train_examples and section.test_examples and section.image_size):
        return  # an error names the missing key
    total = section.train_examples + count + section.test_examples
    # A target is drawn in float64 (8 bytes) and kept in float32 (4 bytes).
    needed = 12 * len(section.targets) * total
    memory = machine_memory()
    expected = f"fewer: the targets take {needed:.2g} of {memory:.2g} bytes of memory"
    require(needed < memory / 2, "data.train_examples", expected)
    names = {"bounds of ": "bounds."}
    views = _attempt(lambda: make_spirograph(settings), problems, names)
    if views is not None:
        _check_parameters(settings, views.names, problems)


def make_spirograph(settings: Settings) -> Transformation:
    """Returns the transformation of the Spirograph data."""
    section = settings.data
    assert section.image_size is not None
    return spirograph.make_transformation(
        targets=section.targets,
        bounds=spirograph_bounds(settings),
        image_size=section.image_size,
        num_points=section.num_points,
        extent=section.extent,
        normalization=section.normalization,
    )


def spirograph_bounds(settings: Settings) -> np.ndarray:
    """Returns the bounds `[10, 2]`, rows in the order of `spirograph.PARAMETERS`."""
    bounds = settings.data.bounds
    rows = [getattr(bounds, name) for name in spirograph.PARAMETERS]
    return np.array(rows, np.float64)


def _attempt(
    make: Callable[[], Transformation],
    problems: _Problems,
    names: Mapping[str, str] = {},
) -> Transformation | None:
    """Returns the transformation; on ValueError adds a problem and returns None.

    The error begins with the name of an argument. `names` maps an argument's name to
    the name of its key where the two differ.
    """
    try:
        return make()
    except ValueError as error:
        message = str(error)
        for argument, key in names.items():
            message = message.replace(argument, key)
        argument = re.split(r"\W", message)[0]
        is_data_key = f"data.{argument}" in {*KEYS, *SECTIONS}
        section = "data" if is_data_key else "augmentation"
        problems.lines.setdefault(argument, f"{section}.{message}")
        return None


def _check_parameters(
    settings: Settings,
    names: tuple[str, ...],
    problems: _Problems,
    idle: frozenset[str] = frozenset(),
) -> None:
    """Checks that the penalty's parameters are in `names`, and not all in `idle`."""
    penalty, key = settings.penalty, "penalty.parameters"
    expected = f"some of {', '.join(names) or 'none'}"
    problems.require({*penalty.parameters} <= {*names}, key, expected)
    weights, selected = penalty.parameter_weights, penalty.parameters or names
    expected = f"a weight for each of {', '.join(selected)}, one of them above 0, or ()"
    fits = not weights or (len(weights) == len(selected) and any(weights))
    problems.require(fits, "penalty.parameter_weights", expected)
    if penalty.weight > 0 and penalty.kind != "consistency":
        noun = "a parameter"
        if not {*names} - idle:
            key, noun = "augmentation.differentiate", "an operation"
        expected = f"{noun} that is switched on, as penalty.weight is not 0"
        problems.require(bool({*selected} - idle), key, expected)


def check_parameters(settings: Settings, names: tuple[str, ...]) -> None:
    """Raises ValueError if the penalty's parameters do not fit the user's own views."""
    problems = _Problems(settings)
    _check_parameters(settings, names, problems)
    problems.stop()


_PROBABILITIES = tuple(
    f"{name}_probability" for name in ("jitter", "gray", "blur", "solarize", "erase")
)
"""Keys of augmentation that may differ between the two views of an example."""


def _apply_recipe(augmentation: Augmentation, problems: _Problems) -> None:
    """Sets keys that are None to the recipe's values; checks `second_view`."""
    for name, value in image.RECIPES[augmentation.recipe].items():
        if getattr(augmentation, name) is None:
            if name in _PROBABILITIES and isinstance(value, tuple):
                value, second = value
                augmentation.second_view = {name: second, **augmentation.second_view}
            setattr(augmentation, name, value)
    are_known = {*augmentation.second_view} <= {*_PROBABILITIES}
    expected = f"some of {', '.join(_PROBABILITIES)}"
    problems.require(are_known, "augmentation.second_view", expected)
    for name, value in augmentation.second_view.items():
        fits = type(value) in (int, float) and 0 <= value <= 1
        expected = f"a probability {name} from 0 to 1"
        problems.require(fits, "augmentation.second_view", expected)


def _check_images(settings: Settings, problems: _Problems) -> None:
    section, augmentation = settings.data, settings.augmentation
    if section.store_size is not None:
        square = (section.store_size,) * 2
        section.source_size = section.source_size or square
        expected = f"{square}, the square of data.store_size, or None"
        problems.require(section.source_size == square, "data.source_size", expected)
    problems.only("evaluation.lbfgs_steps", (), "the probe is logistic")
    _apply_recipe(augmentation, problems)
    fits = "augmentation.second_view" not in problems.lines
    if fits and not plugins.is_own(augmentation.name):
        stand_in = copy.deepcopy(settings)
        source = section.source_size or (32, 32)
        stand_in.data.source_size = source
        stand_in.data.image_size = section.image_size or min(source)
        views = _attempt(lambda: make_image_views(stand_in), problems)
        if views is not None:
            # The penalty acts on the first view, so its probabilities decide.
            no_jitter = 0 in (augmentation.jitter_probability, augmentation.strength)
            idle = {*(JITTER_NAMES if no_jitter else ())}
            idle |= {"blur.sigma"} if augmentation.blur_probability == 0 else set()
            _check_parameters(settings, views.names, problems, frozenset(idle))
            if settings.more_views:
                names = {"crop_area": "more_area", "image_size": "more_size"}
                _attempt(lambda: make_image_views(stand_in, "more"), problems, names)
    problems.stop()  # the set is asked last
    _fill_in(settings, problems)


def make_image_views(settings: Settings, family: str = "all") -> Transformation:
    """Returns the built-in transformation of an image set.

    The family "all" has all operations, "color" and "crop" have a part of them, "more"
    makes the further views of `more_views`, and "shift" jitters the colours of every
    image at strength 1, nothing else.
    """
    section, augmentation = settings.data, settings.augmentation
    whole = family in ("all", "more")
    geometric, colored = whole or family == "crop", whole or family == "color"
    size, area = section.image_size, augmentation.crop_area
    if family == "more":
        size, area = augmentation.more_size or size, augmentation.more_area or area
    assert section.source_size is not None and size is not None
    strength = augmentation.strength
    assert strength is not None and augmentation.jitter_ranges is not None
    differentiate = augmentation.differentiate if family == "all" else ()
    probabilities: dict[str, Any] = {}
    for name in _PROBABILITIES:
        first = getattr(augmentation, name)
        both = first, augmentation.second_view.get(name, first)
        probabilities[name] = both if colored else 0.0
    if family == "shift":
        strength, differentiate = 1.0, ("color",)
        probabilities["jitter_probability"] = 1.0
    return image.make_transformation(
        source_size=section.source_size,
        image_size=size,
        mean=section.mean or (0.5,) * 3,
        std=section.std or (0.5,) * 3,
        strength=strength,
        jitter_ranges=augmentation.jitter_ranges,
        crop=augmentation.crop and geometric,
        flip=augmentation.flip and geometric,
        differentiate=differentiate,
        crop_area=area,
        crop_aspect=augmentation.crop_aspect,
        resampling=augmentation.resampling,
        colorize=augmentation.colorize and colored,
        rotation=augmentation.rotation * geometric,
        scaling=augmentation.scaling * geometric,
        shear=augmentation.shear * geometric,
        translation=augmentation.translation * geometric,
        blur_sigma=augmentation.blur_sigma,
        solarize_threshold=augmentation.solarize_threshold,
        erase_area=augmentation.erase_area,
        squashed=section.store_size is not None,
        **probabilities,
    )


_SET_KEYS = (
    "train_examples test_examples source_size channels mean std num_classes".split()
)
"""Keys of data that are read from the description of an image set if they are None."""


def _fill_in(settings: Settings, problems: _Problems) -> None:
    """Sets the keys of an image set that are None, and checks those that are given.

    The `config.json` of a run gives all, so that its encoder can be used without the
    data set.
    """
    section, require, description = settings.data, problems.require, None
    *are_given, has_classes = (getattr(section, name) is not None for name in _SET_KEYS)
    try:
        if not (all(are_given) and has_classes):
            known, folder = data.known(section.name), section.data_dir
            description = known or data.describe(section.name, data_dir=folder)
    except ValueError as error:
        if not all(are_given):  # a set without labels has no num_classes
            problems.lines["data.name"] = f"data.name: {error}"
            problems.stop()
    if description is not None:
        count = description.num_train
        expected = f"less than the {count} training images of {section.name}"
        train = count - section.validation_examples
        require(train > 0, "data.validation_examples", expected)
        # Then later checks allow what the largest training split allows.
        train = train if train > 0 else count
        height, width, channels = description.image_shape
        size = section.store_size
        expected = f"an integer, as the images of {section.name} have several sizes"
        require(size is not None or height * width > 0, "data.store_size", expected)
        shape = (height, width) if size is None else (size, size)
        test, mean, std = description.num_test, description.mean, description.std
        values = train, test, shape, channels, mean, std, description.num_classes
        for name, value in zip(_SET_KEYS, values, strict=True):
            given = getattr(section, name)
            if given is None:
                setattr(section, name, value)
            elif name in ("num_classes", "source_size", "channels"):
                expected = f"{value}, as in {section.name}, or None"
                require(given == value, f"data.{name}", expected)
            elif name.endswith("examples"):
                expected = f"at most {value}, the number of images in {section.name}"
                require(given <= value, f"data.{name}", expected)
    assert section.source_size is not None
    section.image_size = section.image_size or min(section.source_size)
    if section.num_classes is not None:
        _check_labels(settings, problems)


def _check_labels(settings: Settings, problems: _Problems) -> None:
    """Checks that there are enough labels for the kNN probe and fractions of them."""
    evaluation, examples = settings.evaluation, settings.data.train_examples or 0
    available = min(examples, evaluation.train_examples or examples)
    fraction, classes = evaluation.label_fraction, settings.data.num_classes or 1

    def require(key: str, least: float, smallest: float) -> bool:
        shown = math.ceil(1e6 * least) / 1e6
        expected = f"{shown:g} at least, for an example of each of {classes} classes"
        problems.require(smallest >= least, key, expected)
        return smallest >= least

    # A fraction of a class is rounded to whole examples, so half an example suffices.
    least = classes / 2 / available
    if fraction < 1 and not require("evaluation.label_fraction", least, fraction):
        return
    if is_asked(settings, "label_fraction"):
        fractions = evaluation.label_fractions
        require("evaluation.label_fractions", least / fraction, fractions[0])
    # The exact number is known with the labels, see `ImageTask.probe_examples`.
    most = available if fraction == 1 else int(available * fraction + classes / 2)
    expected = f"at most {most}, as the probe is fitted on no more examples"
    enough = max(evaluation.neighbors, default=0) <= most
    problems.require(enough, "evaluation.neighbors", expected)


def _derive(settings: Settings, problems: _Problems) -> None:
    require, batch = problems.require, settings.batch_size
    examples = settings.data.train_examples or 0
    fits = batch <= examples or settings.data.train_examples is None
    require(fits, "batch_size", f"at most {examples} examples")
    key = f"data.{settings.evaluation.split}_examples"
    expected = "2 or more, as evaluation.split is measured"  # a variance over examples
    count = get(settings, key)
    require(count is None or count > 1, key, expected)  # None has an error already
    per_epoch = examples // batch
    steps = settings.steps or (settings.epochs or 0) * per_epoch
    key = "steps" if settings.steps else "epochs"
    require(steps <= MOST, key, f"at most {MOST} steps", steps)
    warmup = settings.penalty.warmup_steps
    require(warmup <= steps, "penalty.warmup_steps", f"at most {steps} steps")
    ends: tuple[int, ...] = ()
    if profiled := settings.logging.profile_steps:
        match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", profiled)
        ends = tuple(map(int, match.groups())) if match else (0, 0)
        expected = f"two increasing steps a:b, b at most {steps}"
        require(ends[0] < ends[1] <= steps, "logging.profile_steps", expected)
    rate = settings.optimizer.learning_rate * batch / 256
    settings.derived = Derived(steps, per_epoch, rate, ends)
    problems.stop()


def check_devices(settings: Settings, num_devices: int) -> None:
    """Raises ValueError if the batch cannot be split over the devices."""
    batch, group = settings.batch_size, settings.batchnorm.group_size
    problems = _Problems(settings)
    expected = f"a multiple of the {num_devices} devices"
    problems.require(batch % num_devices == 0, "batch_size", expected)
    problems.stop()
    share, parts = batch // num_devices, settings.microbatches
    each = f"the {share} examples that each of the {num_devices} devices has"
    problems.require(share % parts == 0, "microbatches", f"a divisor of {each}")
    problems.stop()
    part, key = share // parts, "batchnorm.group_size"
    if group:
        expected = f"a divisor of the {part} examples of each of {parts} microbatches"
        problems.require(parts == 1 or part % group == 0, key, expected)
        fits = share % group == 0 or group % share == 0
        problems.require(fits, key, f"a divisor or a multiple of {each}")
    problems.stop()
