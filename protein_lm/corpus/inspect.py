"""Numbers about a corpus: measured, and shown on a console."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from protein_lm.alphabet import FIRST_RESIDUE, NUM_RESIDUES, RESIDUES
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.joined import JoinedStore
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import TokenStore
from protein_lm.errors import StoreError, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

_SCANNED_SEQUENCES = 2**14
_NUM_LONGEST = 5
_BAR_WIDTH = 40
_FULL, _EIGHTHS = "█", " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """Numbers that are not in the manifest."""

    residue_counts: dict[str, int]
    """Residues by letter, most frequent first, without letters that do not occur."""
    longest: list[tuple[str, int]]
    """Identifier and length in residues of the longest sequences."""
    lengths: NDArray[np.int64]
    """(K,) the different lengths in residues, ascending: 10¹¹ residues have fewer than 450,000 of them."""
    numbers: dict[str, NDArray[np.int64]]
    """(K,) sequences of each length, by split."""

    def histogram(self) -> Iterator[tuple[int, int, int]]:
        """Yield least and greatest length of each bin, in residues, and its sequences; bounds double."""
        exponents = np.frexp(self.lengths)[1] - 1
        numbers = np.bincount(exponents, sum(self.numbers.values()))
        for exponent in range(int(exponents[0]), numbers.size):
            yield 2**exponent, 2 ** (exponent + 1) - 1, int(numbers[exponent])


def measure(store: Corpus) -> Contents:
    """Read a whole corpus, a part at a time."""
    counts = np.zeros(256, dtype=np.int64)
    longest: list[tuple[int, int]] = []
    lengths, numbers = np.empty(0, dtype=np.int64), np.empty((len(Split), 0), dtype=np.int64)
    for block in store.blocks(_SCANNED_SEQUENCES):
        part = store.lengths_of(block)
        counts += np.bincount(store.tokens_of(block), minlength=256)
        first = np.argsort(-part, kind="stable")[:_NUM_LONGEST]
        longest = sorted([*longest, *zip((-part[first]).tolist(), block[first].tolist(), strict=True)])[:_NUM_LONGEST]
        lengths, numbers = _add(lengths, numbers, part, store.splits[block])
    letters = dict(zip(RESIDUES, counts[FIRST_RESIDUE : FIRST_RESIDUE + NUM_RESIDUES].tolist(), strict=True))
    return Contents(
        residue_counts=dict(sorted(((k, n) for k, n in letters.items() if n), key=lambda item: -item[1])),
        longest=[(store.sequence_id(index), -length) for length, index in longest],
        lengths=lengths,
        numbers={split.label: numbers[split] for split in Split},
    )


def _add(
    lengths: NDArray[np.int64], numbers: NDArray[np.int64], part: NDArray[np.int64], splits: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Add sequences of lengths `part` (N,) and `splits` (N,) to the different lengths (K,) and their numbers (splits, K)."""
    # (M,) all different lengths; (K + N,) the index of each old and each new length among them
    together, indices = np.unique(np.concatenate((lengths, part)), return_inverse=True)
    total = np.zeros((len(Split), together.size), dtype=np.int64)
    total[:, indices[: lengths.size]] = numbers
    np.add.at(total, (splits, indices[lengths.size :]), 1)
    return together, total


def report(store: Corpus, contents: Contents) -> "Iterator[RenderableType]":
    """Yield lines and tables for a console (Rich, without markup).

    Raises:
        StoreError: the manifest lacks something that they show.
    """
    try:
        for each in _parts(store, contents):
            yield printable(each) if isinstance(each, str) else each
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{store.path}: its manifest is damaged ({error}); prepare the corpus again") from error


def _parts(store: Corpus, contents: Contents) -> "Iterator[RenderableType]":
    yield f"{store.path}: {store.num_sequences:,} sequences, {store.num_residues:,} residues"
    if isinstance(store, JoinedStore):
        for part, (name, indices) in zip(store.parts, store.groups.items(), strict=True):
            repeated = part.num_sequences - len(indices)
            yield f"{name}: {len(indices):,} sequences" + (f"; {repeated:,} more stand before it" if repeated else "")
            yield from _origin(part)
        yield _split_table(store.manifest["splits"], "splits")
    elif isinstance(store, TokenStore):
        yield from _origin(store)
        rule = store.manifest["split"]
        by_table = f", and {rule['table']['name']}" if rule["table"] else ""
        yield _split_table(store.manifest["splits"], f"splits by {rule['rule']}, seed {rule['seed']}{by_table}")
    yield _composition(contents.residue_counts)
    yield _sentence("longest", dict(contents.longest))
    yield _histogram_table(list(contents.histogram()))


def _origin(store: TokenStore) -> Iterator[str]:
    manifest = store.manifest
    for source in manifest["sources"]:
        yield f"  from {source['name']}: {source['sequences']:,} sequences, SHA-256 {source['sha256'][:16]}…"
    yield _sentence("read", {"sequences": manifest["num_read"]})
    yield _sentence(
        "dropped", {reason: count for reason, count in manifest["num_dropped"].items() if count} or {"none": 0}
    )
    yield _sentence(f"residue policy {manifest['residue_policy']}, changed", manifest["residue_changes"])
    if families := manifest["split"].get("families"):
        yield _sentence("held out of families", families["num_held_out"])


def _sentence(title: str, counts: dict[str, int]) -> str:
    listed = ", ".join(f"{name.replace('_', ' ') if title != 'longest' else name} {n:,}" for name, n in counts.items())
    return f"{title}: {listed}"


def _composition(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return "residues: " + "  ".join(f"{letter} {number / total:.2%}" for letter, number in counts.items())


def _split_table(splits: dict[str, dict[str, int]], title: str) -> "RenderableType":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("split", "sequences", "residues"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, numbers in splits.items():
        table.add_row(name, f"{numbers['num_sequences']:,}", f"{numbers['num_residues']:,}")
    return table


def _histogram_table(histogram: list[tuple[int, int, int]]) -> "RenderableType":
    from rich.table import Table

    highest = max(number for _, _, number in histogram)
    table = Table(title="lengths in residues", title_justify="left", box=None)
    for name in ("length", "sequences"):
        table.add_column(name, justify="right")
    table.add_column("")
    for low, high, number in histogram:
        eighths = -(-8 * _BAR_WIDTH * number // highest)  # rounded up, so that a rare length shows
        table.add_row(f"{low:,}–{high:,}", f"{number:,}", _FULL * (eighths // 8) + _EIGHTHS[eighths % 8].strip())
    return table
