"""Sums the pair attention of models over a file or corpus of any size, in constant memory; it can be resumed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from protein_lm import __version__, alphabet
from protein_lm.analysis.pair_attention import AMINO_ACID_IDS, AMINO_ACIDS, PairSums
from protein_lm.analysis.protein_sample import Draw
from protein_lm.checkpoint.weights import model_checksum
from protein_lm.choices import ReadingLongPolicy
from protein_lm.errors import InputError
from protein_lm.files.resume import WorkFolder
from protein_lm.inference.reading import TOKENS_OF_PART, Reading, Summary
from protein_lm.model.language_model import ProteinLM

NUM_GROUPS = 100
"""Groups of proteins, by a hash of their identifiers, each with its own sums: the units of the bootstrap."""


@dataclass(frozen=True)
class PairReader:
    """Settings that determine the sums, besides the models and the source."""

    num_sequences: int | None
    """Number of sequences to draw; None: all."""
    seed: int
    arcs: bool
    tokens_per_batch: int

    def settings(self, models: Sequence[ProteinLM]) -> dict[str, object]:
        """Return all settings by name, for `unfinished_work`."""
        return {
            "model": model_checksum(models[0]),
            "protein_lm version": __version__,
            "--num-sequences": self.num_sequences,
            "--seed": self.seed,
            "--arcs": self.arcs,
            "--untrained": len(models) - 1,
            "--batch-tokens": self.tokens_per_batch,
            "device": models[0].device.type,
        }


@dataclass(frozen=True)
class FileSums:
    """Sums of one pass over the proteins."""

    pairs: Sequence[PairSums]
    """Sums of each model, in `NUM_GROUPS` groups."""
    summary: Summary
    counts: NDArray[np.int64]
    """(20,) residues of each amino acid."""
    num_residues: int
    """Residues of all kinds."""

    @property
    def absent(self) -> str:
        """Letters of amino acids that no protein has."""
        return "".join(letter for letter, count in zip(AMINO_ACIDS, self.counts, strict=True) if not count)


def sum_over_file(
    work: WorkFolder,
    models: Sequence[ProteinLM],
    source: Path,
    drawn: Draw,
    reader: PairReader,
    *,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> FileSums:
    """Let models read the proteins of a source but those over the window, and save the progress.

    Args:
        work: the folder that takes the saved sums, made with `PairReader.settings`.
        models: models of one configuration.
        source: the source of `drawn`.
        drawn: the proteins to read.
        reader: settings.
        on_progress: called with the number of sequences read, and of all if it is known.

    Raises:
        InputError: as `Reading.parts`; no sequence fits the window; none has any of the 20 amino acids.
    """
    pairs = [
        PairSums(model, num_groups=NUM_GROUPS, arcs=reader.arcs, tokens_per_batch=reader.tokens_per_batch)
        for model in models
    ]
    state = work.state or {"reading": None, "sums": None, "counts": [0] * alphabet.VOCABULARY_SIZE}
    counts, name = np.array(state["counts"], dtype=np.int64), state["sums"]
    if name is not None:
        with work.flushed(name).open("rb") as file:
            for each in pairs:
                each.load(file.read(each.num_bytes))
    reading = Reading(
        source,
        longest=models[0].max_residues,
        policy=ReadingLongPolicy.DROP,
        state=state["reading"],
        records=drawn.records,
    )
    for records in reading.parts(lambda length: length + alphabet.NUM_SPECIAL_TOKENS, TOKENS_OF_PART):
        sequences = [record.tokens for record in records]
        groups = [xxhash.xxh3_64_intdigest(record.sequence_id.encode()) % NUM_GROUPS for record in records]
        for each in pairs:
            each.add(sequences, np.array(groups))
        counts += np.bincount(np.concatenate(sequences), minlength=counts.size)
        if counts[AMINO_ACID_IDS].any():
            before, name = name, f"sums-{reading.num_read}"
            for each in pairs:
                work.append(name, each.dump())
            if before is not None:
                work.remove(before)
            work.save({"reading": reading.state(), "sums": name, "counts": counts.tolist()})
        if on_progress:
            on_progress(reading.num_read, drawn.num_chosen)
    summary = reading.summary()
    if not summary.num_used:
        raise InputError(
            f"no sequence of {source} fits the model's window of {models[0].max_residues:,} residues: nothing to compute a "
            "similarity from"
        )
    if not counts[AMINO_ACID_IDS].any():
        raise InputError(
            f"none of the {summary.num_used:,} sequences read of {source} has any of the 20 amino acids: nothing to compute "
            "a similarity from"
        )
    return FileSums(pairs, summary, counts[AMINO_ACID_IDS], int(counts.sum()))
