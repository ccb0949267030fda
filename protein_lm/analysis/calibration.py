"""Calibration of a model whose kind of attention was exchanged: each layer is fitted to the original, and measured.

Every layer gets its inputs from the original model, so that errors do not add up. Random features of the softmax kernel get
queries and keys of equal size and, if they have one, their best spread. Trainable kernels are fitted. Other kinds have
nothing to adapt, and are only measured.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.analysis.attention_transfer import Example, fit
from protein_lm.analysis.kernel_error import relative_errors
from protein_lm.attention.feature_maps.optimal import OptimalFeatures
from protein_lm.attention.feature_maps.performer import SoftmaxFeatures
from protein_lm.attention.kinds.interface import AttentionOperation
from protein_lm.attention.kinds.linear import LinearOperation
from protein_lm.attention.reference import visible_keys
from protein_lm.batches.packed_batches import pack
from protein_lm.choices import PositionKind
from protein_lm.errors import InputError
from protein_lm.model.block import Block
from protein_lm.model.conversion import QueryKeyScales
from protein_lm.model.language_model import ProteinLM

NUM_SEQUENCES = 48
MOST_TOKENS = 512
"""Most tokens of a sequence; the memory of attention matrices grows with its square."""
MEASURED = 4
"""One of so many sequences is kept for measuring errors."""
NUM_STEPS = 200
"""Steps of fitting a trainable kernel, in each layer."""


class _Stop(Exception):
    pass


def calibrate(
    original: ProteinLM,
    converted: ProteinLM,
    sequences: Sequence[NDArray[np.uint8]],
    *,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
    on_layer: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """Adapt the weights of `converted` to the attention of `original`. Every call gives the same result.

    Args:
        original: a model.
        converted: the model that `with_attention` made from it; it is changed.
        sequences: residue tokens of proteins that fit the window; the last of every four is kept for measuring.
        num_steps: steps of fitting a trainable kernel.
        seed: seed of the order of its examples.
        on_layer: called with the number of layers that are done.

    Returns:
        A row for each layer. Columns: layer (from 1), attention (kind), output_error and matrix_error (relative, in Frobenius
        norm, means over the sequences kept for measuring); the same with `_before`, before the calibration, and with
        `_uniform`, of uniform attention.

    Raises:
        InputError: no sequence.
    """
    if not sequences:
        raise InputError("no protein to calibrate on is short enough; give others")
    measured = sequences[MEASURED - 1 :: MEASURED] or sequences
    fitted = [sequence for number, sequence in enumerate(sequences) if number % MEASURED != MEASURED - 1]
    rows = []
    layers = zip(_examples(original, fitted), _examples(original, measured), strict=True)
    for number, (to_fit, to_measure) in enumerate(layers):
        block = cast(Block, converted.blocks[number])
        before = _mean_errors(block.attention.operation, None, to_measure)
        scales = _adapt(converted, block, to_fit, num_steps=num_steps, seed=seed)
        after = _mean_errors(block.attention.operation, scales, to_measure)
        uniform = _mean_errors(None, None, to_measure)
        facts = {"layer": number + 1, "attention": converted.config.attention_kinds[number]}
        for suffix, (matrix, output) in (("", after), ("_before", before), ("_uniform", uniform)):
            facts |= {f"output_error{suffix}": output, f"matrix_error{suffix}": matrix}
        rows.append(facts)
        on_layer(number + 1)
    return pd.DataFrame(rows)


def worse_than_uniform(table: pd.DataFrame) -> list[int]:
    """Return the layers (from 1) whose output is farther from the original's than that of uniform attention."""
    return table.loc[table["output_error"] > table["output_error_uniform"], "layer"].tolist()


def describe(table: pd.DataFrame) -> str:
    """Return the errors as lines of text."""
    lines = [f"  {'layer':>5}  {'error of the output':<33}  {'error of the matrix'}"]
    lines.append(f"  {'':>5}  {'before':>9}{'now':>9}{'uniform':>13}    {'before':>9}{'now':>9}{'uniform':>13}")
    for row in table.to_dict("records"):
        parts = [
            f"{row[f'{name}_before']:9.3f}{row[name]:9.3f}{row[f'{name}_uniform']:13.3f}"
            for name in ("output_error", "matrix_error")
        ]
        lines.append(f"  {row['layer']:>5}  {parts[0]}    {parts[1]}")
    return "\n".join(lines)


def _examples(model: ProteinLM, sequences: Sequence[NDArray[np.uint8]]) -> Iterator[list[Example]]:
    """Yield the inputs of each layer's attention for all sequences; hidden states pass from layer to layer."""
    carried = [_first_inputs(model, sequence) for sequence in sequences]
    for block in model.blocks:
        found: list[Example] = []

        def record(operation: Any, inputs: tuple[Any, ...], found: list[Example] = found) -> None:
            query, key, value, _ = inputs
            found.append(Example(query, key, value, operation))

        handle = cast(Block, block).attention.operation.register_forward_pre_hook(record)
        try:
            with torch.no_grad():  # not around the yield: the caller may need gradients
                carried = [(block(*inputs), *inputs[1:]) for inputs in carried]
        finally:
            handle.remove()
        yield found


@torch.no_grad()
def _first_inputs(model: ProteinLM, sequence: NDArray[np.uint8]) -> tuple[Any, ...]:
    """Return the inputs of the first block."""
    found: list[tuple[Any, ...]] = []

    def stop(_: Any, inputs: tuple[Any, ...]) -> None:
        found.append(inputs)
        raise _Stop

    handle = model.blocks[0].register_forward_pre_hook(stop)
    try:
        model.hidden_states(pack([sequence])[0].to(model.device))
    except _Stop:
        return found[0]
    finally:
        handle.remove()
    raise AssertionError


def _adapt(
    model: ProteinLM, block: Block, examples: Sequence[Example], *, num_steps: int, seed: int
) -> QueryKeyScales | None:
    """Adapt one layer; return the scales of its queries and keys, None if they have not changed."""
    operation, config = block.attention.operation, model.config
    scales = None
    if isinstance(operation, LinearOperation) and not config.qk_norm:
        in_pairs = config.positions is PositionKind.ROTARY
        scales = QueryKeyScales(config.num_heads, config.width // config.num_heads, in_pairs=in_pairs).to(model.device)
        if isinstance(operation.feature_map, SoftmaxFeatures):
            scales.balance(*_joined(examples))
    if isinstance(operation, LinearOperation) and isinstance(operation.feature_map, OptimalFeatures):
        operation.feature_map.calibrate(*_joined([_scaled(example, scales) for example in examples]))
    if scales is not None or any(True for _ in operation.parameters()):
        fit(operation, scales, examples, num_steps=num_steps, seed=seed)
    if scales is not None:
        scales.fold_into(block.attention)
    return scales


def _joined(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return the queries and keys (H, N, E) of all tokens."""
    return torch.cat([each.query[0] for each in examples], 1), torch.cat([each.key[0] for each in examples], 1)


def _scaled(example: Example, scales: QueryKeyScales | None) -> Example:
    if scales is None:
        return example
    query, key = scales(example.query, example.key)
    return example._replace(query=query, key=key)


@torch.no_grad()
def _mean_errors(
    operation: AttentionOperation | None, scales: QueryKeyScales | None, examples: Sequence[Example]
) -> tuple[float, float]:
    """Return the mean relative errors of matrix and output over examples; without an operation, of uniform attention."""
    errors = []
    for example in examples:
        truth = example.teacher.matrix(example.query, example.key).double()
        if operation is None:
            visible = visible_keys(
                truth.shape[-1], causal=example.teacher.causal, valid_mask=None, device=truth.device
            ).double()
            found = visible / visible.sum(-1, keepdim=True)
        else:
            scaled = _scaled(example, scales)
            found = operation.matrix(scaled.query, scaled.key).double()
        errors.append(relative_errors(found, truth, example.value.double()))
    matrix, output = np.mean(errors, axis=0)
    return float(matrix), float(output)
