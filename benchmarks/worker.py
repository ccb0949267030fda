"""Measure one spec in this process, and print one line of JSON.

    python -m benchmarks.worker '{"case": "attention", "contestant": "ours-relu", ...}'

Run in the repository's folder; `run.py` does.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

from benchmarks import memory
from benchmarks.cases import CASES
from benchmarks.spec import Spec


def measure(spec: Spec) -> dict[str, Any]:
    """Seconds of each timed pass, peak memory in bytes, tokens per pass, and the contestant's own facts.

    Peak memory is the rise of the resident set above its size when the inputs (and the model) were there. A slow contestant
    has no untimed pass on the full input.
    """
    case = CASES[spec.case]
    contestant = case.contestants[spec.contestant]
    short = min(max(case.short, contestant.shortest), spec.length)
    contestant.prepare(replace(spec, batch=1, length=short)).once()
    prepared = contestant.prepare(spec)
    before = memory.reset_peak()
    if spec.direction not in contestant.slow:
        prepared.once()
    times = [seconds(prepared.once) for _ in range(spec.passes)]
    peak = memory.peak()
    return {
        "seconds": times,
        "peak_bytes": max(peak - before, 0),
        "resident_bytes": peak,
        "units": prepared.units,
        "facts": prepared.facts,
    }


def seconds(once: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    once()
    return time.perf_counter() - start


def main() -> None:
    """Measure the spec in the first argument."""
    spec = Spec(**json.loads(sys.argv[1]))
    limit = memory.limit_to_available()
    with redirect_stdout(sys.stderr):  # some peers print
        try:
            result = measure(spec)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
                raise
            result = {"failed": f"out of memory: needs more than the {(limit or 0) / 2**30:.0f} GiB that were free"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
