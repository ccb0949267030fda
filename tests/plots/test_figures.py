"""Figures have what they should have on their axes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from protein_lm.analysis.curves import learning_curves
from protein_lm.analysis.substitution import normalized, substitution_matrix
from protein_lm.errors import OutputError
from protein_lm.plots.attention import attention_grid
from protein_lm.plots.corpus import corpus_contents
from protein_lm.plots.curves import compare_runs, learning_curve
from protein_lm.plots.kernel_error import kernel_errors
from protein_lm.plots.saving import save_figure
from protein_lm.plots.similarity import (
    AMINO_ACID_CLASSES,
    agreement_intervals,
    clustered_similarity,
    similarity_heatmaps,
)
from protein_lm.plots.style import CLASS_ORDER
from protein_lm.plots.variants import substitution_heatmap


def test_learning_curve(tmp_path) -> None:
    metrics = pd.DataFrame(
        {
            "step": [20, 40, 40],
            "split": ["train", "train", "valid"],
            "loss_nats": [3.0, 2.0, 2.5],
            "accuracy": [0.1, 0.2, 0.3],
        }
    )
    figure = learning_curve(metrics)
    perplexity, accuracy = figure.axes
    train, valid = perplexity.lines
    assert train.get_linestyle() == "--" and valid.get_linestyle() == "-"
    np.testing.assert_allclose(train.get_ydata(), np.exp([3.0, 2.0]))
    assert valid.get_marker() == "o", "one validation is a point, which a line alone would not show"
    assert valid.get_xdata().tolist() == [40] and accuracy.get_ylabel() == "accuracy (%)"
    save_figure(figure, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="exists already"):
        save_figure(learning_curve(metrics), tmp_path / "curve.png")


@pytest.mark.parametrize("against", ["step", "num_tokens", "seconds"])
@pytest.mark.parametrize("metric", ["perplexity", "loss_nats", "accuracy"])
def test_runs_side_by_side(runs, metric, against) -> None:
    table = learning_curves([runs["masked"], runs["causal"]])
    figure = compare_runs(table, metric=metric, against=against)
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["causal (U)", "masked (B)"]
    for panel, run in zip(panels, ("causal", "masked"), strict=True):
        train, valid, baseline = panel.lines
        assert [line.get_linestyle() for line in panel.lines] == ["--", "-", ":"]
        assert train.get_color() == valid.get_color()
        rows = table[(table["run"] == run) & (table["split"] == "valid")]
        scale = 100 if metric == "accuracy" else 1
        np.testing.assert_allclose(valid.get_ydata(), scale * rows[metric])
        np.testing.assert_allclose(baseline.get_ydata(), scale * rows[f"unigram_{metric}"].iloc[0], atol=1e-4)
        np.testing.assert_allclose(valid.get_xdata() / valid.get_xdata()[-1], rows[against] / rows[against].iloc[-1])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["masked", "causal", "training", "validation", "unigram baseline"]
    plt.close(figure)
    causal = compare_runs(table[table["run"] == "causal"].drop(columns=f"unigram_{metric}"), metric=metric)
    assert len(causal.axes) == 1 and len(causal.axes[0].lines) == 2
    plt.close(causal)


def test_attention_grid_is_numbered_by_residue() -> None:
    matrices = np.random.default_rng(0).random((2, 3, 10, 10)).astype(np.float32)
    figure = attention_grid(matrices, layers=[1, 5], heads=[1, 2, 3], title="P0", rows=(36, 45), columns=(1, 10))
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 6
    image = panels[0].images[0]
    np.testing.assert_array_equal(image.get_array(), matrices[0, 0])
    assert image.get_extent() == [0.5, 10.5, 45.5, 35.5]
    assert panels[0].get_title() == "head 1" and panels[3].get_ylabel() == "layer 5"


def test_similarity_heatmaps_survive_empty_cells() -> None:
    matrix = substitution_matrix()
    table = matrix.astype(float)
    table.loc["W"] = table["W"] = np.nan
    empty = table * np.nan
    tables = {"similarity": table, "enrichment": table, "arcs": empty, "kernel": table}
    figure = similarity_heatmaps(tables, normalized(matrix), name="BLOSUM62", caption="a caption")
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert "".join(labels) == CLASS_ORDER and len(set(labels)) == 20
    plt.close(figure)


def test_clustered_similarity_puts_alike_amino_acids_side_by_side() -> None:
    letters = "".join(letters for letters, _ in AMINO_ACID_CLASSES.values())
    assert letters == CLASS_ORDER
    matrix = substitution_matrix()
    alike = np.full((20, 20), 0.1) + np.eye(20) * 0.9
    table = pd.DataFrame(alike, matrix.index, matrix.columns)
    table.loc["D", "W"] = table.loc["W", "D"] = 0.9
    table.loc["C"] = table["C"] = np.nan
    figure = clustered_similarity({"similarity": table}, matrix, name="BLOSUM62")
    assert figure is not None
    heatmap = figure.axes[1]
    shown = "".join(tick.get_text() for tick in heatmap.get_xticklabels())
    assert sorted(shown) == sorted(set(CLASS_ORDER) - {"C"}) and ("DW" in shown or "WD" in shown)
    np.testing.assert_array_equal(heatmap.images[0].get_array(), table.loc[list(shown), list(shown)])
    plt.close(figure)
    assert clustered_similarity({"similarity": table * np.nan}, matrix, name="BLOSUM62") is None


def test_agreements_show_untrained_models_only_where_there_are_some() -> None:
    row = {"measure": "kernel", "matrix": "PAM250", "pearson": 0.4, "pearson_low": np.nan, "pearson_high": np.nan}
    table = pd.DataFrame([{"model": "trained"} | row, {"model": "untrained-0"} | row])
    for rows, expected in ((table, 2), (table[:1], 1)):
        figure = agreement_intervals(rows)
        assert len(figure.legends[0].get_texts()) == expected
        assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["kernel, PAM250"]
        plt.close(figure)


def test_corpus_contents_tell_splits_apart_and_mark_the_windows() -> None:
    lengths = np.array([1, 2, 30, 500, 2000])
    numbers = {"train": np.array([1, 2, 30, 40, 5]), "valid": np.array([0, 0, 3, 0, 0]), "test": np.zeros(5, dtype=int)}
    figure = corpus_contents(lengths, numbers, {"A": 3, "C": 1}, title="a store")
    histogram, composition = figure.axes
    assert [text.get_text() for text in histogram.get_legend().get_texts()] == ["train, 78", "valid, 3"]
    for drawn in histogram.patches:
        shares, edges, _ = drawn.get_data()
        assert (shares * np.diff(np.log2(edges))).sum() == pytest.approx(100), "the area is all sequences of the split"
    assert [drawn.get_linestyle() for drawn in histogram.patches] == ["-", "--"]
    assert [text.get_text() for text in histogram.texts] == ["median 500", "1,022"], "8,190 is out of range"
    assert [bar.get_height() for bar in composition.patches] == [75, 25]
    one = corpus_contents(np.array([7]), {"train": np.array([1])}, {"A": 1}, title="one length")
    plt.close(figure)
    plt.close(one)


def test_substitution_heatmaps_wrap_number_residues_and_mark_the_wild_type() -> None:
    scores = np.random.default_rng(0).normal(size=(130, 20))
    scores[3] = np.nan
    figure = substitution_heatmap(scores, "MKV" + "X" + "A" * 126, title="P1$_{", first_residue=24)
    first, second, *_ = figure.axes
    assert first.get_xlim() == (23.5, 93.5) and second.get_xticks().tolist() == [100, 110, 120, 130, 140, 150]
    row_of_alanine = CLASS_ORDER.index("A")
    np.testing.assert_allclose(first.images[0].get_array()[row_of_alanine], scores[:70, 0])
    dots = first.collections[0].get_offsets()
    assert len(dots) == 69 and dots[0].tolist() == [24, CLASS_ORDER.index("M")]
    figure.canvas.draw()
    plt.close(figure)


def test_kernel_errors_tell_feature_types_apart_without_colours() -> None:
    types = ["positive-orthogonal", "positive-iid", "trigonometric-orthogonal", "trigonometric-iid"]
    facts = {"norm_scale": 1.0, "kernel": "softmax", "uniform_matrix_error": 0.5, "query_norm": 2.0, "key_norm": 2.0}
    rows = [
        {"feature_type": name, "num_features": count, "matrix_error": 1 / count, **facts}
        for name in types
        for count in (16, 64)
    ]
    figure = kernel_errors(pd.DataFrame(rows))
    drawn = figure.axes[0].lines[: len(types)]
    assert [(line.get_marker(), line.get_linestyle()) for line in drawn] == [
        ("o", "-"),
        ("o", "--"),
        ("s", "-"),
        ("s", "--"),
    ]
    plt.close(figure)
