"""Errors of random features against the kernel that they estimate, by number, length, type and norms."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from protein_lm.analysis.attention.maps import recorded_calls
from protein_lm.attention.feature_maps.optimal import OptimalFeatures, SaderfFeatures
from protein_lm.attention.feature_maps.performer import RandomFeatureMap, ReLUFeatures, SoftmaxFeatures
from protein_lm.attention.feature_maps.trigonometric import TrigonometricFeatures
from protein_lm.attention.reference import exact_attention_matrix, linear_attention_matrix, visible_keys
from protein_lm.batches.packed_batches import pack
from protein_lm.errors import ConfigError, InputError
from protein_lm.inference.score import check_length
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM

_MAPS: dict[str, Callable[..., RandomFeatureMap]] = {
    "positive": SoftmaxFeatures,
    "trigonometric": TrigonometricFeatures,
    "optimal": OptimalFeatures,
    "saderf": SaderfFeatures,
    "relu": ReLUFeatures,
}
_PROJECTIONS = {
    "positive": ("orthogonal", "iid", "simplex", "hyperbolic", "regularized"),
    "trigonometric": ("orthogonal", "iid"),
    "optimal": ("orthogonal", "simplex"),
    "saderf": ("orthogonal",),
    "relu": ("orthogonal", "iid"),
}
FEATURE_TYPES = {
    f"{name}-{projection}": partial(_MAPS[name], projection=projection)
    for name, projections in _PROJECTIONS.items()
    for projection in projections
}
"""Builders `(head_width, num_features)` by the name `map-projection`."""
SOFTMAX_TYPES = tuple(name for name in FEATURE_TYPES if not name.startswith("relu"))
NUM_FEATURES = (16, 32, 64, 128, 256, 512, 1024)


def kernel_error(
    model: ProteinLM,
    records: Sequence[SequenceRecord],
    *,
    feature_types: Sequence[str] = SOFTMAX_TYPES,
    num_features: Sequence[int] = NUM_FEATURES,
    lengths: Sequence[int] = (),
    norm_scales: Sequence[float] = (1.0,),
    num_draws: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the errors of feature types on the queries and keys of a model's layers, whatever its own attention is.

    Args:
        model: any model; lsh and bidirectional local-global have no queries and keys of the usual kind.
        records: proteins, none longer than the model's window.
        feature_types: names of `FEATURE_TYPES`.
        num_features: numbers of features, M.
        lengths: numbers of tokens to read from the start of each protein, which shorter proteins lack; whole proteins if
            empty.
        norm_scales: factors of queries and keys.
        num_draws: draws of the features; the table has means over them.
        seed: seed of the first draw.

    Returns:
        A row per protein, layer, head, length, scale, feature type and M, with the columns of `matrix_errors` and
        sequence_id, layer, head (from 1).

    Raises:
        InputError: a protein longer than the window, or none of the lengths fits any protein.
        ConfigError: an unknown feature type, an odd M for one whose features come in pairs, or a kind without queries
            and keys of the usual kind.
    """
    for name in feature_types:
        if name not in FEATURE_TYPES:
            raise ConfigError(f"{name!r} is no feature type; known ones: {', '.join(FEATURE_TYPES)}")
        in_pairs = name.startswith("trigonometric") or name.endswith("hyperbolic")
        if in_pairs and (odd := [count for count in num_features if count % 2]):
            raise ConfigError(f"{name} features come in pairs: {odd[0]} is odd; choose even numbers, or other types")
    for number, operation in enumerate(model.operations(), 1):
        if operation.shares_query_and_key or operation.heads_per_output > 1:
            kind = model.config.attention_kinds[number - 1]
            raise ConfigError(
                f"layer {number} has {kind} attention, whose queries and keys estimate no kernel of this kind"
            )
    tables = []
    for record in records:
        check_length(record, model)
        tokens, _ = pack([record.tokens])
        with torch.inference_mode(), recorded_calls(model) as calls:
            model.hidden_states(tokens.to(model.device))
        for length in lengths or [tokens.shape[1]]:
            if length > tokens.shape[1]:
                continue
            for layer, call in enumerate(calls, 1):
                rows = (tensor[:, :, :length].detach().clone() for tensor in (call.query, call.key, call.value))
                table = matrix_errors(
                    *rows,
                    causal=model.is_causal,
                    feature_types=feature_types,
                    num_features=num_features,
                    norm_scales=norm_scales,
                    num_draws=num_draws,
                    seed=seed,
                )
                table.insert(0, "layer", layer)
                table.insert(0, "sequence_id", record.sequence_id)
                tables.append(table)
    if not tables:
        raise InputError(
            f"no protein has {min(lengths, default=1):,} tokens or more: nothing to compare at the lengths asked for"
        )
    return pd.concat(tables, ignore_index=True)


def describe(table: pd.DataFrame) -> str:
    """Return the error of each feature type as lines of text, the least first, next to that of uniform attention."""
    means = [
        (float(group["matrix_error"].mean()), float(group["uniform_matrix_error"].mean()), name)
        for name, group in table.groupby("feature_type")
    ]
    lines = [f"  {name:<28}{error:8.3f}{uniform:12.3f}" for error, uniform, name in sorted(means)]
    title = f"  {'error of the matrix':<28}{'mean':>8}{'uniform':>12}"
    return "\n".join([title, *lines])


@torch.no_grad()
def matrix_errors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    feature_types: Sequence[str] = SOFTMAX_TYPES,
    num_features: Sequence[int] = NUM_FEATURES,
    norm_scales: Sequence[float] = (1.0,),
    num_draws: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the errors of feature types on queries, keys and values (1, H, L, E), in float64 and O(L²) memory.

    Returns:
        A row per head, scale, feature type and M. Columns: head (from 1), length (tokens), norm_scale, query_norm and
        key_norm (means of |q| and |k|, scaled), kernel (softmax or relu), feature_type, num_features, num_draws;
        matrix_error and output_error (relative, in Frobenius norm, mean over draws), matrix_error_std and
        output_error_std (over draws); uniform_matrix_error and uniform_output_error (of uniform attention).
    """
    rows = []
    query, key, value = (tensor.double() for tensor in (query, key, value))
    visible = visible_keys(query.shape[2], causal=causal, valid_mask=None, device=query.device)
    uniform = (visible / visible.sum(-1, keepdim=True)).double()
    for scale in norm_scales:
        for head in range(query.shape[1]):
            q, k, v = scale * query[:, head : head + 1], scale * key[:, head : head + 1], value[:, head : head + 1]
            facts = {
                "head": head + 1,
                "length": q.shape[2],
                "norm_scale": scale,
                "query_norm": float(q.norm(dim=-1).mean()),
                "key_norm": float(k.norm(dim=-1).mean()),
            }
            for name, truth, kernel_types in _kernels(q, k, causal, feature_types):
                floor = relative_errors(uniform, truth, v)
                for feature_type in kernel_types:
                    for count in num_features:
                        found = _draws(
                            feature_type, count, q, k, v, truth, causal=causal, num_draws=num_draws, seed=seed
                        )
                        rows.append(
                            facts
                            | {
                                "kernel": name,
                                "feature_type": feature_type,
                                "num_features": count,
                                "num_draws": num_draws,
                            }
                            | found
                            | {"uniform_matrix_error": floor[0], "uniform_output_error": floor[1]}
                        )
    return pd.DataFrame(rows)


def relu_kernel_matrix(query: Tensor, key: Tensor, *, num_features: int, epsilon: float, causal: bool) -> Tensor:
    """Return the kernel that Performer-ReLU estimates: the mean of φ(q)·φ(k) over normal projections, rows normalized.

    With x, y scaled by E^(-1/4): |x||y| (sin θ + (π - θ) cos θ) / 2π + ε √M (|x| + |y|) / √2π + M ε².
    Source: Cho & Saul 2009 (arc-cosine kernel of order 1) for the first term.
    """
    scale = query.shape[-1] ** -0.25
    x, y = query * scale, key * scale
    norm_x, norm_y = x.norm(dim=-1)[..., :, None], y.norm(dim=-1)[..., None, :]
    cosine = (x @ y.mT / (norm_x * norm_y).clamp_min(1e-300)).clamp(-1, 1)
    angle = cosine.acos()
    kernel = norm_x * norm_y * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)
    kernel = kernel + epsilon * num_features**0.5 * (norm_x + norm_y) / (2 * math.pi) ** 0.5 + num_features * epsilon**2
    kernel = kernel * visible_keys(query.shape[2], causal=causal, valid_mask=None, device=query.device)
    return kernel / kernel.sum(-1, keepdim=True)


def _kernels(
    query: Tensor, key: Tensor, causal: bool, feature_types: Sequence[str]
) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Yield the name and matrix of each kernel, and the feature types that estimate it."""
    softmax = [name for name in feature_types if not name.startswith("relu")]
    relu = [name for name in feature_types if name.startswith("relu")]
    if softmax:
        yield "softmax", exact_attention_matrix(query, key, causal=causal), softmax
    if relu:
        # epsilon counts M times: `_draws` takes the kernel at each M, this one is for uniform attention.
        matrix = relu_kernel_matrix(query, key, num_features=256, epsilon=ReLUFeatures.epsilon, causal=causal)
        yield "relu", matrix, relu


def _draws(
    feature_type: str,
    count: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    truth: Tensor,
    *,
    causal: bool,
    num_draws: int,
    seed: int,
) -> dict[str, float]:
    feature_map = FEATURE_TYPES[feature_type](query.shape[-1], count).to(query.device)
    if isinstance(feature_map, OptimalFeatures):
        feature_map.calibrate(query, key)
    if isinstance(feature_map, ReLUFeatures):
        truth = relu_kernel_matrix(query, key, num_features=count, epsilon=feature_map.epsilon, causal=causal)
    errors = []
    for draw in range(num_draws):
        feature_map.redraw(torch.Generator().manual_seed(seed + draw))
        errors.append(relative_errors(linear_attention_matrix(query, key, feature_map, causal=causal), truth, value))
    found = torch.tensor(errors, dtype=torch.float64)
    spread = found.std(0) if num_draws > 1 else torch.zeros(2)
    return {
        "matrix_error": float(found[:, 0].mean()),
        "matrix_error_std": float(spread[0]),
        "output_error": float(found[:, 1].mean()),
        "output_error_std": float(spread[1]),
    }


def relative_errors(matrix: Tensor, truth: Tensor, value: Tensor) -> tuple[float, float]:
    """Return the relative errors of a matrix and of its output, in Frobenius norm."""
    output, exact = matrix @ value, truth @ value
    return float((matrix - truth).norm() / truth.norm()), float((output - exact).norm() / exact.norm())
