"""Patterns, hashes and landmarks: what each sees, by hand."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from protein_lm.attention.kinds.low_rank import (
    LengthProjections,
    linformer_attention,
    nystrom_attention,
    pseudo_inverse,
)
from protein_lm.attention.operations import block_attention as blocks
from protein_lm.attention.operations.lsh import Hash, lsh_attention_matrix
from protein_lm.attention.operations.sparse import sparse_attention
from protein_lm.attention.operations.sparse_patterns import Pattern
from protein_lm.attention.packing import Packing

CPU = torch.device("cpu")


def seen(pattern: Pattern, length: int, query: int, *, causal: bool) -> list[int]:
    return pattern.visible(length, slice(0, length), causal=causal, device=CPU)[query].nonzero()[:, 0].tolist()


def test_a_window() -> None:
    assert seen(Pattern(window=4), 20, 10, causal=False) == [8, 9, 10, 11, 12]
    assert seen(Pattern(window=4), 20, 10, causal=True) == [7, 8, 9, 10]
    assert seen(Pattern(window=100), 20, 10, causal=False) == list(range(20))
    with pytest.raises(ValueError, match="window 0 and block 64 must be at least 1"):
        Pattern(window=0)


def test_global_tokens_are_symmetric_and_never_ahead() -> None:
    pattern = Pattern(window=2, num_global_tokens=2)
    assert seen(pattern, 10, 7, causal=False) == [0, 1, 6, 7, 8]
    assert seen(pattern, 10, 1, causal=False) == list(range(10))
    assert seen(pattern, 10, 7, causal=True) == [0, 1, 6, 7]
    assert seen(pattern, 10, 0, causal=True) == [0]


def test_strides_and_random_blocks_are_whole_blocks() -> None:
    strided = Pattern(window=1, stride=3, num_strides=2, block=4)
    assert seen(strided, 40, 21, causal=False) == [8, 9, 10, 11, 21, 32, 33, 34, 35]
    assert seen(strided, 40, 33, causal=True) == [8, 9, 10, 11, 20, 21, 22, 23, 33]
    drawn = Pattern(window=1, num_random_blocks=2, block=4)
    for query in (9, 21, 39):
        others = set(seen(drawn, 40, query, causal=False)) - {query}
        assert {place // 4 for place in others} <= set(range(10)) and 3 <= len(others) <= 8
        assert all(place < query for place in set(seen(drawn, 40, query, causal=True)) - {query})
    other_layer = Pattern(window=1, num_random_blocks=2, block=4, seed=1)
    assert seen(drawn, 400, 205, causal=False) != seen(other_layer, 400, 205, causal=False)


def test_a_window_as_large_as_the_sequence_is_exact_attention() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 150, 16)
    for causal in (True, False):
        found = sparse_attention(query, key, value, Pattern(window=300), causal=causal)
        torch.testing.assert_close(found, scaled_dot_product_attention(query, key, value, is_causal=causal))


def test_memory_does_not_see_the_square_of_the_length(monkeypatch) -> None:
    """No tensor of the sparse operation is as large as a matrix of all pairs."""
    largest = 0
    original = torch.bmm

    def watch(*arguments, **keywords):
        nonlocal largest
        result = original(*arguments, **keywords)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(blocks.torch, "bmm", watch)
    tensors = [torch.randn(1, 1, 8192, 16, requires_grad=True) for _ in range(3)]
    sparse_attention(*tensors, Pattern(window=128), causal=False).sum().backward()
    assert 0 < largest < 8192 * 8192 / 20


def test_nobody_looks_at_itself_unless_alone() -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 2, 60, 16)
    hashing = Hash(2, 16, num_buckets=4, num_rounds=1)
    buckets = hashing(query)
    matrix = lsh_attention_matrix(query, buckets, window=8, causal=True)
    for head in range(2):
        for place in range(60):
            earlier = [j for j in range(place) if buckets[0, head, 0, j] == buckets[0, head, 0, place]]
            expected = earlier[-7:] if earlier else [place]
            assert matrix[0, head, place].nonzero()[:, 0].tolist() == expected


def test_hashes_gather_what_points_the_same_way() -> None:
    torch.manual_seed(0)
    hashing = Hash(1, 32, num_buckets=16, num_rounds=8)
    query = torch.randn(1, 1, 400, 32)
    near, far = hashing(query + 0.1 * torch.randn_like(query)), hashing(torch.randn_like(query))
    own = hashing(query)
    assert (own == near).float().mean() > 0.7 > 0.2 > (own == far).float().mean()
    assert torch.equal(own, hashing(3 * query))  # length does not count
    with pytest.raises(ValueError, match="7 buckets in 1 rounds: buckets come in pairs"):
        Hash(1, 8, num_buckets=7, num_rounds=1)


def test_linformer_is_its_formula() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 30, 16)
    projections = LengthProjections(8, 40)
    keys, values = projections.of_keys[:, :30] @ key, projections.of_values[:, :30] @ value
    expected = torch.softmax(query @ keys.mT / 4, -1) @ values
    torch.testing.assert_close(linformer_attention(query, key, value, projections), expected)
    with pytest.raises(ValueError, match="41 tokens; these projections are for 40"):
        linformer_attention(*torch.randn(3, 1, 2, 41, 16), projections)


def test_nystrom_with_enough_landmarks_is_exact_and_with_fewer_is_near() -> None:
    torch.manual_seed(0)
    query, key, value = 0.5 * torch.randn(3, 1, 2, 60, 16)
    exact = scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(nystrom_attention(query, key, value, 60), exact)
    uniform = value.mean(2, keepdim=True).expand_as(exact)
    near = nystrom_attention(query, key, value, 30)
    assert (near - exact).norm() < (uniform - exact).norm()


def test_the_pseudo_inverse() -> None:
    torch.manual_seed(0)
    matrix = torch.softmax(torch.randn(2, 12, 12, dtype=torch.float64) + 6 * torch.eye(12), dim=-1)
    torch.testing.assert_close(
        pseudo_inverse(matrix) @ matrix, torch.eye(12).double().expand(2, -1, -1), rtol=0, atol=1e-3
    )


def test_a_pattern_moves_with_the_sequence() -> None:
    """Random blocks and strides are those of the sequence, wherever it lies in a row."""
    torch.manual_seed(0)
    pattern = Pattern(window=6, stride=2, num_strides=1, num_random_blocks=2, num_global_tokens=1, block=8)
    parts = [torch.randn(3, 1, 2, length, 16) for length in (13, 90, 41)]
    together = sparse_attention(
        *torch.cat(parts, dim=3), pattern, causal=False, packing=Packing.of_lengths([13, 90, 41])
    )
    alone = [sparse_attention(*part, pattern, causal=False) for part in parts]
    torch.testing.assert_close(together, torch.cat(alone, dim=2))
