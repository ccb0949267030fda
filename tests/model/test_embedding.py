"""The gradient of the k-mer tables that is kept from step to step has the bits of torch's own."""

import copy

import pytest
import torch

from protein_lm import alphabet
from protein_lm.model.embedding import KmerEmbedding

SIZES, BUCKETS, WIDTH = (2, 3), 64, 8


@pytest.fixture
def pair() -> tuple[KmerEmbedding, KmerEmbedding]:
    torch.manual_seed(0)
    plain = KmerEmbedding(SIZES, BUCKETS, WIDTH)
    kept = copy.deepcopy(plain)
    kept.keep_gradients()
    return plain, kept


def backward(module: KmerEmbedding, seed: int, factor: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(alphabet.FIRST_RESIDUE, alphabet.FIRST_RESIDUE + 20, (1, 40), generator=generator)
    weights = factor * torch.randn(1, 40, WIDTH, generator=generator)
    (module(tokens) * weights).sum().backward()


def gradients(module: KmerEmbedding) -> list[torch.Tensor]:
    return [table.weight.grad for table in module.tables]  # type: ignore[misc]


def assert_equal(pair) -> None:
    for plain, kept in zip(*map(gradients, pair), strict=True):
        assert torch.equal(plain, kept)


@pytest.mark.parametrize("num_batches", [1, 3])
def test_gradients_of_several_steps_equal_torchs(pair, num_batches) -> None:
    for step in range(3):
        for module in pair:
            for batch in range(num_batches):
                backward(module, seed=10 * step + batch)
        assert_equal(pair)
        for module in pair:
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        assert_equal(pair)
        for module in pair:
            module.zero_grad(set_to_none=True)


def test_the_memory_is_kept_and_not_copied(pair) -> None:
    _, kept = pair
    addresses = set()
    for step in range(2):
        backward(kept, seed=step)
        addresses.add(gradients(kept)[0].data_ptr())
        kept.zero_grad(set_to_none=True)
    assert len(addresses) == 1


def test_a_gradient_that_was_not_finite_leaves_nothing_behind(pair) -> None:
    for module in pair:
        backward(module, seed=0, factor=float("nan"))
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        assert gradients(module)[0].isnan().all()
        module.zero_grad(set_to_none=True)
        module.forget_gradients()
        backward(module, seed=1)
    assert_equal(pair)
