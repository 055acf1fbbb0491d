"""The rules of signatures and docstrings that neither ruff nor mypy checks."""

import collections.abc
import doctest
import importlib
import inspect
import pkgutil
import re
import types
import typing

import jax
import pytest

import invariance_jax

ROOMS = ("transforms", "losses", "evaluation", "models")
# What convolutions are made of on processors; nobody imports it.
INTERNAL = {
    f"invariance_jax.models.{name}"
    for name in ("convolution", "parts", "patches", "winograd")
}

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(invariance_jax.__path__, "invariance_jax.")
    # Running it is all that a __main__ is for.
    if not info.name.endswith("__main__")
)

# Settings that are the one thing a function is about, and come first.
POSITIONAL_SETTINGS = {
    ("load", "workdir"),
    ("create_encoder", "name"),
    ("load_state_dict", "path"),
    ("save_state_dict", "path"),
}


def public_functions():
    """Yields (qualified name, function) for the functions that other code calls."""
    seen = set()
    names = ["invariance_jax", "invariance_jax.numerics"]
    names += [m for m in MODULES if m.split(".")[1] in ROOMS and m not in INTERNAL]
    for module in map(importlib.import_module, names):
        public = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and getattr(value, "__module__", None) == module.__name__
        ]
        for name in public:
            value = getattr(module, name)
            is_type = inspect.isclass(value) or typing.get_origin(value)
            if callable(value) and not is_type and id(value) not in seen:
                seen.add(id(value))
                yield f"{module.__name__}.{name}", value


def parametrized(functions):
    ids = [name.split(".", 1)[1] for name in functions]
    return pytest.mark.parametrize("function", functions.values(), ids=ids)


FUNCTIONS = dict(public_functions())
functions = parametrized(FUNCTIONS)
# The functions of numerics, which serve the rooms, have docstrings of a line or two.
documented_functions = parametrized(
    {name: f for name, f in FUNCTIONS.items() if ".numerics." not in name}
)


def parameters(function):
    return list(inspect.signature(function).parameters.values())


def members(annotation):
    """Returns the members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def kind(parameter):
    """Returns the place of a parameter in the order: key, callable or array."""
    if parameter.name == "key":
        return 0
    for member in members(parameter.annotation):
        if typing.get_origin(member) is collections.abc.Callable:
            return 1
        if getattr(member, "__name__", "") == "Transformation":
            return 1
    return 2


def section(docstring, name):
    """Returns the body of a docstring section, or None where there is none."""
    found = re.search(rf"^{name}:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    return found and found.group(1)


@pytest.mark.parametrize("room", [*ROOMS, "data", "settings"])
def test_packages_list_their_public_names(room):
    package = importlib.import_module(f"invariance_jax.{room}")
    missing = [name for name in package.__all__ if not hasattr(package, name)]
    assert not missing
    assert len(package.__all__) == len(set(package.__all__))


@functions
def test_settings_are_keyword_only(function):
    offered = [
        p.name
        for p in parameters(function)
        if p.kind is p.POSITIONAL_OR_KEYWORD
        and {int, float, bool, str} & set(members(p.annotation))
        and (function.__name__, p.name) not in POSITIONAL_SETTINGS
    ]
    assert not offered


@functions
def test_arrays_are_positional(function):
    hidden = [
        p.name
        for p in parameters(function)
        if p.kind is p.KEYWORD_ONLY and p.annotation is jax.Array
    ]
    assert not hidden


@functions
def test_order_is_key_callables_arrays(function):
    order = [kind(p) for p in parameters(function) if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert order == sorted(order)


@functions
def test_axis_name_comes_last_and_is_optional(function):
    names = [p.name for p in parameters(function)]
    if "axis_name" in names:
        last = parameters(function)[-1]
        assert last.name == "axis_name"
        assert last.kind is last.KEYWORD_ONLY
        assert last.annotation == str | None
        assert last.default is None


@documented_functions
def test_docstring_explains_every_parameter(function):
    arguments = section(inspect.getdoc(function), "Args")
    names = [p.name for p in parameters(function)]
    documented = re.findall(r"^  \*{0,2}(\w+):", arguments or "", re.MULTILINE)
    assert documented == names


@documented_functions
def test_docstring_explains_what_is_returned(function):
    returns = inspect.signature(function).return_annotation
    if returns is not None:
        assert section(inspect.getdoc(function), "Returns")


@functions
def test_docstring_letters_are_in_the_glossary(function):
    glossary = set(re.findall(r"^    ([A-Z])  ", invariance_jax.__doc__, re.MULTILINE))
    shapes = re.findall(r"`[^`\n]*?\[([^`\]\n]*)\]", inspect.getdoc(function))
    letters = set(re.findall(r"\b[A-Z]\b", " ".join(shapes)))
    assert glossary
    assert letters <= glossary


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        assert not any(doctest.SKIP in e.options for e in example.examples)
        result = doctest.DocTestRunner().run(example)
        assert result.failed == 0, f"{example.name}: see the captured output"
