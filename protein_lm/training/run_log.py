"""The log of a run: metrics.jsonl on disk, a progress bar (or plain lines) on standard error, and trackers."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from protein_lm.config import Recipe, load_recipe
from protein_lm.errors import ConfigError, InputError, OutputError, one_line
from protein_lm.files.output import clear_errors, new_file
from protein_lm.files.plain_files import check_plain, parse_json

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

METRICS = "metrics.jsonl"
RECIPE = "recipe.yaml"
_LOSSES = ("loss_nats", "squared_error")
"""Names of losses: every row has one. The second is that of labels that are numbers, in variances of training labels."""
_MEASURES = {
    "loss_nats": "loss {:.3f}",
    "squared_error": "squared error {:.3f}",
    "perplexity": "perplexity {:.2f}",
    "spearman": "Spearman {:.3f}",
    "rmse": "RMSE {:.4g}",
    "accuracy": "accuracy {:.1%}",
    "macro_f1": "macro F1 {:.3f}",
}


def read_recipe(run: Path) -> Recipe:
    """The recipe that a run was trained with.

    Raises:
        ConfigError: as `load_recipe`, or it is no plain file (reading a pipe would never end).
    """
    path = run / RECIPE
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: no plain file; give a folder that protein-lm train made")
    return load_recipe(path)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order, without a half-written last line that a killed run left.

    A row has `step`, `split` and the columns that docs/watch.md lists. A row of the split train is the mean over the steps
    since the row before.

    Raises:
        InputError: no such run, no metrics in it, or a damaged line.
    """
    path = run / METRICS
    try:
        check_plain(path)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError as error:
        missing = f"is no run: it has no {METRICS}" if run.is_dir() else "is no run: there is no such folder"
        raise InputError(f"{run} {missing}; give a folder that protein-lm train made") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: damaged, not valid JSON ({getattr(error, 'msg', error)}); remove the line"
            ) from error
        if not _is_row(row):
            raise InputError(f"{path}, line {number}: not a row with step, split and loss_nats; remove the line")
        rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    """Whether a line has the columns that all rows have, and numbers elsewhere."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("step"), int)
        and isinstance(row.get("split"), str)
        and any(name in row for name in _LOSSES)
        and all(isinstance(value, int | float | None) for name, value in row.items() if name != "split")
    )


class RunLog:
    """Appends rows to metrics.jsonl, hands them to trackers and shows them; does nothing where `active` is False."""

    def __init__(
        self, run: Path, *, step: int, num_steps: int, active: bool, trackers: Sequence["GeneralTracker"] = ()
    ) -> None:
        """Start a log, or resume it after `step`: later rows are removed."""
        self.active = active
        self.path = run / METRICS
        self.trackers = list(trackers)
        self.first_step, self.num_steps = step, num_steps
        self.start = time.perf_counter()
        self._unwritten = ""
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
            console=console,
            expand=True,
            disable=not (active and console.is_terminal),
        )
        self.task = self.bar.add_task("train", total=num_steps, completed=step, facts="")
        if active and self.path.exists():
            self._forget_after(step)

    def _forget_after(self, step: int) -> None:
        rows = [row for row in read_metrics(self.path.parent) if row["step"] <= step]
        with new_file(self.path, replace=True) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def row(self, *, step: int, split: str, **values: float | None) -> None:
        """Append a row, hand its values to the trackers as `split/name`, and print its most important values.

        Rows that a full disk refuses are kept and written with a later one.
        """
        if not self.active:
            return
        self._unwritten += json.dumps({"step": step, "split": split, **values}) + "\n"
        try:
            self._write()
        except OutputError as error:
            self.line(f"{error}; the run goes on, and its rows are kept")
        numbers = {f"{split}/{name}": value for name, value in values.items() if value is not None}
        for tracker in list(self.trackers):
            try:
                tracker.log(numbers, step)
            except Exception as error:  # whatever a foreign package and its server may raise
                self.trackers.remove(tracker)
                name = type(tracker).__name__
                self.line(f"{name} failed and gets nothing more: {' '.join(str(error).split())}")
        if split != "train":
            self.line(f"step {step:,}/{self.num_steps:,}: {_validation_facts(values)}")
        elif self.bar.disable:
            self.line(f"step {step:,}/{self.num_steps:,}: {_training_facts(values)}, {self._time_left(step)} left")

    def _write(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        with clear_errors(self.path):
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(self._unwritten)
            except OSError:
                os.truncate(self.path, size)  # no part of a row stays
                raise
        self._unwritten = ""

    def advance(self, step: int, facts: dict[str, float]) -> None:
        """Move the progress bar of a terminal; `facts` are the means since the last row."""
        if not self.bar.disable:
            self.bar.update(self.task, completed=step, facts=f"{_training_facts(facts)}, {self._time_left(step)} left")

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self.active:
            text = one_line(text)
            if self.bar.disable:
                print(text, file=sys.stderr, flush=True)
            else:
                self.bar.console.print(text, highlight=False, markup=False)

    def _time_left(self, step: int) -> timedelta:
        """Time to the last step at the mean speed of this process, validation and checkpoints included."""
        seconds_per_step = (time.perf_counter() - self.start) / (step - self.first_step)
        return timedelta(seconds=math.ceil(seconds_per_step * (self.num_steps - step)))

    def __enter__(self) -> "RunLog":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self._unwritten:
            self._write()
        for tracker in self.trackers:
            tracker.finish()


def _training_facts(values: dict[str, Any]) -> str:
    facts = [
        *_shown(values, "loss_nats", "squared_error", "perplexity"),
        f"{values['tokens_per_second']:,.0f} tokens/s",
    ]
    if skipped := values["num_skipped_steps"]:
        facts.append(f"{skipped:,} steps skipped")
    return ", ".join(facts)


def _shown(values: dict[str, Any], *names: str) -> list[str]:
    """Those measures that `values` has, in words."""
    return [
        _MEASURES[name].partition(" {")[0] + " not defined"
        if values[name] is None
        else _MEASURES[name].format(values[name])
        for name in names
        if name in values
    ]


def _validation_facts(values: dict[str, Any]) -> str:
    if "unigram_perplexity" not in values:  # fine-tuning
        return f"validation {', '.join(_shown(values, *_MEASURES))}"
    return (
        f"validation perplexity {values['perplexity']:.3f} (unigram baseline {values['unigram_perplexity']:.3f}), "
        f"accuracy {values['accuracy']:.1%}"
    )
