"""The log of a run: metrics.jsonl on disk, a progress bar (or plain lines) on standard error."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from protein_lm.errors import OutputError
from protein_lm.output import clear_errors, new_file

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order; a last one whose writing was cut off is left out."""
    lines = (run / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class RunLog:
    """Appends rows to metrics.jsonl and shows the progress; does nothing where `active` is False."""

    def __init__(self, run: Path, *, num_steps: int, active: bool) -> None:
        self.active = active
        self.path = run / METRICS
        self._unwritten = ""
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (active and console.is_terminal),
        )
        self.task = self.progress.add_task("train", total=num_steps, facts="")

    def rewind(self, step: int) -> None:
        """Forget rows after `step`: the run goes on from there."""
        if self.active and self.path.exists():
            rows = [row for row in read_metrics(self.path.parent) if row["step"] <= step]
            with new_file(self.path, replace=True) as partial:
                partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def row(self, **row: Any) -> None:
        """Append one row; rows that a full disk refuses are kept and written with a later one."""
        if self.active:
            self._unwritten += json.dumps(row) + "\n"
            try:
                self._write()
            except OutputError as error:
                self.line(f"{error}; the run goes on, and its rows are kept")

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

    def advance(self, step: int, facts: str) -> None:
        """Move the progress bar."""
        self.progress.update(self.task, completed=step, facts=facts)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self.active:
            if self.progress.disable:
                print(text, file=sys.stderr, flush=True)
            else:
                self.progress.console.print(text, highlight=False, markup=False)

    def __enter__(self) -> "RunLog":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self._unwritten:
            self._write()
