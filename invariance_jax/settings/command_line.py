"""Keys on the command line: the values of `--config.KEY=VALUE`, and the help."""

import ast
import contextlib
import inspect
import itertools
import textwrap
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from invariance_jax.arguments import closest
from invariance_jax.settings import schema
from invariance_jax.settings.schema import KEYS, Config
from invariance_jax.settings.values import expectation, type_name

_TRUTH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class _Values(flags.ArgumentParser[Any]):
    """Parses a Python literal; quotes and a tuple's parentheses may be left out."""

    def __init__(self, annotation: object):
        self._origin = getattr(annotation, "__origin__", annotation)

    def parse(self, argument: object) -> Any:
        """Returns the value of a text; a default that is not a text is unchanged."""
        if not isinstance(argument, str) or argument == "None":
            return None if argument == "None" else argument
        if self._origin is str:
            return argument
        if self._origin is dict:
            return _keywords(argument)
        if self._origin is bool:
            return _TRUTH.get(argument.lower(), argument)
        value = _literal(argument)
        if self._origin is not tuple or isinstance(value, tuple):
            return value
        if isinstance(value, list):
            return tuple(value)
        if not isinstance(value, str):
            return (value,)
        parts = argument.strip().strip("()[]").split(",")
        return tuple(_literal(part.strip()) for part in parts if part.strip())


def _literal(text: str) -> Any:
    """Returns the value of a Python literal; any other text is returned unchanged."""
    with contextlib.suppress(SyntaxError, TypeError, ValueError):
        return ast.literal_eval(text)
    return text


def _keywords(text: str) -> Any:
    """Returns the dictionary of `width=20, act='gelu'`; an invalid text unchanged."""
    if text.strip().startswith("{"):
        return _literal(text)
    with contextlib.suppress(SyntaxError, TypeError, ValueError):
        compile(f"_({text})", "", "eval")  # refuses a repeated keyword
        call = ast.parse(f"_({text})", mode="eval").body
        if isinstance(call, ast.Call) and not call.args:
            return {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    return text


def define_config(name: str, help_string: str) -> flags.FlagHolder[Config]:
    """Defines a flag for a configuration file, with `--NAME.KEY=VALUE` for its keys."""
    for key in KEYS.values():
        annotation = config_path.normalize_type(key.type)
        parser = _Values(annotation)
        config_flags.register_flag_parser_for_type(annotation, parser)
    return config_flags.DEFINE_config_file(name, None, help_string)


def meanings() -> dict[str, str]:
    """Returns key -> the text below its declaration, or its section's docstring."""
    texts = {}
    module = ast.parse(inspect.getsource(schema))
    for section in (node for node in module.body if isinstance(node, ast.ClassDef)):
        for declaration, below in itertools.pairwise(section.body):
            match declaration, below:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    texts[section.name, name] = " ".join(text.split())
    return {
        name: texts.get((key.section.__name__, name.split(".")[-1]))
        or inspect.getdoc(key.section)
        or ""
        for name, key in KEYS.items()
    }


def key_help(prefix: str = "") -> str:
    """Returns the help of keys with a prefix: type, default, unit, meaning, range."""
    keys = [key for name, key in KEYS.items() if name.startswith(prefix)]
    if not keys:
        raise ValueError(f"no key starts with {prefix!r}; {closest(prefix, KEYS)}.")
    lines, texts = [], meanings()
    for key in keys:
        unit = f" [{key.unit}]" if key.unit else ""
        lines.append(f"{key.name}: {type_name(key.type)} = {key.default!r}{unit}")
        free = " It may change when the run is started again." if key.free else ""
        text = f"{texts[key.name]} Value: {expectation(key)}.{free}"
        lines.append(textwrap.indent(textwrap.fill(text, 80), "    "))
    return "\n".join(lines)
