"""What `protein-lm data prepare` costs: time, memory and disk, from megabytes to tens of gigabytes.

    python -m benchmarks.prepare FOLDER -o prepare.json --markdown prepare.md --megabytes 10 100 1000 10000

writes FASTA like UniRef's and flat files like TrEMBL's into FOLDER, with the lengths and the composition of the bundled
sample, and prepares them, each in a process of its own. Beside it, in turns: a plain read with a hash, the gunzip library
alone, `Bio.SeqIO` and `Bio.SwissProt`. Results are kept as they come; the same command goes on where it stopped.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import processor
from protein_lm.alphabet import RESIDUES, STANDARD_RESIDUES
from protein_lm.io.readers import read_records
from protein_lm.io.records import Spans

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "swissprot_sample.fasta.gz"
ENTRIES = ROOT / "tests" / "fixtures" / "entries.dat"
UNIREF50, TREMBL = (27e9, "UniRef50, 27 GB"), (110e9, "TrEMBL, 110 GB")
"""FASTA of recent releases, decompressed, about; for the extrapolation."""
_LINE = 60
_RECORDS = 20_000
_WATCHED_SECONDS = 0.02
"""Between two looks at the memory, which disturb what is timed."""
MOST_FOR_PEERS = 1000
"""Megabytes beyond which Biopython is not timed."""


def write_fasta(path: Path, megabytes: int, seed: int = 0) -> None:
    """Write records until the file has so many megabytes; a tenth of the sequences are there twice."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for number, bodies in _drawn(file, megabytes, seed, repeats=True):
            pieces = []
            for record, (body, end) in enumerate(zip(bodies, accumulate(map(len, bodies)), strict=True)):
                name = b"%012X" % (number + record)
                pieces.append(
                    b">UniRef50_%b Uncharacterized protein n=%d Tax=Bacteria TaxID=2 RepID=%b_9BACT\n"
                    % (name, end % 9 + 1, name)
                )
                pieces += [body[place : place + _LINE] + b"\n" for place in range(0, len(body), _LINE)]
            file.write(b"".join(pieces))
    partial.rename(path)


def write_flat_file(path: Path, megabytes: int, seed: int = 0) -> None:
    """Write entries, all that they say but identifiers and sequences being a real one's, until the file is so large."""
    entry = next(text for text in ENTRIES.read_bytes().split(b"//\n") if b"Unreviewed" in text)
    head = (
        entry[: entry.index(b"SQ   ")]
        .replace(b"%", b"%%")
        .replace(b"H2CNN8", b"%(name)b")
        .replace(b"196 AA", b"%(size)d AA")
    )
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for number, bodies in _drawn(file, megabytes, seed, repeats=False):
            for record, body in enumerate(bodies):
                file.write(head % {b"name": b"A0A%07X" % (number + record), b"size": len(body)})
                file.write(b"SQ   SEQUENCE   %d AA;  %d MW;  1E4E6A76ECF7AAA4 CRC64;\n" % (len(body), 110 * len(body)))
                for place in range(0, len(body), _LINE):
                    line = body[place : place + _LINE]
                    file.write(b"     " + b" ".join(line[at : at + 10] for at in range(0, len(line), 10)) + b"\n")
                file.write(b"//\n")
    partial.rename(path)


def _drawn(file: Any, megabytes: int, seed: int, *, repeats: bool) -> Iterator[tuple[int, list[bytes]]]:
    """Sequences, many at a time with the number of the first, until the file that takes them has so many megabytes.

    With `repeats` the second of ten is the first again.
    """
    lengths, letters = _statistics()
    generator, number = np.random.default_rng(seed), 0
    while file.tell() < megabytes * 10**6:
        chosen = generator.choice(lengths, _RECORDS)
        if repeats:
            chosen[1::10] = chosen[::10]
        text = letters[generator.integers(0, 2**16, int(chosen.sum()), dtype=np.uint16)].tobytes()
        bodies = Spans.back_to_back(text, chosen).cut()
        if repeats:
            bodies[1::10] = bodies[::10]
        yield number, bodies
        number += _RECORDS


def _statistics() -> tuple[np.ndarray, np.ndarray]:
    """Lengths (N,) of real proteins, and a table (65536,) of letters as frequent as in them."""
    records = list(read_records(SAMPLE))
    tokens = np.concatenate([record.tokens for record in records])
    counts = np.array([(tokens == 4 + RESIDUES.index(letter)).sum() for letter in STANDARD_RESIDUES])
    places = np.searchsorted(np.cumsum(counts) / counts.sum(), np.arange(2**16) / 2**16, side="right")
    return np.array([len(record) for record in records]), np.frombuffer(STANDARD_RESIDUES.encode(), np.uint8)[places]


_READ = """
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    while block := file.read(2**20):
        digest.update(block)
"""
_GUNZIP = """
import sys
from isal import igzip_threaded
with igzip_threaded.open(sys.argv[1], "rb") as file:
    while file.read(2**20):
        pass
"""
_SEQIO = """
import sys
from Bio import SeqIO
for record in SeqIO.parse(sys.argv[1], "fasta"):
    len(record.seq)
"""
_SWISSPROT = """
import sys
from Bio import SwissProt
with open(sys.argv[1]) as file:
    for record in SwissProt.parse(file):
        len(record.sequence)
"""


_PEERS = {"read": _READ, "gunzip": _GUNZIP, "Bio.SeqIO": _SEQIO, "Bio.SwissProt": _SWISSPROT}


def command(task: str, path: Path) -> list[str]:
    """What is timed, as its users start it."""
    if task == "prepare":
        return [sys.executable, "-m", "protein_lm", "data", "prepare", str(path), "-o", str(path.with_suffix(".store"))]
    return [sys.executable, "-c", _PEERS[task], str(path)]


def measure(task: str, path: Path) -> dict[str, Any]:
    """Run a task from start to end of its process; the peak is that of the resident sets of all its processes together."""
    store = path.with_suffix(".store")
    shutil.rmtree(store, ignore_errors=True)
    os.sync()  # what was written before would be going to the disk meanwhile
    with path.open("rb") as file:  # so that no task has to wait for the disk more than another, where memory suffices
        while file.read(2**22):
            pass
    start, peak, has_ended = time.perf_counter(), 0, threading.Event()
    words = command(task, path)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:

        def watch() -> None:
            nonlocal peak
            while not has_ended.wait(_WATCHED_SECONDS if peak else _WATCHED_SECONDS / 4):
                peak = max(peak, _resident(process.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        process.wait()
        seconds = time.perf_counter() - start
        has_ended.set()
        watching.join()
        said = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise SystemExit(f"benchmarks.prepare: {task} of {path.name} failed: {said.strip().splitlines()[-1:]}")
    facts = {"seconds": seconds, "peak_bytes": peak}
    if store.exists():
        facts["store_bytes"] = sum(file.stat().st_size for file in store.iterdir())
        shutil.rmtree(store)
    return facts


def _resident(pid: int) -> int:
    """Bytes of a process and of those that it started."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(_resident(int(child)) for child in children)


def tasks_of(megabytes: int) -> dict[str, list[str]]:
    """File -> what is timed with it, in turns."""
    is_for_peers = megabytes <= MOST_FOR_PEERS
    tasks = {
        f"uniref_{megabytes}.fasta": ["read", "prepare", *["Bio.SeqIO"] * is_for_peers],
        f"uniref_{megabytes}.fasta.gz": ["prepare", "gunzip"],
    }
    return tasks | ({f"trembl_{megabytes}.dat": ["prepare", "Bio.SwissProt"]} if is_for_peers else {})


def run(folder: Path, megabytes: Sequence[int], turns: int, output: Path) -> list[dict[str, Any]]:
    """Measure what is not there yet; returns all results."""
    journal = output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {(row["file"], row["task"], row["turn"]) for row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    for size in megabytes:
        for name, tasks in tasks_of(size).items():
            for turn, task in product(range(turns), tasks):
                if (name, task, turn) in done:
                    continue
                path = _file(folder, name, size)
                text = path.with_suffix("") if path.suffix == ".gz" else path
                row = {"file": name, "megabytes": size, "task": task, "turn": turn, "bytes": text.stat().st_size}
                row |= measure(task, path)
                rows.append(row)
                with journal.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{task} {name}: {row['seconds']:.2f} s, {row['peak_bytes'] / 1e6:.0f} MB",
                    file=sys.stderr,
                    flush=True,
                )
    return [row for row in rows if row["megabytes"] in megabytes and row["turn"] < turns]


def _file(folder: Path, name: str, size: int) -> Path:
    path = folder / name
    if path.exists():
        return path
    if path.suffix == ".gz":
        plain, partial = _file(folder, path.stem, size), path.with_suffix(".partial")
        with plain.open("rb") as source, gzip.open(partial, "wb", compresslevel=1) as target:
            shutil.copyfileobj(source, target, 2**22)
        partial.rename(path)
    elif path.suffix == ".dat":
        write_flat_file(path, size)
    else:
        write_fasta(path, size)
    return path


def markdown(rows: list[dict[str, Any]]) -> str:
    """Table of all tasks, and what it comes to for real databases."""
    turns = 1 + max(row["turn"] for row in rows)
    lines = [
        f"{processor()}, {os.cpu_count()} cores. Medians of {turns} turns, and the largest peaks.",
        "",
        "| file | task | seconds | from | to | MB/s of text | peak MB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    medians = dict[tuple[str, str], float]()
    for name, task in dict.fromkeys((row["file"], row["task"]) for row in rows):
        own = [row for row in rows if (row["file"], row["task"]) == (name, task)]
        seconds = [row["seconds"] for row in own]
        medians[name, task] = median = statistics.median(seconds)
        speed, peak = own[0]["bytes"] / 1e6 / median, max(row["peak_bytes"] for row in own) / 1e6
        times = f"{median:.2f} | {min(seconds):.2f} | {max(seconds):.2f}"
        lines.append(f"| {name} | {task} | {times} | {speed:,.0f} | {peak:,.0f} |")
    lines.append("")
    for (name, task), median in medians.items():
        if task != "prepare":
            lines.append(f"{name}: {task} takes {median / medians[name, 'prepare']:.2f} times as long as prepare.")
    largest = max(
        (row for row in rows if row["task"] == "prepare" and row["file"].endswith("fasta")), key=lambda r: r["bytes"]
    )
    seconds = medians[largest["file"], "prepare"]
    lines.append("")
    for size, name in (UNIREF50, TREMBL):
        hours = size / largest["bytes"] * seconds / 3600
        lines.append(f"Extrapolated from the largest plain file to {name}: {hours:.2f} h.")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="benchmarks.prepare", description="What data prepare costs.")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where files are written, 25 times the largest size free"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("prepare.json"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--turns", type=int, default=3, help="how often each task is timed, in turns (3)")
    options = parser.parse_args(arguments)
    rows = run(options.folder, options.megabytes, options.turns, options.output)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    table = markdown(rows)
    if options.markdown:
        options.markdown.write_text(table)
    else:
        print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
