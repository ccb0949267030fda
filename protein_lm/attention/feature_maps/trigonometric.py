"""Trigonometric random features of the softmax kernel: unbiased like the positive ones, but unstable; for comparison only.

Source: Rahimi & Recht 2007; Choromanski et al. 2021 (arXiv 2009.14794), section 2.3, on why not to use them.
"""

import torch
from torch import Tensor

from protein_lm.attention.feature_maps.performer import RandomFeatureMap


class TrigonometricFeatures(RandomFeatureMap):
    """exp(|x|²/2) [sin(w·x), cos(w·x)] over half as many rows w; features change sign, and small kernel values drown.

    The factor of a key is divided by the largest of all keys, which cancels in the matrix. No kind of attention uses this
    map: with such a maximum, rounding depends on later keys, though nothing else does.
    """

    is_positive = False

    def __init__(self, head_width: int, num_features: int, projection: str = "orthogonal") -> None:
        """Raise ValueError for an odd number of features: they come in pairs."""
        if num_features % 2:
            raise ValueError(f"trigonometric features come in pairs: {num_features} is odd")
        super().__init__(head_width, num_features // 2, projection)
        self.num_features = num_features

    def query_features(self, query: Tensor) -> Tensor:
        # The factor exp(|x|²/2) belongs to one query and is left out.
        angles = query @ (self.projection.to(query.dtype) * query.shape[-1] ** -0.25).mT
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    def key_features(self, key: Tensor) -> Tensor:
        exponent = key.square().sum(-1, keepdim=True) * (key.shape[-1] ** -0.5 / 2)
        return self.query_features(key) * (exponent - exponent.amax(-2, keepdim=True)).exp()
