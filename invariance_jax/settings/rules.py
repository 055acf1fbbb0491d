"""From a configuration to settings: every value checked, what follows derived.

Nothing is read but the description of a prepared image set, nothing is downloaded,
compiled or written. All bad keys are listed at once; each line names the key, the value
found and what was expected.
"""

import copy
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
    Data,
    Derived,
    Settings,
    change,
    flatten,
    get,
)
from invariance_jax.settings.values import Bad, convert, expectation
from invariance_jax.transforms import (
    Transformation,
    image,
    shifts,
    spirograph,
)
from invariance_jax.transforms.color import JITTER_NAMES

_FULL_STEP: dict[str, object] = {
    "penalty.estimator": "directional",
    "penalty.batch_statistics": "coupled",
}
_UNWEIGHTED: dict[str, object] = {"penalty.parameter_weights": ()}
_OF_KIND: dict[str, dict[str, object]] = {
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
"""Kind of the penalty -> the only values that go with it."""


class _Problems:
    """What is wrong with a configuration, a line for each bad key."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.found: dict[str, str] = {}

    def require(
        self, condition: bool, key: str, expected: str, value: object = ...
    ) -> None:
        """Takes a note unless a condition holds; a value is that of the key."""
        if not condition:
            value = get(self._config, key) if value is ... else value
            self.found.setdefault(key, f"{key} is {value!r}; expected {expected}.")

    def only(self, key: str, value: object, why: str) -> None:
        """Takes a note unless a key has the one value that goes with the others."""
        self.require(get(self._config, key) == value, key, f"{value!r}, as {why}")

    def stop(self) -> None:
        """Raises an error with all lines, if there are any."""
        if self.found:
            raise ValueError("\n".join(self.found.values()))


def resolve(config: Config) -> Settings:
    """Returns the settings of a configuration, checked and completed.

    Limits of 0 are left empty, paths made absolute and what is known of an image set is
    filled in. Raises ValueError with a line for each bad key.
    """
    if not isinstance(config, Config):
        raise ValueError(
            f"config is {type(config).__name__}; expected what configs.base.get_config "
            "returns."
        )
    for name, kind in SECTIONS.items():
        if not isinstance(get(config, name), kind):
            raise ValueError(
                f"{name} is {get(config, name)!r}; expected the section that "
                "configs.base.get_config makes, of which keys are changed."
            )
    settings = Settings()
    problems = _Problems(config)
    for name, value in flatten(config).items():
        try:
            change(settings, name, convert(KEYS[name], value))
        except Bad as more:
            problems.require(False, name, f"{expectation(KEYS[name])}{more}")
    problems.stop()
    settings.penalty.example_limit = settings.penalty.example_limit or None
    settings.penalty.batch_limit = settings.penalty.batch_limit or None
    problems = _Problems(settings)
    _check_objective(settings, problems)
    _check_optimizer(settings, problems)
    _check_validation(settings, problems)
    _check_own(settings, problems)
    for row in settings.evaluation.shifts:
        _check_shift(row, settings, problems)
    if settings.data.name == "spirograph":
        _check_spirograph(settings, problems)
    else:
        _check_images(settings, problems)
    _check_sizes(settings, problems)
    _derive(settings, problems)
    return settings


def _check_objective(settings: Settings, problems: _Problems) -> None:
    """Checks what holds for every data set."""
    require, penalty = problems.require, settings.penalty
    length = settings.steps, settings.epochs
    one = length.count(None) == 1
    require(one, "steps, epochs", "exactly one of them to be given", length)
    last = settings.seed + settings.seeds - 1
    require(last < 2**32, "seed", "the last seed to be below 2**32")
    for name, value in _OF_KIND[penalty.kind].items():
        expected = f"{value!r}, the only one of penalty.kind {penalty.kind!r}"
        require(get(settings, name) == value, name, expected)
    batch, group = settings.batch_size, settings.batchnorm.group_size
    expected = f"0, or a divisor of {batch} that is more than 1"
    divides = group == 0 or (group > 1 and batch % group == 0)
    require(divides, "batchnorm.group_size", expected)
    parts = settings.microbatches
    require(batch % parts == 0, "microbatches", f"a divisor of {batch}")
    encoder = settings.encoder
    bare = (encoder.depth, encoder.final) == (1, "linear")
    normalizes = encoder.name in RESNETS or (encoder.name == "mlp" and not bare)
    expected = "the examples of a group, as microbatches is not 1"
    fits = parts == 1 or group > 0 or not normalizes
    require(fits, "batchnorm.group_size", expected)
    method = settings.method.name
    if not (method in WITH_SIMILARITIES or plugins.is_own(method)):
        why = f"method.name {method!r} has no similarities"
        problems.only("similarity_block", 0, why)
    if penalty.weight > 0 and penalty.at == "z":
        problems.only("microbatches", 1, "penalty.at 'z' needs the whole batch")
    of_batch = penalty.normalization == "batch" and penalty.kind != "consistency"
    if penalty.weight > 0 and of_batch:
        why = "penalty.normalization 'batch' needs the whole batch"
        problems.only("microbatches", 1, why)


def _check_optimizer(settings: Settings, problems: _Problems) -> None:
    chosen = settings.optimizer
    why = f"optimizer.name is {chosen.name!r}"
    if chosen.name != "adamw":
        problems.only("optimizer.weight_decay_end", None, why)
    if chosen.name != "lars":
        problems.only("optimizer.clip_trust", False, why)
    if not chosen.exclude:
        why = "optimizer.exclude is empty"
        problems.only("optimizer.excluded_rate", 1.0, why)


def _check_validation(settings: Settings, problems: _Problems) -> None:
    """Checks that nothing is asked of a validation split that is empty."""
    asked = {
        "logging.probe_every_steps": settings.logging.probe_every_steps > 0,
        "evaluation.split": settings.evaluation.split == "validation",
        "embedding.splits": "validation" in settings.embedding.splits,
    }
    for name, needs in asked.items() if not settings.data.validation_examples else ():
        expected = "nothing of the validation split, as data.validation_examples is 0"
        problems.require(not needs, name, expected)


def _check_own(settings: Settings, problems: _Problems) -> None:
    """Checks what goes with parts that are the user's own."""
    encoder, augmentation = settings.encoder, settings.augmentation
    only, statistics = problems.only, "penalty.batch_statistics"
    if plugins.is_own(encoder.name):
        only(statistics, "coupled", "encoder.name is MODULE:FUNCTION")
    else:
        only("encoder.kwargs", {}, f"encoder.name is {encoder.name!r}")
    if plugins.is_own(settings.method.name) and settings.penalty.at == "z":
        why = "method.name is MODULE:FUNCTION and penalty.at is 'z'"
        only(statistics, "coupled", why)
    if plugins.is_own(augmentation.name):
        if settings.data.name == "spirograph":
            why = "data.name is 'spirograph', which makes its own views"
            only("augmentation.name", "image", why)
        why = "augmentation.name is MODULE:FUNCTION"
        only("evaluation.families", ("all",), why)
    else:
        only("augmentation.kwargs", {}, f"augmentation.name is {augmentation.name!r}")
    if encoder.name in RESNETS:
        expected = f"at most 256 for {encoder.name}, or None, which is 64"
        problems.require((encoder.width or 0) <= 256, "encoder.width", expected)
    else:
        why = f"encoder.name is {encoder.name!r}; a ResNet can be read"
        only("encoder.weights", None, why)


def _check_sizes(settings: Settings, problems: _Problems) -> None:
    """Checks that an encoder takes images of the sizes that views have."""
    require, encoder = problems.require, settings.encoder
    size = settings.data.image_size
    smaller = settings.augmentation.more_size or size
    expected = f"{size} or None, as an MLP takes images of one size"
    require(
        encoder.name != "mlp" or smaller == size, "augmentation.more_size", expected
    )
    if encoder.name in VITS:
        divides = not (size or 0) % encoder.patch_size
        expected = f"a divisor of data.image_size, {size}"
        require(divides, "encoder.patch_size", expected)
        divides = not (smaller or 0) % encoder.patch_size
        expected = f"a multiple of encoder.patch_size, {encoder.patch_size}"
        require(divides, "augmentation.more_size", expected)
        heads = not (encoder.width or 0) % HEAD_FEATURES
        require(heads, "encoder.width", f"a multiple of {HEAD_FEATURES}")


def is_asked(settings: Settings, experiment: str) -> bool:
    """Returns whether `evaluation.experiments` asks for an experiment."""
    return bool({experiment, "all"} & {*settings.evaluation.experiments})


def _check_shift(
    row: tuple[str, str, tuple[float, ...]], settings: Settings, problems: _Problems
) -> None:
    """Checks a row of evaluation.shifts; against the data set if it is measured."""

    def require(condition: bool, expected: str) -> None:
        problems.require(condition, "evaluation.shifts", expected, row)

    what, how, grid = row
    names: tuple[str, ...] = (*spirograph.PARAMETERS, *shifts.GROUPS)
    if how == "strength":
        names, most = ("color",), image.MAX_STRENGTH
        inside = all(0 <= strength <= most for strength in grid)
        require(inside, f"strengths from 0 to {most}")
    if how == "widen":
        positive = all(factor >= 0 for factor in grid)
        require(positive, "factors of 0 or more to widen by")
    ways = ("move", "widen", "strength")
    known = how in ways and what in names and len(grid) > 0
    require(known, f"(one of {', '.join(names)}; one of {', '.join(ways)}; numbers)")
    if not known or not is_asked(settings, "shift"):
        return
    if settings.data.name != "spirograph":
        require(how == "strength", '("color", "strength", numbers) of images')
    elif how == "strength":
        require(False, '"move" or "widen" of Spirograph')
    else:
        for name in shifts.GROUPS.get(what, (what,)):
            free = name not in settings.data.targets
            require(free, f"a nuisance parameter: {name} is a target")
            low, high = getattr(settings.data.bounds, name)
            # Negative, these would make no image.
            for value in grid if name in ("b", "sigma") else ():
                widened = (low + high) / 2 - value * (high - low) / 2
                positive = (low + value if how == "move" else widened) > 0
                require(positive, f"distributions of {name} that stay above 0")


def _check_spirograph(settings: Settings, problems: _Problems) -> None:
    require, chosen = problems.require, settings.data
    for name in ("train_examples", "test_examples", "image_size"):
        require(getattr(chosen, name) is not None, f"data.{name}", "an integer")
    count = chosen.validation_examples
    require(count > 0, "data.validation_examples", "a positive number")
    whole = settings.evaluation.families == ("all",)
    require(whole, "evaluation.families", "('all',)")
    for name, value in (("source", "memory"), ("store_size", None)):
        problems.only(f"data.{name}", value, "Spirograph is drawn on the devices")
    plain = settings.embedding.num_views == 0
    require(not plain, "embedding.num_views", "M >= 1, as no image is plain")
    if not (chosen.train_examples and chosen.test_examples and chosen.image_size):
        return  # those are named
    total = chosen.train_examples + count + chosen.test_examples
    # Made in float64, kept in float32.
    needed = 12 * len(chosen.targets) * total
    there = machine_memory()
    expected = f"fewer: the targets take {needed:.2g} of {there:.2g} bytes of memory"
    require(needed < there / 2, "data.train_examples", expected)
    names = {"bounds of ": "bounds."}
    made = _made(lambda: make_spirograph(settings), problems, names)
    if made is not None:
        _check_parameters(settings, made.names, problems)


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
    make: Callable[[], Transformation],
    problems: _Problems,
    names: Mapping[str, str] = {},
) -> Transformation | None:
    """Returns a transformation; its error, which names an argument, is a problem.

    Names are those of the keys where they are not the arguments'.
    """
    try:
        return make()
    except ValueError as error:
        message = str(error)
        for argument, key in names.items():
            message = message.replace(argument, key)
        argument = re.split(r"\W", message)[0]
        of_data = f"data.{argument}" in {*KEYS, *SECTIONS}
        section = "data" if of_data else "augmentation"
        problems.found.setdefault(argument, f"{section}.{message}")
        return None


def _check_parameters(
    settings: Settings,
    names: tuple[str, ...],
    problems: _Problems,
    idle: frozenset[str] = frozenset(),
) -> None:
    """Checks that the penalty has parameters along which views change."""
    penalty, key = settings.penalty, "penalty.parameters"
    expected = f"some of {', '.join(names) or 'none'}"
    problems.require({*penalty.parameters} <= {*names}, key, expected)
    weights, chosen = penalty.parameter_weights, penalty.parameters or names
    expected = f"a weight for each of {', '.join(chosen)}, one of them above 0, or ()"
    fits = not weights or (len(weights) == len(chosen) and any(weights))
    problems.require(fits, "penalty.parameter_weights", expected)
    if penalty.weight > 0 and penalty.kind != "consistency":
        moving, what = {*chosen} - idle, "one"
        if not {*names} - idle:
            key, what = "augmentation.differentiate", "a part"
        expected = f"{what} that is switched on, as penalty.weight is not 0"
        problems.require(bool(moving), key, expected)


def check_parameters(settings: Settings, names: tuple[str, ...]) -> None:
    """Checks that the parameters of the penalty are those of the user's own views."""
    problems = _Problems(settings)
    _check_parameters(settings, names, problems)
    problems.stop()


_OF_VIEWS = tuple(
    f"{name}_probability" for name in ("jitter", "gray", "blur", "solarize", "erase")
)


def _follow_recipe(augmentation: Augmentation, problems: _Problems) -> None:
    """Fills in what the recipe says, and checks what is of the second view."""
    for name, value in image.RECIPES[augmentation.recipe].items():
        if getattr(augmentation, name) is None:
            if name in _OF_VIEWS and isinstance(value, tuple):
                value, second = value
                augmentation.second_view = {name: second, **augmentation.second_view}
            setattr(augmentation, name, value)
    of_views = {*augmentation.second_view} <= {*_OF_VIEWS}
    expected = f"some of {', '.join(_OF_VIEWS)}"
    problems.require(of_views, "augmentation.second_view", expected)
    for name, value in augmentation.second_view.items():
        fits = type(value) in (int, float) and 0 <= value <= 1
        expected = f"a probability {name} from 0 to 1"
        problems.require(fits, "augmentation.second_view", expected)


def _check_images(settings: Settings, problems: _Problems) -> None:
    chosen, augmentation = settings.data, settings.augmentation
    if chosen.store_size is not None:
        square = (chosen.store_size,) * 2
        chosen.source_size = chosen.source_size or square
        expected = f"{square}, of data.store_size, or None"
        problems.require(chosen.source_size == square, "data.source_size", expected)
    problems.only("evaluation.lbfgs_steps", (), "the probe is logistic")
    _follow_recipe(augmentation, problems)
    if not plugins.is_own(augmentation.name):
        problems.stop()
        stand_in = copy.deepcopy(settings)
        source = chosen.source_size or (32, 32)
        stand_in.data.source_size = source
        stand_in.data.image_size = chosen.image_size or min(source)
        made = _made(lambda: make_image_views(stand_in), problems)
        if made is not None:
            # The penalty is that of the first view.
            still = 0 in (augmentation.jitter_probability, augmentation.strength)
            idle = {*(JITTER_NAMES if still else ())}
            idle |= {"blur.sigma"} if augmentation.blur_probability == 0 else set()
            _check_parameters(settings, made.names, problems, frozenset(idle))
            if settings.more_views:
                # What further views have in place of the keys of the two.
                names = {"crop_area": "more_area", "image_size": "more_size"}
                _made(lambda: make_image_views(stand_in, "more"), problems, names)
    problems.stop()
    _fill_in(settings, problems)


def make_image_views(settings: Settings, family: str = "all") -> Transformation:
    """Returns the built-in views of an image set, or the part of it of a family.

    The family "more" are the views beside the two of a loss.
    """
    chosen, augmentation = settings.data, settings.augmentation
    whole = family in ("all", "more")
    geometric, colored = whole or family == "crop", whole or family == "color"
    size, area = chosen.image_size, augmentation.crop_area
    if family == "more":
        size, area = augmentation.more_size or size, augmentation.more_area or area
    assert chosen.source_size is not None and size is not None
    assert augmentation.strength is not None and augmentation.jitter_ranges is not None
    probabilities: dict[str, Any] = {}
    for name in _OF_VIEWS:
        first = getattr(augmentation, name)
        both = first, augmentation.second_view.get(name, first)
        probabilities[name] = both if colored else 0.0
    return image.make_transformation(
        source_size=chosen.source_size,
        image_size=size,
        mean=chosen.mean or (0.5,) * 3,
        std=chosen.std or (0.5,) * 3,
        strength=augmentation.strength,
        jitter_ranges=augmentation.jitter_ranges,
        crop=augmentation.crop and geometric,
        flip=augmentation.flip and geometric,
        differentiate=augmentation.differentiate if family == "all" else (),
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
        squashed=chosen.store_size is not None,
        **probabilities,
    )


_OF_SET = (
    "train_examples test_examples source_size channels mean std num_classes".split()
)
"""Keys of data that the description of an image set fills in."""


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
        expected = f"less than the {there.num_train} training images of {chosen.name}"
        train = there.num_train - chosen.validation_examples
        require(train > 0, "data.validation_examples", expected)
        height, width, channels = there.image_shape
        size = chosen.store_size
        expected = f"an integer, as the images of {chosen.name} have several sizes"
        require(size is not None or height * width > 0, "data.store_size", expected)
        height, width = (height, width) if size is None else (size, size)
        found = train, there.num_test, (height, width), channels, there.mean, there.std
        for name, value in zip(_OF_SET, (*found, there.num_classes), strict=True):
            given = getattr(chosen, name)
            if given is None:
                setattr(chosen, name, value)
            elif name in ("num_classes", "source_size", "channels"):
                expected = f"{value}, that of {chosen.name}, or None"
                require(given == value, f"data.{name}", expected)
            elif name.endswith("examples") and train > 0:
                expected = f"at most {value}, what {chosen.name} has"
                require(given <= value, f"data.{name}", expected)
        problems.stop()
    assert chosen.source_size is not None
    chosen.image_size = chosen.image_size or min(chosen.source_size)
    if chosen.num_classes is not None:
        _check_labels(settings, problems)


def _check_labels(settings: Settings, problems: _Problems) -> None:
    """Checks that there are enough labels for what is measured with them."""
    chosen, examples = settings.evaluation, settings.data.train_examples or 0
    count = min(examples, chosen.train_examples or examples) * chosen.label_fraction
    expected = f"at most the {int(count)} examples that the probe is fitted on"
    few = max(chosen.neighbors, default=0) <= count
    problems.require(few, "evaluation.neighbors", expected)
    classes = settings.data.num_classes or 1
    # Of n examples of a class, the nearest whole number to its share is taken.
    least = classes / 2 / count
    if is_asked(settings, "label_fraction"):
        expected = f"{least:.3g} at least, for an example of each of {classes} classes"
        enough = chosen.label_fractions[0] >= least
        problems.require(enough, "evaluation.label_fractions", expected)


def _derive(settings: Settings, problems: _Problems) -> None:
    require, batch = problems.require, settings.batch_size
    examples = settings.data.train_examples or 0
    fits = batch <= examples or settings.data.train_examples is None
    require(fits, "batch_size", f"at most {examples} examples")
    key = f"data.{settings.evaluation.split}_examples"
    expected = "2 or more, as evaluation.split is measured"  # a variance over examples
    count = get(settings, key)
    require(count is None or count > 1, key, expected)  # None is named already
    per_epoch = examples // batch
    steps = settings.steps or (settings.epochs or 0) * per_epoch
    key = "steps" if settings.steps else "epochs"
    require(steps <= MOST, key, f"at most {MOST} steps", steps)
    warmup = settings.penalty.warmup_steps
    require(warmup <= steps, "penalty.warmup_steps", f"at most {steps} steps")
    ends: tuple[int, ...] = ()
    if traced := settings.logging.profile_steps:
        found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", traced)
        ends = tuple(map(int, found.groups())) if found else (0, 0)
        expected = f"two increasing steps a:b, b at most {steps}"
        require(ends[0] < ends[1] <= steps, "logging.profile_steps", expected)
    rate = settings.optimizer.learning_rate * batch / 256
    settings.derived = Derived(steps, per_epoch, rate, ends)
    problems.stop()


def check_devices(settings: Settings, num_devices: int) -> None:
    """Raises ValueError if the batch cannot be spread over the devices."""
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
