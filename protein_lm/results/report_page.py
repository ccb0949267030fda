"""A page of sections with tables and figures: one HTML file that needs nothing else, neither scripts nor the network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Table:
    """Text in rows; the first column names them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure and what it shows, for those who do not see it."""

    content: bytes
    """PNG."""
    caption: str

    @property
    def address(self) -> str:
        """The figure itself as an address."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page. Everything is plain text, whatever characters it has."""

    title: str = ""
    what: str = ""
    """What was computed."""
    commands: Sequence[str] = ()
    """Those that give it alone."""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    text: str = ""
    """A file's content, shown as it is."""
    seconds: float | None = None
    """How long it took."""
    missing: str = ""
    """Why there is nothing to show, if there is not."""


def render(title: str, sections: Sequence[Section], *, subtitle: str, footer: str) -> str:
    """The page, with a line under its title and one at its end."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections, subtitle=subtitle, footer=footer)
