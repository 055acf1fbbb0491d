"""The keys on the command line: `--config.KEY=VALUE`, and their help."""

import ast
import textwrap
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from invariance_jax.settings.rules import expectation, type_name
from invariance_jax.settings.schema import KEYS, Config, closest


class _Values(flags.ArgumentParser[Any]):
    """Reads a value as Python writes it; `resolve` checks its type and range.

    "None" is None, tuples need neither parentheses nor quotes, and keyword arguments
    are written as in a call.
    """

    def __init__(self, annotation: Any):
        self._origin = getattr(annotation, "__origin__", annotation)

    def parse(self, argument: Any) -> Any:
        """Returns the value of a text; a default, which is none, as it is."""
        if not isinstance(argument, str) or argument == "None":
            return None if argument == "None" else argument
        if self._origin is str:
            return argument
        if self._origin is dict:
            return _keywords(argument)
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
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _keywords(text: str) -> Any:
    """Returns `width=20, act='gelu'` as a dictionary; what is none as it is."""
    try:
        if text.strip().startswith("{"):
            return ast.literal_eval(text)
        call = ast.parse(f"_({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        found = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
        return text if call.args else found
    except (SyntaxError, ValueError):
        return text


def define_config(name: str, help_string: str) -> flags.FlagHolder[Config]:
    """Defines the flag of a configuration file whose keys the command line changes."""
    for declared in KEYS.values():
        annotation = config_path.normalize_type(declared.type)
        if annotation is not bool:
            parser = _Values(annotation)
            config_flags.register_flag_parser_for_type(annotation, parser)
    return config_flags.DEFINE_config_file(name, None, help_string)


def key_help(prefix: str = "") -> str:
    """Returns name, type, range, default, unit and meaning of the keys.

    Args:
      prefix: what their dotted names start with; empty: all keys.

    Raises:
      ValueError: if no key starts so; it names the closest.
    """
    chosen = [one for name, one in KEYS.items() if name.startswith(prefix)]
    if not chosen:
        raise ValueError(f"no key starts with {prefix!r}; {closest(prefix, KEYS)}.")
    lines = []
    for one in chosen:
        unit = f" [{one.key.unit}]" if one.key.unit else ""
        lines.append(f"{one.name}: {type_name(one.type)} = {one.default!r}{unit}")
        free = " May change between two starts." if one.key.free else ""
        text = f"{one.key.meaning} Takes {expectation(one)}.{free}"
        lines += textwrap.wrap(
            text, 84, initial_indent="    ", subsequent_indent="    "
        )
    return "\n".join(lines)
