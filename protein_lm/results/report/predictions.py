"""Sections of a report on what the model predicts: evaluation, and generated proteins."""

import numpy as np

from protein_lm.analysis.evaluation import evaluate
from protein_lm.analysis.generated import compare, composition, reference
from protein_lm.choices import LongPolicy
from protein_lm.inference.generate import Generator
from protein_lm.plots.generated import generated_and_real
from protein_lm.plots.saving import png
from protein_lm.results.report.page import Picture, Section, Table
from protein_lm.results.report.subject import NotApplicableError, Subject, command

NUM_GENERATED, NUM_REAL, MAX_GENERATED_RESIDUES = 64, 2000, 1024


def evaluation(subject: Subject) -> Section:
    """Accuracy and perplexity on each split, with the unigram baseline."""
    corpus, number = subject.corpus, subject.choice.max_sequences
    table = evaluate(
        subject.model,
        corpus,
        long_sequences=LongPolicy.CROP,
        tokens_per_batch=subject.choice.tokens_per_batch,
        max_sequences=number,
    )
    rows = [
        [
            row["split"].replace("_", " "),
            f"{row['num_sequences']:,}",
            f"{row['num_residues']:,}",
            f"{row['accuracy']:.1%}",
            f"{row['unigram_accuracy']:.1%}",
            _interval(row, "perplexity"),
            _interval(row, "unigram_perplexity"),
            f"{row['num_too_long']:,}",
        ]
        for row in table.to_dict("records")
    ]
    columns = ["split", "proteins", "residues", "accuracy", "of unigram", "perplexity (95 %)", "of unigram (95 %)"]
    measured = "every residue" if subject.model.is_causal else "15 % of the residues of each protein, all masked"
    options = ["--data", corpus.path, "--long", "crop", "--max-sequences", number]
    return Section(
        what=f"The first {number:,} proteins of each split at most; {measured}. Intervals come from a bootstrap over "
        "proteins. The unigram baseline knows the frequencies of the residues in training and nothing else. Cropped "
        "proteins are longer than the window, and measured on their first residues. Test has new proteins, whose families "
        "training may know. Held out, if it is there, has families that training does not know.",
        commands=[command("evaluate", "--model", subject.run, *options)],
        tables=[Table([*columns, "cropped"], rows)],
    )


def generated(subject: Subject) -> Section:
    """Generated proteins compared with those of the split train."""
    model, run, seed = subject.model, subject.run, subject.choice.seed
    if not model.is_causal:
        raise NotApplicableError("a masked model writes no proteins; protein-lm infill has it fill in residues")
    corpus, number, longest = subject.corpus, NUM_GENERATED, min(MAX_GENERATED_RESIDUES, model.max_residues)
    real = reference(corpus, max_sequences=NUM_REAL, seed=seed)
    drawn = list(Generator(model, max_length=longest, seed=seed).generate(number))
    residues = [each.residues for each in drawn]
    table, shares = compare(residues, real, seed=seed), composition(residues, real.all)
    rows = [
        [str(name).replace("_", " "), *(f"{value:.4g}" for value in values)]
        for name, *values in table.itertuples(index=False, name=None)
    ]
    lengths = {
        name: np.array([each.size for each in group]) for name, group in (("generated", residues), ("real", real.all))
    }
    title = f"{number} generated proteins and {len(real.all):,} real ones"
    figure = generated_and_real(table, shares, lengths, None, title=title)
    unfinished = sum(not each.is_finished for each in drawn)
    limits = ["--max-length", longest, "--seed", seed]
    sizes = ["--max-sequences", NUM_REAL, "--seed", seed]
    return Section(
        what=f"{number} proteins drawn from the model (temperature 1), compared with {len(real.all):,} of the split train. "
        f"{unfinished} of them reached {longest:,} residues without an end. Each measure stands next to its mean and "
        "95 % range for as many real proteins. Within this range, the measure does not tell generated from real ones.",
        commands=[
            command("generate", "--model", run, "-n", number, "-o", "generated.fasta", *limits),
            command("compare", "generated.fasta", "--data", corpus.path, "-o", "comparison", *sizes),
        ],
        tables=[Table(["measure", "generated", "real, mean", "real, low", "real, high"], rows)],
        pictures=[Picture(png(figure), "Lengths, residues and k-mers of generated and real proteins.")],
    )


def _interval(row: dict, name: str) -> str:
    return f"{row[name]:.2f} ({row[name + '_low']:.2f}–{row[name + '_high']:.2f})"
