"""What the viewer is given: exact weights within its budget, and nothing in names that becomes markup."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from protein_lm.analysis.attention.forms import Region, attention_matrices
from protein_lm.analysis.attention.maps import read_attention
from protein_lm.cli import main
from protein_lm.errors import ConfigError, InputError
from protein_lm.viewer import content as content_module
from protein_lm.viewer.content import Content
from protein_lm.viewer.page import asset
from tests.cli.test_model import fails
from tests.conftest import fresh_model, write_fasta
from tests.inference.toys import records
from tests.io.structure_files import SEQUENCE, helices, pdb_lines

PROTEIN = records("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILS")[0]
EVIL = "</script><img/src=x onerror=alert(1)>&lt;b&gt;"


def decoded(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def data_of(page: Path) -> dict:
    found = re.findall(r'<script type="application/json" id="attention">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(found[0])


def content_of(model, rows: slice, columns: slice) -> dict:
    content = Content(Region(rows, columns), [1, 2], [1, 2])
    read_attention(model, PROTEIN, content.forms, layers=[1, 2], heads=[1, 2])
    return content.data(PROTEIN, title="a protein")


@pytest.mark.parametrize(
    ("attention", "objective"), [("exact", "causal"), ("performer-relu", "masked"), ("aoglu-3", "masked")]
)
def test_short_proteins_are_exact(attention, objective) -> None:
    model = fresh_model(attention=attention, objective=objective)
    matrices = attention_matrices(model, PROTEIN)[:, :, 3:30, 1:36]
    data = content_of(model, slice(3, 30), slice(1, 36))
    assert data["isExact"] and data["rowEdges"] == list(range(3, 31)) and data["columnEdges"] == list(range(1, 37))
    for layer in range(2):
        for head in range(2):
            shown = decoded(data["maps"][layer][head]["overview"], "<f2").astype(np.float64) / data["scale"]
            np.testing.assert_allclose(shown.reshape(27, 35), matrices[layer, head], rtol=2**-11, atol=1e-9)
            assert not data["maps"][layer][head]["tileIndices"]


def test_long_proteins_have_block_means_and_exact_tiles(monkeypatch) -> None:
    for name, value in {
        "EXACT_BYTES": 0,
        "OVERVIEW_BYTES": 8 * 9 * 9,
        "TILE_SIZE": 8,
        "TILE_BYTES": 8 * 3 * 64,
    }.items():
        monkeypatch.setattr(content_module, name, value)
    model = fresh_model(objective="masked")
    length = len(PROTEIN)
    matrices = attention_matrices(model, PROTEIN)[:, :, 1:-1, 1:-1]
    data = content_of(model, slice(1, length + 1), slice(1, length + 1))
    assert not data["isExact"] and len(data["rowEdges"]) == len(data["columnEdges"]) == 10
    for layer in range(2):
        for head in range(2):
            kept, matrix = data["maps"][layer][head], matrices[layer, head]
            tiles = decoded(kept["tiles"], "<f2").astype(np.float64).reshape(-1, 8, 8) / data["scale"]
            assert len(tiles) == len(kept["tileIndices"]) == 3
            for (row, column), tile in zip(kept["tileIndices"], tiles, strict=True):
                part = matrix[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                np.testing.assert_allclose(tile[: part.shape[0], : part.shape[1]], part, rtol=2**-11, atol=1e-9)
            mean = decoded(kept["overview"], "<f2").astype(np.float64).mean() / data["scale"]
            assert mean == pytest.approx(matrix.mean(), rel=0.1)
            attending, attended = (decoded(kept[key], "<u4") for key in ("attending", "attended"))
            weights = decoded(kept["linkWeights"], "<f4")
            np.testing.assert_array_equal(matrix[attending - 1, attended - 1], weights)
            assert (np.diff(weights) <= 0).all() and (np.abs(attending.astype(int) - attended) >= 6).all()


class Markup(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.title = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_data(self, data) -> None:
        if self.tags and self.tags[-1] == "title":
            self.title += data


def test_a_page_for_each_protein_whatever_its_name(runs, tmp_path, capsys) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", {EVIL: "MKTAYIAKQR", "P1": "MKV"})
    command = ["attention", str(fasta), "-m", str(runs["causal"]), "-o", str(tmp_path / "out"), "--html"]
    assert main([*command, "--rows", "1-3", "--layer", "2"]) == 0
    assert "page (.html)" in capsys.readouterr().out
    evil, plain = sorted((tmp_path / "out").glob("*.html"), key=lambda path: path.name == "P1.html")
    name = EVIL.split()[0]  # what follows a blank is a description
    markup = Markup()
    markup.feed(evil.read_text())
    assert markup.tags == ["html", "head", "meta", "meta", "meta", "title", "style", "body", "main", "script", "script"]
    assert markup.title.split() == [f"{name}:", "performer-relu,", "causal"]
    data = data_of(evil)
    assert data["title"].startswith(name) and data["layers"] == [2] and data["rowEdges"] == [1, 2, 3, 4]
    assert data["structure"] is None and "3Dmol" not in plain.read_text().replace("$3Dmol", "")
    assert data_of(plain)["maps"][0][0]["linkWeights"] == "", "no two residues of three are 6 apart"


def test_structure(runs, tmp_path, capsys) -> None:
    pdb = tmp_path / "two.pdb"
    pdb.write_text("\n".join(pdb_lines(helices(first=5), chain="B")) + "\nEND\n")
    fasta = write_fasta(tmp_path / "in.fasta", {"P": f"WW{SEQUENCE}W"})
    command = ["attention", str(fasta), "-m", str(runs["masked"]), "-o", str(tmp_path / "out")]
    assert main([*command, "--html", "--structure", f"{pdb}:B"]) == 0
    page = tmp_path / "out" / "P.html"
    structure = data_of(page)["structure"]
    assert structure["numbers"] == ["", "", *map(str, range(5, 5 + len(SEQUENCE))), ""]
    assert (structure["chain"], structure["format"], structure["text"]) == ("B", "pdb", pdb.read_text())
    assert "Redistribution and use in source and binary forms" in page.read_text()
    capsys.readouterr()
    assert "--structure is shown by --html" in fails(capsys, *command[:-1], tmp_path / "no", "--structure", pdb)
    other = write_fasta(tmp_path / "other.fasta", {"Q": "W" * 40})
    command = ["attention", other, "-m", runs["masked"], "-o", tmp_path / "no", "--html", "--structure", pdb]
    assert "does not match sequence Q" in fails(capsys, *command)
    assert not (tmp_path / "no").exists()


def test_the_script_fits_into_a_page() -> None:
    for name in ("viewer.js", "3Dmol-min.js"):
        assert "</script" not in asset(name).lower() and "<!--" not in asset(name)
    assert "innerHTML" not in asset("viewer.js")
    assert "</style" not in asset("viewer.css") and "*/" not in asset("3Dmol-LICENSE.txt")


def test_widget() -> None:
    pytest.importorskip("anywidget")
    import protein_lm

    model = fresh_model(objective="masked")
    viewer = protein_lm.attention_viewer(model, {"toy": "MKTAYIAKQR"}, layers=[2])
    assert viewer.content["layers"] == [2] and viewer.content["title"].startswith("toy: performer-relu")
    assert viewer.library == ""
    assert "_esm" in viewer.get_state() and "content" in viewer.get_state()
    with pytest.raises(InputError, match="shows one protein; 2 were given"):
        protein_lm.attention_viewer(model, ["MKV", "MKL"])
    with pytest.raises(ConfigError, match="layer 3 does not exist"):
        protein_lm.attention_viewer(model, "MKV", layers=[3])
