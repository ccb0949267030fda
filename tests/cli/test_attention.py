"""`protein-lm attention` as a user calls it: files, and one clear line for every mistake."""

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest

from protein_lm.alphabet import encode
from protein_lm.analysis.attention.forms import attention_matrices
from protein_lm.analysis.contacts import Regression, predict_contacts, train_regression
from protein_lm.api import attention_viewer
from protein_lm.checkpoint.directory import load_model
from protein_lm.cli import main
from protein_lm.errors import InputError
from protein_lm.io.records import SequenceRecord
from protein_lm.io.structures.chains import Chain
from protein_lm.results import attention as results_of_attention
from protein_lm.results.attention import AttentionChoice, write_attention
from tests.cli.test_model import PROTEINS, fails
from tests.conftest import write_fasta

LONG_NAME = "<b>$x^{</b>" + "z" * 300


@pytest.fixture
def fasta(tmp_path) -> Path:
    return write_fasta(tmp_path / "proteins.fasta", PROTEINS)


def test_attention(runs, fasta, tmp_path, capsys) -> None:
    output = tmp_path / "attention"
    assert (
        main(["attention", str(fasta), "-m", str(runs["masked"]), "-o", str(output), "--layer", "2", "--format", "svg"])
        == 0
    )
    names = ["P1", "two", "a_.._b"]
    assert sorted(path.name for path in output.iterdir()) == sorted(
        f"{name}{ending}" for name in names for ending in (".npz", ".svg", "_heads.csv")
    )
    with np.load(output / "a_.._b.npz") as saved:
        assert saved["matrices"].shape == (1, 2, 5, 5) and saved["layers"].tolist() == [2]
        assert str(saved["sequence_id"]) == "a/../b" and str(saved["sequence"]) == "MKV"
        assert saved["rows"].tolist() == saved["columns"].tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_allclose(saved["matrices"].sum(-1), 1, rtol=1e-5)
    capsys.readouterr()
    assert "exists already" in fails(capsys, "attention", fasta, "-m", runs["masked"], "-o", output)
    message = fails(capsys, "attention", fasta, "-m", runs["masked"], "-o", tmp_path / "b", "--layer", "3")
    assert "layer 3 does not exist; this model has layers 1 to 2" in message
    assert not (tmp_path / "b").exists()


def test_everything_of_a_region(runs, tmp_path, capsys) -> None:
    fasta = write_fasta(tmp_path / "one.fasta", {LONG_NAME: "MKTAYIAKQRQISFVKSHFS", "rollout": "X" * 9})
    output = tmp_path / "attention"
    arguments = [
        "attention",
        str(fasta),
        "-m",
        str(runs["masked"]),
        "-o",
        str(output),
        "--rows",
        "2-8",
        "--columns",
        "9",
    ]
    assert main([*arguments, "--top", "3", "--profiles", "--rollout", "--num-draws", "2"]) == 0
    names = ["_b_x_b_" + "z" * 93, "rollout"]
    for folder, endings in {
        ".": (".npz", ".png", "_heads.csv"),
        "top": (".parquet",),
        "offsets": (".parquet",),
        "received": (".parquet",),
        "profiles": (".png",),
        "rollout": (".png",),
    }.items():
        files = {path.name for path in (output / folder).iterdir() if path.is_file()}
        assert files == {f"{name}{ending}" for name in names for ending in endings}
    with np.load(output / f"{names[0]}.npz") as saved:
        assert saved["matrices"].shape == saved["draw_mean"].shape == saved["draw_standard_error"].shape == (2, 2, 7, 1)
        assert saved["rollout"].shape == (7, 1) and str(saved["sequence_id"]) == LONG_NAME
        assert saved["rows"].tolist() == [2, 3, 4, 5, 6, 7, 8] and saved["columns"].tolist() == [9]
        top = pd.read_parquet(output / f"top/{names[0]}.parquet")
        assert len(top) == 2 * 2 * 7 and set(top["attended"]) == {9}
        np.testing.assert_allclose(top["weight"], saved["matrices"].ravel())
    received = pd.read_parquet(output / "received/rollout.parquet")
    assert "".join(received["token"][1:10]) == "X" * 9 and len(received) == 2 * 2 * 11
    np.testing.assert_allclose(received.groupby(["layer", "head"])["received"].mean(), 1, rtol=1e-5)
    assert "head_class" in pd.read_csv(output / "rollout_heads.csv")


def test_long_proteins_get_block_means(runs, fasta, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(results_of_attention, "FULL_BYTES", 4 * 4 * 16**2)
    monkeypatch.setattr(results_of_attention, "DEFAULT_PIXELS", 5)
    arguments = ["attention", str(fasta), "-m", str(runs["masked"]), "-o"]
    assert main([*arguments, str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].strip().startswith(
        "two: block means, 5 × 5 pixels, instead of 0.0 GiB of weights"
    )
    with np.load(tmp_path / "a/two.npz") as saved:
        assert saved["block_means"].shape == (2, 2, 5, 5)
        assert saved["row_edges"].tolist() == saved["column_edges"].tolist() == [1, 5, 9, 13, 17, 21]
        means = saved["block_means"]
    assert main([*arguments, str(tmp_path / "b"), "--full"]) == 0
    with np.load(tmp_path / "b/two.npz") as saved:
        expected = saved["matrices"][:, :, 1:-1, 1:-1].reshape(2, 2, 5, 4, 5, 4).mean((3, 5))
    np.testing.assert_allclose(means, expected, rtol=1e-4)
    assert "block means" not in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "c"), "--pixels", "2", "--rows", "1-3"]) == 0
    with np.load(tmp_path / "c/a_.._b.npz") as saved:
        assert saved["block_means"].shape == (2, 2, 2, 2) and saved["row_edges"].tolist() == [1, 2, 4]


def test_attention_mistakes(runs, fasta, tmp_path, capsys, monkeypatch) -> None:
    def refused(*options: str) -> str:
        message = fails(capsys, "attention", fasta, "-m", runs["masked"], "-o", tmp_path / "a", *options)
        assert not (tmp_path / "a").exists()
        return message

    assert "head 9 does not exist; this model has heads 1 to 2" in refused("--head", "9")
    assert "--rows 2-15 is outside of sequence P1, which has residues 1 to 14" in refused("--rows", "2-15")
    assert "--columns 0-5: expected first and last residue, from 1" in refused("--columns", "0-5")
    assert "--rows 7-5: expected first and last residue" in refused("--rows", "7-5")
    assert "--rows a: expected" in refused("--rows", "a")
    assert "leave one out" in refused("--full", "--pixels", "3")
    assert "--rollout goes through all layers and heads; leave out" in refused("--rollout", "--layer", "1")
    long = write_fasta(tmp_path / "long.fasta", {"long": "A" * 63})
    message = fails(capsys, "attention", long, "-m", runs["masked"], "-o", tmp_path / "a")
    assert "sequence long has 63 residues; this model reads 62; leave it out, or use a model" in message
    monkeypatch.setattr(results_of_attention, "FULL_BYTES", 100)
    monkeypatch.setattr(results_of_attention, "MAX_BYTES", 1000)
    message = refused("--full")
    assert "sequence P1: 4 matrices of 16 × 16 weights take 0.0 GiB, over the limit" in message
    assert "choose fewer with --layer and --head or --rows and --columns, or leave out --full" in message
    assert "sequence P1: 4 maps of 14 × 14 pixels take" in (message := refused()) and "or lower --pixels" in message
    assert "choose fewer with --rows and --columns, or lower" in refused("--rollout")  # which takes no --layer
    assert "sequence long has 63 residues" in fails(
        capsys, "attention", long, "-m", runs["masked"], "-o", tmp_path / "a", "--full"
    )


def test_a_protein_far_over_the_window_needs_no_memory(runs, monkeypatch) -> None:
    """The first allocation would be of 10 TB."""
    model, record = load_model(runs["masked"]), SequenceRecord("long", encode("A" * 2_000_000), 1)
    for choice in (AttentionChoice(full=True), AttentionChoice(html=True), AttentionChoice(rollout=True)):
        with pytest.raises(InputError, match="sequence long has 2,000,000 residues; this model reads 62"):
            write_attention(model, [record], Path("never"), choice=choice)
    regression = Regression([[0.0] * 2] * 2, 0.0, "", 0.0, [], 0, 0)
    chain = cast(Chain, None)
    for read in (
        lambda: attention_matrices(model, record),
        lambda: predict_contacts(model, record, regression),
        lambda: train_regression(model, [(record, chain)], penalty=0.1),
        lambda: attention_viewer(model, record.sequence),
    ):
        with pytest.raises(InputError, match="has 2,000,000 residues; this model reads 62"):
            read()
