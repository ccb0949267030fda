"""Walk through the specs, round by round, each in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.journal import Journal
from benchmarks.spec import ALLOCATORS, Spec

ROOT = Path(__file__).resolve().parents[1]
ROUNDS_OF_SLOW = 3
"""Rounds in which contestants that need up to a minute per pass take part."""

Launch = Callable[[list[str], str, float], dict[str, Any]]
"""Arguments of Python, allocator, time limit in seconds -> what the process says."""


def run(
    specs: Sequence[Spec], journal: Journal, *, rounds: int, time_limit: float, launch: Launch | None = None
) -> None:
    """Measure every spec once per round, in turns; what the journal has already is not measured again.

    The machine's limits are measured before the first and after the last round.
    """
    launch = launch or launch_process
    broken: set[Spec] = set()
    todo = [(number, spec) for number in range(rounds) for spec in specs if takes_part(spec, number)]
    todo = [(number, spec) for number, spec in todo if not journal.is_measured(spec, number)]
    if todo and "first" not in journal.limits:
        journal.add_limits("first", launch(["-m", "benchmarks.machine"], "default", time_limit))
    for done, (number, spec) in enumerate(todo):
        if spec in broken or journal.is_measured(spec, number):
            continue
        result = launch(["-m", "benchmarks.worker", spec.to_json()], spec.allocator, time_limit)
        if "failed" in result:
            broken.add(spec)
        journal.add_result(spec, number, result)
        print(f"[{done + 1}/{len(todo)}] {spec.title}: {describe(result)}", file=sys.stderr, flush=True)
    if todo:
        journal.add_limits("last", launch(["-m", "benchmarks.machine"], "default", time_limit))


def takes_part(spec: Spec, round_number: int) -> bool:
    """Whether a spec is measured in this round."""
    is_slow = spec.direction in CASES[spec.case].contestants[spec.contestant].slow
    return round_number < ROUNDS_OF_SLOW or not is_slow


def launch_process(arguments: list[str], allocator: str, time_limit: float) -> dict[str, Any]:
    """What a fresh Python process prints as its last line, or `over_seconds`, or `failed` with its last words."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment.update(ALLOCATORS[allocator])
    try:
        process = subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"over_seconds": time_limit}
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last_words = process.stderr.strip().splitlines()[-1:] or ["no message"]
    return {"failed": f"status {process.returncode}: {last_words[0][:300]}"}


def describe(result: dict[str, Any]) -> str:
    """A result in a few words."""
    if "over_seconds" in result:
        return f"over {result['over_seconds']:g} s"
    if "failed" in result:
        return f"failed, {result['failed']}"
    return f"{min(result['seconds']):.4g} s, {result['peak_bytes'] / 2**20:.0f} MiB"
