"""From a configuration to settings: checks of all values, and derived quantities.

Only the description of a prepared image set is read; nothing is downloaded, compiled or
written. An error lists all bad keys at once. Each line names the key, the value found
and what was expected.
"""

import copy
import math
import re
from collections.abc import Callable, Mapping, Set

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
from invariance_jax.settings.views import (
    PROBABILITIES,
    make_image_views,
    make_spirograph,
)
from invariance_jax.transforms import Transformation, image, shifts, spirograph
from invariance_jax.transforms.color import JITTER_NAMES


class _Problems:
    """The errors of a configuration, one line for each bad key."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.lines: dict[str, str] = {}  # key -> its error

    def refuse(self, key: str, expected: str, value: object = ...) -> None:
        """Adds an error, the first one of its key; `value` defaults to the key's."""
        value = get(self._config, key) if value is ... else value
        self.lines.setdefault(key, f"{key} is {value!r}; expected {expected}.")

    def only(self, key: str, value: object, why: str) -> None:
        """Adds an error unless a key has the only value that other keys allow."""
        if get(self._config, key) != value:
            self.refuse(key, f"{value!r}, as {why}")

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
        if expected := _expected_shift(row, settings):
            problems.refuse("evaluation.shifts", expected, row)
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
            problems.refuse(name, f"{expectation(KEYS[name])}{detail}")
    problems.stop()
    return settings


def _check_objective(settings: Settings, problems: _Problems) -> None:
    """Checks length, seeds, penalty, batch and method, for every data set."""
    refuse, only, penalty = problems.refuse, problems.only, settings.penalty
    length = settings.steps, settings.epochs
    if length.count(None) != 1:
        refuse("steps, epochs", "exactly one of them to be given", length)
    if settings.seed + settings.seeds > 2**32:
        refuse("seed", "the last seed, seed + seeds - 1, below 2**32")
    why = f"penalty.kind is {penalty.kind!r}"
    if penalty.kind != "gradient":
        only("penalty.estimator", "directional", why)
        only("penalty.batch_statistics", "coupled", why)
    if penalty.kind != "total_effect":
        only("penalty.parameter_weights", (), why)
    if penalty.kind == "consistency":
        only("penalty.parameters", (), why)
        only("penalty.directions", 1, why)
    batch, group = settings.batch_size, settings.batchnorm.group_size
    if group == 1 or (group and batch % group):
        expected = f"0, or a divisor of {batch} that is more than 1"
        refuse("batchnorm.group_size", expected)
    if batch % settings.microbatches:
        refuse("microbatches", f"a divisor of {batch}")
    encoder = settings.encoder
    is_linear = (encoder.depth, encoder.final) == (1, "linear")
    has_norm = encoder.name in RESNETS or (encoder.name == "mlp" and not is_linear)
    if settings.microbatches > 1 and group == 0 and has_norm:
        expected = "a number of examples, not 0, as microbatches is not 1"
        refuse("batchnorm.group_size", expected)
    method = settings.method.name
    if not (method in WITH_SIMILARITIES or plugins.is_own(method)):
        only("similarity_block", 0, f"method.name {method!r} computes no similarities")
    if penalty.weight > 0:
        if penalty.at == "z":
            only("microbatches", 1, "penalty.at 'z' needs the whole batch")
        if penalty.normalization == "batch" and penalty.kind != "consistency":
            why = "penalty.normalization 'batch' needs the whole batch"
            only("microbatches", 1, why)


def _check_optimizer(settings: Settings, problems: _Problems) -> None:
    optimizer = settings.optimizer
    why = f"optimizer.name is {optimizer.name!r}"
    if optimizer.name != "adamw":
        problems.only("optimizer.weight_decay_end", None, why)
    if optimizer.name != "lars":
        problems.only("optimizer.clip_trust", False, why)
    if not optimizer.exclude:
        problems.only("optimizer.excluded_rate", 1.0, "optimizer.exclude is empty")


def _check_validation(settings: Settings, problems: _Problems) -> None:
    """Checks that no key uses the validation split if it is empty."""
    if settings.data.validation_examples > 0:
        return
    uses = {
        "logging.probe_every_steps": settings.logging.probe_every_steps > 0,
        "evaluation.split": settings.evaluation.split == "validation",
        "embedding.splits": "validation" in settings.embedding.splits,
    }
    expected = "no use of the validation split, as data.validation_examples is 0"
    for name in filter(uses.get, uses):
        problems.refuse(name, expected)


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
    for key, name in (
        ("encoder.kwargs", "axis_name"),
        ("method.kwargs", "features"),
        ("method.kwargs", "axis_name"),
    ):
        if name in get(settings, key):
            problems.refuse(key, f"no {name}, which the run passes itself")
    if plugins.is_own(augmentation.name):
        if settings.data.name == "spirograph":
            why = "data.name is 'spirograph', which makes its own views"
            only("augmentation.name", "image", why)
        only("evaluation.families", ("all",), "augmentation.name is MODULE:FUNCTION")
    else:
        only("augmentation.kwargs", {}, f"augmentation.name is {augmentation.name!r}")
    if encoder.name not in RESNETS:
        why = f"encoder.name is {encoder.name!r} and weights are read for ResNets only"
        only("encoder.weights", None, why)
    elif (encoder.width or 0) > 256:
        expected = f"at most 256 for {encoder.name}, or None, which means 64"
        problems.refuse("encoder.width", expected)


def _check_sizes(settings: Settings, problems: _Problems) -> None:
    refuse, encoder = problems.refuse, settings.encoder
    size, further = settings.data.image_size, settings.augmentation.more_size
    if encoder.name == "mlp" and further not in (None, size):
        expected = f"{size} or None, as an MLP takes images of one size"
        refuse("augmentation.more_size", expected)
    if encoder.name in VITS:
        patch = encoder.patch_size
        if (size or 0) % patch:
            refuse("encoder.patch_size", f"a divisor of data.image_size, {size}")
        if (further or 0) % patch:
            expected = f"a multiple of encoder.patch_size, {patch}"
            refuse("augmentation.more_size", expected)
        if (encoder.width or 0) % HEAD_FEATURES:
            refuse("encoder.width", f"a multiple of {HEAD_FEATURES}")


def is_asked(settings: Settings, experiment: str) -> bool:
    """Returns whether `evaluation.experiments` names an experiment, or "all"."""
    return bool({experiment, "all"} & {*settings.evaluation.experiments})


def _expected_shift(
    row: tuple[str, str, tuple[float, ...]], settings: Settings
) -> str | None:
    """Returns what is expected in place of a row of evaluation.shifts, if it is bad.

    It is compared to the data set only if it is measured.
    """
    name, kind, values = row
    names: tuple[str, ...] = (*spirograph.PARAMETERS, *shifts.GROUPS)
    if kind == "strength":
        names, most = ("color",), image.MAX_STRENGTH
        if not all(0 <= strength <= most for strength in values):
            return f"strengths from 0 to {most}"
    if kind == "widen" and min(values, default=0) < 0:
        return "factors of 0 or more to widen by"
    kinds = ("move", "widen", "strength")
    if kind not in kinds or name not in names or not values:
        return f"(one of {', '.join(names)}; one of {', '.join(kinds)}; numbers)"
    if not is_asked(settings, "shift"):
        return None
    is_strength = kind == "strength"
    if settings.data.name != "spirograph":
        return None if is_strength else '("color", "strength", numbers) for images'
    if is_strength:
        return '"move" or "widen" for Spirograph'
    for parameter in shifts.GROUPS.get(name, (name,)):
        if parameter in settings.data.targets:
            return f"a nuisance parameter: {parameter} is a target"
        low, high = getattr(settings.data.bounds, parameter)
        # b and sigma must be positive for an image to exist.
        for value in values if parameter in ("b", "sigma") else ():
            widened = (low + high) / 2 - value * (high - low) / 2
            if (low + value if kind == "move" else widened) <= 0:
                return f"distributions of {parameter} that stay above 0"
    return None


def _check_spirograph(settings: Settings, problems: _Problems) -> None:
    refuse, section = problems.refuse, settings.data
    for name in ("train_examples", "test_examples", "image_size"):
        if getattr(section, name) is None:
            refuse(f"data.{name}", "an integer")
    if section.validation_examples == 0:
        refuse("data.validation_examples", "a positive number")
    if settings.evaluation.families != ("all",):
        refuse("evaluation.families", "('all',)")
    for name, value in (("source", "memory"), ("store_size", None)):
        problems.only(f"data.{name}", value, "Spirograph is drawn on the devices")
    problems.only("evaluation.label_fraction", 1.0, "Spirograph has no labels")
    if settings.embedding.num_views == 0:
        refuse("embedding.num_views", "M >= 1, as Spirograph has no plain image")
    train, test = section.train_examples, section.test_examples
    if train is None or test is None or section.image_size is None:
        return  # an error names the missing key
    # A target is drawn in float64 (8 bytes) and kept in float32 (4 bytes).
    needed = 12 * len(section.targets) * (train + section.validation_examples + test)
    memory = machine_memory()
    if needed >= memory / 2:
        text = f"fewer: the targets take {needed:.2g} of {memory:.2g} bytes of memory"
        refuse("data.train_examples", text)
    names = {"bounds of ": "bounds."}
    views = _attempt(lambda: make_spirograph(settings), problems, names)
    if views is not None:
        _check_parameters(settings, views.names, problems)


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
    idle: Set[str] = frozenset(),
) -> None:
    """Checks that the penalty's parameters are in `names`, and not all in `idle`."""
    penalty = settings.penalty
    weights, selected = penalty.parameter_weights, penalty.parameters or names
    if not {*penalty.parameters} <= {*names}:
        problems.refuse("penalty.parameters", f"some of {', '.join(names) or 'none'}")
    if weights and (len(weights) != len(selected) or not any(weights)):
        each = f"a weight for each of {', '.join(selected)}, one of them above 0, or ()"
        problems.refuse("penalty.parameter_weights", each)
    acts = penalty.weight > 0 and penalty.kind != "consistency"
    if acts and {*selected} <= idle:
        key, noun = "penalty.parameters", "a parameter"
        if {*names} <= idle:
            key, noun = "augmentation.differentiate", "an operation"
        problems.refuse(key, f"{noun} that is switched on, as penalty.weight is not 0")


def check_parameters(settings: Settings, names: tuple[str, ...]) -> None:
    """Raises ValueError if the penalty's parameters do not fit the user's own views."""
    problems = _Problems(settings)
    _check_parameters(settings, names, problems)
    problems.stop()


def _apply_recipe(augmentation: Augmentation, problems: _Problems) -> None:
    """Sets keys that are None to the recipe's values; checks `second_view`."""
    for name, value in image.RECIPES[augmentation.recipe].items():
        if getattr(augmentation, name) is None:
            if name in PROBABILITIES and isinstance(value, tuple):
                value, second = value
                augmentation.second_view = {name: second, **augmentation.second_view}
            setattr(augmentation, name, value)
    key = "augmentation.second_view"
    if not {*augmentation.second_view} <= {*PROBABILITIES}:
        problems.refuse(key, f"some of {', '.join(PROBABILITIES)}")
    for name, value in augmentation.second_view.items():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            problems.refuse(key, f"a probability {name} from 0 to 1")


def _check_images(settings: Settings, problems: _Problems) -> None:
    section, augmentation = settings.data, settings.augmentation
    if section.store_size is not None:
        square = (section.store_size,) * 2
        section.source_size = section.source_size or square
        if section.source_size != square:
            expected = f"{square}, the square of data.store_size, or None"
            problems.refuse("data.source_size", expected)
    problems.only("evaluation.lbfgs_steps", (), "the probe is logistic")
    _apply_recipe(augmentation, problems)
    is_built_in = not plugins.is_own(augmentation.name)
    if is_built_in and "augmentation.second_view" not in problems.lines:
        stand_in = copy.deepcopy(settings)
        source = section.source_size or (32, 32)
        stand_in.data.source_size = source
        stand_in.data.image_size = section.image_size or min(source)
        views = _attempt(lambda: make_image_views(stand_in), problems)
        if views is not None:
            # The penalty acts on the first view, so its probabilities decide.
            no_jitter = 0 in (augmentation.jitter_probability, augmentation.strength)
            idle = {*JITTER_NAMES} if no_jitter else set()
            if augmentation.blur_probability == 0:
                idle.add("blur.sigma")
            _check_parameters(settings, views.names, problems, idle)
            if settings.more_views:
                names = {"crop_area": "more_area", "image_size": "more_size"}
                _attempt(lambda: make_image_views(stand_in, "more"), problems, names)
    problems.stop()  # the set is asked last
    _fill_in(settings, problems)


_SET_KEYS = (
    "train_examples test_examples source_size channels mean std num_classes".split()
)
"""Keys of data that are read from the description of an image set if they are None."""


def _fill_in(settings: Settings, problems: _Problems) -> None:
    """Sets the keys of an image set that are None, and checks those that are given.

    The `config.json` of a run gives all, so that its encoder can be used without the
    data set.
    """
    section, refuse, found = settings.data, problems.refuse, None
    missing = [name for name in _SET_KEYS if getattr(section, name) is None]
    try:
        if missing:
            known, folder = data.known(section.name), section.data_dir
            found = known or data.describe(section.name, data_dir=folder)
    except ValueError as error:
        if missing != ["num_classes"]:  # which a set without labels lacks
            problems.lines["data.name"] = f"data.name: {error}"
            problems.stop()
    if found is not None:
        train, size = found.num_train - section.validation_examples, section.store_size
        if train <= 0:
            expected = f"less than the {found.num_train} training images"
            refuse("data.validation_examples", f"{expected} of {section.name}")
            # Then later checks allow what the largest training split allows.
            train = found.num_train
        height, width, channels = found.image_shape
        if size is None and height * width == 0:
            expected = f"an integer, as the images of {section.name} have several sizes"
            refuse("data.store_size", expected)
        shape = (height, width) if size is None else (size, size)
        test, mean, std = found.num_test, found.mean, found.std
        values = train, test, shape, channels, mean, std, found.num_classes
        for name, value in zip(_SET_KEYS, values, strict=True):
            if name in missing:
                setattr(section, name, value)
            given = getattr(section, name)
            if name in ("num_classes", "source_size", "channels") and given != value:
                refuse(f"data.{name}", f"{value}, as in {section.name}, or None")
            if name.endswith("examples") and given > value:
                expected = f"at most {value}, the number of images in {section.name}"
                refuse(f"data.{name}", expected)
    assert section.source_size is not None
    section.image_size = section.image_size or min(section.source_size)
    if section.num_classes is not None:
        _check_labels(settings, problems)


def _check_labels(settings: Settings, problems: _Problems) -> None:
    """Checks that there are enough labels for the kNN probe and fractions of them."""
    evaluation, examples = settings.evaluation, settings.data.train_examples or 0
    available = min(examples, evaluation.train_examples or examples)
    fraction, classes = evaluation.label_fraction, settings.data.num_classes or 1

    def suffices(smallest: float, least: float, key: str) -> bool:
        if smallest < least:
            shown = math.ceil(1e6 * least) / 1e6
            expected = (
                f"{shown:g} at least, for an example of each of {classes} classes"
            )
            problems.refuse(key, expected)
        return smallest >= least

    # A fraction of a class is rounded to whole examples, so half an example suffices.
    least = classes / 2 / available
    if fraction < 1 and not suffices(fraction, least, "evaluation.label_fraction"):
        return
    if is_asked(settings, "label_fraction"):
        smallest = evaluation.label_fractions[0]
        suffices(smallest, least / fraction, "evaluation.label_fractions")
    # The exact number is known with the labels, see `ImageTask.probe_examples`.
    most = available if fraction == 1 else int(available * fraction + classes / 2)
    if max(evaluation.neighbors, default=0) > most:
        expected = f"at most {most}, as the probe is fitted on no more examples"
        problems.refuse("evaluation.neighbors", expected)


def _derive(settings: Settings, problems: _Problems) -> None:
    refuse, batch = problems.refuse, settings.batch_size
    examples = settings.data.train_examples or 0
    if batch > examples and settings.data.train_examples is not None:
        refuse("batch_size", f"at most {examples} examples")
    key = f"data.{settings.evaluation.split}_examples"
    if get(settings, key) in (0, 1):  # None has an error already
        # A variance over examples needs two.
        refuse(key, "2 or more, as evaluation.split is measured")
    per_epoch = examples // batch
    steps = settings.steps or (settings.epochs or 0) * per_epoch
    if steps > MOST:
        refuse("steps" if settings.steps else "epochs", f"at most {MOST} steps", steps)
    if settings.penalty.warmup_steps > steps:
        refuse("penalty.warmup_steps", f"at most {steps} steps")
    ends: tuple[int, ...] = ()
    if profiled := settings.logging.profile_steps:
        match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", profiled)
        ends = tuple(map(int, match.groups())) if match else (0, 0)
        if not ends[0] < ends[1] <= steps:
            expected = f"two increasing steps a:b, b at most {steps}"
            refuse("logging.profile_steps", expected)
    rate = settings.optimizer.learning_rate * batch / 256
    settings.derived = Derived(steps, per_epoch, rate, ends)
    problems.stop()


def check_devices(settings: Settings, num_devices: int) -> None:
    """Raises ValueError if the batch cannot be split over the devices."""
    problems, group = _Problems(settings), settings.batchnorm.group_size
    parts = settings.microbatches
    share, rest = divmod(settings.batch_size, num_devices)
    part, rest_of_share = divmod(share, parts)
    each = f"the {share} examples that each of the {num_devices} devices has"
    if rest:
        problems.refuse("batch_size", f"a multiple of the {num_devices} devices")
    elif rest_of_share:
        problems.refuse("microbatches", f"a divisor of {each}")
    elif group and parts > 1 and part % group:
        expected = f"a divisor of the {part} examples of each of {parts} microbatches"
        problems.refuse("batchnorm.group_size", expected)
    elif group and share % group and group % share:
        problems.refuse("batchnorm.group_size", f"a divisor or a multiple of {each}")
    problems.stop()
