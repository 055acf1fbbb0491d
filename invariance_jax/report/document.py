"""What a report is made of while it is made: figures and tables, and where they go."""

from collections.abc import Sequence

from etils import epath

from invariance_jax.report.page import picture_html, table_html
from invariance_jax.report.section import Shown
from invariance_jax.report.style import Picture, render
from invariance_jax.report.tables import Table, to_csv


class Document:
    """Collects the figures and tables of a report, and gives their HTML."""

    def __init__(self) -> None:
        """Starts an empty one."""
        self._pictures: list[Picture] = []
        self._tables: dict[str, Table] = {}

    def figures(self, shown: Sequence[Shown], suffix: str = "") -> str:
        """Draws figures and returns their HTML; those without a drawing are left out.

        Args:
          shown: the figures.
          suffix: added to the names of their files.
        """
        content = ""
        for one in shown:
            if one.draw is not None:
                name = f"{one.name}{suffix}"
                self._pictures.append(render(name, one.title, one.caption, one.draw))
                content += picture_html(self._pictures[-1])
        return content

    def tables(self, tables: Sequence[Table], suffix: str = "") -> str:
        """Returns the HTML of tables, which are kept as files too.

        Args:
          tables: those that have a row.
          suffix: added to the names of their files.
        """
        kept = [table for table in tables if table.rows]
        self._tables |= {f"{table.name}{suffix}": table for table in kept}
        return "".join(map(table_html, kept))

    def write(self, out: epath.Path, html: str) -> None:
        """Writes the page, the figures and the tables.

        Args:
          out: the directory, made if needed.
          html: the page.
        """
        for folder in ("figures", "tables"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        for picture in self._pictures:
            (out / "figures" / f"{picture.name}.png").write_bytes(picture.light)
            (out / "figures" / f"{picture.name}.svg").write_bytes(picture.svg)
        for name, table in self._tables.items():
            (out / "tables" / f"{name}.csv").write_text(to_csv(table))
        (out / "report.html").write_text(html)
