"""Softmax attention by blocks by the compiled kernels, against the torch path and against float64."""

import pytest
import torch

from protein_lm.attention.backends.native_blocks import _backward, _forward, takes
from protein_lm.attention.operations.sparse import sparse_attention
from protein_lm.attention.operations.sparse_patterns import Pattern
from protein_lm.attention.packing import Packing
from protein_lm.native import library
from tests.attention.backends.test_native_linear import has_compiler

pytestmark = pytest.mark.skipif(not has_compiler, reason="no C++ compiler")

PATTERNS = {
    "local": Pattern(window=100),
    "narrow": Pattern(window=40, block=32),
    "global": Pattern(window=64, num_global_tokens=2),
    "bigbird": Pattern(window=64, num_global_tokens=1, num_random_blocks=2),
}
LENGTHS = [200, 64, 1, 65, 130]


def draw(batch: int, length: int, width: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(batch, 3, length, width, generator=generator) for _ in range(3)]


def run(tensors, pattern: Pattern, weight: torch.Tensor, **settings) -> list[torch.Tensor]:
    """Output and gradients."""
    query, key, value = tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    output = sparse_attention(query, key, value, pattern, **settings)
    seen = weight != 0  # what comes out at padding means nothing
    return [output.detach() * seen, *torch.autograd.grad(output, tensors, weight)]


def assert_as_exact_as_torch(tensors, pattern: Pattern, weight: torch.Tensor, **settings) -> None:
    ours = run(tensors, pattern, weight, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, library.OFF)
        theirs = run(tensors, pattern, weight, **settings)
        truths = run([tensor.double() for tensor in tensors], pattern, weight.double(), **settings)
    for name, found, expected, truth in zip("oqkv", ours, theirs, truths, strict=True):
        assert (found - truth).norm() <= 1.5 * (expected - truth).norm() + 1e-6 * truth.norm(), name


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
def test_equals_the_torch_path_and_float64(level, name, causal) -> None:
    tensors = draw(2, 300)
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    assert takes(tensors[0][0], tensors[2][0], torch.float32, PATTERNS[name].block) == (level != "plain")
    assert_as_exact_as_torch(tensors, PATTERNS[name], weight, causal=causal)
    valid_mask = torch.arange(300) < torch.tensor([[300], [90]])
    valid_mask[0, 70:150] = False
    weight = weight * valid_mask[:, None, :, None]
    assert_as_exact_as_torch(tensors, PATTERNS[name], weight, causal=causal, valid_mask=valid_mask)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
def test_packed_equals_the_torch_path_and_float64(best_level, name, causal) -> None:
    packing = Packing.of_lengths(LENGTHS)
    tensors = draw(1, packing.length, 64)
    tensors[2] = draw(1, packing.length, 128)[2]
    weight = torch.randn(tensors[2].shape, generator=torch.Generator().manual_seed(1))
    assert_as_exact_as_torch(tensors, PATTERNS[name], weight, causal=causal, packing=packing)


def test_what_is_not_a_number_stays_so_where_it_is_seen(level) -> None:
    query, key, value = draw(1, 200)
    key[0, 0, 190] = torch.nan
    is_lost = sparse_attention(query, key, value, PATTERNS["local"], causal=False).isnan().any(-1)
    assert is_lost[0, 0, 140:].all() and not is_lost[0, 0, :140].any() and not is_lost[0, 1:].any()


def test_results_do_not_depend_on_the_number_of_threads(best_level) -> None:
    tensors, threads = draw(2, 300), torch.get_num_threads()
    results = []
    for number in (1, 3):
        torch.set_num_threads(number)
        results.append(run(tensors, PATTERNS["bigbird"], torch.ones_like(tensors[0]), causal=False))
    torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


def test_what_the_kernels_do_not_take(best_level) -> None:
    query, _, value = (tensor[0] for tensor in draw(1, 64))
    assert takes(query, value, torch.float32, 64)
    assert not takes(query, value, torch.bfloat16, 64)
    assert not takes(query.double(), value.double(), torch.float64, 64)
    assert not takes(query, value, torch.float32, 48)
    assert not takes(query[..., :20], value, torch.float32, 64)


@pytest.mark.filterwarnings("ignore")
def test_the_operators_keep_the_rules_of_torch(best_level) -> None:
    tensors = [tensor[0].requires_grad_() for tensor in draw(1, 128)]
    key_blocks, hidden = torch.tensor([[0, 1], [0, 1]]), torch.rand(1, 2, 64, 128) < 0.5
    torch.library.opcheck(_forward, (*tensors, key_blocks, hidden, 0.2))
    tensors = [tensor.detach() for tensor in tensors]
    output, logsumexp = _forward(*tensors, key_blocks, hidden, 0.2)
    gradients = torch.ones_like(output), torch.ones_like(logsumexp)
    torch.library.opcheck(_backward, (*gradients, *tensors, key_blocks, hidden, output, logsumexp, 0.2))
