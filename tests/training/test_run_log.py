"""The log of a run: what is written, what survives a crash, and what a person sees."""

import errno
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from protein_lm.errors import InputError, OutputError
from protein_lm.training import run_log
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from protein_lm.training.run_log import METRICS, RunLog, read_metrics
from tests.conftest import small_recipe

TRAIN = {"loss_nats": 2.0, "perplexity": 7.389, "accuracy": 0.25, "tokens_per_second": 12345.6, "num_skipped_steps": 0}
VALID = {"loss_nats": 2.0, "perplexity": 7.389, "accuracy": 0.25, "unigram_perplexity": 17.5}


def row(step: int) -> str:
    return json.dumps({"step": step, "split": "train", "loss_nats": 1.0}) + "\n"


def test_a_half_written_last_line_is_forgotten(tmp_path) -> None:
    path = tmp_path / METRICS
    for rest in ('{"step": 60, "spl', '{"step": 60, "split": "tr\xc3'):
        path.write_text(row(20) + row(40) + rest, encoding="latin-1")
        assert [each["step"] for each in read_metrics(tmp_path)] == [20, 40]
    with RunLog(tmp_path, step=40, num_steps=60, active=True) as log:
        log.row(step=60, split="train", **TRAIN)
    assert [each["step"] for each in read_metrics(tmp_path)] == [20, 40, 60]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (row(20) + '{"step": 40, "spl\n' + row(60), r"metrics\.jsonl, line 2: damaged, not valid JSON"),
        (row(20) + '{"step": 40, "spl\n', r"line 2: damaged"),
        (row(20) + "[1]\n", r"line 2: not a row with step, split and loss_nats"),
        ('{"step": 20}\n', r"line 1: not a row with step, split and loss_nats"),
    ],
)
def test_damage_is_named(tmp_path, content, fault) -> None:
    (tmp_path / METRICS).write_text(content)
    with pytest.raises(InputError, match=fault):
        read_metrics(tmp_path)


def test_rows_have_every_column(runs) -> None:
    rows = read_metrics(runs["masked"])
    common = {"step", "split", "epoch", "num_tokens", "seconds", "loss_nats", "perplexity", "accuracy"}
    of_training = {"learning_rate", "gradient_norm", "tokens_per_second", "num_skipped_steps", "peak_memory_bytes"}
    of_validation = {"unigram_perplexity", "unigram_accuracy"}
    for each in rows:
        assert set(each) == common | (of_training if each["split"] == "train" else of_validation)
        assert all(value > 0 for name, value in each.items() if name not in ("split", "epoch", "num_skipped_steps"))
    assert rows == sorted(rows, key=lambda each: each["seconds"])


def test_a_resumed_run_goes_on_counting(corpus, tmp_path) -> None:
    recipe = small_recipe(num_steps=20, checkpoint_every=20, validate_every=20, warmup_steps=1)
    progress = Trainer(LanguageModelling(recipe, corpus), tmp_path / "run").fit()
    resumed = Trainer(LanguageModelling(recipe, corpus), tmp_path / "run", resume=True)
    assert 0 < resumed.progress.seconds <= progress.seconds
    assert resumed.fit().step == 20


def test_plain_lines_where_standard_error_is_no_terminal(tmp_path, capsys, monkeypatch) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: next(clock))
    with RunLog(tmp_path, step=20, num_steps=100, active=True) as log:
        log.advance(40, TRAIN)
        log.row(step=40, split="train", **TRAIN)
        log.row(step=40, split="valid", **VALID)
    assert capsys.readouterr().err.splitlines() == [
        "step 40/100: loss 2.000, perplexity 7.39, 12,346 tokens/s, 0:00:30 left",
        "step 40/100: validation perplexity 7.389 (unigram baseline 17.500), accuracy 25.0%",
    ]


def test_a_bar_on_a_terminal(tmp_path, monkeypatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(run_log, "Console", lambda **_: Console(file=shown, force_terminal=True, width=100))
    with RunLog(tmp_path, step=0, num_steps=100, active=True) as log:
        log.row(step=40, split="train", **TRAIN)
        log.row(step=40, split="valid", **VALID)
        log.advance(41, TRAIN)
    text = shown.getvalue()
    assert "41/100" in text and "loss 2.000, perplexity 7.39, 12,346 tokens/s, 0:00:0" in text
    assert "step 40/100: validation perplexity 7.389" in text and "step 40/100: loss" not in text


def test_only_one_process_writes(tmp_path, capsys) -> None:
    with RunLog(tmp_path, step=0, num_steps=100, active=False) as log:
        log.row(step=20, split="train", **TRAIN)
        log.advance(20, TRAIN)
        log.line("hello")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""


def test_rows_that_a_full_disk_refuses_come_later(tmp_path, monkeypatch, capsys) -> None:
    full = True
    real_open = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:5])  # a part of it gets through
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_on_a_full_disk(path, mode="r", **how):
        file = real_open(path, mode, **how)
        return Full(file) if full and mode == "a" else file

    with RunLog(tmp_path, step=0, num_steps=3, active=True) as log:
        log.row(step=1, split="train", **TRAIN)
        monkeypatch.setattr(Path, "open", open_on_a_full_disk)
        log.row(step=2, split="train", **TRAIN)
        assert [each["step"] for each in read_metrics(tmp_path)] == [1]
        full = False
        log.row(step=3, split="train", **TRAIN)
        assert [each["step"] for each in read_metrics(tmp_path)] == [1, 2, 3]
    assert "the disk is full; free some space or write elsewhere; the run goes on" in capsys.readouterr().err
    full = True
    with (
        pytest.raises(OutputError, match="the disk is full"),
        RunLog(tmp_path, step=0, num_steps=3, active=True) as log,
    ):
        log.row(step=4, split="train", **TRAIN)  # never written: the end of the run says so
