"""`variants` as a user calls it."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from protein_lm.cli import main
from tests.conftest import write_fasta
from tests.test_cli_model import fails

WILD_TYPE = "MKTAYIAKQRQISF"
ODD = 'sp|P1|<b>_"../..$x_{ ' + "y" * 300


@pytest.fixture
def protein(tmp_path) -> Path:
    return write_fasta(tmp_path / "protein.fasta", {ODD: WILD_TYPE})


def table_of(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def variants(model: object, sequence: Path, *more: object) -> list[str]:
    return ["variants", "--model", str(model), "--sequence", str(sequence), *map(str, more)]


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_a_table_with_measurements(runs, protein, tmp_path, capsys, objective) -> None:
    mutants = table_of(
        tmp_path / "m.csv", "mutant,DMS_score,note", 'M1A,0.5,"a, ""b"""', "M1A:K2G,1.5,", "T3T,2,", "F14G,3,"
    )
    output = tmp_path / "scores.csv"
    assert main(variants(runs[objective], protein, "--mutants", mutants, "-o", output)) == 0
    shown = capsys.readouterr()
    assert "4 variants scored by " in shown.out and "Spearman " in shown.out and not shown.err
    table = pd.read_csv(output, keep_default_na=False)
    assert table.columns.tolist() == ["mutant", "DMS_score", "note", "score", "reason"]
    assert table["note"][0] == 'a, "b"' and table["score"][2] == 0 and set(table["reason"]) == {""}
    assert main(variants(runs[objective], protein, "--mutants", mutants, "-o", "-")) == 0
    shown = capsys.readouterr()
    assert shown.out == output.read_text() and "Spearman " in shown.err


def test_rows_without_score_are_told_and_the_status_is_1(runs, protein, tmp_path, capsys) -> None:
    mutants = table_of(tmp_path / "m.tsv", "mutant", "A1C", "M1C", '<i>,"../x', "K99A")
    output = tmp_path / "scores.csv"
    assert main(variants(runs["masked"], protein, "--mutants", mutants, "-o", output)) == 1
    assert "3 rows have no score; row 1: the sequence has M at position 1, not A" in capsys.readouterr().err
    table = pd.read_csv(output)
    assert table["score"].notna().tolist() == [False, True, False, False]
    assert table["reason"].isna().tolist() == [False, True, False, False]
    shifted = table_of(tmp_path / "n.csv", "mutant", "M24C", "K25A", "Y28A")
    message = fails(capsys, *variants(runs["masked"], protein, "--mutants", shifted, "-o", tmp_path / "n_scores.csv"))
    assert "with --offset-idx 24 all rows would fit" in message and not (tmp_path / "n_scores.csv").exists()
    assert main(variants(runs["masked"], protein, "--mutants", shifted, "-o", "-", "--offset-idx", "24")) == 0


def test_saturation_and_its_heatmap(runs, protein, tmp_path, capsys) -> None:
    output = tmp_path / "scan.csv"
    arguments = variants(runs["masked"], protein, "--saturate", "-o", output, "--offset-idx", "-3")
    assert main(arguments) == 0
    table = pd.read_csv(output)
    assert len(table) == 19 * 14 and table["mutant"].tolist()[:2] == ["M-3A", "M-3C"]
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert "266 substitutions scored by masked-marginals; scan.png" in capsys.readouterr().out
    mutants = table_of(tmp_path / "m.csv", "mutant", *table["mutant"])
    assert main(variants(runs["masked"], protein, "--mutants", mutants, "-o", "-", "--offset-idx", "-3")) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    np.testing.assert_allclose([float(line.split(",")[1]) for line in lines], table["score"], rtol=1e-5, atol=1e-6)
    assert "scan.csv exists already" in fails(capsys, *arguments)
    ambiguous = write_fasta(tmp_path / "x.fasta", {"x": "MXK"})
    assert main(variants(runs["causal"], ambiguous, "--saturate", "-o", "-")) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1 + 38 and "1 residues that are none of the 20" in shown.err


def test_a_folder_of_assays(runs, tmp_path, capsys) -> None:
    folder = tmp_path / "assays"
    folder.mkdir()
    rows = [f"{WILD_TYPE[i]}{i + 1}W,{i % 5},{i % 2}" for i in range(14)]
    table_of(folder / "one.csv", "mutant,DMS_score,DMS_score_bin", *rows)
    table_of(folder / "assays.csv", "mutated_sequence,DMS_score", "ACDEF,1", "ACDEG,3", "ACDGG,2")
    reference = table_of(
        tmp_path / "reference.csv",
        "DMS_id,DMS_filename,target_seq,UniProt_ID,coarse_selection_type",
        f"one,one.csv,{WILD_TYPE},P1,Binding",
        "two,assays.csv,ACDEF,P2,Stability",
        "three,../three.csv,ACDEF,P2,Stability",
    )
    output = tmp_path / "results"
    assert main(variants(runs["causal"], reference, "--mutants", folder, "-o", output)) == 0
    shown = capsys.readouterr()
    assert "1 of " in shown.err and "three" in shown.err and "mean of selection types" in shown.out
    summary = pd.read_csv(output / "assays.csv")
    assert summary["assay"].tolist() == ["assays", "one", "mean", "mean of selection types"]
    assert summary["num_scored"].tolist()[:2] == [3, 14]
    assert sorted(path.name for path in output.iterdir()) == ["assays.csv", "assays_2.csv", "one.csv"]
    other = tmp_path / "other"
    fasta = write_fasta(tmp_path / "wild_types.fasta", {"one": WILD_TYPE, "assays": "ACDEF"})
    message = fails(capsys, *variants(runs["masked"], fasta, "--mutants", folder, "-o", other.with_suffix(".csv")))
    assert "a folder of assays gives several tables; name a folder for them" in message
    table_of(folder / "two.csv", "mutant,DMS_score", "A1C,1")
    assert "no wild type for" in fails(capsys, *variants(runs["masked"], fasta, "--mutants", folder, "-o", other))
    assert not other.exists()


def test_assays_are_told_by_contents_whatever_files_are_called(runs, tmp_path, capsys) -> None:
    folder = tmp_path / "assays"
    folder.mkdir()
    rows = [f"{WILD_TYPE[i]}{i + 1}W,{i % 5}," for i in range(14)]
    table_of(folder / "one.CSV", "mutant,DMS_score", *rows)
    (folder / "two.csv.gz").write_bytes(gzip.compress((folder / "one.CSV").read_bytes()))
    (folder / "three.txt").write_text((folder / "one.CSV").read_text().replace(",", ";"), encoding="utf-16")
    (folder / "README.txt").write_text("what these are\n")
    (folder / ".hidden.csv").write_text("mutant\n")
    names = [f"{name};{WILD_TYPE};" for name in ("one.csv", "two.CSV", "three.txt.gz")]
    reference = table_of(tmp_path / "reference.txt", "DMS_filename;target_seq", *names)
    assert main(variants(runs["masked"], reference, "--mutants", folder, "-o", tmp_path / "results")) == 0
    assert capsys.readouterr().err == ""
    summary = pd.read_csv(tmp_path / "results/assays.csv")
    assert summary["assay"].tolist() == ["one", "three", "two", "mean"] and summary["spearman"].nunique() == 1
    table_of(folder / "one.tsv", "mutant\tDMS_score", "M1A\t1")
    again = variants(runs["masked"], reference, "--mutants", folder, "-o", tmp_path / "again")
    assert "one.CSV and " in (message := fails(capsys, *again)) and "one.tsv have one name, 'one'" in message


def test_mistakes(runs, protein, tmp_path, capsys) -> None:
    masked, output = runs["masked"], tmp_path / "new.csv"
    mutants = table_of(tmp_path / "m.csv", "mutant", "M1A")

    def message(*more: object, model: object = masked, sequence: Path = protein) -> str:
        return fails(capsys, *variants(model, sequence, *more, "-o", output))

    assert "give either --mutants TABLE or --saturate" in message()
    assert "give either --mutants TABLE or --saturate" in message("--mutants", mutants, "--saturate")
    assert "has no meaning for a causal model; choose log-likelihood" in message(
        "--saturate", "--strategy", "pseudo-ppl", model=runs["causal"]
    )
    assert "absent.csv does not exist" in message("--mutants", tmp_path / "absent.csv")
    indel = table_of(tmp_path / "i.csv", "mutated_sequence", WILD_TYPE + "A")
    assert (
        "row 1 has insertions or deletions, which masked-marginals cannot score; choose --strategy pseudo-ppl"
        in message("--mutants", indel)
    )
    again = table_of(tmp_path / "a.csv", "mutant,score", "M1A,1")
    assert "has a column score already; rename or remove it" in message("--mutants", again)
    two = write_fasta(tmp_path / "two.fasta", {"one": "MKV", "two": "MKV"})
    assert "holds more than one protein" in message("--saturate", sequence=two)
    long = write_fasta(tmp_path / "long.fasta", {"long": "A" * 63})
    assert "sequence long has 63 residues; this model reads 62; cut out the part" in message(
        "--saturate", sequence=long
    )
    unknown = write_fasta(tmp_path / "x.fasta", {"x": "XX"})
    assert "sequence x has none of the 20 amino acids" in message("--saturate", sequence=unknown)
    assert not output.exists() and not output.with_suffix(".png").exists()
