"""Tiles and links are what the whole matrix says, however few rows pass by at a time."""

import numpy as np
import pytest
import torch

from protein_lm.analysis.attention.forms import Region
from protein_lm.analysis.attention.tiles import ProminentTiles, StrongestLinks

SIZE = 4
REGIONS = [Region(slice(0, 21), slice(0, 21)), Region(slice(2, 17), slice(5, 16))]


@pytest.fixture
def weights() -> np.ndarray:
    """Two heads of a causal matrix in which every weight is another."""
    generator = np.random.default_rng(0)
    values = generator.permutation(2 * 21 * 21).reshape(2, 21, 21).astype(np.float32) + 1
    return np.tril(values)


def feed(form, weights: np.ndarray, rows: int) -> None:
    """Blocks that end where their last row ends, as those of causal kinds do."""
    for place in range(2):
        for start in range(0, 21, rows):
            stop = min(start + rows, 21)
            form.add(place, start, torch.from_numpy(weights[:, start:stop, :stop]))


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("rows", [1, 3, 7, 21])
def test_tiles_that_stand_out(weights, region, rows) -> None:
    form = ProminentTiles(region, SIZE, 3, 2, 2)
    feed(form, weights, rows)
    cut = weights[:, region.rows, region.columns]
    down, across = (-(-size // SIZE) for size in region.shape)
    for head in range(2):
        prominences = {}
        for row in range(down):
            for column in range(across):
                tile = cut[head, SIZE * row : SIZE * (row + 1), SIZE * column : SIZE * (column + 1)]
                prominences[row, column] = (tile - tile.mean(0)).max()
        wanted = sorted(prominences, key=prominences.__getitem__)[-3:]
        for kept in form.kept[0][head], form.kept[1][head]:
            assert {(tile.row, tile.column) for tile in kept} == set(wanted)
            for tile in kept:
                assert tile.prominence == pytest.approx(prominences[tile.row, tile.column])
                padded = np.pad(cut[head], [(0, SIZE), (0, SIZE)])
                place = (
                    slice(SIZE * tile.row, SIZE * (tile.row + 1)),
                    slice(SIZE * tile.column, SIZE * (tile.column + 1)),
                )
                np.testing.assert_array_equal(tile.weights, padded[place])


def test_a_column_that_all_attend_to_does_not_stand_out() -> None:
    matrix = torch.full((1, 16, 16), 0.001)
    matrix[:, :, 2] = 0.9
    matrix[:, 9, 13] = 0.05
    form = ProminentTiles(Region(slice(0, 16), slice(0, 16)), SIZE, 1, 1, 1)
    form.add(0, 0, matrix)
    assert [(tile.row, tile.column) for tile in form.kept[0][0]] == [(2, 3)]


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("rows", [1, 6, 21])
def test_strongest_links(weights, region, rows) -> None:
    form = StrongestLinks(region, 10, 3, 2, 2)
    feed(form, weights, rows)
    for head in range(2):
        pairs = [
            (-weights[head, row, column], row, column)
            for row in range(region.rows.start, region.rows.stop)
            for column in range(region.columns.start, region.columns.stop)
            if abs(row - column) >= 3 and weights[head, row, column] > 0
        ]
        for place in range(2):
            links = form.links(place, head)
            found = list(zip(-links.weights, links.attending, links.attended, strict=True))
            assert found == sorted(pairs)[:10]


def test_a_region_without_distant_pairs_has_no_links() -> None:
    form = StrongestLinks(Region(slice(1, 4), slice(1, 4)), 10, 6, 1, 1)
    form.add(0, 0, torch.ones(1, 5, 5))
    assert form.links(0, 0).weights.size == 0
