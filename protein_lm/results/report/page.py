"""A page of sections with tables and figures: one HTML file that needs neither scripts nor the network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure, with a caption for those who do not see it."""

    content: bytes
    """PNG."""
    caption: str

    @property
    def address(self) -> str:
        """The figure as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a page. All text is plain, whatever characters it has."""

    title: str = ""
    what: str = ""
    """A description of what was computed."""
    commands: Sequence[str] = ()
    """Commands that compute the section alone."""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    text: str = ""
    """Content of a file, shown unchanged."""
    seconds: float | None = None
    """Time that the section took."""
    missing: str = ""
    """Reason why there is nothing to show."""


def render(title: str, sections: Sequence[Section], *, subtitle: str, footer: str) -> str:
    """Return the page as HTML, with a line under its title and one at its end."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections, subtitle=subtitle, footer=footer)
