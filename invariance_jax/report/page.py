"""The report as one HTML file that a browser opens without a network.

It has no script, and its own security policy forbids it to load or run anything.
Whatever comes from a run is escaped.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import jinja2

from invariance_jax.report.compare import Headline
from invariance_jax.report.style import Picture
from invariance_jax.report.tables import Table


class Group(NamedTuple):
    """Parts of the page that belong together.

    Attributes:
      kind: "section"; "pair", beside each other where there is room; "folded", away
        under its title; or one of texts: "note", "commands", "headlines".
      title: heading, or what is said where it is folded away.
      parts: tables, pictures and groups, of texts those.
      text: below the heading.
    """

    kind: str
    title: str
    parts: Sequence["Part | Headline | str"]
    text: str = ""


Part = Table | Picture | Group


def contents(parts: Sequence[Part | Headline | str]) -> Iterator[Table | Picture]:
    """Yields all tables and pictures of parts of the page."""
    for part in parts:
        if isinstance(part, Group):
            yield from contents(part.parts)
        elif isinstance(part, Table | Picture):
            yield part


def page(
    title: str, subtitle: str, first: Sequence[Part], sections: Sequence[Group]
) -> str:
    """Returns the whole document: its first screen, then the sections with parts."""
    shown = [section for section in sections if section.parts]
    values = {"title": title, "subtitle": subtitle, "first": first, "sections": shown}
    return _template().render(values)


@cache
def _template() -> jinja2.Template:
    source = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source)
