"""From a configuration to settings: every value checked, what follows derived.

Nothing is read but the description of a prepared image set, nothing is downloaded,
compiled or written. All bad keys are listed at once; each line names the key, the value
found and what was expected.
"""

import copy
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

from invariance_jax import data
from invariance_jax.settings import plugins
from invariance_jax.settings.schema import (
    KEYS,
    MOST,
    WITH_SIMILARITIES,
    Config,
    Data,
    Declared,
    Derived,
    Settings,
    change,
    closest,
    flatten,
)
from invariance_jax.transforms import Transformation, image, laws, shifts, spirograph
from invariance_jax.transforms.color import JITTER_NAMES

OFF = "off"
"""The value of `compilation_cache` that keeps nothing."""

WITHOUT_DERIVATIVE: dict[str, Any] = {
    "penalty.estimator": "directional",
    "penalty.parameters": (),
    "penalty.views": 1,
    "penalty.directions": 1,
    "penalty.batch_statistics": "coupled",
}
"""The only values that go with the penalty.kind "consistency"."""

_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class _Bad(Exception):
    """A value that is not what its key takes; the text says what was expected."""


class _Problems:
    """What is wrong with a configuration, a line for each bad key."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def require(self, condition: bool, key: str, value: Any, expected: str) -> None:
        if not condition:
            self.found.setdefault(key, f"{key} is {value!r}; expected {expected}.")

    def stop(self) -> None:
        """Raises an error with all lines, if there are any."""
        if self.found:
            raise ValueError("\n".join(self.found.values()))


def resolve(config: Config) -> Settings:
    """Returns the settings of a configuration, checked and completed.

    Args:
      config: a configuration; it is not changed.

    Returns:
      The same keys, limits of 0 left empty, paths absolute and what is known of an
      image set filled in; and `derived`.

    Raises:
      ValueError: if values are of the wrong type, out of range or at odds with one
        another or with the image set; a line for each key.
    """
    if not isinstance(config, Config):
        raise ValueError(
            f"config is {type(config).__name__}; expected what configs.base.get_config "
            "returns."
        )
    problems, settings = _Problems(), Settings()
    for name, value in flatten(config).items():
        try:
            change(settings, name, convert(KEYS[name], value))
        except _Bad as error:
            problems.require(False, name, value, str(error))
    problems.stop()
    settings.penalty.example_limit = settings.penalty.example_limit or None
    settings.penalty.batch_limit = settings.penalty.batch_limit or None
    _check_objective(settings, problems)
    _check_own(settings, problems)
    problems.stop()
    if settings.data.name == "spirograph":
        _check_spirograph(settings, problems)
    else:
        _check_images(settings, problems)
    problems.stop()
    _derive(settings, problems)
    problems.stop()
    return settings


def convert(declared: Declared, value: Any) -> Any:
    """Returns a value in the type of its key.

    Args:
      declared: the key.
      value: what was found; numbers of NumPy count as what they are.

    Raises:
      _Bad: if it is of another type or out of range.
    """
    expected = expectation(declared)
    found = _convert(declared.type, declared, value, expected)
    if isinstance(found, tuple):
        if not (found or declared.key.empty):
            raise _Bad(expected)
        distinct = len({json.dumps(entry) for entry in found}) == len(found)
        if _entries(declared.type) is str and not distinct:
            raise _Bad(f"{expected}, each once")
        if declared.key.increasing and list(found) != sorted({*found}):
            raise _Bad(expected)
    if declared.key.path and isinstance(found, str):
        if found != OFF and "://" not in found:
            found = os.path.abspath(os.path.expanduser(found))
    return found


def expectation(declared: Declared) -> str:
    """Returns in words what a key takes: its type and range."""
    words = _type_words(declared.type)
    key = declared.key
    if declared.type == dict[str, Any] or key.choices:
        names = ", ".join(map(repr, key.choices))
        own = " or MODULE:FUNCTION" if key.own else ""
        if key.choices:
            several = isinstance(declared.default, tuple)
            words = f"a tuple of {names}{own}" if several else f"one of {names}{own}"
    if key.increasing:
        words = words.replace("a tuple", "an increasing tuple")
    least, most = key.least, key.most
    limits = [
        (key.above, "more than {:g}"),
        (least, "{:g} or more"),
        (key.below, "less than {:g}"),
        (most if least is None or most is None else None, "at most {:g}"),
    ]
    if least is not None and most is not None:
        limits[1] = (None, "")
        words += f", from {_number(least)} to {_number(most)}"
    words += "".join(
        f", {text.format(limit)}" for limit, text in limits if limit is not None
    )
    if type(None) in typing.get_args(declared.type):
        words += ", or None"
    return words


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def type_name(annotation: Any) -> str:
    """Returns the type of a key as Python writes it, such as "int | None"."""
    return (
        annotation.__name__
        if isinstance(annotation, type) and not (typing.get_args(annotation))
        else str(annotation).replace("typing.", "")
    )


def _type_words(annotation: Any) -> str:
    simple = {
        int: "an integer",
        float: "a number",
        str: "a text",
        bool: "True or False",
    }
    if annotation in simple:
        return simple[annotation]
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        (inner,) = (one for one in arguments if one is not types.NoneType)
        return _type_words(inner)
    if typing.get_origin(annotation) is dict:
        return "keyword arguments: a dictionary of plain values"
    plural = {int: "integers", float: "numbers", str: "names"}
    what = plural.get(arguments[0], "rows")
    if Ellipsis in arguments:
        return f"a tuple of {what}"
    return f"{len(arguments)} {what}"


def _entries(annotation: Any) -> Any:
    arguments = typing.get_args(annotation)
    return arguments[0] if typing.get_origin(annotation) is tuple else None


def _convert(annotation: Any, declared: Declared, value: Any, expected: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    arguments, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if isinstance(annotation, types.UnionType):
        if value is None:
            return None
        (inner,) = (one for one in arguments if one is not types.NoneType)
        return _convert(inner, declared, value, expected)
    if origin is tuple:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, tuple | list):
            raise _Bad(expected)
        each = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        if len(each) != len(value):
            raise _Bad(expected)
        return tuple(
            _convert(one, declared, entry, expected)
            for one, entry in zip(each, value, strict=True)
        )
    if origin is dict:
        return _kwargs(value, expected)
    if annotation is str:
        if not isinstance(value, str):
            raise _Bad(expected)
        return _choice(declared, value, expected)
    if annotation is bool:
        if not isinstance(value, bool):
            raise _Bad(expected)
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Bad(expected)
    if annotation is int and not isinstance(value, int):
        raise _Bad(expected)
    return _in_range(declared, annotation(value), expected)


def _kwargs(value: Any, expected: str) -> dict[str, Any]:
    try:
        json.dumps(value)
        plain = isinstance(value, dict) and all(map(str.isidentifier, value))
    except (TypeError, ValueError):
        plain = False
    if not plain:
        raise _Bad(expected)
    return dict(value)


def _choice(declared: Declared, value: str, expected: str) -> str:
    choices, own = declared.key.choices, declared.key.own
    if not choices or value in choices:
        return value
    if own and plugins.is_own(value):
        if plugins.is_well_formed(value):
            return value
        raise _Bad(f"{expected}, both names of Python")
    raise _Bad(f"{expected}; {closest(value, choices)}")


def _in_range(declared: Declared, value: int | float, expected: str) -> int | float:
    key = declared.key
    if isinstance(value, float):
        # What the devices compute with.
        if not math.isfinite(value) or abs(value) > _HUGE or 0 < abs(value) < _TINY:
            raise _Bad(f"{expected}, as float32")
    elif abs(value) > (key.most or MOST):
        raise _Bad(expected if key.most else f"{expected}, at most {MOST}")
    inside = (
        (key.above is None or value > key.above)
        and (key.least is None or value >= key.least)
        and (key.below is None or value < key.below)
        and (key.most is None or value <= key.most)
    )
    if not inside:
        raise _Bad(expected)
    return value


def _check_objective(settings: Settings, problems: _Problems) -> None:
    """Checks what holds for every data set."""
    require, penalty = problems.require, settings.penalty
    if (settings.steps is None) == (settings.epochs is None):
        found = (settings.steps, settings.epochs)
        require(False, "steps, epochs", found, "exactly one of them to be given")
    last = settings.seed + settings.seeds - 1
    require(last < 2**32, "seed", settings.seed, "the last seed to be below 2**32")
    if penalty.kind == "consistency":
        values = flatten(settings)
        for name, value in WITHOUT_DERIVATIVE.items():
            expected = f"{value!r}, as penalty.kind 'consistency' takes no derivative"
            require(values[name] == value, name, values[name], expected)
    batch, group = settings.batch_size, settings.batchnorm.group_size
    expected = f"0, or a divisor of {batch} that is more than 1"
    divides = group == 0 or (group > 1 and batch % group == 0)
    require(divides, "batchnorm.group_size", group, expected)
    parts = settings.microbatches
    require(batch % parts == 0, "microbatches", parts, f"a divisor of {batch}")
    method, block = settings.method.name, settings.similarity_block
    compares = method in WITH_SIMILARITIES or plugins.is_own(method)
    expected = f"0, as method.name {method!r} has no similarities"
    require(block == 0 or compares, "similarity_block", block, expected)
    if parts > 1 and penalty.weight > 0:
        whole = "1, as {} needs the whole batch"
        at_z, of_batch = penalty.at == "z", penalty.normalization == "batch"
        require(not at_z, "microbatches", parts, whole.format("penalty.at 'z'"))
        of_batch = of_batch and penalty.kind == "gradient"
        expected = whole.format("penalty.normalization 'batch'")
        require(not of_batch, "microbatches", parts, expected)
    chosen, validation = settings.evaluation, settings.data.validation_examples
    asked = {
        "logging.probe_every_steps": settings.logging.probe_every_steps > 0,
        "evaluation.split": chosen.split == "validation",
        "embedding.splits": "validation" in settings.embedding.splits,
    }
    for name, is_asked in asked.items():
        expected = "nothing of the validation split, as data.validation_examples is 0"
        value = flatten(settings)[name]
        require(validation > 0 or not is_asked, name, value, expected)
    for row in chosen.shifts:
        _check_shift(row, problems)


def _check_own(settings: Settings, problems: _Problems) -> None:
    """Checks what goes with parts that are the user's own."""
    require, statistics = problems.require, settings.penalty.batch_statistics
    for part in ("encoder", "augmentation"):
        chosen = getattr(settings, part)
        if not plugins.is_own(chosen.name):
            expected = f"{{}}, as {part}.name is {chosen.name!r}"
            require(not chosen.kwargs, f"{part}.kwargs", chosen.kwargs, expected)
    held, key = statistics == "example", "penalty.batch_statistics"
    own = plugins.is_own(settings.encoder.name)
    expected = "'coupled', as encoder.name is MODULE:FUNCTION"
    require(not (held and own), key, statistics, expected)
    own = plugins.is_own(settings.method.name) and settings.penalty.at == "z"
    expected = "'coupled', as method.name is MODULE:FUNCTION and penalty.at is 'z'"
    require(not (held and own), key, statistics, expected)
    own = plugins.is_own(settings.augmentation.name)
    if own:
        spirograph_set = settings.data.name == "spirograph"
        expected = "'image', as data.name is 'spirograph', which makes its own views"
        name = settings.augmentation.name
        require(not spirograph_set, "augmentation.name", name, expected)
        families = settings.evaluation.families
        expected = "('all',), as augmentation.name is MODULE:FUNCTION"
        require(families == ("all",), "evaluation.families", families, expected)
    weights, name = settings.encoder.weights, settings.encoder.name
    expected = f"None, as encoder.name is {name!r}; a ResNet can be read"
    require(not weights or name in _RESNETS, "encoder.weights", weights, expected)


_RESNETS = ("resnet18", "resnet34", "resnet50")


def is_asked(settings: Settings, experiment: str) -> bool:
    """Returns whether `evaluation.experiments` asks for an experiment."""
    return bool({experiment, "all"} & {*settings.evaluation.experiments})


_SHIFTS = "evaluation.shifts"
_HOW = ("move", "widen", "strength")


def _check_shift(row: tuple[str, str, tuple[float, ...]], problems: _Problems) -> None:
    what, how, grid = row
    names: tuple[str, ...] = (*spirograph.PARAMETERS, *shifts.GROUPS)
    if how == "strength":
        names = ("color",)
        most = laws.MAX_STRENGTH
        inside = all(0 <= strength <= most for strength in grid)
        problems.require(inside, _SHIFTS, row, f"strengths from 0 to {most}")
    if how == "widen":
        positive = all(factor >= 0 for factor in grid)
        problems.require(positive, _SHIFTS, row, "factors of 0 or more to widen by")
    known = how in _HOW and what in names and len(grid) > 0
    expected = f"(one of {', '.join(names)}; one of {', '.join(_HOW)}; numbers)"
    problems.require(known, _SHIFTS, row, expected)


def _check_spirograph(settings: Settings, problems: _Problems) -> None:
    require, chosen = problems.require, settings.data
    for name in ("train_examples", "test_examples", "image_size"):
        given = getattr(chosen, name)
        require(given is not None, f"data.{name}", given, "an integer")
    count, views = chosen.validation_examples, settings.embedding.num_views
    require(count > 0, "data.validation_examples", count, "a positive number")
    families = settings.evaluation.families
    require(families == ("all",), "evaluation.families", families, "('all',)")
    require(views != 0, "embedding.num_views", views, "M >= 1, as no image is plain")
    problems.stop()
    counts = (chosen.train_examples, chosen.validation_examples, chosen.test_examples)
    # Made in float64, kept in float32.
    needed = 12 * len(chosen.targets) * sum(count or 0 for count in counts)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    expected = f"fewer: the targets take {needed:.2g} of {there:.2g} bytes of memory"
    fits = needed < there / 2
    require(fits, "data.train_examples", chosen.train_examples, expected)
    made = _made(lambda: make_spirograph(settings), problems, ("data", "augmentation"))
    if made is not None:
        _check_parameters(settings, made.names, frozenset(), problems)
    if is_asked(settings, "shift"):
        _check_moved(settings, problems)


def make_spirograph(settings: Settings) -> Transformation:
    """Returns the transformation of the Spirograph data."""
    chosen = settings.data
    assert chosen.image_size is not None
    return spirograph.make_transformation(
        targets=chosen.targets,
        bounds=spirograph_bounds(settings),
        image_size=chosen.image_size,
        num_points=chosen.num_points,
        extent=chosen.extent,
        normalization=chosen.normalization,
    )


def spirograph_bounds(settings: Settings) -> np.ndarray:
    """Returns the bounds `[10, 2]`, in the order of the parameters."""
    bounds = settings.data.bounds
    rows = [getattr(bounds, name) for name in spirograph.PARAMETERS]
    return np.array(rows, np.float64)


def _made(
    make: Callable[[], Transformation], problems: _Problems, sections: tuple[str, str]
) -> Transformation | None:
    """Returns a transformation; its error, which names an argument, is a problem."""
    try:
        return make()
    except ValueError as error:
        message = str(error).replace("bounds of ", "bounds.")
        argument = re.split(r"\W", message)[0]
        first, second = sections
        part = (
            first if f"{first}.{argument}" in KEYS or argument == "bounds" else second
        )
        problems.found.setdefault(argument, f"{part}.{message}")
        return None


def _check_parameters(
    settings: Settings,
    names: tuple[str, ...],
    idle: frozenset[str],
    problems: _Problems,
) -> None:
    """Checks that the penalty has parameters along which views change."""
    penalty, key = settings.penalty, "penalty.parameters"
    chosen = penalty.parameters
    expected = f"some of {', '.join(names) or 'none'}"
    problems.require({*chosen} <= {*names}, key, chosen, expected)
    if penalty.weight > 0 and penalty.kind == "gradient":
        moving = {*(chosen or names)} - idle
        expected = "one that is switched on, as penalty.weight is not 0"
        if not {*names} - idle:
            key, chosen = (
                "augmentation.differentiate",
                settings.augmentation.differentiate,
            )
            expected = "a part that is switched on, as penalty.weight is not 0"
        problems.require(bool(moving), key, chosen, expected)


def _check_moved(settings: Settings, problems: _Problems) -> None:
    """Checks the shifts of Spirograph's nuisance."""
    bounds = dict(zip(spirograph.PARAMETERS, spirograph_bounds(settings), strict=True))
    for row in settings.evaluation.shifts:
        what, how, grid = row
        expected = '"move" or "widen" of Spirograph'
        problems.require(how != "strength", _SHIFTS, row, expected)
        for name in shifts.GROUPS.get(what, (what,)) if how != "strength" else ():
            free = name not in settings.data.targets
            expected = f"a nuisance parameter: {name} is a target"
            problems.require(free, _SHIFTS, row, expected)
            low, high = bounds[name]
            # Negative, these would make no image.
            for value in grid if name in ("b", "sigma") else ():
                widened = (low + high) / 2 - value * (high - low) / 2
                positive = (low + value if how == "move" else widened) > 0
                expected = f"distributions of {name} that stay above 0"
                problems.require(positive, _SHIFTS, row, expected)


def _check_images(settings: Settings, problems: _Problems) -> None:
    chosen = settings.data
    for row in settings.evaluation.shifts if is_asked(settings, "shift") else ():
        expected = '("color", "strength", numbers) of images'
        problems.require(row[1] == "strength", _SHIFTS, row, expected)
    if not plugins.is_own(settings.augmentation.name):
        stand_in = copy.deepcopy(settings)
        source = chosen.source_size or (32, 32)
        stand_in.data.source_size = source
        stand_in.data.image_size = chosen.image_size or min(source)
        sections = ("augmentation", "data")
        made = _made(lambda: make_image_views(stand_in), problems, sections)
        if made is not None:
            augmentation = settings.augmentation
            still = 0 in (augmentation.jitter_probability, augmentation.strength)
            idle = frozenset(JITTER_NAMES if still else ())
            _check_parameters(settings, made.names, idle, problems)
    problems.stop()
    _fill_in(settings, problems)


def make_image_views(settings: Settings, family: str = "all") -> Transformation:
    """Returns the built-in views of an image set, or the part of it of a family.

    Args:
      settings: with the size of the images; a mean or deviation that is not known yet
        is .5.
      family: "all"; "color": without crop, flip and affine map; "crop": without colour.

    Returns:
      The transformation. Of a part of it, nothing is differentiated.

    Raises:
      ValueError: if a setting is invalid.
    """
    chosen, augmentation = settings.data, settings.augmentation
    geometric, colored = family in ("all", "crop"), family in ("all", "color")
    assert chosen.source_size is not None and chosen.image_size is not None
    return image.make_transformation(
        source_size=chosen.source_size,
        image_size=chosen.image_size,
        mean=chosen.mean or (0.5,) * 3,
        std=chosen.std or (0.5,) * 3,
        strength=augmentation.strength,
        jitter_probability=augmentation.jitter_probability * colored,
        gray_probability=augmentation.gray_probability * colored,
        crop=augmentation.crop and geometric,
        flip=augmentation.flip and geometric,
        differentiate=augmentation.differentiate if family == "all" else (),
        crop_area=augmentation.crop_area,
        crop_aspect=augmentation.crop_aspect,
        resampling=augmentation.resampling,
        colorize=augmentation.colorize and colored,
        rotation=augmentation.rotation * geometric,
        scaling=augmentation.scaling * geometric,
        shear=augmentation.shear * geometric,
        translation=augmentation.translation * geometric,
    )


_OF_SET = (
    "train_examples",
    "test_examples",
    "source_size",
    "channels",
    "mean",
    "std",
    "num_classes",
)


def _describe(chosen: Data) -> data.Description | None:
    """Returns what is known of an image set; None where no key asks for it.

    So a run can be used where its set is not: `config.json` says all.
    """
    *told, classes = (getattr(chosen, name) is not None for name in _OF_SET)
    if all(told) and classes:
        return None
    try:
        known = data.known(chosen.name)
        return known or data.describe(chosen.name, data_dir=chosen.data_dir)
    except ValueError:
        if all(told):  # of images without labels
            return None
        raise


def _fill_in(settings: Settings, problems: _Problems) -> None:
    """Fills in what is known of an image set without opening it."""
    chosen, require = settings.data, problems.require
    there = _describe(chosen)
    if there is not None:
        held_out, key = chosen.validation_examples, "data.validation_examples"
        expected = f"less than the {there.num_train} training images of {chosen.name}"
        require(held_out < there.num_train, key, held_out, expected)
        train, shape = there.num_train - held_out, there.image_shape
        found = train, there.num_test, shape[:2], shape[2], there.mean, there.std
        for name, value in zip(_OF_SET, (*found, there.num_classes), strict=True):
            given = getattr(chosen, name)
            if given is None:
                setattr(chosen, name, value)
            elif name in ("num_classes", "source_size", "channels"):
                expected = f"{value}, that of {chosen.name}, or None"
                require(given == value, f"data.{name}", given, expected)
            elif name.endswith("examples"):
                expected = f"at most {value}, what {chosen.name} has"
                require(given <= value, f"data.{name}", given, expected)
        problems.stop()
    assert chosen.source_size is not None
    chosen.image_size = chosen.image_size or min(chosen.source_size)
    if chosen.num_classes is not None:
        _check_labels(settings, problems)


def _check_labels(settings: Settings, problems: _Problems) -> None:
    """Checks that there are enough labels for what is measured with them."""
    chosen, examples = settings.evaluation, settings.data.train_examples or 0
    count = min(examples, chosen.train_examples or examples) * chosen.label_fraction
    neighbors = chosen.neighbors
    expected = f"at most the {int(count)} examples that the probe is fitted on"
    few = max(neighbors, default=0) <= count
    problems.require(few, "evaluation.neighbors", neighbors, expected)
    classes, fractions = settings.data.num_classes or 1, chosen.label_fractions
    # Of n examples of a class, the nearest whole number to its share is taken.
    least = classes / 2 / count
    if is_asked(settings, "label_fraction"):
        expected = f"{least:.3g} at least, for an example of each of {classes} classes"
        enough = fractions[0] >= least
        problems.require(enough, "evaluation.label_fractions", fractions, expected)


def _derive(settings: Settings, problems: _Problems) -> None:
    examples, batch = settings.data.train_examples or 0, settings.batch_size
    expected = f"at most {examples} examples"
    problems.require(batch <= examples, "batch_size", batch, expected)
    key = f"{settings.evaluation.split}_examples"
    measured = getattr(settings.data, key)
    expected = "2 or more, as evaluation.split is measured"  # a variance over examples
    problems.require(measured > 1, f"data.{key}", measured, expected)
    problems.stop()
    per_epoch = examples // batch
    steps = settings.steps or (settings.epochs or 0) * per_epoch
    key = "steps" if settings.steps else "epochs"
    problems.require(steps <= MOST, key, steps, f"at most {MOST} steps")
    warmup = settings.penalty.warmup_steps
    expected = f"at most {steps} steps"
    problems.require(warmup <= steps, "penalty.warmup_steps", warmup, expected)
    traced, key = settings.logging.profile_steps, "logging.profile_steps"
    ends: tuple[int, ...] = ()
    if traced:
        found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", traced)
        ends = tuple(map(int, found.groups())) if found else (0, 0)
        expected = f"two increasing steps a:b, b at most {steps}"
        problems.require(ends[0] < ends[1] <= steps, key, traced, expected)
    rate = settings.optimizer.learning_rate * batch / 256
    settings.derived = Derived(steps, per_epoch, rate, ends)


def check_devices(settings: Settings, num_devices: int) -> None:
    """Checks that the batch can be spread over the devices.

    Args:
      settings: the result of `resolve`.
      num_devices: devices of all processes.

    Raises:
      ValueError: if the devices do not divide the batch, or the share of a device and
        `batchnorm.group_size` do not divide one another.
    """
    batch, group = settings.batch_size, settings.batchnorm.group_size
    problems = _Problems()
    expected = f"a multiple of the {num_devices} devices"
    problems.require(batch % num_devices == 0, "batch_size", batch, expected)
    problems.stop()
    share, parts = batch // num_devices, settings.microbatches
    each = f"the {share} examples that each of the {num_devices} devices has"
    problems.require(share % parts == 0, "microbatches", parts, f"a divisor of {each}")
    problems.stop()
    part, key = share // parts, "batchnorm.group_size"
    if parts > 1 and group:
        expected = f"a divisor of the {part} examples of each of {parts} microbatches"
        problems.require(part % group == 0, key, group, expected)
    if group:
        fits = share % group == 0 or group % share == 0
        problems.require(fits, key, group, f"a divisor or a multiple of {each}")
    problems.stop()
