"""Scores as tables: streamed, resumed after a kill, averaged over draws, and one line for every mistake."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from protein_lm import alphabet
from protein_lm.checkpoint.directory import save_model
from protein_lm.choices import Estimate, ReadingLongPolicy
from protein_lm.cli import main
from protein_lm.errors import ConfigError, InputError, OutputError
from protein_lm.inference.likelihood import causal_log_probabilities, one_pass_log_probabilities
from protein_lm.inference.score import Scoring, residue_scores, score
from protein_lm.results import score as module
from protein_lm.results.score import score_file
from tests.conftest import fresh_model, grammar, write_fasta
from tests.inference.toys import CopyModel, records

ODD = ["../../x", "a/b", 'say"it"', "x,y", "<b>&amp;", "=1+1", "NA", "Q" * 300, "π"]


@pytest.fixture
def fasta(tmp_path) -> Path:
    return write_fasta(tmp_path / "proteins.fasta", grammar(40))


@pytest.fixture
def small_parts(monkeypatch) -> None:
    """Parts of a few proteins, so that there is much to resume."""
    monkeypatch.setattr(module, "TOKENS_OF_PART", 200)


class Killed(Exception):
    """Stands for a power cut."""


def kill_after(number: int):
    """A progress function that ends the work after so many sequences."""

    def on_progress(done: int, total: int | None) -> None:
        if done >= number:
            raise Killed

    return on_progress


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_stopped_command_is_resumed_to_the_same_bytes(fasta, tmp_path, small_parts, suffix) -> None:
    model = fresh_model(objective="causal")
    whole, residues = tmp_path / f"whole{suffix}", tmp_path / f"residues{suffix}"
    score_file(model, fasta, str(whole), Scoring(), residue_output=residues)
    stopped, stopped_residues = tmp_path / f"stopped{suffix}", tmp_path / f"stopped_residues{suffix}"
    for number in (9, 10, 30):
        with pytest.raises(Killed):
            score_file(
                model,
                fasta,
                str(stopped),
                Scoring(),
                residue_output=stopped_residues,
                resume=True,
                on_progress=kill_after(number),
            )
        folder = tmp_path / f"stopped{suffix}.unfinished"
        with (folder / "sequences.text").open("ab") as file:
            file.write(b"half a li")  # written, but not saved
        assert not stopped.exists() and not stopped_residues.exists()
    with pytest.raises(OutputError, match=r"unfinished holds the work of a stopped command; resume it with --resume"):
        score_file(model, fasta, str(stopped), Scoring())
    summary = score_file(model, fasta, str(stopped), Scoring(), residue_output=stopped_residues, resume=True)
    assert summary.num_used == 40
    assert stopped.read_bytes() == whole.read_bytes() and stopped_residues.read_bytes() == residues.read_bytes()
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_command_killed_between_its_two_tables_is_resumed(fasta, tmp_path, monkeypatch) -> None:
    model, output, residues = fresh_model(objective="causal"), tmp_path / "s.csv", tmp_path / "r.csv"
    write = module.write_grown_table

    def fail(text: Path, path: Path, *arguments, **options) -> None:
        if path == output:
            raise Killed
        write(text, path, *arguments, **options)

    monkeypatch.setattr(module, "write_grown_table", fail)
    with pytest.raises(Killed):
        score_file(model, fasta, str(output), Scoring(), residue_output=residues)
    monkeypatch.undo()
    assert residues.exists() and not output.exists()
    score_file(model, fasta, str(output), Scoring(), residue_output=residues, resume=True)
    assert len(pd.read_csv(output)) == 40


def test_what_has_changed_is_refused(fasta, tmp_path, small_parts) -> None:
    model, output = fresh_model(objective="causal"), str(tmp_path / "s.csv")
    with pytest.raises(Killed):
        score_file(model, fasta, output, Scoring(), on_progress=kill_after(20))
    with pytest.raises(
        OutputError, match=r"begun with another tokens_per_batch; give the same, or remove .*unfinished"
    ):
        score_file(model, fasta, output, Scoring(tokens_per_batch=99), resume=True)
    with pytest.raises(OutputError, match="begun with another model"):
        other = fresh_model(objective="causal")
        with torch.no_grad():
            other.output_bias[5] = 1.0
        score_file(other, fasta, output, Scoring(), resume=True)
    changed = grammar(40) | {"S3": "MKV"}
    with pytest.raises(InputError, match=r"is not what it was when the work began: of the \d+ sequences"):
        score_file(model, write_fasta(tmp_path / "changed.fasta", changed), output, Scoring(), resume=True)
    first = dict(list(grammar(40).items())[:2])
    with pytest.raises(InputError, match="is not what it was"):
        score_file(model, write_fasta(tmp_path / "short.fasta", first), output, Scoring(), resume=True)
    (tmp_path / "s.csv.unfinished" / "sequences.text").write_text("damaged")
    with pytest.raises(OutputError, match=r"its file sequences\.text is damaged; remove .*unfinished to start over"):
        score_file(model, fasta, output, Scoring(), resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
def test_two_commands_do_not_share_an_output(fasta, tmp_path) -> None:
    model, output = fresh_model(objective="causal"), str(tmp_path / "s.csv")

    def on_progress(done: int, total: int | None) -> None:
        with pytest.raises(OutputError, match="another command is at work there"):
            score_file(model, fasta, output, Scoring(), resume=True)

    score_file(model, fasta, output, Scoring(), on_progress=on_progress)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_identifiers_of_any_kind_come_back(tmp_path, suffix) -> None:
    fasta = write_fasta(tmp_path / "odd.fasta", dict.fromkeys(ODD, "MKV"))
    output, residues = tmp_path / f"s{suffix}", tmp_path / f"r{suffix}"
    score_file(fresh_model(objective="causal"), fasta, str(output), Scoring(), residue_output=residues)
    for path, expected in ((output, ODD), (residues, np.repeat(ODD, 3).tolist())):
        if suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, sep="\t" if suffix == ".tsv" else ",", keep_default_na=False)
        assert table["sequence_id"].tolist() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["odd.fasta", f"s{suffix}", f"r{suffix}"])


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_residues_sum_up_to_their_sequence(tmp_path, fasta, objective) -> None:
    fasta = write_fasta(tmp_path / "few.fasta", grammar(4))
    output, residues = tmp_path / "s.parquet", tmp_path / "r.parquet"
    model = fresh_model(objective=objective)
    score_file(model, fasta, str(output), Scoring(), residue_output=residues)
    measure = "log_likelihood" if objective == "causal" else "pseudo_log_likelihood"
    table, rows = pd.read_parquet(output), pd.read_parquet(residues)
    np.testing.assert_allclose(table[measure], rows.groupby("sequence_id", sort=False)[measure].sum(), rtol=1e-9)
    for name, part in rows.groupby("sequence_id"):
        assert "".join(part["residue"]) == grammar(4)[str(name)]
        assert part["position"].tolist() == list(range(1, len(part) + 1))


def test_one_pass_shows_every_residue_where_it_stands() -> None:
    model = CopyModel(causal=False)
    results = one_pass_log_probabilities(model, [alphabet.encode("ACD"), alphabet.encode("W")], tokens_per_batch=100)
    for result, length in zip(results, (3, 1), strict=True):
        assert np.exp(result.log_probabilities) == pytest.approx([1 / 2] * length)
    assert model.seen[0].tolist() == [alphabet.CLS, *alphabet.encode("ACD").tolist(), alphabet.EOS]


def test_one_pass_has_columns_of_its_own(tmp_path, fasta) -> None:
    output = tmp_path / "s.csv"
    score_file(fresh_model(objective="masked"), fasta, str(output), Scoring(estimate=Estimate.ONE_PASS))
    assert pd.read_csv(output).columns.tolist() == [
        *("sequence_id", "length", "one_pass_pseudo_log_likelihood"),
        *("mean_one_pass_pseudo_log_likelihood", "one_pass_pseudo_perplexity"),
    ]


def test_draws_give_mean_and_standard_error(tmp_path, fasta) -> None:
    model, proteins = fresh_model(objective="causal"), records("MKTAYIAKQR", "GG")
    own = score(model, proteins)["log_likelihood"]
    draws = []
    for seed in (5, 6, 7):
        other = fresh_model(objective="causal")
        other.redraw_features(torch.Generator().manual_seed(seed))
        draws.append(score(other, proteins)["log_likelihood"])
    scoring = Scoring(num_draws=3, seed=5)
    totals = [values.sum(1) for values in residue_scores(model, proteins, scoring)]
    np.testing.assert_allclose(np.transpose(totals), draws, rtol=1e-6)
    assert score(model, proteins)["log_likelihood"].tolist() == own.tolist()  # its own draw is back
    output = tmp_path / "s.csv"
    score_file(model, fasta, str(output), scoring)
    table = pd.read_csv(output)
    assert table.columns[-1] == "log_likelihood_standard_error" and (table.iloc[:, -1] > 0).all()


def test_a_causal_model_reads_beyond_its_window_when_told_to(tmp_path) -> None:
    sequence = "MKTAYIAKQRGGWCDEFHL" * 5
    fasta = write_fasta(tmp_path / "long.fasta", {"long": sequence, "short": "MKV"})
    model, output = fresh_model(objective="causal"), tmp_path / "s.csv"
    scoring = Scoring(tokens_per_batch=40)
    summary = score_file(model, fasta, str(output), scoring, long_sequences=ReadingLongPolicy.EXTEND)
    assert (summary.num_used, summary.num_long, summary.first_long) == (2, 1, ["long"])
    wide = fresh_model(objective="causal", max_length=128)
    wide.load_state_dict(model.state_dict())
    (expected,) = causal_log_probabilities(wide, [alphabet.encode(sequence)], tokens_per_batch=1000)
    assert pd.read_csv(output)["log_likelihood"][0] == pytest.approx(expected.log_probabilities.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "masked"}, "a masked model reads a protein at once"),
        ({"positions": "learned"}, "learned positions end with the window"),
        ({"attention": "cosformer"}, "layer 1 has cosformer attention"),
        ({"attention": "exact"}, "layer 1 has exact attention"),
    ],
)
def test_who_cannot_read_beyond_the_window_says_why(tmp_path, fasta, changes, message) -> None:
    model = fresh_model(**{"objective": "causal"} | changes)
    with pytest.raises(ConfigError, match=f"--long extend: {message}.*; use --long drop"):
        score_file(model, fasta, str(tmp_path / "s.csv"), Scoring(), long_sequences=ReadingLongPolicy.EXTEND)


def test_everything_that_would_stop_the_work_stops_it_first(tmp_path) -> None:
    model, output = fresh_model(objective="causal"), str(tmp_path / "s.csv")
    for content, message in (
        ("sequence_id,sequence\n", "holds no sequence"),
        ("sequence_id,name\na,b\n", "has no column sequence; it needs sequence_id and sequence"),
        ("sequence_id,sequence\na,MKV\nb,MKL\na,MK\n", "line 4: sequence a is on line 2 too, and results are found by"),
        (
            f"sequence_id,sequence\na,MKV\nb,{'M' * 63}\n",
            "sequence b has 63 residues; this model reads 62; leave it out",
        ),
        ("sequence_id,sequence\na,MKV\nb,M1\n", "line 3, sequence b: '1' at position 2 is not a residue letter"),
    ):
        table = tmp_path / "input.csv"
        table.write_text(content)
        with pytest.raises(InputError, match=message):
            score_file(model, table, output, Scoring(), on_progress=kill_after(0))
    assert [path.name for path in tmp_path.iterdir()] == ["input.csv"]


def test_mistakes_on_the_command_line(tmp_path, fasta, capsys) -> None:
    models = {}
    for name, changes in (
        ("causal", {"objective": "causal"}),
        ("exact", {"objective": "causal", "attention": "exact"}),
    ):
        models[name] = tmp_path / name
        save_model(fresh_model(**changes), models[name])

    def fails(*arguments: object, model: str = "causal") -> str:
        assert main(["score", str(fasta), "-m", str(models[model]), *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        return captured.err

    output = tmp_path / "s.csv"
    assert "a causal model needs one pass in any case" in fails("--estimate", "one-pass")
    assert "exact attention has no random features" in fails("--num-draws", 3, model="exact")
    assert "give 2 or more" in fails("--num-draws", 1)
    assert "standard output cannot be resumed" in fails("--resume")
    assert "two tables need two files" in fails("--per-residue", tmp_path / "r.csv")
    assert "is the other table's name too" in fails("-o", output, "--per-residue", output)
    assert "unknown table format" in fails("-o", output, "--per-residue", tmp_path / "r.txt")
    assert not output.exists()


def test_standard_input_to_standard_output(tmp_path, fasta, capsys, monkeypatch) -> None:
    save_model(fresh_model(objective="causal"), tmp_path / "model")
    with fasta.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main(["score", "-", "--model", str(tmp_path / "model")]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("sequence_id,length,log_likelihood") and len(lines) == 41 and captured.err == ""
