"""Draws of proteins from a file or a corpus for an analysis: all, or a seeded number of them, in their order."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.joined import open_corpus
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.sources import STANDARD_INPUT, Source
from protein_lm.io.readers import read_blocks, read_records
from protein_lm.io.records import SequenceRecord


@dataclass(frozen=True)
class Draw:
    """Choice of proteins of a source, made by `draw`."""

    chosen: NDArray[np.bool_] | None
    """(N,) True for chosen proteins; None: all of standard input, whose number is not known."""

    @property
    def num_chosen(self) -> int | None:
        """Number of chosen proteins, if known."""
        return None if self.chosen is None else int(self.chosen.sum())

    def records(self, source: Path) -> Iterator[SequenceRecord]:
        """Read the chosen proteins, in their order.

        Raises:
            InputError: as `read_records`.
            StoreError: the source is a folder, but not a prepared corpus.
        """
        if source.is_dir():
            assert self.chosen is not None
            return _of_corpus(open_corpus(source), np.flatnonzero(self.chosen))
        records = read_records(source)
        return records if self.chosen is None else compress(records, self.chosen)


def draw(source: Path, count: int | None, *, longest: int, seed: int = 0) -> Draw:
    """Check a whole source for errors that would stop the work later, and draw `count` proteins that a model can read.

    Longer proteins are always chosen, so that the reader can count them. Memory is a byte for each protein of the source, and
    16 more for a draw.

    Args:
        source: any file that `readers` reads, or a prepared corpus; `-` is standard input.
        count: number to draw, all if there are fewer; None: all.
        longest: most residues of the proteins that are drawn.
        seed: seed of the draw.

    Raises:
        InputError: as `read_records`; no protein.
        StoreError: the source is a folder, but not a prepared corpus.
        ConfigError: a draw from standard input, which is read only once.
    """
    if source == STANDARD_INPUT:
        if count is not None:
            raise ConfigError("standard input is read only once, and a draw must know how many there are; name a file")
        return Draw(None)
    fits = _fitting(source, longest)
    if not fits.size:
        raise InputError(f"{source} holds no sequence")
    if count is None:
        return Draw(np.ones_like(fits))
    chosen = ~fits
    chosen[np.random.default_rng(seed).permutation(np.flatnonzero(fits))[:count]] = True
    return Draw(chosen)


def draw_sequences(source: Path, count: int, *, longest: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Return the residue tokens of a seeded draw of `count` proteins of at most `longest` residues.

    Raises:
        InputError, StoreError, ConfigError: as `draw`.
    """
    records = draw(source, count, longest=longest, seed=seed).records(source)
    return [np.asarray(record.tokens) for record in records if len(record) <= longest]


def _fitting(source: Path, longest: int) -> NDArray[np.bool_]:
    """Return (N,) True for the proteins of a source that have at most `longest` residues."""
    if source.is_dir():
        store = open_corpus(source)
        fits = np.ones(store.num_sequences, dtype=np.bool_)
        fits[store.longer_than(longest)] = False
        return fits
    with Source(source) as opened:
        blocks = [block.lengths <= longest for block in read_blocks(opened)]
    return np.concatenate([np.empty(0, dtype=np.bool_), *blocks])


def _of_corpus(store: Corpus, numbers: NDArray[np.int64]) -> Iterator[SequenceRecord]:
    for number in numbers.tolist():
        yield SequenceRecord(store.sequence_id(number), store.residues(number), number + 1)
