"""Checks of the tensors that attention is called with."""

import torch
from torch import Tensor

from protein_lm.attention.packing import Packing


def check_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid_mask: Tensor | None,
    packing: Packing | None,
    *,
    empty_rows: bool = False,
) -> None:
    """Refuse tensors that do not fit each other; `empty_rows` allows rows without any real token.

    Raises:
        ValueError: shapes that do not fit each other or hold a 0; a mask of another shape or type, or with a row without
            any real token; a packing of another length, of several rows, or together with a mask.
    """
    if query.ndim != 4 or query.shape != key.shape or query.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit: "
            "(B, H, L) must be the same in all, and E in query and key"
        )
    if 0 in query.shape or 0 in value.shape:
        raise ValueError(f"query {tuple(query.shape)} and value {tuple(value.shape)} are empty; no size may be 0")
    if packing is not None:
        if valid_mask is not None:
            raise ValueError("a packed row has no padding: give valid_mask or packing, not both")
        if (query.shape[0], query.shape[2]) != (1, packing.length):
            raise ValueError(
                f"the packing of {packing.length} tokens does not fit query {tuple(query.shape)}: packed sequences lie in "
                "one row"
            )
    if valid_mask is not None:
        check_mask(valid_mask, (query.shape[0], query.shape[2]), empty_rows=empty_rows)


def check_mask(valid_mask: Tensor, expected: tuple[int, int], *, empty_rows: bool = False) -> None:
    """Refuse a mask of another shape (B, L) or type, or with a row without any real token unless `empty_rows`."""
    if valid_mask.shape != expected or valid_mask.dtype != torch.bool:
        raise ValueError(f"valid_mask is {valid_mask.dtype} {tuple(valid_mask.shape)}, expected boolean {expected}")
    if empty_rows or valid_mask.device.type != "cpu":
        return  # looking would wait for the device, layer by layer
    rows = valid_mask.any(1)
    if not rows.all():
        raise ValueError(f"row {int(rows.int().argmin())} of valid_mask has no real token; leave the row out")
