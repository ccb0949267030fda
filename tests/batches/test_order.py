"""The shuffle is a permutation, whatever its size and key, and looks like chance."""

import numpy as np
import pytest

from protein_lm.batches.order import round_keys, shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("key", [(0, 0), (0, 1), (2**64 - 1, 7)])
def test_every_number_once(size, key) -> None:
    assert sorted(shuffled(np.arange(size), size, *key).tolist()) == list(range(size))


def test_parts_are_those_of_the_whole() -> None:
    whole = shuffled(np.arange(1000), 1000, 5, 2)
    assert (
        np.concatenate([shuffled(part, 1000, 5, 2) for part in np.split(np.arange(1000), 10)]).tolist()
        == whole.tolist()
    )


def test_a_large_order_has_no_repeats_and_no_pattern() -> None:
    size = 10**9
    drawn = shuffled(np.arange(200_000), size, 0, 3)
    assert np.unique(drawn).size == drawn.size and drawn.min() >= 0 and drawn.max() < size
    counts = np.histogram(drawn, bins=100, range=(0, size))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 150  # chi-square, 99 degrees of freedom: 0.1 % of draws are over 149
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.01


def test_orders_of_keys_have_nothing_in_common() -> None:
    orders = [shuffled(np.arange(10_000), 10_000, *key) for key in ((0, 0), (0, 1), (1, 0))]
    for number, order in enumerate(orders):
        for other in orders[number + 1 :]:
            assert (order == other).sum() < 10  # 1 expected
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.05
    assert len(set(round_keys(1000, 1, 2).tolist())) == 1000
