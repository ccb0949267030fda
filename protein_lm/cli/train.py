"""The verbs that make runs, and those that describe them: train, finetune, curves, report."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protein_lm.choices import CurveAxis, CurveMetric, FigureFormat
from protein_lm.cli.app import app
from protein_lm.cli.options import BatchTokens, CorpusName, Device, Seed
from protein_lm.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from protein_lm.results.report.page import Section
    from protein_lm.training.loop import Trainer
    from protein_lm.training.progress import Progress

OutputRun = Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Run directory to make.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe. Repeatable.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run from its last checkpoint.")]
AllowedChanges = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-change",
        metavar="KEY",
        help="Key of the recipe that may differ from that of the run when it is resumed. Repeatable.",
    ),
]


@app.command(epilog="Example: protein-lm train scripts/recipes/tiny.yaml --data swissprot -o run --set training.seed=1")
def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="Recipe: a YAML file with the parts model, data, training.")
    ],
    corpus: CorpusName,
    output: OutputRun,
    overrides: Overrides = None,
    resume: Resume = False,
    initial: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="M",
            help="Model to start from, of the recipe's configuration; random weights if not given.",
        ),
    ] = None,
    allowed_changes: AllowedChanges = None,
) -> None:
    """Train a model on a corpus; also in several processes, with `accelerate launch -m protein_lm train ...`."""
    from protein_lm.config import load_recipe

    loaded = load_recipe(recipe, overrides)

    from protein_lm.corpus.joined import open_corpus
    from protein_lm.results.training import write_learning_curve
    from protein_lm.training.language_modelling import LanguageModelling
    from protein_lm.training.loop import Trainer

    def finish(progress: "Progress") -> None:
        figure = write_learning_curve(output)
        print(f"{output}: {progress.step:,} steps, {progress.num_tokens:,} tokens; models best and last, {figure.name}")

    task = LanguageModelling(loaded, open_corpus(corpus))
    _fit(Trainer(task, output, resume=resume, initial=initial, allowed_changes=allowed_changes or ()), finish)


@app.command(
    epilog="Example: protein-lm finetune scripts/recipes/finetune.yaml --data labels.csv --init run -o tuned "
    "--set head.task=classification"
)
def finetune(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="Recipe: a YAML file with the parts head, data, training.")
    ],
    table: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="TABLE",
            help="Labels: .csv, .tsv or .parquet with columns sequence and label, and optionally sequence_id and split.",
        ),
    ],
    output: OutputRun,
    initial: Annotated[
        str | None,
        typer.Option("--init", metavar="M", help="Model to start from: a model directory, run, or name on the Hub."),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    allowed_changes: AllowedChanges = None,
) -> None:
    """Train a model to predict labels of sequences or residues: its head alone, adapters, or all weights."""
    from protein_lm.checkpoint.config_file import read_config
    from protein_lm.checkpoint.directory import find_model
    from protein_lm.config import load_fine_tuning_recipe
    from protein_lm.training.checkpoints import Checkpoints

    if initial is None and not resume:
        raise ConfigError("fine-tuning starts from a model; name it with --init")
    sources = Checkpoints(output).newest_first() if initial is None else [find_model(initial)]
    if not sources:
        raise OutputError(f"{output}: nothing to resume, there is no checkpoint in it; start without --resume")
    loaded = load_fine_tuning_recipe(recipe, overrides, model=read_config(sources[0]))

    from protein_lm.checkpoint.directory import BEST, load_predictor
    from protein_lm.results.training import write_fine_tuning
    from protein_lm.training.fine_tuning import FineTuning
    from protein_lm.training.loop import Trainer

    def finish(progress: "Progress") -> None:
        evaluation = task.evaluate(load_predictor(output / BEST, device=trainer.accelerator.device.type))
        write_fine_tuning(output, evaluation)
        print(evaluation.to_string(index=False, float_format="{:.4f}".format, na_rep="not defined"))
        print(f"{output}: {progress.step:,} steps; models best and last, evaluation.csv (of best), learning_curve.png")

    task = FineTuning(loaded, table)
    trainer = Trainer(task, output, resume=resume, initial=initial, allowed_changes=allowed_changes or ())
    _fit(trainer, finish)


@app.command(epilog="Example: protein-lm curves runs/* -o curves.png --metric accuracy --against num_tokens")
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to make: a figure (.png, .svg, .pdf) or a table (.csv, .tsv, .parquet).",
        ),
    ],
    metric: Annotated[
        CurveMetric | None,
        typer.Option(help="Vertical axis of the figure; perplexity if not given.", show_default=False),
    ] = None,
    against: Annotated[
        CurveAxis | None, typer.Option(help="Horizontal axis of the figure; step if not given.", show_default=False)
    ] = None,
) -> None:
    """Compare the learning curves of runs, in one figure or one table."""
    from protein_lm.files.output import check_absent
    from protein_lm.files.tables import SUFFIXES, write_table

    draws = output.suffix in [f".{each.value}" for each in FigureFormat]
    if not draws and output.suffix not in SUFFIXES:
        raise OutputError(
            f"{output}: unknown format; end it in .png, .svg or .pdf for a figure, {', '.join(SUFFIXES)} for a table"
        )
    if not draws and (metric or against):
        raise ConfigError(
            f"{output}: a table has every column; leave out --metric and --against, or draw a figure (.png)"
        )
    check_absent(output)

    from protein_lm.analysis.curves import check_column, learning_curves

    table = learning_curves(runs)
    if not draws:
        write_table(table, str(output))
    else:
        from protein_lm.plots.curves import compare_runs
        from protein_lm.plots.saving import save_figure

        metric, against = metric or CurveMetric.PERPLEXITY, against or CurveAxis.STEP
        for column in (metric.value, against.value):
            check_column(table, column)
        save_figure(compare_runs(table, metric=metric.value, against=against.value), output)
    print(f"{output}: {len(table):,} rows of {table['run'].nunique()} runs")


@app.command(epilog="Example: protein-lm report run -o report.html --data swissprot")
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory of train; the report describes its best model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Page to make: .html.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="CORPUS", help="Corpus of the run; if not given, sections that need it are left out."
        ),
    ] = None,
    fasta: Annotated[
        Path | None,
        typer.Option(
            metavar="FASTA", help="File whose first two proteins show attention; those of the split test if not given."
        ),
    ] = None,
    max_sequences: Annotated[
        int, typer.Option(min=2, help="Most sequences of a split to evaluate, and for the similarity of amino acids.")
    ] = 256,
    seed: Seed = 0,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Write a page about a run: data, recipe, curves, evaluation, attention, similarity, kernel error, generated proteins."""
    from protein_lm.results.report.subject import ReportChoice
    from protein_lm.results.report.write import check_report_output, write_report

    check_report_output(output)
    choice = ReportChoice(
        data=data, fasta=fasta, max_sequences=max_sequences, seed=seed, tokens_per_batch=batch_tokens, device=device
    )
    write_report(run, output, choice, on_section=_tell_section)
    print(f"{output}: open it in a browser; it needs nothing else")


def _fit(trainer: "Trainer", finish: Callable[["Progress"], None]) -> None:
    """Train, then `finish` in the main process of a run that reached its last step. One of several processes ends here."""
    from protein_lm.training.processes import end_process, leave_processes

    progress, num_steps = trainer.fit(), trainer.recipe.training.num_steps
    leave_processes()
    if trainer.accelerator.is_main_process and progress.step < num_steps:
        print(
            f"{trainer.run}: stopped at step {progress.step:,} of {num_steps:,}; resume it with the same command and --resume"
        )
    elif trainer.accelerator.is_main_process:
        finish(progress)
    if trainer.accelerator.num_processes > 1:
        end_process()


def _tell_section(section: "Section") -> None:
    done = f"not computed: {section.missing}" if section.missing else f"{section.seconds:.1f} s"
    print(f"  {section.title}: {done}", flush=True)
