"""Writes scores of all sequences of a file as tables, in constant memory; a stopped command can be resumed."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protein_lm import __version__
from protein_lm.checkpoint.weights import model_checksum
from protein_lm.choices import ReadingLongPolicy
from protein_lm.errors import ConfigError
from protein_lm.files.output import check_absent, claimed
from protein_lm.files.resume import unfinished_work
from protein_lm.files.tables import check_table_output, rows_of_text, write_grown_table
from protein_lm.inference.reading import TOKENS_OF_PART, Reading, Summary, lift_window_if, survey
from protein_lm.inference.score import (
    Scoring,
    residue_columns,
    residue_rows,
    residue_scores,
    sequence_columns,
    sequence_row,
)
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM

STANDARD_OUTPUT = "-"
_SEQUENCES, _RESIDUES = "sequences.text", "residues.text"
Scored = list[tuple[SequenceRecord, NDArray[np.float64]]]
"""Sequences, each with the scores of its residues."""


def score_file(
    model: ProteinLM,
    source: Path,
    output: str,
    scoring: Scoring,
    *,
    long_sequences: ReadingLongPolicy = ReadingLongPolicy.ERROR,
    residue_output: Path | None = None,
    resume: bool = False,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Summary:
    """Score the sequences of a file, as `score` does, in its order.

    Args:
        model: any model; `EXTEND` lifts its window.
        source: any sequence file; `-` is standard input.
        output: .csv, .tsv or .parquet; `-` is standard output, as CSV.
        scoring: what is computed.
        long_sequences: treatment of sequences over the model's window.
        residue_output: another table, with a row for each residue.
        resume: resume what a stopped process did for this output, if there is any; the tables are the same, byte for byte.
        on_progress: called with the number of sequences read, and of all if it is known.

    Raises:
        ConfigError: the model or standard output does not allow what is asked.
        InputError: as `survey` and `Reading.parts`.
        OutputError: as `unfinished_work`.
    """
    scoring.check(model)
    longest = model.max_residues
    lift_window_if(long_sequences, model)
    check_outputs(output, residue_output, resume=resume)
    total = survey(source, longest=longest if long_sequences is ReadingLongPolicy.ERROR else None)
    measure, has_draws = scoring.measure(model), scoring.num_draws is not None
    columns = sequence_columns(measure, has_draws=has_draws)
    columns_of_residues = residue_columns(measure, has_draws=has_draws)

    def parts(reading: Reading) -> Iterator[Scored]:
        for records in reading.parts(lambda length: scoring.cost(model, length), TOKENS_OF_PART):
            yield list(zip(records, residue_scores(model, records, scoring), strict=True))
            if on_progress:
                on_progress(reading.num_read, total)

    if output == STANDARD_OUTPUT:
        reading = Reading(source, longest=longest, policy=long_sequences)
        heading: list[tuple] = [tuple(columns)]  # with the first rows, so that a fault in the input is told alone
        for part in chain(parts(reading), [[]]):
            rows = [*heading, *(sequence_row(*scored) for scored in part)]
            print(rows_of_text(rows, output).decode(), end="", flush=True)
            heading = []
        return reading.summary()

    settings = {
        "model": model_checksum(model),
        "protein_lm version": __version__,
        **asdict(scoring),
        "--long": long_sequences.value,
        "device": model.device.type,
        "--per-residue": residue_output is not None and residue_output.suffix,
    }
    with (
        unfinished_work(Path(output), settings, resume=resume) as work,
        nullcontext() if residue_output is None else claimed(residue_output),
    ):
        # A stopped process that had scored all sequences may have written one table already.
        is_complete = work.state is not None and work.state["is_complete"]
        if residue_output is not None and not is_complete:
            check_absent(residue_output)
        if work.state is None:
            work.append(_SEQUENCES, rows_of_text([tuple(columns)], output))
            if residue_output is not None:
                work.append(_RESIDUES, rows_of_text([tuple(columns_of_residues)], str(residue_output)))
        reading = Reading(source, longest=longest, policy=long_sequences, state=work.state and work.state["reading"])
        for part in parts(reading):
            work.append(_SEQUENCES, rows_of_text((sequence_row(*scored) for scored in part), output))
            if residue_output is not None:
                rows = chain.from_iterable(residue_rows(*scored) for scored in part)
                work.append(_RESIDUES, rows_of_text(rows, str(residue_output)))
            work.save({"reading": reading.state(), "is_complete": False})
        if residue_output is not None:
            work.save({"reading": reading.state(), "is_complete": True})
            text = work.flushed(_RESIDUES)
            write_grown_table(text, residue_output, columns_of_residues, replace=is_complete, is_claimed=True)
        write_grown_table(work.flushed(_SEQUENCES), Path(output), columns, is_claimed=True)
        return reading.summary()


def check_outputs(output: str, residue_output: Path | None, *, resume: bool) -> None:
    """Refuse bad outputs before the work that fills them.

    Raises:
        ConfigError: standard output cannot be resumed or hold two tables, nor can one file.
        OutputError: as `check_table_output`.
    """
    check_table_output(output)
    if output == STANDARD_OUTPUT and resume:
        raise ConfigError("--resume: standard output cannot be resumed; write to a file with -o")
    if residue_output is None:
        return
    if output == STANDARD_OUTPUT or str(residue_output) == STANDARD_OUTPUT:
        raise ConfigError("--per-residue: two tables need two files; name both, with -o and --per-residue")
    if residue_output.absolute() == Path(output).absolute():
        raise ConfigError(f"--per-residue: {residue_output} is the other table's name too; choose another")
    if not (resume and residue_output.exists()):  # an existing one may be ours
        check_table_output(str(residue_output))
