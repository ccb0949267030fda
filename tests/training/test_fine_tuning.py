"""Heads: what can be learned from labels is learned, opens again, and every mistake in a table is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pydantic import ValidationError

from protein_lm import alphabet
from protein_lm.batches.labels import read_labels
from protein_lm.batches.packed_batches import pack
from protein_lm.checkpoint.directory import load_model, load_predictor
from protein_lm.choices import LongPolicy
from protein_lm.cli import main
from protein_lm.config import FineTuningRecipe, HeadConfig, LabelledDataConfig
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, NumericalError
from protein_lm.inference.predict import agreement, predictions
from protein_lm.training.fine_tuning import FineTuning
from protein_lm.training.loop import Trainer
from protein_lm.training.run_log import read_metrics
from tests.conftest import grammar, small_recipe, write_fasta

SEQUENCES = list(grammar(120).values())


def label(sequence: str, task: str) -> object:
    """Something that the residues tell."""
    if task == "regression":
        return 100 + 50 * sequence.count("A") / len(sequence)
    if task == "classification":
        return "short" if len(sequence) < 36 else "long"
    if task == "residue-classification":
        return "".join("H" if residue in "ACDEFGH" else "C" for residue in sequence)
    return " ".join("2.5" if residue in "ACDEFGH" else "-1" for residue in sequence)


def write_table(path: Path, task: str, sequences: list[str] = SEQUENCES) -> Path:
    splits = ["test" if i % 5 == 0 else "valid" if i % 5 == 1 else "train" for i in range(len(sequences))]
    labels = [label(sequence, task) for sequence in sequences]
    pd.DataFrame({"sequence": sequences, "label": labels, "split": splits}).to_csv(path, index=False)
    return path


def recipe(task: str = "regression", *, frozen: bool = False, head: dict | None = None, **training) -> FineTuningRecipe:
    settings = {
        "num_steps": 30,
        "learning_rate": 0.02,
        "validate_every": 10,
        "checkpoint_every": 10,
        "precision": "float32",
    }
    return FineTuningRecipe.model_validate(
        {
            "model": small_recipe().model,
            "head": {"task": task, "frozen_model": frozen, **(head or {})},
            "data": {"tokens_per_batch": 1024},
            "training": {"warmup_steps": 2, "gradient_clip": 1.0, **settings, **training},
        }
    )


@pytest.mark.parametrize(
    ("task", "changes", "measure", "least"),
    [
        ("regression", {}, "spearman", 0.6),
        ("regression", {"lora_rank": 4}, "spearman", 0.6),
        ("classification", {}, "accuracy", 0.8),
        ("classification", {"head": {"pooling": "end"}}, "accuracy", 0.8),
        ("residue-classification", {"frozen": True}, "accuracy", 0.7),
        ("residue-regression", {"frozen": True}, "spearman", 0.6),
    ],
)
def test_labels_are_learned(base, tmp_path, task, changes, measure, least) -> None:
    """With four seeds, whole sequences gave correlations of 0.61 to 0.82, whose standard deviation by chance is 0.21 (24
    labels), and accuracies of 0.875 to 1 beside a baseline of 0.625; what a head alone can reach, the next test says.
    """
    learned = FineTuning(recipe(task, **changes), write_table(tmp_path / "t.csv", task))
    Trainer(learned, tmp_path / "run", initial=str(base)).fit()
    table = learned.evaluate(load_predictor(tmp_path / "run")).set_index("split")
    assert table.index.tolist() == ["valid", "test"] and table["sequences"].tolist() == [24, 24]
    assert table.loc["test", measure] > least
    if measure == "spearman":
        assert table.loc["test", "rmse"] < table.loc["test", "baseline_rmse"]
    else:
        assert table.loc["test", measure] > table.loc["test", "baseline_accuracy"]
    assert {row["step"] for row in read_metrics(tmp_path / "run") if measure in row and row["split"] == "valid"} == {
        10,
        20,
        30,
    }
    opened = load_predictor(tmp_path / "run/last")
    sequences = [alphabet.encode(sequence) for sequence in SEQUENCES[:6]]
    together = list(predictions(opened, sequences, tokens_per_batch=4096))
    alone = [next(predictions(opened, [sequence], tokens_per_batch=1)) for sequence in sequences]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    stays = changes.get("frozen") or "lora_rank" in changes
    same = torch.equal(load_model(tmp_path / "run").embedding.weight, load_model(base).embedding.weight)
    assert same is bool(stays) and (tmp_path / "run/best/model.safetensors").exists() is not bool(stays)


@pytest.mark.parametrize("task", ["residue-classification", "residue-regression"])
def test_a_head_alone_becomes_the_best_linear_one(base, tmp_path, task) -> None:
    """Under a frozen model nothing but a linear layer is trained, so that least squares say what there is to reach."""
    settings = recipe(task, frozen=True, num_steps=100, learning_rate=0.1, validate_every=100, checkpoint_every=100)
    learned = FineTuning(settings, write_table(tmp_path / "t.csv", task))
    Trainer(learned, tmp_path / "run", initial=str(base)).fit()

    table, model = learned.labels, load_model(base)

    def hidden(split: Split) -> np.ndarray:
        rows = [table.residues[i] for i in table.indices(split).tolist()]
        tokens, packing = pack(rows)
        with torch.no_grad():
            is_residue = (tokens[0] != alphabet.CLS) & (tokens[0] != alphabet.EOS)
            states = model.hidden_states(tokens, packing=packing)[0, is_residue].numpy()
        return np.c_[states, np.ones(len(states))]

    labels = {split: table.labels_of(table.indices(split)) for split in (Split.TRAIN, Split.TEST)}
    solution = np.linalg.lstsq(hidden(Split.TRAIN), labels[Split.TRAIN].astype(float), rcond=None)[0]
    fitted = hidden(Split.TEST) @ solution
    row = learned.evaluate(load_predictor(tmp_path / "run")).set_index("split").loc["test"]
    if task == "residue-regression":
        assert row["rmse"] == pytest.approx(np.sqrt(np.mean((fitted - labels[Split.TEST]) ** 2)), rel=0.01)
    else:
        assert row["accuracy"] > ((fitted > 0.5) == labels[Split.TEST]).mean() - 0.02


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}, {"frozen": True}])
def test_a_resumed_run_equals_the_uninterrupted_one(base, tmp_path, changes) -> None:
    table, settings = write_table(tmp_path / "t.csv", "regression"), recipe(num_steps=6, checkpoint_every=2, **changes)
    Trainer(FineTuning(settings, table), tmp_path / "whole", initial=str(base)).fit()

    class Stopped(Exception):
        pass

    broken = Trainer(FineTuning(settings, table), tmp_path / "broken", initial=str(base))
    step = broken._step

    def stop_at_3(batches):
        if broken.progress.step == 3:
            raise Stopped
        return step(batches)

    broken._step = stop_at_3  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        broken.fit()
    Trainer(FineTuning(settings, table), tmp_path / "broken", resume=True).fit()
    whole, again = (load_predictor(tmp_path / run / "last").state_dict() for run in ("whole", "broken"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_what_a_resumed_run_refuses(base, tmp_path) -> None:
    table, settings = write_table(tmp_path / "t.csv", "regression"), recipe(num_steps=2, warmup_steps=1)
    Trainer(FineTuning(settings, table), tmp_path / "run", initial=str(base)).fit()
    head = recipe(num_steps=2, warmup_steps=1, head={"pooling": "end"})
    with pytest.raises(ConfigError, match=r"head\.pooling: mean -> end; this cannot change within a run"):
        Trainer(FineTuning(head, table), tmp_path / "run", resume=True, allowed_changes=["head.pooling"])
    table.write_text(table.read_text().replace("100.0,", "101.0,"))
    with pytest.raises(ConfigError, match=r"the labels of .*t\.csv is not that of the run so far"):
        Trainer(FineTuning(settings, table), tmp_path / "run", resume=True)


def test_recipes_that_change_what_is_kept() -> None:
    with pytest.raises(ValidationError, match="redraw_every 5 changes a model that adapters or a head alone leave"):
        recipe(frozen=True, redraw_every=5)
    with pytest.raises(ValidationError, match=r"head\.frozen_model trains the head alone, training\.lora_rank 4"):
        recipe(frozen=True, lora_rank=4)


@pytest.mark.parametrize("changes", [{}, {"frozen": True}])
def test_numbers_that_are_not_finite_are_named(base, tmp_path, changes) -> None:
    settings = recipe(max_skipped_steps=1, **changes)
    tuner = Trainer(
        FineTuning(settings, write_table(tmp_path / "t.csv", "regression")), tmp_path / "run", initial=str(base)
    )
    assert tuner.model.head is not None
    tuner.model.head.linear.bias.data.fill_(np.nan)
    with pytest.raises(NumericalError, match="the head's prediction or a gradient became NaN"):
        tuner.fit()


def test_agreement() -> None:
    found = agreement(np.array([1.0, 2, 3]), np.array([10.0, 20, 60]), is_regression=True)
    assert found["spearman"] == pytest.approx(1) and found["rmse"] == pytest.approx((3654 / 3) ** 0.5)
    assert np.isnan(agreement(np.array([1.0, 2]), np.array([5.0, 5]), is_regression=True)["spearman"])
    probabilities = np.eye(3)[[0, 0, 1, 1]]
    found = agreement(probabilities, np.array([0, 1, 1, 1]), is_regression=False)
    assert found == {"accuracy": 0.75, "macro_f1": pytest.approx((2 / 3 + 4 / 5) / 2)}


def fails(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("protein-lm: error: ")
    return captured.err


def test_the_verbs(base, tmp_path, capsys) -> None:
    settings = recipe("residue-classification", frozen=True, num_steps=4, warmup_steps=1).model_dump(mode="json")
    del settings["model"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    table, run = write_table(tmp_path / "t.tsv", "residue-classification"), tmp_path / "run"
    pd.read_csv(table).to_csv(table, index=False, sep="\t")
    arguments = ["finetune", str(tmp_path / "recipe.yaml"), "--data", str(table), "-o", str(run)]
    assert "name it with --init" in fails(capsys, *arguments)
    assert main([*arguments, "--init", str(base)]) == 0
    captured = capsys.readouterr()
    assert "baseline_accuracy" in captured.out and "classes C, H" in captured.err
    assert {path.name for path in run.iterdir()} == {
        *("best", "last", "step-0", "metrics.jsonl", "recipe.yaml", "evaluation.csv", "learning_curve.png")
    }
    assert "exists already; add --resume" in fails(capsys, *arguments, "--init", base)
    (run / "last" / "config.json").unlink()
    assert main([*arguments, "--resume"]) == 0
    assert "resuming from the checkpoint of step 0" in capsys.readouterr().err
    assert main(["info", str(run)]) == 0
    assert "residue-classification" in capsys.readouterr().out

    fasta = write_fasta(tmp_path / "two.fasta", {"one": "MKV", "two": "ACD"})
    assert main(["predict", str(fasta), "-m", str(run), "-o", str(tmp_path / "p.csv")]) == 0
    found = pd.read_csv(tmp_path / "p.csv")
    assert found.columns.tolist() == [
        "sequence_id",
        "position",
        "residue",
        "prediction",
        "probability_C",
        "probability_H",
    ]
    assert found["residue"].str.cat() == "MKVACD" and found["position"].tolist() == [1, 2, 3] * 2
    np.testing.assert_allclose(found["probability_C"] + found["probability_H"], 1)
    assert main(["predict", str(table), "-m", str(run), "-o", str(tmp_path / "p.parquet")]) == 0
    assert len(pd.read_parquet(tmp_path / "p.parquet")) == sum(map(len, SEQUENCES))
    (tmp_path / "t.txt").write_text("note;sequence\na;MKV\nb;ACD\n")
    assert main(["predict", str(tmp_path / "t.txt"), "-m", str(run), "-o", str(tmp_path / "q.csv")]) == 0
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "q.csv").drop(columns="sequence_id"), found.drop(columns="sequence_id")
    )
    capsys.readouterr()
    assert "a model without a head predicts no labels" in fails(capsys, "predict", fasta, "-m", base)
    long = write_fasta(tmp_path / "long.fasta", {"short": "MKV", "long": "A" * 63})
    assert "sequence long has 63 residues; this model reads 62" in fails(capsys, "predict", long, "-m", run)
    assert main(["predict", str(long), "-m", str(run), "--long", "drop"]) == 0
    assert "1 over the model's window left out: long" in capsys.readouterr().err
    assert "--long crop" in fails(capsys, "predict", long, "-m", run, "--long", "crop")
    merged = tmp_path / "merged"
    assert main(["convert", str(run), "-o", str(merged), "--merge"]) == 0
    assert main(["predict", str(fasta), "-m", str(merged), "-o", str(tmp_path / "again.csv")]) == 0
    pd.testing.assert_frame_equal(found, pd.read_csv(tmp_path / "again.csv"))
    assert json.loads((merged / "config.json").read_text())["head"]["classes"] == ["C", "H"]


@pytest.mark.slow
def test_two_processes_fine_tune_and_end(base, tmp_path) -> None:
    settings = recipe(num_steps=4, warmup_steps=1).model_dump(mode="json")
    del settings["model"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    table = write_table(tmp_path / "t.csv", "regression")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["-m", "protein_lm", "finetune", tmp_path / "recipe.yaml", "--data", table, "--init", base]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launch, *map(str, words), "-o", str(tmp_path / "run")]
    printed = subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True, text=True).stdout
    assert printed.count("models best and last") == 1
    assert pd.read_csv(tmp_path / "run" / "evaluation.csv")["split"].tolist() == ["valid", "test"]


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("residue-classification", ["MKVA,HHCE", "M-KV A*,H.HC EE", "mkva*,HHCE", "MK VA,HHCE", "MKV-A,HHC-E"]),
        ("residue-regression", ["MKVA,1 2 3 4", "M-KVA*,1 9 2 3 4 9", "mkva*,1 2 3 4", "MK VA,1 2 3 4"]),
    ],
)
def test_labels_follow_what_is_left_out(task, rows, tmp_path) -> None:
    (tmp_path / "t.csv").write_text("sequence,label,split\n" + "".join(f"{row},train\n" for row in rows))
    data = LabelledDataConfig(long_sequences="crop")
    table = read_labels(tmp_path / "t.csv", HeadConfig(task=task), data, max_residues=3)
    for index in range(len(rows)):
        assert alphabet.decode(table.residues[index]) == "MKV"
        assert table.labels_of(np.array([index])).tolist() == table.labels_of(np.array([0])).tolist()
        assert len(set(table.labels_of(np.array([index])).tolist())) == (2 if table.classes else 3)


GOOD = "MKV,1,train\nMKL,2,train\nMKI,3,valid\nMKA,4,test\n"
HEADER = "sequence,label,split\n"


@pytest.mark.parametrize(
    ("task", "text", "fault"),
    [
        ("regression", "sequences,label\nMKV,1\n", "has no column sequence; it has sequences, label"),
        ("regression", "sequence,score\nMKV,1\n", "has no column label; it has sequence, score; set head.column"),
        ("regression", HEADER, "has no rows"),
        ("regression", HEADER + GOOD + "MKK,high,train\n", "row 5: label 'high' is not a finite number"),
        ("regression", HEADER + GOOD + "MKK,NA,train\n", "row 5: label 'NA' is not a finite number"),
        ("regression", HEADER + GOOD + "MKK,-inf,train\n", "row 5: label '-inf' is not a finite number"),
        ("regression", HEADER + "MKV,,train\nMKL,nan,train\n", "no sequence has a label in the column label"),
        ("regression", HEADER + GOOD + "MK1,5,train\n", "row 5: '1' at position 3 is not a residue letter"),
        ("regression", HEADER + GOOD + ",5,train\n", "row 5: no residues"),
        ("regression", HEADER + GOOD + "MKK,5,tran\n", "row 5: unknown split 'tran'; choose from train, valid"),
        ("regression", HEADER + GOOD + "MKK,5,train,x\n", "line 6: 4 cells for 3 columns, 'x' behind"),
        (
            "regression",
            HEADER + GOOD + f"{'M' * 63},5,train\n",
            "row 5: the sequence has 63 residues; this model reads 62",
        ),
        ("regression", HEADER + "MKV,1,train\nMKL,2,test\n", "1 labelled sequences are left to train on; at least 2"),
        ("regression", HEADER + "MKV,1,train\nMKL,1,train\n", "all 2 training labels are 1: there is nothing to learn"),
        ("regression", HEADER + "MKV,1,train\nMKL,2,train\n", "no sequence is in the split valid"),
        ("classification", HEADER + "MKV,a,train\nMKL,a,train\n", "all 2 training labels are of class 'a'"),
        (
            "classification",
            HEADER + "MKV,a,train\nMKL,b,train\nMKI,c,test\n",
            "row 3: class 'c' is in the split test and",
        ),
        (
            "residue-classification",
            HEADER + "MKV,HHH,train\nMKL,HC,train\n",
            "row 2: 2 labels for 3 residues; give one",
        ),
        ("residue-regression", HEADER + "MKV,1 2 3,train\nMKL,1 2,train\n", "row 2: 2 labels for 3 residues; give one"),
    ],
)
def test_mistakes_in_tables(base, tmp_path, capsys, task, text, fault) -> None:
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "recipe.yaml").write_text("training: {num_steps: 2, warmup_steps: 1, precision: float32}")
    words = ["finetune", tmp_path / "recipe.yaml", "--data", tmp_path / "t.csv", "-o", tmp_path / "run", "--init", base]
    message = fails(capsys, *words, "--set", f"head.task={task}")
    assert fault in message and "t.csv" in message
    assert not (tmp_path / "run").exists()


def test_constant_validation_labels_are_said(base, tmp_path, capsys) -> None:
    (tmp_path / "t.csv").write_text(HEADER + "MKV,1,train\nMKL,2,train\nMKI,3,valid\nMKA,3,valid\nAAA,2,\n")
    Trainer(FineTuning(recipe(num_steps=3), tmp_path / "t.csv"), tmp_path / "run", initial=str(base)).fit()
    assert "Spearman not defined" in capsys.readouterr().err
    assert [row["spearman"] for row in read_metrics(tmp_path / "run") if row["split"] == "valid"] == [None]


def test_long_sequences_may_be_cropped_or_dropped(tmp_path) -> None:
    for policy, expected in (("crop", [62, 3, 3]), ("drop", [3, 3])):
        (tmp_path / "t.csv").write_text(
            HEADER + f"{'M' * 63},{'H' * 63},train\nMKV,HCC,train\nMKK,HHH,valid\nAMC,CCC,train\n"
        )
        settings = recipe("residue-classification")
        settings = settings.model_copy(
            update={"data": settings.data.model_copy(update={"long_sequences": LongPolicy(policy)})}
        )
        table = FineTuning(settings, tmp_path / "t.csv").labels
        assert [len(table.residues[i]) for i in table.indices(Split.TRAIN)] == expected and table.num_long == 1
