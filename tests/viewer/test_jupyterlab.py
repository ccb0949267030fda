"""The widget in a real JupyterLab. Needs Chromium and `pip install playwright jupyterlab anywidget`."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import protein_lm
from protein_lm.io.readers import read_records

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
pytest.importorskip("anywidget", reason="anywidget is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
ROOT = Path(__file__).parents[2]
CODE = f"""import protein_lm
model = protein_lm.load({str(ROOT / "checkpoints/tiny-masked")!r}, device="cpu")
protein_lm.attention_viewer(model, {str(ROOT / "data/P00974.fasta")!r})"""
PATIENCE_MS = 120_000


@pytest.fixture
def notebook_address(tmp_path) -> Iterator[str]:
    """Where a JupyterLab of our own shows a notebook with one cell that has not run."""
    cell = {"cell_type": "code", "execution_count": None, "id": "one", "metadata": {}, "outputs": [], "source": CODE}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "look.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=known"]
    options += [f"--ServerApp.root_dir={tmp_path / 'work'}", "--allow-root", "--no-browser", "--LabApp.news_url="]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, cwd=tmp_path)
        try:
            deadline = time.monotonic() + 60
            while "is running at" not in (tmp_path / "server.log").read_text():
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/lab/tree/look.ipynb?token=known"
        finally:
            server.terminate()
            server.wait(30)


def test_the_widget_shows_and_answers(notebook_address) -> None:
    (bpti,) = read_records(ROOT / "data/P00974.fasta")
    model = protein_lm.load(ROOT / "checkpoints/tiny-masked", device="cpu")
    matrices = protein_lm.attention_maps(model, {"P00974": bpti.sequence})["P00974"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1600, "height": 1400})
        problems: list[str] = []
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(notebook_address)
        cell = tab.locator(".jp-CodeCell .cm-content").first
        cell.wait_for(timeout=PATIENCE_MS)
        tab.get_by_text("| Idle").wait_for(timeout=PATIENCE_MS)  # what runs before the kernel is there is lost
        cell.click()
        tab.keyboard.press("Shift+Enter")
        canvas = tab.locator(".jp-OutputArea").get_by_role("application")
        canvas.wait_for(timeout=PATIENCE_MS)
        canvas.scroll_into_view_if_needed()
        for layer, head in ((1, 1), (2, 3)):
            tab.get_by_role("radio", name=f"Layer {layer}, head {head}").click()
            box = canvas.bounding_box()
            tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            told = tab.locator(".plm-status").inner_text()
            match = re.fullmatch(r"([A-Z])(\d+) attends to ([A-Z])(\d+): ([\d.e-]+) \(exact\)", told)
            assert match, told
            row, column = int(match[2]), int(match[4])
            assert (match[1], match[3]) == (bpti.sequence[row - 1], bpti.sequence[column - 1])
            assert float(match[5]) == pytest.approx(float(matrices[layer - 1, head - 1, row, column]), rel=0.006)
        browser.close()
    assert problems == []
