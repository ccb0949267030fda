"""What `protein-lm data prepare` costs: time, memory and disk, from megabytes to tens of gigabytes.

    python -m benchmarks.prepare FOLDER -o prepare.json --markdown prepare.md --megabytes 10 100 1000 10000

writes FASTA like UniRef's into FOLDER, with the lengths and the composition of the bundled sample, and prepares it, each in a
process of its own. Beside it, in the same run: a plain read with a hash, the gunzip library alone, and `Bio.SeqIO`. Results
are kept as they come; the same command goes on where it stopped.
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import processor
from protein_lm.alphabet import RESIDUES, STANDARD_RESIDUES
from protein_lm.data.readers import read_records

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "swissprot_sample.fasta.gz"
UNIREF50, TREMBL = (27e9, "UniRef50, 27 GB"), (110e9, "TrEMBL, 110 GB")
"""FASTA of recent releases, decompressed, about; for the extrapolation."""
_LINE = 60
_RECORDS = 20_000
_WATCHED_SECONDS = 0.02
"""Between two looks at the memory, which disturb what is timed."""
MOST_FOR_PEERS = 1000
"""Megabytes beyond which Bio.SeqIO is not timed."""


def write_fasta(path: Path, megabytes: int, seed: int = 0) -> None:
    """Write records until the file has so many megabytes; a tenth of the sequences are there twice."""
    lengths, letters = _statistics()
    generator = np.random.default_rng(seed)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for number in _numbers(file, megabytes):
            chosen = generator.choice(lengths, _RECORDS)
            chosen[1::10] = chosen[::10]
            text = letters[generator.integers(0, 2**16, int(chosen.sum()), dtype=np.uint16)].tobytes()
            ends = np.cumsum(chosen).tolist()
            pieces, previous, start = [], b"", 0
            for record, end in enumerate(ends):
                body = previous if record % 10 == 1 else text[start:end]
                name = b"%012X" % (number + record)
                pieces.append(
                    b">UniRef50_%b Uncharacterized protein n=%d Tax=Bacteria TaxID=2 RepID=%b_9BACT\n"
                    % (name, end % 9 + 1, name)
                )
                pieces += [body[place : place + _LINE] + b"\n" for place in range(0, len(body), _LINE)]
                previous, start = body, end
            file.write(b"".join(pieces))
    partial.rename(path)


def _numbers(file: Any, megabytes: int) -> Iterator[int]:
    number = 0
    while file.tell() < megabytes * 10**6:
        yield number
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
_BIOPYTHON = """
import sys
from Bio import SeqIO
for record in SeqIO.parse(sys.argv[1], "fasta"):
    len(record.seq)
"""


def command(task: str, path: Path) -> list[str]:
    """What is timed, as its users start it."""
    if task == "prepare":
        return [sys.executable, "-m", "protein_lm", "data", "prepare", str(path), "-o", str(path.with_suffix(".store"))]
    return [sys.executable, "-c", {"read": _READ, "gunzip": _GUNZIP, "Bio.SeqIO": _BIOPYTHON}[task], str(path)]


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


def run(folder: Path, megabytes: Sequence[int], output: Path) -> list[dict[str, Any]]:
    """Measure what is not there yet; returns all results."""
    journal = output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    folder.mkdir(parents=True, exist_ok=True)
    for size in megabytes:
        for name in (f"uniref_{size}.fasta", f"uniref_{size}.fasta.gz"):
            tasks = ["prepare", "gunzip"] if name.endswith(".gz") else ["read", "prepare", "Bio.SeqIO"]
            for task in tasks:
                if (task == "Bio.SeqIO" and size > MOST_FOR_PEERS) or any(
                    row["file"] == name and row["task"] == task for row in rows
                ):
                    continue
                path = _file(folder, name, size)
                row = {
                    "file": name,
                    "megabytes": size,
                    "task": task,
                    "bytes": (folder / f"uniref_{size}.fasta").stat().st_size,
                }
                row |= measure(task, path)
                rows.append(row)
                with journal.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{task} {name}: {row['seconds']:.1f} s, {row['peak_bytes'] / 1e6:.0f} MB",
                    file=sys.stderr,
                    flush=True,
                )
    return [row for row in rows if row["megabytes"] in megabytes]


def _file(folder: Path, name: str, size: int) -> Path:
    plain = folder / f"uniref_{size}.fasta"
    if not plain.exists():
        write_fasta(plain, size)
    path = folder / name
    if not path.exists():
        partial = path.with_suffix(".partial")
        with plain.open("rb") as source, gzip.open(partial, "wb", compresslevel=1) as target:
            shutil.copyfileobj(source, target, 2**22)
        partial.rename(path)
    return path


def markdown(rows: list[dict[str, Any]]) -> str:
    """Table of all tasks, and what it comes to for real databases."""
    lines = [
        f"{processor()}, {os.cpu_count()} cores.",
        "",
        "| file | task | seconds | MB/s of text | peak MB |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        speed = row["bytes"] / 1e6 / row["seconds"]
        lines.append(
            f"| {row['file']} | {row['task']} | {row['seconds']:.1f} | {speed:,.0f} | {row['peak_bytes'] / 1e6:,.0f} |"
        )
    largest = max(
        (row for row in rows if row["task"] == "prepare" and row["file"].endswith("fasta")), key=lambda r: r["bytes"]
    )
    lines.append("")
    for size, name in (UNIREF50, TREMBL):
        hours = size / largest["bytes"] * largest["seconds"] / 3600
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
    options = parser.parse_args(arguments)
    rows = run(options.folder, options.megabytes, options.output)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    table = markdown(rows)
    if options.markdown:
        options.markdown.write_text(table)
    else:
        print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
