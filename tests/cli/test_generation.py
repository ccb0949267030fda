"""The verbs that make proteins, as a user calls them."""

import gzip
import re

import numpy as np
import pandas as pd
import pytest

from protein_lm.alphabet import decode
from protein_lm.cli import main
from protein_lm.io.readers import read_records
from tests.cli.test_model import fails
from tests.conftest import write_fasta


def test_generate(runs, tmp_path, capsys) -> None:
    output = tmp_path / "made.fasta"
    arguments = ["generate", "--model", str(runs["causal"]), "-n", "3", "--max-length", "20", "--seed", "7"]
    assert main([*arguments, "-o", str(output)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{output}: 3 generated")
    made = list(read_records(output))
    assert [record.sequence_id for record in made] == ["generated_1", "generated_2", "generated_3"]
    pattern = r"generated_\d length=\d+ log_likelihood=-\d+\.\d{3} perplexity=\d+\.\d{3} (un)?finished"
    headers = [line[1:] for line in output.read_text().splitlines() if line.startswith(">")]
    assert all(re.fullmatch(pattern, header) for header in headers)
    num_unfinished = sum(header.endswith(" unfinished") for header in headers)
    assert not num_unfinished or f"{num_unfinished} of them unfinished at 20 residues" in said
    assert main([*arguments, "-o", "-"]) == 0
    assert capsys.readouterr().out == output.read_text()
    prefixes = write_fasta(tmp_path / "prefixes.fa", {"a": "MK", "b": "WWW"})
    packed = tmp_path / "packed.fa.gz"
    assert main([*arguments, "-o", str(packed), "--prefix", str(prefixes), "--top-k", "5"]) == 0
    assert gzip.decompress(packed.read_bytes()).startswith(b">a_1 length=")
    assert [record.sequence[:2] for record in read_records(packed)] == ["MK"] * 3 + ["WW"] * 3
    assert main([*arguments, "--prefix", "mkv"]) == 0
    assert capsys.readouterr().out.count("\nMKV") == 3


def test_generation_mistakes(runs, tmp_path, capsys) -> None:
    output = tmp_path / "made.fasta"

    def refused(*arguments: object, model: str = "causal") -> str:
        return fails(capsys, "generate", "--model", runs[model], "-o", output, *arguments)

    assert "prefix MK1: '1' at position 3 is not a residue letter; give residue letters" in refused("--prefix", "MK1")
    assert "prefix generated has 80 residues, which leaves no room" in refused("--prefix", "M" * 80)
    assert "absent.fasta does not exist" in refused("--prefix", tmp_path / "absent.fasta")
    twice = tmp_path / "twice.fasta"
    twice.write_text(">a\nMK\n>a\nML\n")
    assert "twice.fasta, line 3: sequence a is on line 1 too" in refused("--prefix", twice)
    assert "Invalid value for '--number' / '-n'" in refused("-n", 0)
    assert "Invalid value for '--seed'" in refused("--seed", -1)
    assert "Invalid value for '--seed'" in refused("--seed", "x")
    assert "temperature -1 must be 0" in refused("--temperature", -1)
    assert "top-p 1.2 is no probability to reach; choose one over 0 and up to 1" in refused("--top-p", 1.2)
    assert "generate with a causal model, or fill in" in refused(model="masked")
    assert "unknown suffix; end it in .fasta, .fa, .faa, with or without .gz" in fails(
        capsys, "generate", "--model", runs["causal"], "-o", tmp_path / "made.txt"
    )
    output.write_text("mine")
    assert "exists already" in refused()
    assert output.read_text() == "mine" and not list(tmp_path.glob(".*"))


def test_infill(runs, tmp_path, capsys) -> None:
    templates = write_fasta(tmp_path / "templates.fasta", {"a": "MK__AYI", "b": "_CDE_"})
    model, output = ["--model", str(runs["masked"])], tmp_path / "filled.fasta"
    assert main(["infill", str(templates), *model, "-o", str(output), "--order", "random", "--steps", "2"]) == 0
    assert capsys.readouterr().out == f"{output}: 2 filled in\n"
    first, second = read_records(output)
    assert re.fullmatch(r"MK..AYI", first.sequence) and re.fullmatch(r".CDE.", second.sequence)
    header = output.read_text().partition("\n")[0]
    assert re.fullmatch(r">a filled=2 pseudo_log_likelihood=-\d+\.\d{3} pseudo_perplexity=\d+\.\d{3}", header)
    assert "use a masked model" in fails(
        capsys, "infill", templates, "--model", runs["causal"], "-o", tmp_path / "f.fa"
    )
    plain = write_fasta(tmp_path / "plain.fasta", {"a": "MK"})
    assert "sequence a: nothing to fill in; write _" in fails(capsys, "infill", plain, *model)
    assert not (tmp_path / "f.fa").exists()


FILES = {"comparison.csv", "comparison.png", "composition.csv"}


@pytest.fixture
def made_of_real(corpus, tmp_path) -> list[str]:
    """The arguments that compare 40 real proteins with their own corpus."""
    sequences = {f"made|{number} x": decode(corpus.residues(number)) for number in range(40)}
    return ["compare", str(write_fasta(tmp_path / "made.fasta", sequences)), "--data", str(corpus.path)]


@pytest.mark.slow
def test_compare(made_of_real, tmp_path, capsys) -> None:
    assert main([*made_of_real, "-o", str(tmp_path / "out")]) == 0
    assert "kmer_distance_3" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"nearest.csv"}
    table = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index("measure")
    assert table.loc["relatives_at_90", "generated"] > 0.4, "short ones are not found"
    nearest = pd.read_csv(tmp_path / "out" / "nearest.csv")
    assert nearest["sequence_id"].isin([f"made|{number}" for number in range(40)]).all()
    assert nearest["identity"].median() == 1


def test_compare_without_the_search(made_of_real, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*made_of_real, "-o", str(tmp_path / "out")]) == 0
    assert "without nearest relatives: MMseqs2 is not installed" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    composition = pd.read_csv(tmp_path / "out" / "composition.csv")
    np.testing.assert_allclose(composition[["generated", "real"]].sum(), 1)
    assert "exists already" in fails(capsys, *made_of_real, "-o", tmp_path / "out")
    (tmp_path / "made.fasta").write_text(">a\nMKV\n>a\nMKL\n")
    assert "line 3: sequence a is on line 1 too" in fails(capsys, *made_of_real, "-o", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("verb", ["generate", "infill", "compare"])
def test_help_has_an_example(verb, capsys) -> None:
    assert main([verb, "--help"]) == 0
    assert f"Example: protein-lm {verb} " in capsys.readouterr().out
