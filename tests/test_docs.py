"""The README and the guide are true: links lead somewhere, commands parse, code runs, and the site builds."""

import ast
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parent.parent
GUIDE = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*GUIDE, ROOT / "CONTRIBUTING.md", ROOT / "data/README.md", ROOT / "benchmarks/README.md"]
MADE_BY_SITE = ROOT / "docs/reference/commands.md"


def name(page: object) -> str:
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else str(page)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def shell_lines(page: Path) -> Iterator[str]:
    """Yield the lines of all blocks of shell, and what tables quote of `protein-lm`."""
    yield from "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    yield from re.findall(r"^\| .*\| `(protein-lm [^`]*)` \|$", page.read_text(), flags=re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """Return what follows `program` in every command of all pages, in words."""
    found = []
    for line in (line for page in PAGES for line in shell_lines(page)):
        words = shlex.split(line.replace("-m protein_lm ", "protein-lm "), comments=True)
        if program in words and words not in found:
            found.append(words)
    return [words[words.index(program) + 1 :] for words in found]


def command_line() -> Any:
    from protein_lm import cli
    from protein_lm.cli.app import app

    cli.main(["--help"])  # loads every verb
    return typer.main.get_command(app)


def options_of(command: Any) -> set[str]:
    """Return the options of a command, or of all commands below it."""
    below = [options_of(each) for each in getattr(command, "commands", {}).values()]
    return {option for parameter in command.params for option in parameter.opts}.union(*below)


def verb(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that `words` begin with, and its arguments."""
    command = command_line()
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{words[0]} is no command"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("words", commands("protein-lm"), ids=" ".join)
def test_commands_parse(words: list[str], monkeypatch) -> None:
    """Every verb, option and value exists, and nothing that is required is missing; nothing is run."""
    monkeypatch.chdir(ROOT)
    command, arguments = verb(words)
    command.make_context(command.name, list(arguments))
    for word in words:
        if word.startswith(("scripts/", "data/", "checkpoints/tiny")):
            assert Path(word).exists()


@pytest.mark.parametrize("page", GUIDE, ids=name)
def test_options_that_the_text_names_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    named = {option for code in re.findall(r"`([^`]*)`", text) for option in re.findall(r"(?<![\w-])--[a-z-]+", code)}
    of_others = {"--all", "--cpu", "--minutes", "--plot"}  # of scripts, benchmarks and Accelerate
    assert named - of_others <= options_of(command_line())


@pytest.mark.parametrize("words", commands("python"), ids=" ".join)
def test_scripts_and_benchmarks_have_these_options(words: list[str]) -> None:
    if words[0] == "-m":
        file, options = ROOT / (words[1].replace(".", "/") + ".py"), words[2:]
    else:
        file, options = ROOT / words[0], words[1:]
    if "/" not in name(file):  # of another package, such as `venv`
        return
    source = file.read_text()
    for option in (word for word in options if re.fullmatch("--?[a-z-]+", word)):
        assert re.search(rf"[\"' ]{option}\b", source), f"{name(file)} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists() or file == MADE_BY_SITE, target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            anchors = [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, target


def test_the_guide_lists_all_its_pages() -> None:
    listed = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs/index.md").read_text())
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md")


@pytest.mark.parametrize("page", [page for page in GUIDE if blocks(page, "python")], ids=name)
def test_imports_of_python_blocks_exist(page: Path) -> None:
    for node in (node for block in blocks(page, "python") for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("protein_lm"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, each.name) for each in node.names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_of_python_that_the_text_has_exist(page: Path) -> None:
    for code in re.findall(r"`(protein_lm(?:\.\w+)+)", page.read_text()):
        pkgutil.resolve_name(code)


def test_python_of_the_readme_runs(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = blocks(ROOT / "README.md", "python")
    exec(block, names := {})
    assert names["table"]["sequence_id"].tolist() == ["oxytocin"]


@pytest.mark.slow
def test_the_site_builds_without_warnings_or_remote_parts(tmp_path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        html = page.read_text()
        assert not re.search(r"<(?:script|img|iframe)[^>]* src=\"https?:|<link[^>]* href=\"https?:", html), page.name
    reference = (tmp_path / "site/reference/api.html").read_text()
    assert 'id="protein_lm.api.score"' in reference and "&gt;&gt;&gt;" in reference
    assert "--num-draws" in (tmp_path / "site/reference/commands.html").read_text()
