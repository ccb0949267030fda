"""Results as they come, one line of JSON each, so that a broken run goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

from benchmarks.spec import Spec


class JournalError(Exception):
    """The journal was written by another machine or other code; measurements of the two do not belong in one table."""


class Journal:
    """A JSON-lines file: the machine first, then its limits and the results in the order of their making."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        """Open or begin the file.

        Raises:
            JournalError: what is there was measured under other conditions.
        """
        self.path, self.machine = path, machine
        self.results: list[dict[str, Any]] = []
        self.limits: dict[str, dict[str, float]] = {}
        if path.is_file():
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"machine": machine})

    def add_result(self, spec: Spec, round_number: int, result: dict[str, Any]) -> None:
        """Keep what a process measured, or how it failed."""
        self.results.append({"spec": json.loads(spec.to_json()), "round": round_number, **result})
        self._append(self.results[-1])

    def add_limits(self, when: str, limits: dict[str, float]) -> None:
        """Keep the machine's limits of the first or the last round; a later entry replaces an earlier one."""
        self.limits[when] = limits
        self._append({"limits": limits, "when": when})

    def is_measured(self, spec: Spec, round_number: int) -> bool:
        """Whether this round's process has run; one that ran out of time stands for all rounds."""
        line = json.loads(spec.to_json())
        return any(
            "over_seconds" in result or ("seconds" in result and result["round"] == round_number)
            for result in self.results
            if result["spec"] == line
        )

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        if not text.endswith("\n"):  # a line that was cut off goes
            text = text[: text.rfind("\n") + 1]
            self.path.write_text(text, encoding="utf-8")
        first, *lines = map(json.loads, text.splitlines())
        different = [name for name, value in self.machine.items() if first["machine"].get(name) != value]
        if different:
            raise JournalError(
                f"{self.path} was measured with another {', '.join(different)}; name another output, or use --fresh to "
                "measure everything again"
            )
        for line in lines:
            if "limits" in line:
                self.limits[line["when"]] = line["limits"]
            else:
                self.results.append(line)
