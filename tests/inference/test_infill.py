"""Marked residues filled in by a masked model: nothing else changes, and the order is the one that was asked for."""

import numpy as np
import pytest
import torch

from protein_lm import alphabet
from protein_lm.attention.packing import Packing
from protein_lm.checkpoint.directory import load_model
from protein_lm.choices import FillingOrder
from protein_lm.errors import ConfigError, InputError
from protein_lm.inference.infill import infill
from protein_lm.inference.likelihood import masked_log_probabilities
from protein_lm.inference.sampling import Sampling
from protein_lm.inference.templates import Template, read_templates
from tests.conftest import write_fasta


def template(name: str, text: str) -> Template:
    residues = alphabet.encode(text.replace("_", "A"))
    residues[[letter == "_" for letter in text]] = alphabet.MASK
    return Template(name, residues)


class SurerToTheRight:
    """Wants W everywhere, the surer the further right; remembers how many residues were hidden in each pass."""

    is_causal, max_residues, device = False, 62, torch.device("cpu")

    def __init__(self) -> None:
        self.shown: list[str] = []

    def __call__(self, tokens: torch.Tensor, *, selected: torch.Tensor, packing: Packing | None = None) -> torch.Tensor:
        self.shown.append("".join("_" if token == alphabet.MASK else "." for token in tokens[0, 1:-1].tolist()))
        logits = torch.zeros(*tokens.shape, alphabet.VOCABULARY_SIZE)
        logits[..., alphabet.TOKENS.index("W")] = torch.linspace(2, 6, tokens.shape[1])
        return logits[selected]


@pytest.fixture(scope="module")
def model(runs):
    return load_model(runs["masked"])


@pytest.mark.parametrize("order", FillingOrder)
@pytest.mark.parametrize("num_steps", [None, 1, 3])
def test_only_marked_residues_change(model, order, num_steps) -> None:
    templates = [template("a", "MKT__AYX__KQR_SF"), template("b", "____"), template("c", "W" * 40 + "_")]
    arguments = {"number": 3, "num_steps": num_steps, "order": order, "seed": 5}
    small, large = (list(infill(model, templates, tokens_per_batch=n, **arguments)) for n in (20, 1000))
    assert [alphabet.decode(f.residues) for f in small] == [alphabet.decode(f.residues) for f in large]
    assert [filled.sequence_id for filled in small] == [f"{name}_{n}" for name in "abc" for n in (1, 2, 3)]
    for place, filled in enumerate(large):
        given = templates[place // 3]
        kept = given.residues != alphabet.MASK
        assert (filled.residues[kept] == given.residues[kept]).all()
        assert np.isin(filled.residues[~kept], alphabet.encode(alphabet.STANDARD_RESIDUES)).all()
        hidden = [np.array([position]) for position in given.positions]
        rows = masked_log_probabilities(model, [filled.residues] * len(hidden), hidden, tokens_per_batch=100)
        expected = sum(float(row.log_probabilities.sum()) for row in rows)
        assert filled.pseudo_log_likelihood == pytest.approx(expected, abs=1e-4)
        assert filled.header.startswith(f"{filled.sequence_id} filled={given.positions.size} pseudo_log_likelihood=-")


def test_the_surest_come_first_whatever_the_temperature() -> None:
    for temperature in (0, 1):
        toy = SurerToTheRight()
        infilled = infill(toy, [template("a", "A____A")], num_steps=2, sampling=Sampling(temperature=temperature))
        (filled,) = infilled
        assert toy.shown[:2] == [".____.", ".__..."], "half of them, from the right"
        assert temperature or alphabet.decode(filled.residues) == "AWWWWA"
    toy = SurerToTheRight()
    list(infill(toy, [template("a", "A____A")]))
    assert toy.shown[:4] == [".____.", ".___..", ".__...", "._...."]


def test_steps_share_what_there_is_evenly() -> None:
    toy = SurerToTheRight()
    list(infill(toy, [template("a", "_" * 11)], num_steps=4))
    assert [text.count("_") for text in toy.shown[:4]] == [11, 8, 5, 2]


def test_what_cannot_be_filled_in(model, runs) -> None:
    with pytest.raises(
        ConfigError, match=r"use a masked model, or let this one continue .* protein-lm generate --prefix"
    ):
        list(infill(load_model(runs["causal"]), []))
    with pytest.raises(ConfigError, match="0 steps fill in nothing"):
        list(infill(model, [], num_steps=0))
    with pytest.raises(InputError, match="sequence a has 63 residues; this model reads 62; cut it around the residues"):
        list(infill(model, [template("a", "_" * 63)]))


def test_templates_are_read(tmp_path) -> None:
    path = write_fasta(tmp_path / "t.fasta", {"sp|P1|ONE_TEST First": "mk_\nA_x", "two": "_"})
    one, two = read_templates(path)
    assert one.sequence_id == "P1" and one.positions.tolist() == [2, 4] and two.positions.tolist() == [0]
    assert alphabet.decode(one.residues) == "MK?A?X"
    path.write_text("#59\t1\n# a3m\n\n" + path.read_text())
    assert [template.sequence_id for template in read_templates(path)] == ["P1", "two"]
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-16"))
    assert [template.sequence_id for template in read_templates(path)] == ["P1", "two"]


@pytest.mark.parametrize(
    "text, words",
    [
        (">a\nMKV\n", "sequence a: nothing to fill in; write _ for each residue that is wanted"),
        (">a\n", "sequence a: nothing to fill in"),
        (">a\nMK1_\n", "sequence a: '1' at position 3 is not a residue letter; write residue letters, and _ for"),
        (">a\nM*_\n", "sequence a: a stop '*' at position 2, before its end; write residue letters, and _ for"),
        (">a\nM_\n>a\nM_\n", "sequence a: an identifier that was there before; give it its own"),
        (">\nM_\n", "sequence 1: no identifier; give it its own"),
        (">a\nM_K>b\nM_\n", "sequence a: a header begins inside one of its lines; put a line break before its '>'"),
        ("#59\n\n", "begins with no header"),
        ("M_K\n", "begins with no header; give FASTA with _ for each residue to fill in"),
        ("", "begins with no header"),
        (">a\nM\N{LATIN SMALL LETTER E WITH ACUTE}_\n", "sequence a: "),
    ],
)
def test_faulty_templates(tmp_path, text, words) -> None:
    path = tmp_path / "t.fasta"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        list(read_templates(path))
    assert words in str(error.value) and str(path) in str(error.value)
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match="is no text"):
        list(read_templates(path))
