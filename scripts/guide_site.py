"""What the site of the guide takes from the code, for mkdocs (`hooks`) and mkdocstrings (`extensions`) in mkdocs.yml."""

import re
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from protein_lm import cli
from protein_lm.cli.app import app

PAGE = "reference/commands.md"
EXAMPLE = re.compile(r"(^>>> .*?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of all commands to those that mkdocs found in `docs`."""
    files.append(File.generated(config, PAGE, content=page_of_commands()))
    return files


def page_of_commands() -> str:
    """Return Markdown with the help of each command and a table of its options."""
    parts = ["# Commands", "", "`protein-lm COMMAND --help` prints the same.", ""]
    for name, command in commands():
        parts += [f"## {name}", "", escaped(command.help or ""), "", "| argument | | default |", "|---|---|---|"]
        parts += [_row(parameter) for parameter in command.params if parameter.name != "help"]
        parts += ["", escaped(command.epilog or ""), ""]
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command of `protein-lm` with its full name, such as `data prepare`."""
    for module in iter_modules(cli.__path__):  # each adds its verbs to `app`
        import_module(f"{cli.__name__}.{module.name}")
    yield from _below(typer.main.get_command(app), "")


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in command.commands.items():
        yield from _below(below, f"{name} {word}".strip())


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in parameter.opts if name.startswith("-")) or f"`{parameter.metavar}`"
    default = getattr(parameter.default, "value", parameter.default)
    shown = "required" if parameter.required else "" if default in (None, False, "") else f"`{default}`"
    return f"| {names} | {escaped(parameter.help or '')} | {shown} |".replace("\n", " ")


class Docstrings(griffe.Extension):
    """Make Markdown of docstrings: examples become blocks of code, and `<cls>` is no tag of HTML."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = escaped(EXAMPLE.sub(r"```pycon\n\1\n```", obj.docstring.value))


def escaped(text: str) -> str:
    """Return Markdown that shows `text` as it is, apart from its code."""
    parts = CODE.split(text)  # code has the odd indices
    return "".join(part if index % 2 else re.sub(r"([|*<])", r"\\\1", part) for index, part in enumerate(parts))
