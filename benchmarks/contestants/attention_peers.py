"""Linear attention of other packages, as they release it."""

import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.contestants.attention import Attend, BuildAttend, operation
from benchmarks.contestants.base import BUILT_FROM_SOURCE, DTYPES, HEAD_WIDTH, NUM_FEATURES, UNLIMITED, Contestant
from benchmarks.spec import Spec
from protein_lm.attention.feature_maps.performer import ReLUFeatures


def performer_pytorch(generalized: bool) -> BuildAttend:
    """`FastAttention` of performer-pytorch; ReLU features where generalized, else its softmax features.

    Causal attention is its `causal_linear_attention_noncuda`, which it takes by itself where pytorch-fast-transformers
    is absent or was built without CUDA; it is set here so that every machine measures the same. Nothing else is
    changed: its feature maps cast the projection to the type of their input, so bfloat16 works as it is.
    """

    def build(spec: Spec) -> Attend:
        from performer_pytorch import performer_pytorch as package  # pyright: ignore[reportMissingImports]

        causal = spec.direction == "causal"
        attention = package.FastAttention(
            dim_heads=HEAD_WIDTH, nb_features=NUM_FEATURES, generalized_attention=generalized, causal=causal
        )
        if causal:
            attention.causal_linear_fn = package.causal_linear_attention_noncuda
        return attention

    return build


def fast_transformers(map_name: str) -> BuildAttend:
    """`CausalLinearAttention` or `LinearAttention` of pytorch-fast-transformers with its own random features.

    Features are drawn once, M in all (`Favor` makes two out of each random vector). Its kernels know only float32:
    bfloat16 inputs are converted on the way in and back on the way out, inside the timed pass. So is the layout,
    (B, L, H, E) there. Its mask classes hold an (L, L) matrix of which these attentions read one flag: only that is given.
    """

    def build(spec: Spec) -> Attend:
        from fast_transformers import feature_maps  # pyright: ignore[reportMissingImports]
        from fast_transformers.attention import (  # pyright: ignore[reportMissingImports]
            CausalLinearAttention,
            LinearAttention,
        )

        kind = CausalLinearAttention if spec.direction == "causal" else LinearAttention
        random_map = getattr(feature_maps, map_name)
        never = 2**62
        layer = kind(
            HEAD_WIDTH,
            feature_map=lambda width: random_map(width, NUM_FEATURES, softmax_temp=width**-0.5, redraw=never),
        )
        flags = SimpleNamespace(lower_triangular=True, all_ones=True)
        every_key = SimpleNamespace(float_matrix=torch.ones(spec.batch, spec.length))

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            rows = (tensor.transpose(1, 2).float() for tensor in (query, key, value))
            return layer(*rows, flags, every_key, every_key).transpose(1, 2).to(query.dtype)

        return attend

    return build


def fla_naive_chunk(spec: Spec) -> Attend:
    """`naive_chunk_linear_attn` of flash-linear-attention (package fla-core), its only form in plain torch.

    It takes features: they are ReLU features with our projection, in the input's type. `normalize=True`. Its layout is
    (B, L, H, M); lengths must be multiples of its chunk of 64. Causal only.
    """
    chunked = _fla_naive_module().naive_chunk_linear_attn
    projection = ReLUFeatures(HEAD_WIDTH, NUM_FEATURES).projection.to(DTYPES[spec.dtype])
    projection = projection.T * (NUM_FEATURES**-0.5 * HEAD_WIDTH**-0.25)

    def features(rows: Tensor) -> Tensor:
        return nn.functional.relu(rows @ projection).add(ReLUFeatures.epsilon).transpose(1, 2)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = chunked(features(query), features(key), value.transpose(1, 2), scale=1.0, normalize=True)
        return output.transpose(1, 2)

    return attend


def _fla_naive_module() -> ModuleType:
    """`fla/ops/linear_attn/naive.py` by its path: importing the package itself needs triton."""
    path = Path(str(importlib.metadata.distribution("fla-core").locate_file("fla/ops/linear_attn/naive.py")))
    found = importlib.util.spec_from_file_location("fla_naive", path)
    assert found is not None and found.loader is not None, path
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


BUILDERS: dict[str, BuildAttend] = {
    "performer-pytorch-relu": performer_pytorch(generalized=True),
    "performer-pytorch-softmax": performer_pytorch(generalized=False),
    "fast-transformers-relu": fast_transformers("GeneralizedRandomFeatures"),
    "fast-transformers-favor": fast_transformers("Favor"),
    "fla-naive-chunk": fla_naive_chunk,
}


def _performer(name: str) -> Contestant:
    return Contestant(
        operation(BUILDERS[name]),
        {"causal": 8192, "bidirectional": UNLIMITED},
        package="performer-pytorch",
        slow=frozenset({"causal"}),
    )


def _fast_transformers(name: str) -> Contestant:
    return Contestant(
        operation(BUILDERS[name]),
        {"causal": UNLIMITED, "bidirectional": UNLIMITED},
        package="pytorch-fast-transformers",
        install=BUILT_FROM_SOURCE,
    )


CONTESTANTS = {
    "performer-pytorch-relu": _performer("performer-pytorch-relu"),
    "performer-pytorch-softmax": _performer("performer-pytorch-softmax"),
    "fast-transformers-relu": _fast_transformers("fast-transformers-relu"),
    "fast-transformers-favor": _fast_transformers("fast-transformers-favor"),
    "fla-naive-chunk": Contestant(operation(fla_naive_chunk), {"causal": UNLIMITED}, package="fla-core", shortest=64),
}
