"""The viewer in a real browser, as a user handles it. Needs Chromium and `pip install playwright`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protein_lm.analysis.attention.forms import Region, attention_matrices
from protein_lm.analysis.attention.maps import read_attention
from protein_lm.io.records import SequenceRecord
from protein_lm.io.structures.chains import read_chain
from protein_lm.viewer import content as content_module
from protein_lm.viewer.content import Content, structure_data
from protein_lm.viewer.page import asset, page
from tests.conftest import fresh_model
from tests.inference.toys import records
from tests.io.structure_files import SEQUENCE, helices, pdb_lines

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
PROTEIN = records(SEQUENCE)[0]
EVIL = "<img src=x onerror=alert(1)> & <b>"
LEFT, TOP, AROUND = 64, 46, 74
"""Pixels beside the matrix: MARGIN of viewer.js."""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    software = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *software])
        yield started
        started.close()


@pytest.fixture
def tab(browser) -> Iterator:
    """A tab in which nothing may go wrong."""
    opened = browser.new_page(viewport={"width": 1500, "height": 1200})
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("dialog", lambda dialog: problems.append(dialog.message))
    opened.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    yield opened
    opened.close()
    assert problems == []


def data_of(record: SequenceRecord, structure: str | None = None) -> tuple[dict, np.ndarray]:
    model = fresh_model(objective="masked")
    residues = slice(1, len(record) + 1)
    content = Content(Region(residues, residues), [1, 2], [1, 2])
    read_attention(model, record, content.forms, layers=[1, 2], heads=[1, 2])
    shown = structure_data(structure, read_chain(structure), record) if structure else None
    return content.data(record, title=EVIL, structure=shown), attention_matrices(model, record)


def number(weight: float) -> str:
    """As viewer.js writes it, of the 16 bits that it has."""
    return f"{weight:.2e}".replace("e-0", "e-") if weight < 1e-3 else f"{weight:#.3g}"


class Plot:
    """The matrix of a tab."""

    def __init__(self, tab, length: int) -> None:
        self.tab = tab
        self.canvas = tab.get_by_role("application")
        self.length = length
        box = self.canvas.bounding_box()
        self.x, self.y, self.size = box["x"] + LEFT, box["y"] + TOP, box["width"] - AROUND

    def move(self, row: int, column: int, length: int | None = None) -> None:
        cell = self.size / (length or self.length)
        self.tab.mouse.move(self.x + cell * (column - 0.5), self.y + cell * (row - 0.5))

    @property
    def told(self) -> str:
        return self.tab.locator(".plm-status").inner_text()

    def expect(self, row: int, column: int, matrix: np.ndarray) -> None:
        who, _, what = self.told.partition(": ")
        assert who == f"{SEQUENCE[row - 1]}{row} attends to {SEQUENCE[column - 1]}{column}"
        weight, exact = what.split()
        assert exact == "(exact)" and float(weight) == pytest.approx(matrix[row, column], rel=0.006)


def open_page(tab, folder: Path, data: dict) -> Plot:
    file = folder / "page.html"
    file.write_text(page(data), encoding="utf-8")
    tab.goto(file.as_uri())
    tab.get_by_role("application").wait_for()
    return Plot(tab, len(PROTEIN))


def test_mouse(tab, tmp_path) -> None:
    data, matrices = data_of(PROTEIN)
    plot = open_page(tab, tmp_path, data)
    assert tab.locator("h1").inner_text() == tab.title() == EVIL
    plot.move(5, 9)
    plot.expect(5, 9, matrices[0, 0])
    tab.get_by_role("radio", name="Layer 2, head 1").click()
    plot.move(20, 3)
    plot.expect(20, 3, matrices[1, 0])
    plot.move(5, 9)
    tab.mouse.down()
    plot.move(8, 12)
    tab.mouse.up()
    plot.move(1, 4, length=4)
    plot.expect(5, 12, matrices[1, 0])
    plot.canvas.dblclick()
    plot.move(20, 3)
    plot.expect(20, 3, matrices[1, 0])
    slider, links = tab.get_by_role("slider"), tab.get_by_role("listitem")
    slider.fill("1000")
    assert links.count() == 1
    slider.fill("0")
    assert links.count() == 10
    far = np.abs(np.subtract.outer(np.arange(34), np.arange(34))) >= 6
    inner = np.where(far, matrices[1, 0], 0)[1:-1, 1:-1]
    row, column = np.unravel_index(inner.argmax(), inner.shape)
    links.first.get_by_role("button").click()
    plot.expect(int(row) + 1, int(column) + 1, matrices[1, 0])
    tab.set_viewport_size({"width": 600, "height": 900})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 600


def test_keyboard(tab, tmp_path) -> None:
    data, matrices = data_of(PROTEIN)
    plot = open_page(tab, tmp_path, data)
    for key in ("ArrowDown", "Shift+ArrowRight", "ArrowRight", "ArrowUp", "ArrowDown"):
        plot.canvas.press(key)
    plot.expect(2, 12, matrices[0, 0])
    for key in ("Enter", "ArrowDown", "ArrowDown", "ArrowRight", "Enter", "Shift+ArrowDown", "Shift+ArrowRight", "]"):
        plot.canvas.press(key)
    plot.canvas.press("ArrowUp")
    plot.expect(3, 13, matrices[0, 1])
    plot.canvas.press("Escape")
    plot.canvas.press("Shift+ArrowDown")
    plot.expect(13, 13, matrices[0, 1])
    tab.get_by_role("radio", name="Layer 1, head 2").focus()
    tab.keyboard.press("ArrowDown")
    assert tab.get_by_role("radio", checked=True).get_attribute("aria-label") == "Layer 2, head 2"


def test_long_proteins_tell_what_is_exact(tab, tmp_path, monkeypatch) -> None:
    for name, value in {"EXACT_BYTES": 0, "OVERVIEW_BYTES": 8 * 8 * 8, "TILE_SIZE": 8, "TILE_BYTES": 8 * 64}.items():
        monkeypatch.setattr(content_module, name, value)
    data, matrices = data_of(PROTEIN)
    plot = open_page(tab, tmp_path, data)
    ((tile_row, tile_column),) = data["maps"][0][0]["tileIndices"]
    plot.move(8 * tile_row + 3, 8 * tile_column + 8)
    plot.expect(8 * tile_row + 3, 8 * tile_column + 8, matrices[0, 0])
    other = (tile_column + 1) % 4
    plot.move(8 * tile_row + 3, 8 * other + 3)
    first = 8 * tile_row + 1, 8 * other + 1
    mean = matrices[0, 0, first[0] : first[0] + 4, first[1] : first[1] + 4].mean()
    assert plot.told.endswith(
        f"{number(mean)}, the mean of {first[0]}–{first[0] + 3} attending to {first[1]}–{first[1] + 3}"
    )


def test_structure(tab, tmp_path) -> None:
    pdb = tmp_path / "helices.pdb"
    pdb.write_text("\n".join(pdb_lines(helices())) + "\nEND\n")
    data, _ = data_of(PROTEIN, str(pdb))
    plot = open_page(tab, tmp_path, data)
    assert tab.locator(".plm-structure canvas").count() == 1
    legend = tab.get_by_role("status").nth(1)
    assert "all residues give on the average" in legend.inner_text()
    plot.move(7, 9)
    tab.mouse.down()
    tab.mouse.up()
    assert f"{SEQUENCE[6]}7 gives" in legend.inner_text()


def test_as_a_widget(tab) -> None:
    """The module as notebooks load it; a notebook itself is not started."""
    data, matrices = data_of(PROTEIN)
    tab.set_content(f"<style>{asset('viewer.css')}</style><div></div>")
    show = """async ([source, content]) => {
        const { default: widget } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
        const model = { get: (name) => ({ content, library: "" })[name] };
        window.close_viewer = widget.render({ model, el: document.querySelector("div") });
    }"""
    tab.evaluate(show, [asset("viewer.js"), data])
    plot = Plot(tab, len(PROTEIN))
    plot.move(30, 31)
    plot.expect(30, 31, matrices[0, 0])
    tab.evaluate("window.close_viewer()")
