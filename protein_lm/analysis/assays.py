"""Agreement of scores of variants with measurements, as ProteinGym defines it.

Source: `proteingym/performance_DMS_benchmarks.py` of OATML-Markslab/ProteinGym (NeurIPS 2023). Of equal scores, the one that
comes first in the table ranks first in the NDCG. ProteinGym's order of these depends on the machine.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from protein_lm.io.variants.measurements import GROUPS, Measurements, Numbers

MEASURES = ("spearman", "ndcg", "auc", "mcc", "top_recall")
TOP_PERCENT = 10


def agreement_with(scores: Numbers, measurements: Measurements) -> dict[str, float]:
    """Compute each of `MEASURES` over the rows that have a score and a measurement; NaN if it is not defined."""
    measured = np.isfinite(scores) & np.isfinite(measurements.values)
    scores, values, is_fit = scores[measured], measurements.values[measured], measurements.is_fit[measured]
    if not scores.size:
        return dict.fromkeys(MEASURES, np.nan)
    named = np.isfinite(is_fit)
    return {
        "spearman": spearman(scores, values),
        "ndcg": ndcg(scores, values),
        "auc": auc(scores[named], is_fit[named] > 0),
        "mcc": mcc(scores[named] >= np.median(scores), is_fit[named] > 0),
        "top_recall": top_recall(scores, values),
    }


def spearman(scores: Numbers, values: Numbers) -> float:
    """Return the correlation of the ranks; NaN if scores or values are all equal."""
    return float(spearmanr(values, scores)[0]) if np.ptp(values) and np.ptp(scores) else np.nan  # type: ignore[arg-type]


def ndcg(scores: Numbers, values: Numbers) -> float:
    """Return the normalized discounted cumulative gain of the best tenth by score. Gains are the values scaled to 0…1.

    It is 0 if a tenth is less than one variant, and NaN if the values are all equal.

    >>> round(ndcg(np.arange(20.0), np.arange(20.0)), 6)
    1.0
    """
    num_top = int(np.floor(scores.size * (TOP_PERCENT / 100)))
    if not num_top or not np.ptp(values):
        return np.nan if num_top else 0.0
    gains = (values - values.min()) / np.ptp(values)
    discounts = 1 / np.log2(np.arange(2, num_top + 2))
    reached, ideal = (gains[np.argsort(-order, kind="stable")[:num_top]] @ discounts for order in (scores, gains))
    return float(reached / ideal) if reached else 0.0


def auc(scores: Numbers, is_fit: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve; NaN if all variants are fit, or none is."""
    return float(roc_auc_score(is_fit, scores)) if is_fit.any() and not is_fit.all() else np.nan


def mcc(is_high: NDArray[np.bool_], is_fit: NDArray[np.bool_]) -> float:
    """Return the Matthews correlation of high scores with being fit; 0 if either is constant."""
    if not is_high.size:
        return np.nan
    if is_high.all() == is_high.any() or is_fit.all() == is_fit.any():
        return 0.0
    return float(matthews_corrcoef(is_fit, is_high))


def top_recall(scores: Numbers, values: Numbers) -> float:
    """Return the share of the top variants by value that are also top by score; top means at or above the 90th percentile.

    All values equal to the percentile count (ProteinGym since January 2024). The share of an empty top is 0.
    """
    is_top, is_high = (each >= np.percentile(each, 100 - TOP_PERCENT) for each in (values, scores))
    return float((is_top & is_high).sum() / is_top.sum()) if is_top.any() else 0.0


def aggregate(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return a row for each assay, and the mean of each measure over the assays that have it (row `mean`).

    If all rows have `UniProt_ID` and `coarse_selection_type`, ProteinGym's own average follows (row `mean of selection
    types`). It averages over the assays of a protein and selection type, then over the proteins of a type, then over types.
    """
    table = pd.DataFrame(list(rows))
    means = {"mean": table[list(MEASURES)].mean()}
    if set(GROUPS) <= set(table):
        by_protein = table.groupby([*GROUPS])[list(MEASURES)].mean()
        means["mean of selection types"] = by_protein.groupby(GROUPS[1]).mean().mean()
    summaries = pd.DataFrame(means).T.rename_axis("assay").reset_index()
    return pd.concat([table, summaries], ignore_index=True).astype({"num_variants": "Int64", "num_scored": "Int64"})


def describe(measures: Mapping[str, float]) -> str:
    """Return the measures as a line of text."""
    names = {"spearman": "Spearman", "ndcg": "NDCG", "auc": "AUC", "mcc": "MCC", "top_recall": "top-10 % recall"}
    return ", ".join(
        f"{name} {'not defined' if np.isnan(measures[key]) else format(measures[key], '.3f')}"
        for key, name in names.items()
    )
