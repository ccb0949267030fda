"""Random projections (M, E) of the feature maps, drawn from an explicit generator.

For the softmax kernel, "unbiased" and "variance" are those of the estimate of exp(q·k / √E).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def iid_projection(num_features: int, head_width: int, generator: torch.Generator) -> Tensor:
    """Independent standard normal rows; unbiased."""
    return _normal(num_features, head_width, generator).to(torch.float32)


def orthogonal_projection(num_features: int, head_width: int, generator: torch.Generator) -> Tensor:
    """Gaussian rows (M, E), orthogonal within blocks of E, with independent chi(E) norms.

    Each row alone is a standard normal vector, so estimates stay unbiased; orthogonality lowers their variance
    (Choromanski et al. 2021, section 2.4).
    """
    directions = _directions(num_features, head_width, generator)
    norms = _normal(num_features, head_width, generator).norm(dim=-1, keepdim=True)
    return (directions * norms).to(torch.float32)


def regularized_projection(num_features: int, head_width: int, generator: torch.Generator) -> Tensor:
    """Orthogonal directions, all of norm √E: the regularized softmax kernel (SMREG), a lower bound of the kernel.

    Source: Choromanski et al. 2021, section 2.4 and theorem 1. Least variance; not unbiased, but the ratio to the
    kernel tends to 1 with E.
    """
    return (_directions(num_features, head_width, generator) * head_width**0.5).to(torch.float32)


def hyperbolic_projection(num_features: int, head_width: int, generator: torch.Generator) -> Tensor:
    """Half as many orthogonal rows, each with its negative: features exp(±w·x), whose kernel holds cosh(w·(q + k)).

    Source: Choromanski et al. 2021, lemma 1. Unbiased; less variance than as many rows without their negatives.

    Raises:
        ValueError: an odd number of features.
    """
    if num_features % 2:
        raise ValueError(f"hyperbolic features come in pairs: {num_features} is odd; choose an even number of features")
    half = orthogonal_projection(num_features // 2, head_width, generator)
    return torch.cat((half, -half))


def simplex_projection(num_features: int, head_width: int, generator: torch.Generator) -> Tensor:
    """Rows (M, E) that point to the corners of a randomly turned simplex in each block of E, with chi(E) norms.

    The angles between rows are as wide as possible. Among the couplings that do not depend on the norms, this one has the
    least error. Unbiased. Source: Reid et al. 2023 (arXiv 2301.13856), section 3.

    Raises:
        ValueError: heads of width 1, where a simplex has no direction.
    """
    if head_width < 2:
        raise ValueError("a simplex needs heads of width 2 or more; choose the orthogonal projection")
    corners = torch.eye(head_width, dtype=torch.float64) - 1 / head_width
    corners *= (head_width / (head_width - 1)) ** 0.5
    num_blocks = math.ceil(num_features / head_width)
    turns = _directions(num_blocks * head_width, head_width, generator).view(num_blocks, head_width, head_width)
    directions = (corners @ turns).reshape(-1, head_width)[:num_features]
    norms = _normal(num_features, head_width, generator).norm(dim=-1, keepdim=True)
    return (directions * norms).to(torch.float32)


def no_projection(num_features: int, head_width: int, generator: torch.Generator) -> Tensor:
    """√E times the identity (E, E): features are then a function of each channel; nothing is drawn.

    Raises:
        ValueError: a number of features that is not the width of the heads.
    """
    if num_features != head_width:
        raise ValueError(f"without projection there are as many features as channels, {head_width}, not {num_features}")
    return torch.eye(head_width) * head_width**0.5


def _normal(num_rows: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num_rows, width, generator=generator, dtype=torch.float64)


def _directions(num_rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Unit rows (num_rows, width) in float64, uniform on the sphere, orthogonal within blocks of `width`."""
    num_blocks = math.ceil(num_rows / width)
    blocks = _normal(num_blocks * width, width, generator).view(num_blocks, width, width)
    directions, triangle = torch.linalg.qr(blocks)
    signs = torch.sign(torch.diagonal(triangle, dim1=-2, dim2=-1))
    return (directions * signs.unsqueeze(-2)).transpose(-2, -1).reshape(-1, width)[:num_rows]


PROJECTIONS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "orthogonal": orthogonal_projection,
    "iid": iid_projection,
    "regularized": regularized_projection,
    "hyperbolic": hyperbolic_projection,
    "simplex": simplex_projection,
    "none": no_projection,
}
"""Name -> drawing function `(num_features, head_width, generator)`."""
