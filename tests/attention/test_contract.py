"""The contract that every kind of attention keeps. A new kind is tested by being in `ATTENTION_KINDS`."""

import pytest
import torch

from protein_lm.attention.kinds.interface import AttentionOperation, LayerShape
from protein_lm.attention.kinds.linear import LinearOperation
from protein_lm.attention.kinds.table import ATTENTION_KINDS, build_attention, with_defaults
from protein_lm.attention.operations import block_attention as blocks
from protein_lm.attention.operations import linear
from protein_lm.attention.packing import Packing
from protein_lm.attention.rows import Rows

HEAD_WIDTH, NUM_FEATURES, BATCH, HEADS = 16, 24, 2, 3
OPTIONS = {
    "num_features": NUM_FEATURES,
    "window": 30,
    "num_global_tokens": 2,
    "stride": 2,
    "num_strides": 1,
    "num_random_blocks": 1,
    "num_buckets": 4,
    "num_landmarks": 12,
}
"""Options that suit short sequences, for each kind that has them."""
FORMS = [
    (kind, causal)
    for kind, options in ATTENTION_KINDS.items()
    for causal in (True, False)
    if options.has_causal_form or not causal
]
kinds = pytest.mark.parametrize(
    ("kind", "causal"), FORMS, ids=[f"{kind}-{'causal' if causal else 'bidirectional'}" for kind, causal in FORMS]
)
causal_kinds = pytest.mark.parametrize("kind", [kind for kind, causal in FORMS if causal])
STREAMED = {"performer-relu", "performer-softmax", "performer-optimal", "aoglu-3", "hedgehog", "cosformer"}
"""Kinds that are also tested with pieces of other sizes: with gradients of their own, with parameters, with positions."""
FORMS_AND_SEGMENTS = [
    (*form, segment) for form in FORMS for segment in (5_000, 40_000, 2**21) if form[0] in STREAMED or segment == 2**21
]
kinds_and_segments = pytest.mark.parametrize(("kind", "causal", "segment_bytes"), FORMS_AND_SEGMENTS)
SIGNED = {"performer-gelu", "performer-cos", "performer-tanh", "performer-identity"}
"""Normalizers of features that change sign may cancel: in float32 nothing can be said of such a row."""


def build(kind: str, causal: bool, dtype: torch.dtype = torch.float32) -> AttentionOperation:
    torch.manual_seed(0)
    layer = LayerShape(num_heads=HEADS, head_width=HEAD_WIDTH, causal=causal, max_length=512)
    return build_attention(with_defaults(kind, OPTIONS), layer).to(torch.float64 if kind in SIGNED else dtype)


def draw(
    operation: AttentionOperation,
    length: int,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    batch: int = BATCH,
) -> list[torch.Tensor]:
    """Query, key and value for an operation; in float64 if its features change sign."""
    generator = torch.Generator().manual_seed(length)
    shape = batch, HEADS * operation.heads_per_output, length, HEAD_WIDTH
    is_signed = isinstance(operation, LinearOperation) and not operation.weights_are_positive
    dtype = torch.float64 if is_signed else dtype
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def twin(operation: AttentionOperation, query, key, value, rows: Rows) -> torch.Tensor:
    """The output by way of the matrix."""
    matrix = operation.matrix(query, key, rows)
    if operation.heads_per_output == 1:
        return matrix @ value
    ordinary, of_globals = value.chunk(2, dim=1)
    positions = torch.arange(value.shape[2]) if rows.packing is None else torch.from_numpy(rows.packing.positions)
    is_global = positions < OPTIONS["num_global_tokens"]
    return torch.where(is_global[:, None], matrix @ of_globals, matrix @ ordinary)


def gradients(operation: AttentionOperation, output: torch.Tensor, tensors: list[torch.Tensor]) -> tuple:
    """Of the inputs that the operation looks at, and of its parameters."""
    inputs = [tensors[0], tensors[2]] if operation.shares_query_and_key else tensors
    return torch.autograd.grad(output, [*inputs, *operation.parameters()])


@kinds_and_segments
@pytest.mark.parametrize("length", [1, 63, 100, 257])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_its_textbook_twin(kind, causal, length, segment_bytes, padded, monkeypatch) -> None:
    monkeypatch.setattr(linear, "SEGMENT_BYTES", segment_bytes)
    monkeypatch.setattr(blocks, "SCORES_BYTES", 300_000)
    operation = build(kind, causal, torch.float64)
    tensors = [tensor.requires_grad_() for tensor in draw(operation, length, torch.float64)]
    weight = torch.randn(
        BATCH, HEADS, length, HEAD_WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    valid_mask = None
    if padded:
        valid_mask = torch.arange(length) < torch.tensor([[length], [max(1, length // 2)]])
        weight = weight * valid_mask[:, None, :, None]
    fast = operation(*tensors, Rows(valid_mask))
    slow = twin(operation, *tensors, Rows(valid_mask))
    torch.testing.assert_close(fast * (weight != 0), slow * (weight != 0), rtol=1e-10, atol=1e-10)
    fast_gradients = gradients(operation, (fast * weight).sum(), tensors)
    slow_gradients = gradients(operation, (slow * weight).sum(), tensors)
    torch.testing.assert_close(fast_gradients, slow_gradients, rtol=1e-9, atol=1e-7 if kind in SIGNED else 1e-9)


@kinds
@pytest.mark.parametrize("length", [1, 5, 150])
def test_some_rows_of_the_matrix_are_those_of_the_whole(kind, causal, length) -> None:
    operation = build(kind, causal, torch.float64)
    query, key, _ = draw(operation, length, torch.float64)
    whole = operation.matrix(query, key)
    rows = operation.matrix_rows(query, key)
    for start in range(0, length, 67):
        span = slice(start, min(start + 67, length))
        part = rows(span)
        seen = span.stop if causal else length
        assert part.shape == (BATCH, HEADS, span.stop - start, seen)
        torch.testing.assert_close(part, whole[:, :, span, :seen], rtol=1e-10, atol=1e-12)


@kinds
def test_rows_of_the_matrix_sum_to_one_over_visible_keys(kind, causal) -> None:
    operation = build(kind, causal)
    query, key, _ = draw(operation, 70)
    valid_mask = torch.arange(70) < torch.tensor([[70], [33]])
    matrix = operation.matrix(query, key, Rows(valid_mask))
    assert (matrix[1, :, :, 33:] == 0).all()
    if operation.weights_are_positive:
        assert (matrix >= 0).all()
        real = valid_mask[:, None].expand(-1, HEADS, -1)
        torch.testing.assert_close(matrix.sum(-1)[real], torch.ones(BATCH, HEADS, 70)[real])
    if causal:
        assert (matrix.triu(1) == 0).all()


@kinds
def test_padding_changes_nothing(kind, causal) -> None:
    operation = build(kind, causal)
    query, key, value = draw(operation, 150)
    alone = operation(query[:, :, :90], key[:, :, :90], value[:, :, :90])
    valid_mask = (torch.arange(150) < 90).expand(BATCH, -1)
    padded = operation(query, key, value, Rows(valid_mask))
    torch.testing.assert_close(padded[:, :, :90], alone, rtol=1e-5, atol=1e-6)


@kinds
def test_batch_changes_nothing(kind, causal) -> None:
    operation = build(kind, causal)
    query, key, value = draw(operation, 130, batch=5)
    together = operation(query, key, value)
    for row in range(5):
        one = slice(row, row + 1)
        alone = operation(query[one], key[one], value[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-6)


LENGTHS = [1, 40, 130, 32, 3, 64, 5, 5, 1]


@kinds_and_segments
def test_packed_equals_its_textbook_twin(kind, causal, segment_bytes, monkeypatch) -> None:
    monkeypatch.setattr(linear, "SEGMENT_BYTES", segment_bytes)
    monkeypatch.setattr(blocks, "SCORES_BYTES", 300_000)
    operation = build(kind, causal, torch.float64)
    packing = Packing.of_lengths(LENGTHS)
    tensors = [tensor.requires_grad_() for tensor in draw(operation, packing.length, torch.float64, batch=1)]
    fast = operation(*tensors, Rows(packing=packing))
    slow = twin(operation, *tensors, Rows(packing=packing))
    weight = torch.randn(fast.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    fast_gradients = gradients(operation, (fast * weight).sum(), tensors)
    slow_gradients = gradients(operation, (slow * weight).sum(), tensors)
    torch.testing.assert_close(fast_gradients, slow_gradients, rtol=1e-9, atol=1e-7 if kind in SIGNED else 1e-9)


@kinds
def test_packing_changes_nothing(kind, causal) -> None:
    operation = build(kind, causal)
    packing = Packing.of_lengths(LENGTHS)
    tensors = draw(operation, packing.length, batch=1)
    packed = operation(*tensors, Rows(packing=packing))
    for part, *alone in zip(packed.split(LENGTHS, 2), *(tensor.split(LENGTHS, 2) for tensor in tensors), strict=True):
        torch.testing.assert_close(part, operation(*alone), rtol=1e-5, atol=1e-6)


@causal_kinds
@pytest.mark.parametrize("factor", [1.0, 10.0])
@pytest.mark.parametrize("changed", [1, 64, 99, 128])
def test_the_future_does_not_change_the_past(kind, factor, changed) -> None:
    operation = build(kind, causal=True)
    query, key, value = draw(operation, 129)
    before = operation(query, key, value)
    generator = torch.Generator().manual_seed(7)
    for tensor in (query, key, value):
        noise = torch.randn(tensor[:, :, changed:].shape, generator=generator, dtype=tensor.dtype)
        tensor[:, :, changed:] = factor * noise
    after = operation(query, key, value)
    # The future decides where in a matrix product a token of a hash lies, and so the order of its sums, but nothing else.
    tolerance = 1e-6 if kind == "lsh" else 0
    torch.testing.assert_close(after[:, :, :changed], before[:, :, :changed], rtol=tolerance, atol=tolerance)
    assert not torch.equal(after[:, :, changed:], before[:, :, changed:])


@kinds
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_any_norm(kind, causal, scale, dtype) -> None:
    operation = build(kind, causal)
    tensors = [tensor.requires_grad_() for tensor in draw(operation, 200, dtype, scale)]
    output = operation(*tensors)
    assert output.dtype == tensors[2].dtype
    assert output.isfinite().all()
    for gradient in gradients(operation, output.float().sum(), tensors):
        assert gradient.isfinite().all()


@kinds
def test_output_is_a_weighted_mean_of_the_values(kind, causal) -> None:
    operation = build(kind, causal)
    query, key, value = draw(operation, 80, scale=5.0)
    output = operation(query, key, torch.ones_like(value))
    if operation.weights_are_positive:  # else they need not sum to 1
        torch.testing.assert_close(output, torch.ones_like(output), rtol=1e-5, atol=1e-5)


@kinds
def test_bfloat16_stays_near_float32(kind, causal) -> None:
    operation = build(kind, causal)
    tensors = [tensor.bfloat16() for tensor in draw(operation, 300)]
    exact = operation(*(tensor.float() for tensor in tensors))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = operation(*tensors)
    if kind in SIGNED:
        assert rough.dtype == torch.bfloat16
    else:
        assert (rough.float() - exact).norm() / exact.norm() < 0.02


# Decoding is float32, and in float32 nothing can be said of a normalizer that cancels.
@pytest.mark.parametrize("kind", [kind for kind, causal in FORMS if causal and kind not in SIGNED])
@pytest.mark.parametrize("parts", [[257], [1] * 70, [100, 1, 1, 155], [64, 64, 129]])
def test_going_on_from_a_state_equals_one_pass(kind, parts) -> None:
    operation = build(kind, causal=True)
    tensors = draw(operation, sum(parts))
    state = operation.new_state(BATCH, HEADS, HEAD_WIDTH, torch.device("cpu"))
    pieces = zip(*(tensor.split(parts, 2) for tensor in tensors), strict=True)
    with torch.no_grad():
        output = torch.cat([operation.extend(*piece, state) for piece in pieces], dim=2)
        expected = operation(*tensors)
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()


@kinds
def test_bad_inputs_are_refused(kind, causal) -> None:
    operation = build(kind, causal)
    query, key, value = draw(operation, 10)
    if not operation.shares_query_and_key:
        with pytest.raises(ValueError, match=r", 9, 16\).* do not fit: \(B, H, L\) must be the same"):
            operation(query, key[:, :, :9], value)
    with pytest.raises(ValueError, match=r", 0, 16\) .* are empty; no size may be 0"):
        operation(*(tensor[:, :, :0] for tensor in (query, key, value)))
    mask = torch.ones(BATCH, 10, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="row 1 of valid_mask has no real token; leave the row out"):
        operation(query, key, value, Rows(mask))
    with pytest.raises(ValueError, match=r"valid_mask is torch.float32 \(2, 10\), expected boolean \(2, 10\)"):
        operation(query, key, value, Rows(mask.float()))
    with pytest.raises(ValueError, match=r"the packing of 10 tokens does not fit .*: packed sequences lie in one row"):
        operation(query, key, value, Rows(packing=Packing.of_lengths([4, 6])))
    with pytest.raises(ValueError, match="give valid_mask or packing, not both"):
        operation(query[:1], key[:1], value[:1], Rows(mask[:1], Packing.of_lengths([4, 6])))


@pytest.mark.parametrize("kind", [kind for kind in ATTENTION_KINDS if kind.startswith("performer")])
def test_a_projection_of_another_width_is_refused(kind) -> None:
    operation = build(kind, causal=True)
    tensors = [tensor[..., :8] for tensor in draw(operation, 10)]
    with pytest.raises(ValueError, match="queries and keys are 8 wide; this projection is for 16"):
        operation(*tensors)


@pytest.mark.parametrize(
    ("boundaries", "fault"),
    [
        ([0, 4, 9], "boundaries run from 0 to 9; they must run from 0 to the 10 tokens"),
        ([1, 4, 10], "boundaries run from 1 to 10"),
        ([0, 4, 4, 10], "boundaries must rise: 4 is followed by 4"),
        ([0], "hold no sequence"),
    ],
)
def test_boundaries_that_do_not_add_up_are_refused(boundaries, fault) -> None:
    with pytest.raises(ValueError, match=fault):
        Packing(boundaries, 10)
