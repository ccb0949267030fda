"""Sections of a report on attention: matrices and heads, similarity of amino acids, error of random features."""

import numpy as np
import pandas as pd

from protein_lm import alphabet
from protein_lm.analysis.attention.forms import BlockMeans, Region
from protein_lm.analysis.attention.heads import HeadSums
from protein_lm.analysis.attention.maps import read_attention
from protein_lm.analysis.kernel_error import kernel_error
from protein_lm.analysis.pair_attention import pair_attention
from protein_lm.analysis.protein_sample import draw_sequences
from protein_lm.analysis.similarity import correlation_over_heads, enrichment, frame
from protein_lm.analysis.substitution import MATRIX, agreement, normalized, substitution_matrix
from protein_lm.attention.kinds.linear import RandomFeatureOptions
from protein_lm.io.records import SequenceRecord
from protein_lm.plots.attention import attention_grid
from protein_lm.plots.kernel_error import kernel_errors
from protein_lm.plots.saving import png
from protein_lm.plots.similarity import MEASURES, similarity_heatmaps
from protein_lm.results.report.page import Picture, Section, Table
from protein_lm.results.report.subject import NotApplicableError, Subject, command

MAX_LAYERS, MAX_HEADS, MAX_PIXELS = 6, 8, 256
"""Most layers, heads and pixels that are shown; of more layers and heads, an even choice."""
KERNEL_ERROR_TOKENS, KERNEL_ERROR_DRAWS = 512, 3
NUM_PAIRS = 10
"""Pairs of amino acids that are listed as most similar."""
SOFTMAX_FEATURES = {
    "performer-softmax": "positive",
    "performer-optimal": "optimal",
    "performer-saderf": "saderf",
}
"""Kinds that estimate the softmax kernel, and the map of their features in `analysis.kernel_error`."""


def attention(subject: Subject) -> Section:
    """Matrices and head statistics of the examples."""
    config = subject.model.config
    layers, heads = _spread(config.num_layers, MAX_LAYERS), _spread(config.num_heads, MAX_HEADS)
    numbers = {"layers": layers, "heads": heads}
    pictures, tables = [], []
    for record in subject.examples:
        residues, ends = slice(1, len(record) + 1), (1, len(record))
        means = BlockMeans(Region(residues, residues), MAX_PIXELS, len(layers), len(heads))
        sums = HeadSums(len(layers), len(heads), len(record) + alphabet.NUM_SPECIAL_TOKENS)
        read_attention(subject.model, record, [means, sums], **numbers)
        figure = attention_grid(means.values, **numbers, title=record.sequence_id, rows=ends, columns=ends)
        caption = f"{record.sequence_id}, {len(record):,} residues: darker is more; each panel has a scale of its own."
        pictures.append(Picture(png(figure), caption))
        tables.append(_head_table(record, sums.table(subject.model, **numbers)))
    shown = [word for layer in layers for word in ("--layer", layer)]
    shown += [word for head in heads for word in ("--head", head)]
    return Section(
        what=f"Attention of each residue (down) to each (across), in {len(layers)} of {config.num_layers} layers and "
        f"{len(heads)} of {config.num_heads} heads; over {MAX_PIXELS} residues, means over blocks."
        + subject.examples_origin,
        commands=[command("attention", subject.examples_file, "--model", subject.run, "-o", "attention", *shown)],
        tables=tables,
        pictures=pictures,
        text=subject.examples_text,
    )


def similarity(subject: Subject) -> Section:
    """Similarity of amino acids, and its agreement with BLOSUM62."""
    corpus, choice, model = subject.corpus, subject.choice, subject.model
    sequences = draw_sequences(corpus.path, choice.max_sequences, longest=model.max_residues, seed=choice.seed)
    sums = pair_attention(model, sequences, tokens_per_batch=choice.tokens_per_batch)
    measures, matrix = {"similarity": correlation_over_heads, "enrichment": enrichment}, substitution_matrix()
    tables = {name: frame(measure(sums)) for name, measure in measures.items()}
    rows = []
    for name, table in tables.items():
        fit = agreement(table, matrix, seed=choice.seed)
        numbers = f"{fit.pearson:.3f}", f"{fit.pearson_p:.4f}", f"{fit.spearman:.3f}", f"{fit.spearman_p:.4f}"
        rows.append([MEASURES[name], *numbers])
    figure = similarity_heatmaps(tables, normalized(matrix), name=MATRIX, caption="")
    options = ["--num-sequences", choice.max_sequences, "--seed", choice.seed]
    return Section(
        what=f"Amino acids that the attention of all heads treats similarly, on {len(sequences):,} proteins of the corpus, "
        "drawn at random. The table has the agreement with BLOSUM62 over pairs of different amino acids. Proteins over the "
        "model's window are left out.",
        commands=[command("similarity", corpus.path, "--model", subject.run, "-o", "similarity", *options)],
        tables=[
            Table(["agreement with BLOSUM62", "Pearson", "permutation p", "Spearman", "permutation p"], rows),
            _most_similar(tables["similarity"], matrix),
        ],
        pictures=[
            Picture(
                png(figure),
                "Correlation over heads of the attention received; enrichment of pairs; BLOSUM62. Dashes: negative. "
                "Frames: D–E, F–Y.",
            )
        ],
    )


def feature_error(subject: Subject) -> Section:
    """Error of random features on an example, against their number."""
    config = subject.model.config
    layers = [
        layer
        for layer in config.attention_layers
        if isinstance(layer, RandomFeatureOptions) and layer.kind in SOFTMAX_FEATURES
    ]
    if not layers:
        raise NotApplicableError(
            f"{config.attention_name} attention does not estimate the softmax kernel by random features"
        )
    record, number = subject.examples[0], layers[0].num_features
    counts = sorted({max(2, 2 * round(number * factor / 2)) for factor in (0.25, 0.5, 1, 2, 4)})
    length = min(len(record) + alphabet.NUM_SPECIAL_TOKENS, KERNEL_ERROR_TOKENS)
    types = sorted({f"{SOFTMAX_FEATURES[layer.kind]}-{layer.projection}" for layer in layers})
    table = kernel_error(
        subject.model,
        [record],
        feature_types=types,
        num_features=counts,
        lengths=[length],
        num_draws=KERNEL_ERROR_DRAWS,
        seed=subject.choice.seed,
    )
    columns = ["matrix_error", "uniform_matrix_error", "output_error", "uniform_output_error"]
    means = table.groupby(["feature_type", "num_features"])[columns].mean()
    rows = [
        [name, f"{count:,}", *(f"{value:.3g}" for value in values)]
        for (name, count), *values in means.itertuples(name=None)
    ]
    options = [word for name in types for word in ("--type", name)]
    options += [word for count in counts for word in ("--features", count)]
    options += ["--length", length, "--num-draws", KERNEL_ERROR_DRAWS, "--seed", subject.choice.seed]
    return Section(
        what=f"Difference of random features from exact softmax attention on the model's own queries and keys: the first "
        f"{length:,} tokens of {record.sequence_id}, all layers and heads, {KERNEL_ERROR_DRAWS} draws. The model has "
        f"M = {number:,}. Errors are relative; the columns 'uniform' have those of uniform attention."
        + subject.examples_origin,
        commands=[command("kernel-error", subject.examples_file, "--model", subject.run, "-o", "errors", *options)],
        tables=[Table(["features", "M", "error of the matrix", "uniform", "error of the output", "uniform"], rows)],
        pictures=[Picture(png(kernel_errors(table)), "Error of the attention matrix against M.")],
    )


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` of the numbers 1 ... count, evenly, with the first and the last."""
    return (np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)) + 1).tolist()


def _head_table(record: SequenceRecord, heads: pd.DataFrame) -> Table:
    columns = ["head", "class", "mean distance (tokens)", "within 3 tokens", "largest share of one token"]
    rows = [
        [
            f"layer {row['layer']}",
            f"{row['head']}",
            row["head_class"],
            f"{row['mean_distance']:.1f}",
            f"{row['local_share']:.1%}",
            f"{row['max_column_share']:.1%}",
        ]
        for row in heads.to_dict("records")
    ]
    return Table([record.sequence_id, *columns], rows)


def _most_similar(similarity: pd.DataFrame, matrix: pd.DataFrame) -> Table:
    """Return the pairs of different amino acids of largest similarity, with their scores in BLOSUM62."""
    letters = list(similarity.index)
    pairs = [
        (float(similarity.iat[i, j]), f"{letters[j]}–{letters[i]}", float(matrix.iat[i, j]))
        for i, j in zip(*np.tril_indices(len(letters), -1), strict=True)
    ]
    best = sorted((pair for pair in pairs if np.isfinite(pair[0])), reverse=True)[:NUM_PAIRS]
    rows = [[name, f"{value:.3f}", f"{score:.0f}"] for value, name, score in best]
    return Table(["most similar", "correlation over heads", "BLOSUM62"], rows)
