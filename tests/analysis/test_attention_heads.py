"""Numbers and classes of heads, on matrices whose answers are known."""

import numpy as np
import pandas as pd
import pytest
import torch

from protein_lm.analysis.attention.heads import HeadSums
from tests.conftest import fresh_model

LENGTH = 100
DISTANCE = np.abs(np.arange(LENGTH)[:, None] - np.arange(LENGTH))


def table_of(*matrices: np.ndarray, rows_at_once: int = 7, **model: str) -> pd.DataFrame:
    """The statistics of heads with these matrices, walked over some rows at a time."""
    stacked = torch.from_numpy(np.stack(matrices)).float()
    sums = HeadSums(1, len(matrices), stacked.shape[1])
    for start in range(0, stacked.shape[1], rows_at_once):
        sums.add(0, start, stacked[:, start : start + rows_at_once])
    return sums.table(fresh_model(objective="masked", **model), layers=[1], heads=range(1, len(matrices) + 1))


def test_by_hand() -> None:
    length = 20
    uniform, previous = np.full((length, length), 1 / length), np.eye(length, k=-1)
    previous[0, 0] = 1
    vertical = np.zeros((length, length))
    vertical[:, 4] = 1
    table = table_of(uniform, previous, vertical)
    assert table["head"].tolist() == [1, 2, 3] and table["layer"].tolist() == [1, 1, 1]
    assert table["mean_entropy_nats"].tolist() == pytest.approx([np.log(20), 0, 0], abs=1e-6)
    assert table["max_column_share"].tolist() == pytest.approx([1 / 20, 2 / 20, 1])
    assert table["vertical_share"].tolist() == pytest.approx([1 / 20, 2 / 20, 1])
    assert table["mean_distance"].tolist()[:2] == pytest.approx([table["even_distance"][0], 19 / 20])
    assert table["local_share"].tolist()[1:] == pytest.approx([1, 7 / 20])
    assert table["head_class"].tolist() == ["diffuse", "local", "vertical"]


def test_classes_by_distance_and_sign() -> None:
    def rows(weights: np.ndarray) -> np.ndarray:
        return weights / weights.sum(1, keepdims=True)

    blocks = rows((np.arange(LENGTH)[:, None] // 20 == np.arange(LENGTH) // 20).astype(float))
    far = rows((DISTANCE > 40).astype(float) + 1e-9)
    middle = rows(((DISTANCE > 15) & (DISTANCE < 40)).astype(float) + 1e-9)
    assert table_of(blocks, far, middle)["head_class"].tolist() == ["block", "distant", "mixed"]
    signed = table_of(blocks, attention="linformer")
    assert signed["head_class"].tolist() == ["signed"] and np.isnan(signed["mean_entropy_nats"][0])


@pytest.mark.parametrize("rows_at_once", [1, 7, 100])
def test_sums_of_columns_and_diagonals(rows_at_once) -> None:
    matrix = np.random.default_rng(0).random((2, LENGTH, LENGTH)).astype(np.float32)
    sums = HeadSums(1, 2, LENGTH)
    for start in range(0, LENGTH, rows_at_once):
        sums.add(0, start, torch.from_numpy(matrix[:, start : start + rows_at_once]))
    np.testing.assert_allclose(sums.received[0], matrix.sum(1), rtol=1e-5)
    expected = [[head.diagonal(offset).sum() for offset in range(1 - LENGTH, LENGTH)] for head in matrix]
    np.testing.assert_allclose(sums.by_offset[0], expected, rtol=1e-5)
    table = sums.offset_table(layers=[4], heads=[2, 1])
    assert len(table) == 2 * (2 * LENGTH - 1) and set(table["layer"]) == {4}
    row = table[(table["head"] == 2) & (table["offset"] == -5)]
    assert row["mean_weight"].item() == pytest.approx(matrix[0].diagonal(-5).mean(), rel=1e-5)
    received = sums.received_table(["x"] * LENGTH, layers=[4], heads=[2, 1])
    assert received.columns.tolist() == ["layer", "head", "residue", "token", "received"]
