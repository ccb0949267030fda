"""What has no label enters neither loss nor measures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from protein_lm import alphabet
from protein_lm.checkpoint.directory import load_predictor
from protein_lm.cli import main
from protein_lm.inference.predict import predictions
from protein_lm.training.fine_tuning import FineTuning
from protein_lm.training.loop import Trainer
from protein_lm.training.run_log import read_metrics
from tests.training.test_fine_tuning import SEQUENCES, recipe, write_table

FEW = SEQUENCES[:30]


def hidden_table(path: Path, task: str, mark: str) -> Path:
    """The labels of `write_table`, but every third residue has none."""
    frame = pd.read_csv(write_table(path, task, FEW))
    separator = " " if task == "residue-regression" else ""

    def hide(text: str) -> str:
        parts = text.split() if separator else list(text)
        return separator.join(mark if place % 3 == 0 else part for place, part in enumerate(parts))

    frame.assign(label=frame["label"].map(hide)).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("task", "mark"), [("residue-classification", "X"), ("residue-classification", "?"), ("residue-regression", "nan")]
)
def test_loss_and_measures_are_those_of_the_labels_that_are_there(base, tmp_path, task, mark) -> None:
    settings = recipe(
        task, num_steps=3, warmup_steps=1, validate_every=3, head={"no_label": mark} if mark == "?" else {}
    )
    table = hidden_table(tmp_path / "t.csv", task, mark)
    learned = FineTuning(settings, table)
    tuner = Trainer(learned, tmp_path / "run", initial=str(base))
    assert tuner.model.head is not None
    tuner.model.head.linear.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    batch = learned.batches.batch(next(learned.batches.planned(tuner.progress.position)))
    num_residues = int(((batch.tokens >= alphabet.FIRST_RESIDUE) & (batch.tokens != alphabet.MASK)).sum())
    assert learned.count(tuner.model, batch)[0] == batch.targets.numel() < num_residues * 0.7

    outputs = tuner.model.prepared(batch.tokens, packing=batch.packing)
    outputs.retain_grad()
    tuner.model.prepared.forward = lambda *_, **__: outputs  # type: ignore[method-assign]
    loss, _ = learned.loss(tuner.model, batch)
    loss.backward()
    assert outputs.grad is not None and len(outputs) == num_residues
    has_gradient = outputs.grad.abs().sum(1) > 0
    assert torch.equal(has_gradient.nonzero().squeeze(1), batch.labelled)
    chosen = outputs[batch.labelled]
    if task == "residue-classification":
        assert (batch.targets >= 0).all() and learned.labels.classes == ("C", "H")
        torch.testing.assert_close(loss, functional.cross_entropy(chosen, batch.targets, reduction="sum"))
    else:
        expected = (chosen[:, 0] - tuner.model.head.standardized(batch.targets)).square().sum()
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("task", "mark"), [("residue-classification", "X"), ("residue-regression", "nan")])
def test_measures_by_hand(base, tmp_path, capsys, task, mark) -> None:
    settings = recipe(task, num_steps=3, warmup_steps=1, validate_every=3)
    table = hidden_table(tmp_path / "t.csv", task, mark)
    learned = FineTuning(settings, table)
    Trainer(learned, tmp_path / "run", initial=str(base)).fit()
    number = sum((len(sequence) + 2) // 3 for sequence in FEW)
    total = sum(map(len, FEW))
    assert f"{number:,} of {total:,} residues have no label and do not count" in capsys.readouterr().err
    predictor = load_predictor(tmp_path / "run/best")
    found = learned.evaluate(predictor).set_index("split")
    texts = pd.read_csv(table)
    for split in ("valid", "test"):
        rows = texts[texts["split"] == split]
        sequences = [alphabet.encode(sequence) for sequence in rows["sequence"]]
        values = np.concatenate(list(predictions(predictor, sequences, tokens_per_batch=1024)))
        row = found.loc[split]
        if task == "residue-classification":
            truth = np.array(list("".join(rows["label"])))
            predicted = np.array(["C", "H"])[values.argmax(1)]
            known = truth != "X"
            assert row["accuracy"] == pytest.approx((predicted == truth)[known].mean())
            train = np.array(list("".join(texts[texts["split"] == "train"]["label"])))
            most = max("CH", key=lambda name: (train == name).sum())
            assert row["baseline_accuracy"] == pytest.approx((truth[known] == most).mean())
        else:
            truth = np.array(" ".join(rows["label"]).split(), dtype=float)
            known = ~np.isnan(truth)
            assert row["rmse"] == pytest.approx(np.sqrt(np.mean((values - truth)[known] ** 2)))
        assert row["labels"] == known.sum() < known.size
    (valid,) = (row for row in read_metrics(tmp_path / "run") if row["split"] == "valid")
    measure = "accuracy" if task == "residue-classification" else "rmse"
    assert valid[measure] == pytest.approx(found.loc["valid", measure], rel=1e-6)
    assert all(np.isfinite(row[name]) for row in read_metrics(tmp_path / "run") for name in row if "loss" in name)


def test_rows_without_a_label_train_as_if_they_were_not_there(base, tmp_path, capsys) -> None:
    settings = recipe(num_steps=3, warmup_steps=1, validate_every=3)
    frame = pd.read_csv(write_table(tmp_path / "whole.csv", "regression", FEW))
    frame.to_csv(tmp_path / "whole.csv", index=False)
    more = pd.DataFrame({"sequence": ["MKVACD", "AAAA"], "label": ["nan", ""], "split": ["train", "valid"]})
    pd.concat([frame, more]).to_csv(tmp_path / "more.csv", index=False)
    weights = []
    for name in ("whole", "more"):
        Trainer(FineTuning(settings, tmp_path / f"{name}.csv"), tmp_path / name, initial=str(base)).fit()
        weights.append(load_predictor(tmp_path / name / "last").state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert "2 sequences without a label in the column label: left out" in capsys.readouterr().err


def test_the_mark_is_set_on_the_command_line_and_kept_with_the_model(base, tmp_path, capsys) -> None:
    table = hidden_table(tmp_path / "t.csv", "residue-classification", "-")
    (tmp_path / "recipe.yaml").write_text("training: {num_steps: 2, warmup_steps: 1, precision: float32}")
    words = ["finetune", tmp_path / "recipe.yaml", "--data", table, "-o", tmp_path / "run", "--init", base]
    words = [str(word) for word in words] + ["--set", "head.task=residue-classification"]
    assert main(words) == 2
    assert "row 1: '-' may be a class, or say that a residue has no label" in capsys.readouterr().err
    assert main([*words, "--set", "head.no_label=X-"]) == 0
    assert "classes C, H" in capsys.readouterr().err
    assert load_predictor(tmp_path / "run").head.config.no_label == "X-"
    assert main([*words, "--set", "head.no_label=X", "--resume"]) == 2
