"""The verb that measures the similarity of amino acids to a model: similarity."""

from pathlib import Path
from typing import Annotated

import typer

from protein_lm.choices import FigureFormat, ReadingLongPolicy
from protein_lm.cli.app import app
from protein_lm.cli.options import (
    BatchTokens,
    Device,
    FormatOfFigures,
    ModelName,
    OutputFolder,
    Resume,
    progress,
    tell_long,
)
from protein_lm.errors import ConfigError
from protein_lm.files.sources import STANDARD_INPUT

ALL = "all"


@app.command(
    epilog="Example: protein-lm similarity swissprot --model run -o similarity --num-sequences all --untrained 3"
)
def similarity(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Proteins: any sequence file, a corpus made by data prepare, or - for standard input.",
        ),
    ],
    model: ModelName,
    output: OutputFolder,
    num_sequences: Annotated[
        str, typer.Option(metavar="N|all", help="Number of sequences to draw from the source, or all.")
    ] = "800",
    seed: Annotated[int, typer.Option(min=0, help="Seed of this draw.")] = 0,
    matrices: Annotated[
        list[str] | None,
        typer.Option(
            "--matrix",
            metavar="NAME",
            help="Substitution matrix of Biopython to compare with. Repeatable, the first is drawn; BLOSUM62 if not given.",
        ),
    ] = None,
    num_untrained: Annotated[
        int,
        typer.Option(
            "--untrained",
            min=0,
            metavar="K",
            help="Number of untrained models of the same configuration to compare with.",
        ),
    ] = 0,
    arcs: Annotated[
        bool,
        typer.Option("--arcs", help="Also measure with weights of 0.3 or more alone, as Vig et al.; O(length²) time."),
    ] = False,
    resume: Resume = False,
    figure_format: FormatOfFigures = FigureFormat.PNG,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Measure which amino acids a model treats similarly: 20 × 20 tables and figures, compared with substitution matrices.

    Measures come from the attention that amino acids give and receive, and from the first layer's kernel. One pass over the
    residues is enough.
    """
    if num_sequences != ALL and not (num_sequences.isdecimal() and int(num_sequences) > 0):
        raise ConfigError(f"--num-sequences {num_sequences}: expected a number from 1, or all")
    if num_sequences != ALL and source == STANDARD_INPUT:
        raise ConfigError(
            "standard input is read only once and not drawn from; name a file, or add --num-sequences all"
        )

    from protein_lm.analysis.pair_attention_file import PairReader
    from protein_lm.analysis.substitution import MATRIX, substitution_matrix
    from protein_lm.checkpoint.directory import load_model
    from protein_lm.results.similarity import describe, write_similarity

    for name in matrices or ():
        substitution_matrix(name)
    reader = PairReader(None if num_sequences == ALL else int(num_sequences), seed, arcs, batch_tokens)
    with progress("reading") as on_progress:
        found = write_similarity(
            load_model(model, device=device),
            source,
            output,
            reader,
            matrices=matrices or [MATRIX],
            num_untrained=num_untrained,
            resume=resume,
            figure_format=f".{figure_format.value}",
            on_progress=on_progress,
        )
    tell_long(found.summary, ReadingLongPolicy.DROP)
    print(
        f"{output}: {found.summary.num_used:,} sequences; agreement over pairs of different amino acids (95 % interval)"
    )
    for line in describe(found.agreements):
        print(f"  {line}")
    for note in found.notes:
        print(f"  {note}")
