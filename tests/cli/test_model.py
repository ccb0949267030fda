"""The verbs as a user calls them: results, and one clear line for every mistake."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from protein_lm.cli import main
from tests.conftest import small_recipe, write_fasta

PROTEINS = {"sp|P1|ONE_TEST First": "MKTAYIAKQRQISF", "two": "ACDEFGHIKLMNPQRSTVWY", "a/../b": "MKV"}


@pytest.fixture
def fasta(tmp_path) -> Path:
    return write_fasta(tmp_path / "proteins.fasta", PROTEINS)


def fails(capsys, *arguments: object) -> str:
    """The one line that a failing command prints."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("protein-lm: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_train_from_a_recipe_and_resume(corpus, tmp_path, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(num_steps=30).model_dump(mode="json")))
    run = tmp_path / "run"
    arguments = ["train", str(recipe), "--data", str(corpus.path), "-o", str(run), "--set", "training.seed=3"]
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert "30 steps" in output.out and "validation perplexity" in output.err
    assert (run / "learning_curve.png").is_file() and "seed: 3" in (run / "recipe.yaml").read_text()
    assert "exists already; add --resume" in fails(capsys, *arguments)
    assert "training.seed: 3 -> 4" in fails(capsys, *arguments[:-1], "training.seed=4", "--resume")
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments[:-3], str(tmp_path / "few"), "--set", "training.num_validation_sequences=3"]) == 0
    assert "validation uses 3 of " in capsys.readouterr().err
    assert main(["info", str(run)]) == 0
    assert "performer-relu" in capsys.readouterr().out


def test_curves(runs, tmp_path, capsys) -> None:
    paths = [str(runs["causal"]), str(runs["masked"])]
    for suffix, read in (
        (".csv", pd.read_csv),
        (".tsv", lambda path: pd.read_csv(path, sep="\t")),
        (".parquet", pd.read_parquet),
    ):
        assert main(["curves", *paths, "-o", str(tmp_path / f"curves{suffix}")]) == 0
        table = read(tmp_path / f"curves{suffix}")
        assert table["run"].tolist() == ["causal"] * 5 + ["masked"] * 5 and table["seconds"].min() > 0
    figure = tmp_path / "curves.svg"
    assert main(["curves", *paths, "-o", str(figure), "--metric", "accuracy", "--against", "num_tokens"]) == 0
    assert "10 rows of 2 runs" in capsys.readouterr().out and figure.read_text().startswith("<?xml")
    assert "exists already" in fails(capsys, "curves", *paths, "-o", figure)
    new = tmp_path / "new.png"
    assert "'speed' is not one of 'perplexity'" in fails(capsys, "curves", *paths, "-o", new, "--metric", "speed")
    assert "end it in .png, .svg or .pdf for a figure" in fails(capsys, "curves", *paths, "-o", tmp_path / "new.txt")
    assert "leave out --metric and --against" in fails(
        capsys, "curves", *paths, "-o", tmp_path / "new.csv", "--against", "step"
    )
    assert "absent is no run" in fails(capsys, "curves", *paths, tmp_path / "absent", "-o", new)
    assert "causal is named twice" in fails(capsys, "curves", paths[0], paths[0], "-o", new)
    assert not new.exists()


def test_train_mistakes(corpus, tmp_path, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe().model_dump(mode="json")))
    run = tmp_path / "run"
    assert "does not exist" in fails(capsys, "train", recipe, "--data", tmp_path / "absent", "-o", run)
    assert "no such recipe" in fails(capsys, "train", tmp_path / "no.yaml", "--data", corpus.path, "-o", run)
    message = fails(capsys, "train", recipe, "--data", corpus.path, "-o", run, "--set", "model.attention=magic")
    assert (
        "model.attention: 'magic' is no kind of attention; known ones: exact, performer-relu, performer-softmax"
        in message
    )
    assert "nothing to resume" in fails(capsys, "train", recipe, "--data", corpus.path, "-o", run, "--resume")
    assert not run.exists()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_score_table(runs, fasta, tmp_path, suffix) -> None:
    output = tmp_path / f"scores{suffix}"
    assert main(["score", str(fasta), "--model", str(runs["causal"]), "-o", str(output)]) == 0
    table = (
        pd.read_parquet(output) if suffix == ".parquet" else pd.read_csv(output, sep="\t" if suffix == ".tsv" else ",")
    )
    assert table["sequence_id"].tolist() == ["P1", "two", "a/../b"]
    assert table["length"].tolist() == [14, 20, 3]
    np.testing.assert_allclose(table["perplexity"], np.exp(-table["log_likelihood"] / table["length"]), rtol=1e-6)


def test_score_to_standard_output(runs, fasta, capsys) -> None:
    assert main(["score", str(fasta), "--model", str(runs["masked"])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sequence_id,length,pseudo_log_likelihood,mean_pseudo_log_likelihood,pseudo_perplexity"
    assert len(lines) == 4


def test_score_long_sequences(runs, tmp_path, capsys) -> None:
    fasta = write_fasta(tmp_path / "long.fasta", {"short": "MKV", "long": "A" * 63})
    output = tmp_path / "scores.csv"
    message = fails(capsys, "score", fasta, "--model", runs["causal"], "-o", output)
    assert "sequence long has 63 residues; this model reads 62; leave it out with --long drop" in message
    assert not output.exists()
    assert main(["score", str(fasta), "-m", str(runs["causal"]), "-o", str(output), "--long", "drop"]) == 0
    assert "1 over the model's window left out: long" in capsys.readouterr().err
    assert pd.read_csv(output)["sequence_id"].tolist() == ["short"]
    assert "'crop' is not one of 'error', 'drop'" in fails(
        capsys, "score", fasta, "-m", runs["causal"], "--long", "crop"
    )


def test_score_mistakes(runs, fasta, tmp_path, capsys) -> None:
    model = runs["causal"]
    assert "unknown table format; end it in .csv, .tsv, .parquet" in fails(
        capsys, "score", fasta, "-m", model, "-o", "x.txt"
    )
    (tmp_path / "there.csv").write_text("mine")
    assert "exists already" in fails(capsys, "score", fasta, "-m", model, "-o", tmp_path / "there.csv")
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert "absent.fasta" in fails(capsys, "score", tmp_path / "absent.fasta", "-m", model, "-o", tmp_path / "s.csv")
    assert "no such model directory or run" in fails(capsys, "score", fasta, "-m", tmp_path / "absent")
    digits = write_fasta(tmp_path / "digits.fasta", {"good": "MKV", "bad": "MK1V"})
    assert "line 4" in fails(capsys, "score", digits, "-m", model, "-o", tmp_path / "s.csv")
    twice = tmp_path / "digits.fasta"
    twice.write_text(">a\nMKV\n>a\nMKL\n")
    assert "line 3: sequence a is on line 1 too" in fails(capsys, "score", twice, "-m", model, "-o", tmp_path / "s.csv")
    assert "device 'gpu' cannot be used" in fails(capsys, "score", fasta, "-m", model, "--device", "gpu")
    assert "No such option" in fails(capsys, "score", fasta, "-m", model, "--mode", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.fasta", "proteins.fasta", "there.csv"]


def test_evaluate(runs, corpus, tmp_path, capsys) -> None:
    output = tmp_path / "evaluation.csv"
    arguments = ["evaluate", "--model", str(runs["causal"]), "--data", str(corpus.path)]
    assert main([*arguments, "-o", str(output)]) == 0
    assert pd.read_csv(output)["split"].tolist() == ["valid", "test", "held_out"]
    assert "unigram" in capsys.readouterr().out
    assert main([*arguments, "--split", "test", "-o", "-"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert "unknown split 'tset'; choose from train, valid, test, held_out" in fails(
        capsys, *arguments, "--split", "tset"
    )


def test_a_full_disk_leaves_nothing_behind(runs, fasta, tmp_path) -> None:
    """A limit on file size stands in for the full disk: the write fails in the middle."""
    output = tmp_path / "attention"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    code = (
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "from protein_lm.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "attention", str(fasta), "-m", str(runs["causal"]), "-o", str(output)]
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    finished = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, env=environment)
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.splitlines()[-1].startswith(f"protein-lm: error: cannot write {output}: ")
    assert not [path for path in tmp_path.iterdir() if "attention" in path.name]


def test_every_verb_has_help_with_an_example(capsys) -> None:
    for verb in (["train"], ["evaluate"], ["score"], ["attention"], ["similarity"], ["info"], ["data", "prepare"]):
        assert main([*verb, "--help"]) == 0
        assert "Example: protein-lm" in capsys.readouterr().out


def test_convert_and_start_from_it(runs, corpus, tmp_path, capsys) -> None:
    output = tmp_path / "local"
    arguments = [
        "convert",
        str(runs["causal"]),
        "-o",
        str(output),
        "--set",
        "attention=[local, exact]",
        "--set",
        "window=8",
    ]
    assert main(arguments) == 0
    assert "local, exact attention with the weights of" in capsys.readouterr().out
    model = json.loads((output / "config.json").read_text())["model"]
    assert model["attention"] == [{"kind": "local", "window": 8}, {"kind": "exact"}]
    assert main(["info", str(output)]) == 0
    assert "weights from" in capsys.readouterr().out
    assert "exists" in fails(capsys, *arguments)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(num_steps=10, warmup_steps=2).model_dump(mode="json")))
    train = ["train", recipe, "--data", corpus.path, "-o", tmp_path / "tuned", "--init", output]
    message = fails(capsys, *train)
    assert "is another model than the recipe's: model.attention: [{'kind': 'local', 'window': 8}, " in message
    assert not (tmp_path / "tuned").exists()
    settings = ["--set", "model.attention=[local, exact]", "--set", "model.window=8"]
    assert main([str(word) for word in [*train, *settings]]) == 0
    assert "causal local, exact" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (["width=8"], "--set width=8: expected attention=KIND or attention.OPTION=value, for example attention=perf"),
        (["window=8"], "no kind of attention is set; add --set attention=KIND, for example performer-softmax"),
        (["attention=magic"], "'magic' is no kind of attention; known ones: exact,"),
        (["attention=linformer"], "linformer attention has no causal form"),
        (["attention=lsh"], "has no counterpart in a model with lsh attention; train such a model from the start"),
        (["attention=lsh", "num_buckets=3"], "num_buckets 3 must be even"),
        (["attention=exact", "num_buckets=4"], "exact attention has no option 'num_buckets'; kinds that have it: lsh"),
        (
            ["attention=local", "attention.window=0"],
            "local attention: window: input should be greater than or equal to 1",
        ),
    ],
)
def test_convert_mistakes(runs, tmp_path, capsys, settings, fault) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    assert fault in fails(capsys, "convert", runs["causal"], "-o", tmp_path / "new", *words)
    assert not (tmp_path / "new").exists()


def test_kernel_error(runs, tmp_path, capsys) -> None:
    short = write_fasta(tmp_path / "short.fasta", {"one": "MKTAYIAKQRQISF", "two": "ACDEFGHIKLMNPQRSTVWY"})
    output = tmp_path / "errors"
    arguments = ["kernel-error", str(short), "--model", str(runs["masked"]), "-o", str(output), "--num-draws", "2"]
    choices = ["--features", "16", "--features", "32", "--type", "positive-iid", "--type", "relu-orthogonal"]
    assert main([*arguments, *choices, "--scale", "0.5", "--scale", "2"]) == 0
    assert "positive-iid" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "kernel_error.csv",
        "matrix_error.png",
        "output_error.png",
    ]
    table = pd.read_csv(output / "kernel_error.csv")
    assert len(table) == 2 * 2 * 2 * 2 * 2 * 2 and set(table["norm_scale"]) == {0.5, 2.0}
    again = [*arguments[:5], tmp_path / "other"]
    assert "'magic' is no feature type; known ones: positive-orthogonal" in fails(capsys, *again, "--type", "magic")
    assert "no protein has 500 tokens or more" in fails(capsys, *again, "--length", "500")
    message = fails(capsys, *again, "--features", "17")
    assert "positive-hyperbolic features come in pairs: 17 is odd; choose even numbers, or other types" in message
    assert not (tmp_path / "other").exists()
