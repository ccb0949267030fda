"""A model whose rows several processes hold together gives the logits and gradients of one process."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from protein_lm import alphabet
from protein_lm.attention.packing import Packing
from protein_lm.attention.sequence_parallel import own_span
from tests.attention.test_sequence_parallel import Counting, group_of
from tests.conftest import fresh_model

LENGTHS = [5, 60, 1, 50, 20, 3, 40, 4]
LENGTH = sum(LENGTHS)
CASES = [(2, torch.float32), (4, torch.float32), (2, torch.float64), (4, torch.float64)]
FULL = {"kmer_sizes": [2, 4], "kmer_buckets": 64, "convolution_taps": 5, "max_length": 256}
MODELS = [
    FULL,
    FULL | {"attention": "cosformer", "positions": "learned"},
    FULL | {"attention": ["performer-softmax", "aoglu-3"], "qk_norm": True, "positions": "sinusoidal"},
    {"attention": "performer-saderf", "convolution_taps": 4, "max_length": 256},
    {"attention": "hedgehog", "positions": "axial", "axial_shape": [16, 16], "max_length": 256},
]


def inputs(rows: str) -> tuple[torch.Tensor, dict]:
    generator = torch.Generator().manual_seed(1)
    batch = 1 if rows == "packed" else 2
    tokens = torch.randint(alphabet.FIRST_RESIDUE, alphabet.FIRST_RESIDUE + 20, (batch, LENGTH), generator=generator)
    if rows == "packed":
        return tokens, {"packing": Packing.of_lengths(LENGTHS)}
    valid_mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [40]])
    return tokens.where(valid_mask, alphabet.PAD), {"valid_mask": valid_mask}


def results_of(changes: dict, rows: str, dtype: torch.dtype, span: slice = slice(None), **group) -> list:
    """Logits and the gradients of all weights, from the loss of some positions, as arrays."""
    model = fresh_model(**changes).to(dtype)
    tokens, facts = inputs(rows)
    selected = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    selected &= tokens != alphabet.PAD
    logits = model(tokens, selected=selected, **facts, **group)
    loss = functional.cross_entropy(logits, tokens[:, span][selected[:, span]], reduction="sum")
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    every_logit = model(tokens, **facts, **group).detach()
    if "valid_mask" in facts:
        every_logit *= facts["valid_mask"][:, span, None]
    return [every_logit.numpy(), *(gradient.numpy() for gradient in gradients)]


def of_part(groups, changes: dict, rows: str) -> list:
    return [
        results_of(changes, rows, dtype, own_span(LENGTH, groups[size]), group=groups[size]) for size, dtype in CASES
    ]


@pytest.mark.parametrize("rows", ["padded", "packed"])
@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize("changes", MODELS)
def test_equals_one_process(processes, changes, objective, rows) -> None:
    changes = changes | {"objective": objective}
    wholes = {dtype: results_of(changes, rows, dtype) for dtype in (torch.float32, torch.float64)}
    names = [name for name, _ in fresh_model(**changes).named_parameters()]
    by_case = zip(*processes.run(of_part, changes, rows), strict=True)
    for (size, dtype), parts in zip(CASES, by_case, strict=True):
        expected_logits, *expected_gradients = wholes[dtype]
        logits, *gradients = zip(*parts[:size], strict=True)
        error = abs(np.concatenate(logits, axis=1) - expected_logits).max() / abs(expected_logits).max()
        assert error <= (1e-5 if dtype == torch.float32 else 1e-12)
        # In float32 a gradient that nearly cancels has few digits, in one process too: those are held to the largest.
        largest = max(abs(gradient).max() for gradient in expected_gradients)
        for name, expected, own in zip(names, expected_gradients, gradients, strict=True):
            limit = 1e-5 * largest if dtype == torch.float32 else 1e-10 * abs(expected).max()
            assert abs(sum(own) - expected).max() <= limit, (size, dtype, name)


def bytes_sent(groups, objective: str, length: int) -> list[int]:
    model = fresh_model(**(FULL | {"objective": objective, "max_length": 1024}))
    with Counting() as sent:
        model(torch.full((1, length), 5), group=groups[4]).sum().backward()
    return sent


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_what_is_sent_does_not_depend_on_the_length(processes, objective) -> None:
    short, long = (processes.run(bytes_sent, objective, length) for length in (12, 1000))
    assert short == long
    state, edges, of_all_edges = 2 * 32 * (16 + 1) * 4, 4 * 32 * 4, 4 * 4 * 32 * 4
    assert short[0] == [edges, state] * 2 + [state, of_all_edges] * 2  # two layers, forward and backward


def test_a_model_that_is_not_linear_is_refused() -> None:
    model = fresh_model(attention=["performer-relu", "local"])
    fault = "layer 2 has local attention, which needs whole rows in one process; kinds that several can share: perf"
    with pytest.raises(ValueError, match=fault):
        model(torch.full((1, 8), 5), group=group_of(2))
