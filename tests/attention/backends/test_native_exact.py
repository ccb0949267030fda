"""Softmax attention and rotary positions by the compiled kernels, against the torch path, on every level of this machine."""

import pytest
import torch

from protein_lm.attention.backends import native_exact, native_rotary
from protein_lm.attention.backends.interface import ExactInputs, RotaryInputs
from protein_lm.attention.backends.native_linear import rows_of_sequences
from protein_lm.attention.dispatch import exact_attention, rotate, rotate_parts
from protein_lm.attention.packing import Packing
from protein_lm.model.embedding import RotaryPositions
from protein_lm.native import library
from tests.attention.backends.test_native_linear import HEADS, LENGTHS, draw, has_compiler

pytestmark = pytest.mark.skipif(not has_compiler, reason="no C++ compiler")
both_ways = pytest.mark.parametrize("causal", [True, False])
types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def on_torch(function, *tensors, **settings) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, library.OFF)
        return function(*tensors, **settings)


def takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    return native_exact.takes(ExactInputs(query, key, value, causal=False))


def assert_as_exact_as_torch(tensors, **settings) -> None:
    """Errors against float64, where a mask has real tokens, are at most those of torch and a half, or rounding."""
    assert takes(*tensors)
    ours, theirs = exact_attention(*tensors, **settings), on_torch(exact_attention, *tensors, **settings)
    truth = on_torch(exact_attention, *(tensor.double() for tensor in tensors), **settings)
    assert ours.dtype == tensors[0].dtype and ours.shape == truth.shape
    seen = settings.get("valid_mask")
    weight = 1.0 if seen is None else seen[:, None, :, None].double()
    error, allowed = ((each.double() - truth) * weight for each in (ours, theirs))
    rounding = 1e-5 if ours.dtype == torch.float32 else 4e-3
    assert error.norm() <= 1.5 * allowed.norm() + rounding * (truth * weight).norm()
    assert error.abs().max() <= 3 * allowed.abs().max() + rounding * truth.abs().max()


@both_ways
@types
@pytest.mark.parametrize("length", [1, 37, 511, 513, 1100])
@pytest.mark.parametrize("is_padded", [False, True])
def test_equals_torch_and_float64(level, causal, dtype, length, is_padded) -> None:
    valid_mask = None
    if is_padded:
        valid_mask = torch.arange(length) < torch.tensor([[length], [max(1, length // 2)]])
        valid_mask[0, length // 3] = length < 3
    assert_as_exact_as_torch(draw(length, 24, dtype=dtype), causal=causal, valid_mask=valid_mask)


@both_ways
@types
@pytest.mark.parametrize(("width", "of_values"), [(1, 1), (5, 7), (16, 16), (20, 64), (64, 20), (128, 128)])
def test_any_width_of_heads(best_level, causal, dtype, width, of_values) -> None:
    query, key, _ = draw(150, width, dtype=dtype)
    assert_as_exact_as_torch([query, key, draw(151, of_values, dtype=dtype)[2][:, :, :150]], causal=causal)


@both_ways
@types
@pytest.mark.parametrize("width", [24, 64])
def test_what_surrounds_the_matrix_units(emulated_tiles, causal, dtype, width) -> None:
    assert_as_exact_as_torch(draw(600, width, dtype=dtype), causal=causal)


@both_ways
@types
def test_packed_equals_rows_alone(level, causal, dtype) -> None:
    packing = Packing.of_lengths(LENGTHS)
    tensors = draw(packing.length, 24, batch=1, dtype=dtype)
    packed = exact_attention(*tensors, causal=causal, packing=packing)
    for part, *alone in zip(packed.split(LENGTHS, 2), *(tensor.split(LENGTHS, 2) for tensor in tensors), strict=True):
        assert torch.equal(part, exact_attention(*alone, causal=causal))


@both_ways
def test_batch_padding_and_threads_change_nothing(level, causal) -> None:
    tensors, threads = draw(600, 24, batch=3), torch.get_num_threads()
    whole = exact_attention(*tensors, causal=causal)
    for row in range(3):
        assert torch.equal(
            exact_attention(*(each[row : row + 1] for each in tensors), causal=causal), whole[row : row + 1]
        )
    alone = exact_attention(*(tensor[:, :, :90] for tensor in tensors), causal=causal)
    padded = exact_attention(*tensors, causal=causal, valid_mask=(torch.arange(600) < 90).expand(3, -1))
    assert torch.equal(padded[:, :, :90], alone)
    try:
        torch.set_num_threads(1 if threads > 1 else 3)
        assert torch.equal(exact_attention(*tensors, causal=causal), whole)
    finally:
        torch.set_num_threads(threads)


@types
@pytest.mark.parametrize("changed", [1, 40, 511, 512])
def test_the_future_does_not_change_the_past(level, dtype, changed) -> None:
    tensors = draw(530, 24, dtype=dtype)
    before = exact_attention(*tensors, causal=True)
    for tensor in tensors:
        tensor[:, :, changed:] = 77.0
    assert torch.equal(exact_attention(*tensors, causal=True)[:, :, :changed], before[:, :, :changed])


@both_ways
def test_what_is_padded_is_not_seen_even_if_it_is_not_finite(level, causal) -> None:
    tensors = draw(60, 24)
    valid_mask = (torch.arange(60) < 50).expand(2, -1)
    expected = exact_attention(*tensors, causal=causal, valid_mask=valid_mask)
    for tensor in tensors[1:]:
        tensor[:, :, 50:] = torch.nan
    found = exact_attention(*tensors, causal=causal, valid_mask=valid_mask)
    assert torch.equal(found[:, :, :50], expected[:, :, :50])


@types
@pytest.mark.parametrize("place", [0, 1, 2], ids=["query", "key", "value"])
def test_what_is_not_a_number_stays_so_where_it_is_seen(level, dtype, place) -> None:
    """Otherwise nobody would notice a model that diverged."""
    tensors = draw(60, 24, dtype=dtype)
    tensors[place][0, 0, 40] = torch.nan
    output = exact_attention(*tensors, causal=False)
    is_lost = output.isnan().any(-1)
    assert is_lost[0, 0].sum() == (1 if place == 0 else 60) and is_lost[0, 0, 40]
    assert not is_lost[1:].any() and not is_lost[:, 1:].any()


@both_ways
@types
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_finite_at_any_norm_and_a_weighted_mean(level, causal, dtype, scale) -> None:
    query, key, value = draw(300, 24, dtype=dtype, scale=scale)
    assert exact_attention(query, key, value, causal=causal).isfinite().all()
    output = exact_attention(query, key, torch.ones_like(value), causal=causal).float()
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(output, torch.ones_like(output), rtol=tolerance, atol=tolerance)


def test_autocast_takes_bfloat16_and_gradients_take_torch(best_level) -> None:
    tensors = draw(100, 24)
    with torch.autocast("cpu", torch.bfloat16):
        rough = exact_attention(*tensors, causal=False)
        assert rough.dtype == on_torch(exact_attention, *tensors, causal=False).dtype == torch.bfloat16
    exact = exact_attention(*tensors, causal=False)
    assert (rough.float() - exact).norm() < 0.02 * exact.norm()
    tensors[0].requires_grad_()
    assert not takes(*tensors)
    assert torch.autograd.grad(exact_attention(*tensors, causal=False).sum(), tensors[:1])[0].isfinite().all()
    with torch.no_grad():
        assert takes(*tensors)
    assert not takes(*(tensor.double() for tensor in draw(3)))
    assert not takes(*draw(3, 160))


@types
@pytest.mark.parametrize("width", [2, 8, 24, 32, 48, 128])
def test_rotary_positions_equal_torch(level, width, dtype) -> None:
    projected = torch.randn(2, 37, 3, HEADS, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    heads = projected.permute(2, 0, 3, 1, 4)[:2]
    tables = RotaryPositions(width).tables(torch.arange(37))
    with torch.no_grad():
        assert native_rotary.takes(RotaryInputs(heads, *tables))
        found, expected = rotate(heads, *tables), on_torch(rotate, heads, *tables)
    assert found.shape == heads.shape and found.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@types
@pytest.mark.parametrize("num_turned", [1, 2])
def test_rotary_positions_of_a_projection_equal_torch(level, num_turned, dtype) -> None:
    """Outputs and the gradient of the projection."""
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, 37, num_turned + 1, HEADS, 32, generator=generator).to(dtype).requires_grad_()
    weights = [torch.randn(2, HEADS, 37, 32, generator=generator).to(dtype) for _ in range(num_turned + 1)]
    tables = RotaryPositions(32).tables(torch.arange(37))
    assert native_rotary.takes_parts(projected.permute(2, 0, 3, 1, 4), tables[0])

    def results() -> list[torch.Tensor]:
        parts = rotate_parts(projected.permute(2, 0, 3, 1, 4), num_turned, *tables)
        return [*parts, *torch.autograd.grad(parts, projected, weights)]

    tolerance = 2e-6 if dtype == torch.float32 else 1e-2
    for found, expected in zip(results(), on_torch(results), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore")
def test_the_operators_keep_the_rules_of_torch(best_level) -> None:
    tensors = draw(50, 24)
    torch.library.opcheck(native_exact._forward, (*tensors, rows_of_sequences(2, 50, None), None, True))
    heads = torch.stack(tensors[:2])
    torch.library.opcheck(native_rotary._rotate, (heads, *RotaryPositions(24).tables(torch.arange(50))))
