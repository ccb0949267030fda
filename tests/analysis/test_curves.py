"""The learning curves of several runs: one table, labels that differ, and clear refusals."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from protein_lm.analysis.curves import FACTS, check_column, learning_curves
from protein_lm.errors import ConfigError, InputError
from protein_lm.training.run_log import METRICS, read_metrics


def copy_of(run: Path, path: Path) -> Path:
    path.mkdir(parents=True)
    for name in ("recipe.yaml", METRICS):
        shutil.copy(run / name, path)
    return path


def test_one_row_for_each_row_of_each_run(runs) -> None:
    table = learning_curves([runs["masked"], runs["causal"]])
    assert tuple(table.columns[: len(FACTS)]) == FACTS
    assert list(dict.fromkeys(table["run"])) == ["masked", "causal"] == list(dict.fromkeys(table["objective"]))
    assert set(table["attention"]) == {"performer-relu"}
    for name, rows in table.groupby("run"):
        metrics = read_metrics(runs[str(name)])
        assert rows["step"].tolist() == [row["step"] for row in metrics]
        np.testing.assert_allclose(rows["perplexity"], [math.exp(row["loss_nats"]) for row in metrics])
    valid = table[table["split"] == "valid"]
    np.testing.assert_allclose(np.exp(valid["unigram_loss_nats"]), valid["unigram_perplexity"])


def test_labels_differ(runs, tmp_path) -> None:
    paths = [copy_of(runs["causal"], tmp_path / name) for name in ("a/x/run", "b/x/run", "other")]
    assert list(dict.fromkeys(learning_curves(paths)["run"])) == ["a/x/run", "b/x/run", "other"]
    with pytest.raises(ConfigError, match="other is named twice"):
        learning_curves([paths[2], tmp_path / "a/../other"])
    with pytest.raises(ConfigError, match="no run is named"):
        learning_curves([])


def test_what_is_no_run_is_refused(runs, tmp_path) -> None:
    with pytest.raises(
        InputError, match="absent is no run: there is no such folder; give a folder that protein-lm train"
    ):
        learning_curves([tmp_path / "absent"])
    with pytest.raises(InputError, match=r"is no run: it has no metrics\.jsonl"):
        learning_curves([tmp_path])
    run = copy_of(runs["causal"], tmp_path / "run")
    (run / METRICS).write_text("")
    with pytest.raises(InputError, match=r"run/metrics\.jsonl: no rows yet"):
        learning_curves([run])


def test_a_column_that_old_runs_lack(runs, tmp_path) -> None:
    run = copy_of(runs["causal"], tmp_path / "old")
    rows = [{name: row[name] for name in ("step", "split", "loss_nats", "accuracy")} for row in read_metrics(run)]
    (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = learning_curves([runs["causal"], run])
    check_column(table, "perplexity")
    with pytest.raises(ConfigError, match=r"old: its metrics\.jsonl has no seconds; leave the run out"):
        check_column(table, "seconds")
    with pytest.raises(ConfigError, match="old: its"):
        check_column(learning_curves([run]), "num_tokens")
