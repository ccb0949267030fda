"""The verb similarity, as a user meets it."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from protein_lm.analysis import pair_attention_file, substitution
from protein_lm.analysis.pair_attention_file import PairReader
from protein_lm.checkpoint.directory import load_model, save_model
from protein_lm.cli import main
from protein_lm.errors import InputError, OutputError
from protein_lm.results.similarity import write_similarity
from tests.conftest import fresh_model, grammar, write_fasta

TABLES = ["enrichment.csv", "kernel.csv", "similarity.csv"]
FILES = sorted([*TABLES, "agreement.csv", "agreement.png", "pair_attention.npz", "similarity.png", "summary.json"])


@pytest.fixture(autouse=True)
def few_draws(monkeypatch) -> None:
    """Chance and intervals are tested elsewhere."""
    monkeypatch.setattr(substitution, "NUM_PERMUTATIONS", 99)
    monkeypatch.setattr(substitution, "NUM_RESAMPLES", 20)


def fails(capsys, *arguments) -> str:
    assert main(["similarity", *(str(argument) for argument in arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("protein-lm: error: ")
    return lines[-1]


def test_similarity(runs, corpus, tmp_path, capsys) -> None:
    output = tmp_path / "similarity"
    arguments = [str(corpus.path), "-m", str(runs["causal"]), "-o", str(output), "--num-sequences", "50", "--arcs"]
    assert main(["similarity", *arguments, "--untrained", "1", "--matrix", "PAM250", "--matrix", "BLOSUM62"]) == 0
    shown = capsys.readouterr().out
    assert "50 sequences" in shown and "kernel, BLOSUM62: Pearson" in shown and "untrained, Pearson" in shown
    assert sorted(path.name for path in output.iterdir()) == sorted([*FILES, "arcs.csv", "clustered.png"])
    table = pd.read_csv(output / "similarity.csv", index_col="amino_acid")
    assert table.shape == (20, 20) and np.allclose(table, table.T)
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["num_sequences"], summary["absent_amino_acids"]) == (50, "")
    agreements = pd.read_csv(output / "agreement.csv")
    assert len(agreements) == 2 * 4 * 2 and set(agreements["model"]) == {"trained", "untrained-0"}
    of_weights = agreements[agreements["measure"].isin(["similarity", "enrichment"])]
    assert (of_weights["pearson_low"] <= of_weights["pearson_high"]).all()
    with np.load(output / "pair_attention.npz") as sums:
        assert sums["sums"].shape == sums["arcs"].shape == (2, 2, 20, 20)
        residues = summary["num_residues"]
        assert 0 < sums["sums"].sum() <= 2 * 2 * residues, "a residue pays 1 in each head, to special tokens too"
    assert "exists already" in fails(capsys, *arguments)


def test_bad_input_is_told_in_one_line(runs, tmp_path, capsys) -> None:
    model, output = ["-m", runs["causal"]], ["-o", tmp_path / "out"]
    assert "absent.fasta" in fails(capsys, tmp_path / "absent.fasta", *model, *output)
    few = write_fasta(tmp_path / "few.fasta", {"one": "W", "two": "MKV"})
    assert "expected a number from 1, or all" in fails(capsys, few, *model, *output, "--num-sequences", "many")
    assert "unknown matrix 'PAM1'; choose from" in fails(capsys, few, *model, *output, "--matrix", "PAM1")
    assert "--num-sequences all" in fails(capsys, "-", *model, *output)
    unknown = write_fasta(tmp_path / "unknown.fasta", {"x": "XXXX", "y": "XX"})
    assert "none of the 2 sequences" in fails(capsys, unknown, *model, *output)
    long = write_fasta(tmp_path / "long.fasta", {"long": "M" * 100})
    assert "window of 62 residues" in fails(capsys, long, *model, *output)
    late = write_fasta(tmp_path / "late.fasta", grammar(40) | {"bad": "MK1V"})
    assert "line 82" in fails(capsys, late, *model, *output, "--num-sequences", "all")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".fasta"] * 4, "nothing half-written"


def test_few_and_odd_proteins_are_read_and_what_is_missing_is_said(runs, tmp_path, capsys) -> None:
    odd = {"long": "M" * 100, "one": "W", "unknown": "XXX", "two": "MKV"}
    fasta = write_fasta(tmp_path / "odd.fasta", odd)
    arguments = [str(fasta), "-m", str(runs["masked"]), "-o", str(tmp_path / "out"), "--num-sequences", "all"]
    assert main(["similarity", *arguments]) == 0
    shown = capsys.readouterr()
    assert "1 over the model's window left out: long" in shown.err
    assert (
        "3 sequences" in shown.out
        and "no A, C, D, E, F, G, H, I, L, N, P, Q, R, S, T, Y in these proteins" in shown.out
    )
    table = pd.read_csv(tmp_path / "out/similarity.csv", index_col="amino_acid")
    assert table.loc["A"].isna().all() and table.loc["M", "M"] == pytest.approx(1)


def test_a_model_of_few_heads_and_exact_attention_says_what_it_cannot_give(tmp_path, capsys) -> None:
    save_model(fresh_model(attention="exact", num_layers=1, num_heads=1), tmp_path / "model")
    fasta = write_fasta(tmp_path / "a.fasta", grammar(20))
    assert main(["similarity", str(fasta), "-m", str(tmp_path / "model"), "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "1 heads in all: a correlation over heads needs three or more" in shown
    assert "no kernel.csv: the first layer's attention is not linear" in shown
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [n for n in FILES if n != "kernel.csv"]


def test_stopped_work_goes_on_to_the_same_bytes(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pair_attention_file, "TOKENS_OF_PART", 400)
    monkeypatch.setattr("protein_lm.results.similarity.save_figure", lambda figure, path: plt.close(figure))
    fasta = write_fasta(tmp_path / "a.fasta", grammar(60))
    model, reader = load_model(runs["causal"]), PairReader(40, 0, True, 256)
    write_similarity(model, fasta, tmp_path / "whole", reader, num_untrained=1)

    def stop(done: int, total: int | None) -> None:
        assert total == 40
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_similarity(model, fasta, tmp_path / "part", reader, num_untrained=1, on_progress=stop)
    assert not (tmp_path / "part").exists()
    with pytest.raises(OutputError, match="resume it with --resume"):
        write_similarity(model, fasta, tmp_path / "part", reader, num_untrained=1)
    with pytest.raises(OutputError, match="begun with another --untrained"):
        write_similarity(model, fasta, tmp_path / "part", reader, resume=True)
    other = write_fasta(tmp_path / "b.fasta", grammar(60, seed=1))
    with pytest.raises(InputError, match="is not what it was when the work began"):
        write_similarity(model, other, tmp_path / "part", reader, num_untrained=1, resume=True)
    read = []
    write_similarity(
        model,
        fasta,
        tmp_path / "part",
        reader,
        num_untrained=1,
        resume=True,
        on_progress=lambda done, _: read.append(done),
    )
    assert read[0] > 20
    whole, part = ({path.name: path for path in (tmp_path / name).iterdir()} for name in ("whole", "part"))
    assert whole.keys() == part.keys()
    for name, path in whole.items():
        if path.suffix in (".csv", ".json"):
            assert path.read_bytes() == part[name].read_bytes(), name
    with np.load(whole["pair_attention.npz"]) as one, np.load(part["pair_attention.npz"]) as other_sums:
        for name in one.files:
            np.testing.assert_array_equal(one[name], other_sums[name])
