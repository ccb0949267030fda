"""The measures by hand, and as ProteinGym computes them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from protein_lm.analysis.assays import aggregate, agreement_with, auc, mcc, ndcg, top_recall
from protein_lm.errors import InputError
from protein_lm.io.variants.measurements import read_measurements


def measured(**columns: list[str]):
    return read_measurements(pd.DataFrame(columns), Path("assay.csv"))


def test_measures_by_hand() -> None:
    values = np.arange(20.0)
    assert ndcg(values, values) == pytest.approx(1)
    assert ndcg(-values, values) == pytest.approx((1 / 19 / np.log2(3)) / (1 + 18 / 19 / np.log2(3)))
    assert ndcg(values[:9], values[:9]) == 0, "a tenth of nine is none"
    assert top_recall(values, values) == 1 and top_recall(-values, values) == 0
    scores = np.array([3.0, 2.0, 2.0, 1.0])
    fit = np.array([True, True, False, False])
    assert auc(scores, fit) == pytest.approx(3.5 / 4) and np.isnan(auc(scores, fit | True))
    assert mcc(np.array([True, True, True, False]), fit) == pytest.approx(1 / np.sqrt(3))
    assert mcc(fit | True, fit) == 0


def test_agreement_leaves_out_rows_without_score_or_measurement() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=50)
    scores = values + generator.normal(size=50)
    cells = [f"{value:.17g}" for value in values]
    whole = agreement_with(scores, measured(DMS_score=cells))
    longer = measured(DMS_score=[*cells, "", "7"])
    assert agreement_with(np.array([*scores, 1.0, np.nan]), longer)["spearman"] == whole["spearman"]
    ranks = [pd.Series(numbers).rank() for numbers in (values, scores)]
    assert whole["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    fit = (values >= np.median(values)).astype(int).astype(str).tolist()
    assert agreement_with(scores, measured(DMS_score=cells, DMS_score_bin=fit)) == whole
    nothing = agreement_with(np.full(50, np.nan), measured(DMS_score=cells))
    assert np.isnan(list(nothing.values())).all()


@pytest.mark.parametrize(
    "values, scores, expected",
    [
        # Rounded numbers; in both of the first two more than a tenth lie at the 90th percentile.
        (
            [0, 0, 1, 1, 1, 2, 2, 3, 3, 3],
            [1, 0, 2, 2, 0, 2, 1, 2, 2, 1],
            [0.458220, 1 / 3, 0.68, 0.2, 2 / 3],
        ),
        ([0, 1, 2, 3, 3, 3, 0, 1, 2] * 2, [5, 5, 5, 4, 5, 3, 2, 1, 5] * 2, [0.103479, 0, 0.65, 0.1, 1 / 3]),
        (
            np.round(np.sin(np.arange(40)), 1),
            np.round(np.sin(np.arange(40)) + np.cos(3 * np.arange(40)), 1),
            [0.703448, 0.955851, 0.8525, 0.5, 0.4],
        ),
        # All values equal, all scores equal, one variant.
        ([1] * 12, range(12), [np.nan, np.nan, np.nan, 0, 1 / 6]),
        (range(12), [1] * 12, [np.nan, 0, 0.5, 0, 1]),
        ([2], [1], [np.nan, 0, np.nan, 0, 1]),
    ],
)
def test_tied_and_rounded_values_as_proteingym_has_them(values, scores, expected) -> None:
    """Expected: what the functions of its `performance_DMS_benchmarks.py` (bb68524, July 2025) give for these numbers."""
    found = agreement_with(np.array(scores, float), measured(DMS_score=[str(value) for value in values]))
    assert list(found) == ["spearman", "ndcg", "auc", "mcc", "top_recall"]
    assert list(found.values()) == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    "columns, fault",
    [
        ({"DMS_score": ["1", "high"]}, "assay.csv, row 2: DMS_score 'high' is not a finite number"),
        ({"DMS_score": ["inf"]}, "row 1: DMS_score 'inf' is not a finite number"),
        ({"DMS_score": ["1"], "DMS_score_bin": ["2"]}, "row 1: DMS_score_bin is 2; it must be 0 or 1"),
    ],
)
def test_cells_that_are_no_measurements(columns, fault) -> None:
    with pytest.raises(InputError, match=fault):
        measured(**columns)


def test_means_of_assays_and_of_selection_types() -> None:
    def row(assay: str, protein: str, selection: str, value: float) -> dict[str, object]:
        measures = dict.fromkeys(["spearman", "ndcg", "auc", "mcc", "top_recall"], value)
        groups = {"UniProt_ID": protein, "coarse_selection_type": selection}
        return {"assay": assay, **groups, "num_variants": 3, "num_scored": 2, **measures}

    rows = [row("a", "P", "Binding", 0.2), row("b", "P", "Binding", 0.4), row("c", "Q", "Binding", 0.9)]
    rows.append(row("d", "P", "Stability", 0.1))
    table = aggregate(rows).set_index("assay")
    assert table.index.tolist() == ["a", "b", "c", "d", "mean", "mean of selection types"]
    assert table.loc["mean", "spearman"] == pytest.approx(0.4)
    assert table.loc["mean of selection types", "mcc"] == pytest.approx(((0.3 + 0.9) / 2 + 0.1) / 2)
    assert table["num_scored"].iloc[0] == 2
