"""The notebooks run, and what they show is saved with them."""

import re
from pathlib import Path

import nbformat
import pytest

from scripts.run_notebooks import NOTEBOOKS, execute

PATHS = sorted(NOTEBOOKS.glob("0*.ipynb"))
MAX_BYTES = 400_000


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_all_are_there() -> None:
    assert [path.stem for path in PATHS] == [
        "01_data",
        "02_train",
        "03_score_and_variants",
        "04_attention",
        "05_similarity",
        "06_kernels",
    ]


def shows_figure(cell: nbformat.NotebookNode) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_saved_whole_small_and_without_paths_of_a_machine(path) -> None:
    assert path.stat().st_size <= MAX_BYTES
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run from top to bottom, once"
    assert any(map(shows_figure, cells))
    for output in (output for cell in cells for output in cell.outputs):
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert output.output_type != "error" and "Warning" not in text
        assert not re.search(r"(^|\s)(/\w|[A-Z]:\\)", text), f"a path: {text}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_they_define_nothing_to_be_used_elsewhere(path) -> None:
    for cell in code_cells(path):
        assert not re.search(r"^\s*(def|class|async) |\blambda\b", cell.source, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_they_run_anywhere_and_leave_nothing_behind(path, tmp_path) -> None:
    before = sorted(NOTEBOOKS.rglob("*"))
    executed = [cell for cell in execute(path, tmp_path).cells if cell.cell_type == "code"]
    assert [shows_figure(cell) for cell in executed] == [shows_figure(cell) for cell in code_cells(path)]
    assert not list(tmp_path.iterdir()) and sorted(NOTEBOOKS.rglob("*")) == before
