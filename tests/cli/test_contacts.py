"""`protein-lm contacts` as a user calls it: files, and one clear line for every mistake."""

from pathlib import Path

import pandas as pd
import pytest

from protein_lm.cli import main
from tests.cli.test_model import fails
from tests.conftest import write_fasta
from tests.io.structure_files import SEQUENCE, helices, pdb_lines


@pytest.fixture
def structure(tmp_path) -> Path:
    path = tmp_path / "pair.pdb"
    path.write_text("\n".join(pdb_lines(helices())) + "\nEND\n")
    return path


def test_train_and_predict(runs, structure, tmp_path, capsys) -> None:
    model, regression = str(runs["masked"]), str(tmp_path / "contacts.json")
    assert main(["contacts", "train", str(structure), f"{structure}:A", "-m", model, "-o", regression]) == 0
    assert "of 4 heads used; 702 pairs, " in capsys.readouterr().out
    predict = ["contacts", "predict", "-m", model, "-r", regression]
    assert main([*predict, str(structure), "-o", str(tmp_path / "a")]) == 0
    assert "precision of the most probable pairs" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "pair.pdb_A.parquet",
        "pair.pdb_A.png",
        "pair.pdb_A_precision.csv",
    }
    assert len(pd.read_csv(tmp_path / "a/pair.pdb_A_precision.csv")) == 6
    whole = write_fasta(tmp_path / "whole.fasta", {"../P": "VV" + SEQUENCE})
    assert (
        main([*predict, str(whole), "--structure", str(structure), "-o", str(tmp_path / "b"), "--format", "svg"]) == 0
    )
    table = pd.read_parquet(tmp_path / "b/_P.parquet")
    assert table["is_contact"].isna().sum() > 0 and (tmp_path / "b/_P.svg").is_file()
    several = write_fasta(tmp_path / "several.fasta", {"P": SEQUENCE, "Q": "X" * 10, "R": "M"})
    assert main([*predict, str(several), "-o", str(tmp_path / "c")]) == 0
    assert "distance_angstrom" not in pd.read_parquet(tmp_path / "c/P.parquet")
    assert len(pd.read_parquet(tmp_path / "c/R.parquet")) == 0
    placed = ["contacts", "train", str(structure), "-m", model, "--fasta", str(whole), "-o", str(tmp_path / "d.json")]
    assert main(placed) == 0 and "351 pairs" in capsys.readouterr().out


def test_contact_mistakes(runs, structure, tmp_path, capsys) -> None:
    model, regression = runs["masked"], tmp_path / "contacts.json"
    train = ["contacts", "train", structure, "-m", model, "-o", regression]
    other = write_fasta(tmp_path / "other.fasta", {"P": SEQUENCE[:14] + "A" + SEQUENCE[15:]})
    assert "pair.pdb:A does not match sequence P: residue 15 is G, position 15 of the sequence is A" in fails(
        capsys, *train, "--fasta", other
    )
    two = write_fasta(tmp_path / "two.fasta", {"P": SEQUENCE, "Q": SEQUENCE})
    assert "has 2 sequences for 1 structures" in fails(capsys, *train, "--fasta", two)
    assert "no protein chain B; it has A" in fails(capsys, "contacts", "train", f"{structure}:B", *train[3:])
    assert not regression.exists()
    assert main([str(word) for word in train]) == 0
    capsys.readouterr()
    assert "exists already" in fails(capsys, *train)
    output = tmp_path / "maps"
    predict = ["contacts", "predict", "-o", output, "-m", model]
    assert "absent.json does not exist; make it with" in fails(
        capsys, *predict, structure, "-r", tmp_path / "absent.json"
    )
    assert "was trained for another model" in fails(
        capsys, "contacts", "predict", structure, "-o", output, "-m", runs["causal"], "-r", regression
    )
    assert "leave out --structure" in fails(capsys, *predict, structure, "--structure", structure, "-r", regression)
    assert "2 sequences for one structure" in fails(capsys, *predict, two, "--structure", structure, "-r", regression)
    assert "does not match" in fails(capsys, *predict, other, "--structure", structure, "-r", regression)
    long = write_fasta(tmp_path / "long.fasta", {"long": "A" * 63})
    assert "long has 63 residues; this model reads 62" in fails(capsys, *predict, long, "-r", regression)
    assert not output.exists()
