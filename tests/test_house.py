"""The house stays one that a newcomer finds their way in: rooms, files and classes of a size that can be seen whole."""

import ast
from collections import Counter

import pytest

from tests.test_project import ROOT, tomllib

PACKAGE = ROOT / "protein_lm"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "built" not in path.parts)
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_CLASS, MOST_MODULES_OF_A_FOLDER = 400, 250, 15


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_and_its_classes_can_be_seen_whole(path):
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno < MOST_LINES_OF_A_CLASS, node.name


def test_no_folder_is_crowded():
    modules = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert {str(folder): number for folder, number in modules.items() if number > MOST_MODULES_OF_A_FOLDER} == {}


def test_every_room_has_its_floor_in_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["type"] == "layers")
    named = {name.strip() for layer in layers["layers"] for name in layer.split("|")}
    rooms = {
        f"protein_lm.{path.stem}"
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"protein_lm.__init__", "protein_lm.__main__"} == named
    assert "ignore_imports" not in layers
