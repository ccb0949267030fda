"""Inputs and files of the `protein-lm contacts` verbs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from protein_lm.alphabet import encode
from protein_lm.analysis.contacts import (
    CONTACT_DISTANCE,
    MIN_SEPARATION,
    Regression,
    distances,
    likely_pairs,
    precision,
    predict_contacts,
    train_regression,
)
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.output import new_directory, new_file, safe_name
from protein_lm.files.sources import STANDARD_INPUT
from protein_lm.files.tables import write_table
from protein_lm.io.readers import read_records
from protein_lm.io.records import SequenceRecord
from protein_lm.io.structures.chains import Chain, is_structure, read_chain, split_name
from protein_lm.model.language_model import ProteinLM
from protein_lm.plots.contacts import contact_maps
from protein_lm.plots.saving import save_figure

Example = tuple[SequenceRecord, Chain | None]


def read_training_examples(structures: Sequence[str], fasta: Path | None) -> list[tuple[SequenceRecord, Chain]]:
    """Read chains of structures with their sequences: their own, or those of a FASTA file in the same order.

    Raises:
        InputError: as `read_chain`; another number of sequences; a sequence that does not contain the structure.
    """
    chains = [read_chain(name) for name in structures]
    if fasta is None:
        return [(_own_record(chain), chain) for chain in chains]
    records = list(read_records(fasta))
    if len(records) != len(chains):
        raise InputError(
            f"{fasta} has {len(records):,} sequences for {len(chains):,} structures; give one for each, in the same order"
        )
    return [(record, chain.placed_in(record)) for record, chain in zip(records, chains, strict=True)]


def read_examples(source: str, structure: str | None) -> Iterable[Example]:
    """Read the proteins of a FASTA file, one of them with its structure if it is given; or the chain of a structure.

    Raises:
        InputError: as `read_chain`; a sequence that does not contain the structure; several sequences and a structure.
        ConfigError: two structures.
    """
    path, chain_name = split_name(source)
    if chain_name is not None or (path != STANDARD_INPUT and is_structure(path)):
        if structure is not None:
            raise ConfigError(f"{source} is a structure already; leave out --structure, or give its sequence as FASTA")
        chain = read_chain(source)
        return [(_own_record(chain), chain)]
    records = read_records(path)
    if structure is None:
        return ((record, None) for record in records)
    chain, sequences = read_chain(structure), list(records)
    if len(sequences) != 1:
        raise InputError(
            f"{source} has {len(sequences):,} sequences for one structure; give the one that it belongs to"
        )
    return [(sequences[0], chain.placed_in(sequences[0]))]


def write_regression(
    model: ProteinLM, examples: Sequence[tuple[SequenceRecord, Chain]], output: Path, *, penalty: float
) -> Regression:
    """Train a regression and write it as JSON.

    Raises:
        InputError: as `train_regression`.
        OutputError: `output` exists or cannot be written.
    """
    regression = train_regression(model, examples, penalty=penalty)
    with new_file(output) as partial:
        regression.save(partial)
    return regression


def write_contacts(
    model: ProteinLM, examples: Iterable[Example], regression: Regression, output: Path, *, figure_format: str = ".png"
) -> dict[str, pd.DataFrame | None]:
    """Write for each protein a .parquet of pairs and a map, and with a structure a table of precision; return these by name.

    Raises:
        InputError: a protein is longer than the model's window, or too long for a map.
        OutputError: `output` exists or cannot be written.
    """
    written: dict[str, pd.DataFrame | None] = {}
    with new_directory(output) as folder:
        for record, chain in examples:
            name = safe_name(record.sequence_id, taken=written)
            probabilities = predict_contacts(model, record, regression)
            write_table(likely_pairs(probabilities, record.sequence, chain), str(folder / f"{name}.parquet"))
            between = None if chain is None else distances(chain)
            figure = contact_maps(
                probabilities,
                between,
                title=record.sequence_id,
                contact_distance=CONTACT_DISTANCE,
                min_separation=MIN_SEPARATION,
            )
            save_figure(figure, folder / f"{name}{figure_format}")
            written[name] = measured = None if chain is None else precision(probabilities, chain)
            if measured is not None:
                write_table(measured, str(folder / f"{name}_precision.csv"))
    return written


def _own_record(chain: Chain) -> SequenceRecord:
    return SequenceRecord(chain.name.replace(" ", "_"), encode(chain.sequence), 1)
