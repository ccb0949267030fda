"""Journal -> summary (JSON) -> Markdown tables with the ratio of every contestant's time to ours."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cases import CASES
from benchmarks.journal import Journal

REFERENCE = "ours-relu"
"""The contestant that ratios refer to."""
Row = dict[str, Any]


def summary(journal: Journal, missing: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Everything a reader needs: machine, limits, who was missing, and one entry per spec over all rounds."""
    groups: dict[str, list[Row]] = {}
    for result in journal.results:
        groups.setdefault(str(result["spec"]), []).append(result)
    return {
        "machine": journal.machine,
        "limits": journal.limits,
        "missing": list(missing),
        "results": [_over_rounds(group) for group in groups.values()],
    }


def _over_rounds(results: list[Row]) -> Row:
    """Median seconds of all passes of all rounds and median memory, or how it failed."""
    good = [result for result in results if "seconds" in result]
    if not good:
        return {"spec": results[-1]["spec"]} | {
            name: results[-1][name] for name in ("failed", "over_seconds") if name in results[-1]
        }
    times = [value for result in good for value in result["seconds"]]
    median = statistics.median(times)
    return {
        "spec": good[0]["spec"],
        "median_seconds": median,
        "seconds": times,
        "rounds": len(good),
        "peak_bytes": int(statistics.median(result["peak_bytes"] for result in good)),
        "resident_bytes": int(statistics.median(result["resident_bytes"] for result in good)),
        "units_per_second": good[0]["units"] / median,
        "facts": _median_facts([result["facts"] for result in good]),
    }


def _median_facts(facts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(fact[name] for fact in facts) for name in facts[0]}


def markdown(results: Mapping[str, Any]) -> str:
    """The summary as a page of tables, one per case, direction and type."""
    lines = [*_machine_lines(results), ""]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in results["results"]:
        spec = row["spec"]
        groups.setdefault((spec["case"], spec["direction"], spec["dtype"]), []).append(row)
    for (case, direction, dtype), rows in groups.items():
        lines += [f"## {case}, {direction}, {dtype}", "", *_table(case, rows), ""]
    for peer in results["missing"]:
        lines.append(f"Not measured: {peer['contestant']} ({peer['package']} is not installed: `{peer['install']}`).")
    return "\n".join(lines).rstrip() + "\n"


def _machine_lines(results: Mapping[str, Any]) -> list[str]:
    machine = results["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}; "
        f"linear attention: {machine.get('kernels', 'torch')}."
    ]
    for when, limits in results["limits"].items():
        if "float32_gflops" not in limits:
            lines.append(f"Machine's limits, {when} round: not measured ({limits}).")
            continue
        lines.append(
            f"Machine's limits, {when} round: {limits['float32_gflops']:g} GFLOP/s float32, "
            f"{limits['bfloat16_gflops']:g} GFLOP/s bfloat16, copy {limits['copy_gb_per_s']:g} GB/s."
        )
    return [*lines, f"× is the time in units of that of {REFERENCE} on the same task under the same malloc."]


def _table(case: str, rows: list[Row]) -> list[str]:
    """A row per shape and contestant; allocators side by side."""
    by_key: dict[tuple[int, int, str, str], Row] = {}
    for row in rows:
        spec = row["spec"]
        by_key[spec["length"], spec["batch"], spec["contestant"], spec["allocator"]] = row
    allocators = [name for name in ("default", "tuned") if any(key[3] == name for key in by_key)]
    heads = ["batch × length", "contestant"]
    for name in allocators:
        heads += [f"ms ({name} malloc)", "×", CASES[case].rate, "peak MiB"]
    at_end = any("seconds_per_token_at_end" in row.get("facts", {}) for row in rows)
    if at_end:
        heads.append("ms per token at the end")
    lines = ["| " + " | ".join(heads) + " |", "|---|---" + "|---:" * (len(heads) - 2) + "|"]
    for length, batch, contestant in dict.fromkeys(key[:3] for key in sorted(by_key, key=lambda key: key[:2])):
        cells = [f"{batch} × {length}", contestant]
        for name in allocators:
            reference = by_key.get((length, batch, REFERENCE, name), {}).get("median_seconds")
            cells += _cells(by_key.get((length, batch, contestant, name)), reference)
        if at_end:
            facts = by_key.get((length, batch, contestant, allocators[0]), {}).get("facts", {})
            late = facts.get("seconds_per_token_at_end")
            cells.append("" if late is None else _number(1000 * late))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cells(row: Row | None, reference: float | None) -> list[str]:
    """Milliseconds, ratio to the reference, rate, MiB."""
    if row is None:
        return [""] * 4
    if "median_seconds" not in row:
        how = f"over {row['over_seconds']:g} s" if "over_seconds" in row else row["failed"].replace("|", "/")
        return [how, "", "", ""]
    median = row["median_seconds"]
    return [
        _number(1000 * median),
        _number(median / reference) if reference else "",
        f"{row['units_per_second']:,.0f}",
        f"{row['peak_bytes'] / 2**20:,.0f}",
    ]


def _number(value: float) -> str:
    """Three digits.

    >>> _number(0.1234), _number(12.34), _number(12345.6)
    ('0.123', '12.3', '12,346')
    """
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"
