"""`variants` as a user calls it."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import protein_lm
from protein_lm.cli import main
from tests.cli.test_model import fails
from tests.conftest import write_fasta

WILD_TYPE = "MKTAYIAKQRQISF"
ODD = 'sp|P1|<b>_"../..$x_{ ' + "y" * 300


@pytest.fixture
def protein(tmp_path) -> Path:
    return write_fasta(tmp_path / "protein.fasta", {ODD: WILD_TYPE})


def table_of(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def variants(model: object, sequence: Path, *more: object, precision: str = "float32") -> list[str]:
    options = {"--model": model, "--sequence": sequence, "--precision": precision}
    return ["variants", *(str(each) for option in options.items() for each in option), *map(str, more)]


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


def test_the_precision_is_told_where_there_is_no_error(runs, protein, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("protein_lm.model.precision.bfloat16_speed", lambda device: 2.0)
    folder = tmp_path / "assays"
    folder.mkdir()
    mutants = table_of(folder / "m.csv", "mutant,DMS_score", "M1A,0.5", "K2G,1.5")
    for chosen in (["--saturate", "-o", "-"], ["--mutants", mutants, "-o", "-"], ["--mutants", folder, "-o", "out"]):
        arguments = variants(runs["masked"], protein, *chosen[:-1], precision="auto")
        output = chosen[-1] if chosen[-1] == "-" else str(tmp_path / chosen[-1])
        assert main([*arguments, output]) == 0
        assert capsys.readouterr().err.startswith(
            "precision: bfloat16, by auto: on this processor products in bfloat16"
        )
    monkeypatch.setattr("protein_lm.model.precision.bfloat16_speed", lambda device: 0.5)
    arguments = variants(runs["masked"], protein, "--mutants", mutants, "-o", "-", precision="bfloat16")
    assert main(arguments) == 0 and capsys.readouterr().err.count("precision: bfloat16, as set, but on this") == 1
    wrong = table_of(tmp_path / "w.csv", "mutant", "A99W")
    for precision in ("auto", "bfloat16"):
        arguments = variants(runs["masked"], protein, "--mutants", wrong, "-o", "-", precision=precision)
        assert "no row names a variant" in fails(capsys, *arguments)


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
    assert "with --offset-idx 24, all 3 rows would fit" in message and not (tmp_path / "n_scores.csv").exists()
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


def test_insertions_and_deletions_are_compared_per_residue(runs, protein, tmp_path, capsys) -> None:
    rows = [WILD_TYPE[:5], WILD_TYPE[:-1] + "A", "mk-" + WILD_TYPE[2:] + "*", WILD_TYPE + "AC", WILD_TYPE[3:]]
    mutants = table_of(
        tmp_path / "m.csv", "mutant,mutated_sequence,DMS_score", *(f",{row},{n}" for n, row in enumerate(rows))
    )
    output = tmp_path / "scores.csv"
    assert main(variants(runs["causal"], protein, "--mutants", mutants, "-o", output)) == 0
    shown = capsys.readouterr()
    assert shown.err == f"{mutants} has insertions or deletions: score is per residue, total_score has the sums\n"
    table = pd.read_csv(output)
    assert table.columns.tolist()[-3:] == ["score", "total_score", "reason"]
    proteins = {
        str(n): row for n, row in enumerate([WILD_TYPE, *(row.upper().strip("*").replace("-", "") for row in rows)])
    }
    found = protein_lm.score(protein_lm.load(runs["causal"], device="cpu"), proteins)
    sums, means = found["log_likelihood"].to_numpy(), found["mean_log_likelihood"].to_numpy()
    np.testing.assert_allclose(table["total_score"], sums[1:] - sums[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(table["score"], means[1:] - means[0], rtol=1e-4, atol=1e-5)
    expected = pd.Series(means[1:] - means[0]).corr(pd.Series(range(5)), method="spearman")
    assert f"Spearman {expected:.3f}" in shown.out
    named = table_of(tmp_path / "n.csv", "mutant,mutated_sequence", f"F14del,{WILD_TYPE[:-1]}", "F14del,")
    assert main(variants(runs["causal"], protein, "--mutants", named, "-o", "-")) == 1
    shown = capsys.readouterr()
    assert (
        "1 rows have no score; row 2: 'F14del' is a deletion; give the protein that comes of it in a column"
        in shown.err
    )


def test_proteins_over_the_window(runs, tmp_path, capsys) -> None:
    long = write_fasta(tmp_path / "long.fasta", {"long": "MKTAYIAKQR" * 10})
    mutants = table_of(tmp_path / "m.csv", "mutant", "M1A", "K52A:T53A", "M1A:R100A", "_wt")
    message = fails(
        capsys, *variants(runs["masked"], long, "--mutants", mutants, "-o", tmp_path / "no.csv", "--long", "drop")
    )
    assert "sequence long has 100 residues; this model reads 62; use --long window" in message
    output = tmp_path / "scores.csv"
    assert main(variants(runs["masked"], long, "--mutants", mutants, "-o", output)) == 1
    shown = capsys.readouterr().err
    assert (
        "row 3: what changes spans 100 residues, for which a window of 62 is too short; choose --strategy additive-marginals"
        in shown
    )
    assert f"{mutants}: 2 variants scored in windows around what changes; they have more than the 62 residues" in shown
    additive = ["--strategy", "additive-marginals", "-o"]
    assert main(variants(runs["masked"], long, "--mutants", mutants, *additive, tmp_path / "all.csv")) == 0
    scores = pd.read_csv(tmp_path / "all.csv")["score"]
    assert scores[0] == pytest.approx(pd.read_csv(output)["score"][0], abs=1e-5) and scores[3] == 0
    in_python = protein_lm.variants(
        protein_lm.load(runs["masked"], device="cpu"),
        long,
        ["M1A", "R100A", "M1A:R100A"],
        strategy="additive-marginals",
        precision="float32",
    )
    np.testing.assert_allclose(in_python["score"][2], in_python["score"][:2].sum(), atol=1e-6)
    assert in_python["score"][2] == pytest.approx(scores[2], abs=1e-5)
    capsys.readouterr()
    assert main(variants(runs["masked"], long, "--saturate", "-o", "-", "--strategy", "wt-marginals")) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1901 and "1,900 variants scored in windows around what changes" in shown.err
    short = write_fasta(tmp_path / "short.fasta", {"short": WILD_TYPE})
    grown = table_of(tmp_path / "g.csv", "mutated_sequence", WILD_TYPE[:7] + 49 * "A" + WILD_TYPE[7:], WILD_TYPE + "A")
    assert main(variants(runs["causal"], short, "--mutants", grown, "-o", "-", "--long", "drop")) == 1
    assert "1 rows have no score; row 1: 63 residues; this model reads 62" in capsys.readouterr().err
    assert main(variants(runs["causal"], short, "--mutants", grown, "-o", "-")) == 0
    assert f"{grown}: 1 variants scored in windows" in capsys.readouterr().err


def test_a_folder_with_proteins_over_the_window(runs, tmp_path, capsys) -> None:
    folder = tmp_path / "assays"
    folder.mkdir()
    table_of(folder / "one.csv", "mutant,DMS_score", "M1A,1", "K2A,2", "T3A,3")
    table_of(folder / "two.csv", "mutant,DMS_score", "M1A,1", "R100A,2")
    table_of(folder / "six.csv", "mutated_sequence,DMS_score", "MKTAY,1", "MKTAYIA,2")
    proteins = {"one": WILD_TYPE, "two": "MKTAYIAKQR" * 10, "six": WILD_TYPE}
    wild_types = write_fasta(tmp_path / "wild_types.fasta", proteins)

    def score(output: str, *more: str) -> tuple[int, str, pd.DataFrame]:
        status = main(variants(runs["causal"], wild_types, "--mutants", folder, "-o", tmp_path / output, *more))
        return status, capsys.readouterr().err, pd.read_csv(tmp_path / output / "assays.csv")

    status, shown, summary = score("windows")
    assert status == 0 and summary["assay"].tolist() == ["one", "six", "two", "mean"]
    assert (
        "1 assays of proteins over the model's window (62 residues) scored in windows around what changes: two" in shown
    )
    assert "1 assays have insertions or deletions (score is per residue, total_score has the sums): six" in shown
    assert "total_score" in pd.read_csv(tmp_path / "windows" / "six.csv")
    assert "total_score" not in pd.read_csv(tmp_path / "windows" / "one.csv")
    status, shown, summary = score("dropped", "--long", "drop")
    assert status == 1 and summary["assay"].tolist() == ["one", "six", "mean"]
    assert "1 assays of proteins over the model's window (62 residues) left out: two" in shown
    for name in ("one", "six"):
        (folder / f"{name}.csv").unlink()
    message = fails(
        capsys, *variants(runs["causal"], wild_types, "--mutants", folder, "-o", tmp_path / "none", "--long", "drop")
    )
    assert "sequence two has 100 residues; this model reads 62; use --long window" in message
    table_of(folder / "one.csv", "mutant,DMS_score", "M24A,1", "K25A,2", "I29A,3")
    message = fails(capsys, *variants(runs["causal"], wild_types, "--mutants", folder, "-o", tmp_path / "none"))
    assert "with --offset-idx 24 and this table alone, all 3 rows would fit" in message


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
    for name in ("score", "total_score"):
        again = table_of(tmp_path / "t.csv", f"mutated_sequence,{name}", WILD_TYPE + "A,1")
        assert f"has a column {name} already; rename or remove it" in message(
            "--mutants", again, "--strategy", "pseudo-ppl"
        )
    again = table_of(tmp_path / "a.csv", "mutant,score", "M1A,1")
    assert "has a column score already; rename or remove it" in message("--mutants", again)
    two = write_fasta(tmp_path / "two.fasta", {"one": "MKV", "two": "MKV"})
    assert "holds more than one protein" in message("--saturate", sequence=two)
    long = write_fasta(tmp_path / "long.fasta", {"long": "A" * 63})
    assert "sequence long has 63 residues; this model reads 62; use --long window, which" in message(
        "--saturate", "--long", "drop", sequence=long
    )
    assert "the number of the first residue is over nine digits; give one from -999,999,999 to 999,999,999" in message(
        "--saturate", "--offset-idx", 10**20
    )
    unknown = write_fasta(tmp_path / "x.fasta", {"x": "XX"})
    assert "sequence x has none of the 20 amino acids" in message("--saturate", sequence=unknown)
    assert not output.exists() and not output.with_suffix(".png").exists()
