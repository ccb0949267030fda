"""The benchmarks of preparing and of kernel errors, at a size of seconds."""

import json

import pandas as pd
import pytest

from benchmarks import batches, kernel_error, prepare


def test_kernel_errors_of_a_few_features(tmp_path, capsys) -> None:
    arguments = ["--length", "24", "--width", "4", "--features", "4", "8", "--scales", "0.5", "--num-draws", "2"]
    table, figure = tmp_path / "table.csv", tmp_path / "figure.png"
    kernel_error.main([*arguments, "-o", str(table), "--plot", str(figure)])
    rows = pd.read_csv(table)
    assert set(rows["feature_type"]) == set(kernel_error.TYPES) and set(rows["num_features"]) == {4, 8}
    assert (rows["output_error"] > 0).all() and figure.stat().st_size > 0
    assert "standard deviation 0.5" in capsys.readouterr().out


def test_batches_of_both_objectives_are_timed(corpus, capsys) -> None:
    assert batches.main([str(corpus.path), "--tokens", "300", "--batches", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == ["causal", "masked"]
    assert all(float(line.split()[1]) > 0 for line in lines[1:])


@pytest.mark.slow
def test_preparing_is_measured_once(tmp_path, capsys) -> None:
    arguments = [str(tmp_path / "files"), "-o", str(tmp_path / "prepare.json"), "--megabytes", "1", "--turns", "2"]
    assert prepare.main(arguments) == 0
    rows = json.loads((tmp_path / "prepare.json").read_text())
    tasks = [["read", "prepare", "Bio.SeqIO"], ["prepare", "gunzip"], ["prepare", "Bio.SwissProt"]]
    assert [row["task"] for row in rows] == [task for each in tasks for _ in range(2) for task in each]
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 2**20 for row in rows)
    assert "| uniref_1.fasta | prepare |" in capsys.readouterr().out
    assert prepare.main(arguments) == 0
    assert json.loads((tmp_path / "prepare.json").read_text()) == rows
