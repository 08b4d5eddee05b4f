"""A network's features in a few uncorrelated numbers, by which an image's familiarity is told."""

from typing import Self

import torch
from torch import nn

COMPONENTS = 32
"""Directions of the features that are kept; what lies beside them is one number more."""


class Embedding(nn.Module):
    """Principal components of features, each of variance 1, and the length of the rest.

    Args:
        mean: (F,), of the features over the training images.
        components: (F, K), orthonormal.
        scale: (K + 1,), standard deviations along them, and the root mean square of the rest.
    """

    mean: torch.Tensor
    components: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: torch.Tensor, components: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        self.register_buffer("scale", scale)

    @classmethod
    def fit(cls, features: torch.Tensor, n: int = COMPONENTS) -> Self:
        """Fit to the features (N, F) of training images, more than `n`."""
        mean = features.mean(dim=0)
        centred = features - mean
        _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
        components = directions[:n].T.contiguous()
        rest = (centred - centred @ components @ components.T).square().sum(dim=1).mean().sqrt()
        spread = singular[:n] / (len(features) - 1) ** 0.5
        return cls(mean, components, torch.cat([spread, rest[None]]).clamp_min(1e-6))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (B, F) to (B, K + 1), of variance about 1 over the training images."""
        centred = features - self.mean
        along = centred @ self.components
        rest = (centred.square().sum(dim=1) - along.square().sum(dim=1)).clamp_min(0.0).sqrt()
        return torch.cat([along, rest[:, None]], dim=1) / self.scale
