"""Everything runs with tensors of another device, so that a mismatch fails where there is no GPU.

The other device is `meta`, whose tensors have shapes and types but no data; a mode watches that no operation mixes it with
the CPU. (Fake CUDA tensors need a torch that was built with CUDA as soon as gradients are asked for.)
"""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from protein_lm import alphabet
from protein_lm.analysis.attention.maps import recorded_calls
from protein_lm.analysis.pair_attention import amino_acid_indicators
from protein_lm.attention.kinds.interface import AttentionOperation, LayerShape
from protein_lm.attention.kinds.table import ATTENTION_KINDS, build_attention, with_defaults
from protein_lm.attention.packing import Packing
from protein_lm.attention.rows import Rows
from protein_lm.batches.packed_batches import causal_targets, pack
from protein_lm.config import ModelConfig
from protein_lm.model.language_model import ProteinLM
from tests.conftest import small_recipe

META = torch.device("meta")
EXTRAS = {"kmer_sizes": [3, 4], "kmer_buckets": 256, "convolution_taps": 4, "qk_norm": True, "dropout": 0.1}
kinds = pytest.mark.parametrize("attention", ATTENTION_KINDS)
BIDIRECTIONAL_ONLY = {kind for kind, options in ATTENTION_KINDS.items() if not options.has_causal_form}
READS_THE_MASK = {"linformer", "nystrom", "bigbird"}
"""Kinds that ask a mask for the length of a row, which a tensor without data cannot tell."""
OPTIONS = {"num_features": 24, "window": 30, "stride": 2}
objectives = pytest.mark.parametrize("objective", ["causal", "masked"])


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, as a GPU does; scalars of the CPU may stand beside others."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        leaves = tree_leaves((arguments, keywords))
        devices = {leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor) and (leaf.ndim or leaf.is_meta)}
        if len(devices) > 1 and function is not torch.ops.aten.copy_.default:
            raise RuntimeError(f"{function} mixes tensors of {', '.join(sorted(map(str, devices)))}")
        return function(*arguments, **(keywords or {}))


@pytest.fixture(autouse=True)
def _one_device() -> Iterator[None]:
    with OneDevice():
        yield


def build_operation(kind: str, *, causal: bool) -> AttentionOperation:
    layer = LayerShape(num_heads=3, head_width=16, causal=causal)
    return build_attention(with_defaults(kind, OPTIONS), layer)


def build(attention: str, objective: str) -> ProteinLM:
    """A model with everything that models may have."""
    if objective == "causal" and attention in BIDIRECTIONAL_ONLY:
        pytest.skip("has no causal form")
    settings = small_recipe(objective=objective, attention=attention).model.model_dump() | EXTRAS
    return ProteinLM(ModelConfig.model_validate(settings)).to(META)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["whole", "padded", "packed"])
def test_operations_forward_and_backward(attention, dtype, causal, layout) -> None:
    if (causal and attention in BIDIRECTIONAL_ONLY) or (layout == "padded" and attention in READS_THE_MASK):
        pytest.skip("not of this kind")
    operation = build_operation(attention, causal=causal).to(META)
    rows = 1 if layout == "packed" else 2
    shape = rows, 3 * operation.heads_per_output, 150, 16
    tensors = [torch.randn(shape, device=META, dtype=dtype, requires_grad=True) for _ in range(3)]
    mask = torch.ones(rows, 150, dtype=torch.bool, device=META) if layout == "padded" else None
    packing = Packing.of_lengths([40, 110]) if layout == "packed" else None
    output = operation(*tensors, Rows(mask, packing))
    assert output.device == META and output.dtype == dtype and output.shape == (rows, 3, 150, 16)
    used = [tensors[0], tensors[2]] if operation.shares_query_and_key else tensors
    for gradient, tensor in zip(torch.autograd.grad(output.sum(), used), used, strict=True):
        assert gradient.device == META and gradient.dtype == dtype and gradient.shape == tensor.shape


@kinds
@objectives
def test_a_training_step(attention, objective) -> None:
    tokens, packing = pack([alphabet.encode("MKTAYIAKQR"), alphabet.encode("GG")])
    targets = causal_targets(tokens, packing)
    model = build(attention, objective).train()
    optimizer = torch.optim.AdamW(model.parameters())
    logits = model(tokens.to(META), packing=packing)
    functional.cross_entropy(logits[0].float(), targets[0].to(META)).backward()
    assert all(p.grad is not None and p.grad.device == META for p in model.parameters())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@kinds
def test_decoding(attention) -> None:
    with torch.no_grad():
        model = build(attention, "causal").eval()
        state = model.new_state(2)
        model.extend(torch.zeros(2, 20, dtype=torch.long, device=META), state)
        logits = model.step(torch.zeros(2, dtype=torch.long, device=META), state)
    assert logits.shape == (2, alphabet.VOCABULARY_SIZE) and logits.device == META


@kinds
@objectives
def test_looking_inside(attention, objective) -> None:
    tokens, packing = pack([alphabet.encode("MKTAYIAKQR"), alphabet.encode("GG")])
    with torch.no_grad():
        model = build(attention, objective).eval()
        with recorded_calls(model) as calls:
            model.hidden_states(tokens.to(META), packing=packing)
        call, indicators = calls[0], amino_acid_indicators(tokens.to(META))
        value = indicators[:, None].expand(-1, call.query.shape[1], -1, -1)
        assert call.operation.forward(call.query, call.key, value, Rows(packing=packing)).device == META
        assert call.operation.matrix(call.query, call.key, Rows(packing=packing)).device == META


def test_a_mismatch_is_refused() -> None:
    operation = build_operation("performer-relu", causal=True)  # its projection is on the CPU
    with pytest.raises(RuntimeError, match="mixes tensors of cpu, meta"):
        operation(*(torch.randn(1, 2, 10, 16, device=META) for _ in range(3)))
    with pytest.raises(RuntimeError, match="mixes tensors of cpu, meta"):
        torch.zeros(4, device=META).index_select(0, torch.tensor([1]))
