"""Writes a corpus for other programs: FASTA or a table."""

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from protein_lm.alphabet import decode
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.output import new_file
from protein_lm.io.fasta_writer import SUFFIXES, entry
from protein_lm.io.records import FRAGMENT, REVIEWED, UNREVIEWED

_ROWS = 2**14


def export(
    store: Corpus,
    output: Path,
    *,
    splits: Sequence[Split] = tuple(Split),
) -> int:
    """Write the sequences of some splits in the order of the corpus; return their number.

    FASTA has the identifiers as headers. A table has columns `sequence_id`, `sequence`, `split`, `taxon_id`, `cluster_size`,
    `protein_existence`, `is_fragment`, `is_reviewed`; unknown values are empty.

    Args:
        store: the corpus.
        output: `.fasta`, `.fa` or `.faa`, with or without `.gz`; or `.parquet`.
        splits: splits to write.

    Raises:
        ConfigError: the output has another suffix.
        InputError: the splits have no sequence.
        OutputError: the output exists already or cannot be written.
    """
    suffixes = [suffix.lower() for suffix in output.suffixes]
    is_packed = suffixes[-1:] == [".gz"]
    suffix = (suffixes[:-1] if is_packed else suffixes)[-1:]
    if suffix not in [[name] for name in SUFFIXES] and (suffix != [".parquet"] or is_packed):
        raise ConfigError(f"{output}: unknown suffix; choose .fasta, .fa or .faa, with or without .gz, or .parquet")
    if not np.isin(store.splits, splits).any():
        raise InputError(f"{store.path} has no sequence in {', '.join(split.label for split in splits)}")
    write = _write_parquet if suffix == [".parquet"] else _write_fasta
    with new_file(output) as partial:
        return write(store, partial, _parts(store, splits))


def _parts(store: Corpus, splits: Sequence[Split]) -> Iterator[np.ndarray]:
    for block in store.blocks(_ROWS):
        yield block[np.isin(store.splits[block], splits)]


def _write_fasta(store: Corpus, path: Path, parts: Iterator[np.ndarray]) -> int:
    number = 0
    with gzip.open(path, "wb", compresslevel=6) if path.suffix == ".gz" else path.open("wb") as file:
        for part in parts:
            text = []
            for index in part.tolist():
                text.append(entry(store.sequence_id(index), decode(store.residues(index))))
            file.write("".join(text).encode())
            number += part.size
    return number


def _write_parquet(store: Corpus, path: Path, parts: Iterator[np.ndarray]) -> int:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(
        {
            **dict.fromkeys(("sequence_id", "sequence", "split"), pyarrow.string()),
            **dict.fromkeys(("taxon_id", "cluster_size"), pyarrow.int32()),
            "protein_existence": pyarrow.uint8(),
            **dict.fromkeys(("is_fragment", "is_reviewed"), pyarrow.bool_()),
        }
    )
    number = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            annotations = store.annotations_of(part)
            flags = annotations.flags
            numbers = {
                "taxon_id": annotations.taxon_ids,
                "cluster_size": annotations.cluster_sizes,
                "protein_existence": annotations.protein_existence,
            }
            columns = [
                pyarrow.array([store.sequence_id(index) for index in part.tolist()]),
                pyarrow.array([decode(store.residues(index)) for index in part.tolist()]),
                pyarrow.array([Split(split).label for split in store.splits[part].tolist()]),
                *(pyarrow.array(values, schema.field(name).type, mask=values == 0) for name, values in numbers.items()),
                pyarrow.array((flags & FRAGMENT) > 0),
                pyarrow.array((flags & REVIEWED) > 0, mask=(flags & (REVIEWED | UNREVIEWED)) == 0),
            ]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            number += part.size
    return number
