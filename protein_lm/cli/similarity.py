"""The verb that says which amino acids a model treats alike."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protein_lm.choices import FigureFormat, ReadingLongPolicy
from protein_lm.cli.app import app
from protein_lm.cli.options import BatchTokens, Device, ModelName, Resume, sequence_progress, tell_long
from protein_lm.errors import ConfigError
from protein_lm.files.sources import STANDARD_INPUT

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"


@app.command(
    epilog="Example: protein-lm similarity swissprot --model run -o similarity --num-sequences all --untrained 3"
)
def similarity(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Any file of proteins, a folder made by data prepare, or - for standard input."
        ),
    ],
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.")],
    num_sequences: Annotated[
        str, typer.Option(metavar="N|all", help="Sequences to draw from the source, or all of them.")
    ] = "800",
    seed: Annotated[int, typer.Option(min=0, help="Seed of that draw.")] = 0,
    matrices: Annotated[
        list[str] | None,
        typer.Option(
            "--matrix",
            metavar="NAME",
            help="Substitution matrix of Biopython. Repeatable, the first is drawn; BLOSUM62.",
        ),
    ] = None,
    num_untrained: Annotated[
        int,
        typer.Option(
            "--untrained",
            min=0,
            metavar="K",
            help="Also K models of this configuration with random weights, as the null.",
        ),
    ] = 0,
    arcs: Annotated[
        bool, typer.Option("--arcs", help="Also out of weights of 0.3 or more alone, as Vig et al.; O(length²) time.")
    ] = False,
    resume: Resume = False,
    figure_format: Annotated[FigureFormat, typer.Option("--format", help="Format of the figures.")] = FigureFormat.PNG,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Which amino acids the model treats alike: 20 × 20 tables and figures, beside substitution matrices.

    Out of the attention that amino acids give and receive, and of the first layer's kernel; in one pass over the residues.
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
    from protein_lm.results.similarity import write_similarity

    for name in matrices or ():
        substitution_matrix(name)
    reader = PairReader(None if num_sequences == ALL else int(num_sequences), seed, arcs, batch_tokens)
    with sequence_progress("reading") as on_progress:
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
    for line in _lines(found.agreements):
        print(f"  {line}")
    for note in found.notes:
        print(f"  {note}")


def _lines(agreements: "pd.DataFrame") -> list[str]:
    """A line for each measure and matrix: the model, and what untrained ones reach."""
    import pandas as pd

    trained = agreements["model"] == "trained"
    lines = []
    for row in pd.DataFrame(agreements[trained]).to_dict("records"):
        parts = []
        for name in ("pearson", "spearman"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            interval = f" ({low:.3f} to {high:.3f})" if low == low else ""
            parts.append(f"{name.capitalize()} {row[name]:.3f}{interval}, permutation p {row[f'{name}_p']:.4f}")
        line = f"{row['measure']}, {row['matrix']}: {'; '.join(parts)}"
        same = (agreements["measure"] == row["measure"]) & (agreements["matrix"] == row["matrix"])
        null = agreements.loc[same & ~trained, "pearson"]
        if len(null):
            line += f"; untrained, Pearson {', '.join(f'{value:.3f}' for value in null)}"
        lines.append(line)
    return lines
