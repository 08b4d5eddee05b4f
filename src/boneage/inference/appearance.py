"""How an image's grey values and sharpness compare with those of the training images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_LAGS = (1, 2, 4, 8)
_TILE = 6


def describe(image: npt.NDArray[np.floating]) -> Vector:
    """Describe a network's input in numbers that change when a sender processes an image.

    Args:
        image: (H, W), grey in [0, 1].

    Returns:
        Quantiles of the grey values; the mean absolute difference of pixels 1, 2, 4 and 8 apart,
        in logarithms, and the ratios that sharpening and blurring change; quantiles of the local
        contrast, which equalisation evens out; the proportions of black and of white.
    """
    grey = np.asarray(image, dtype=np.float64)
    steps = np.array([
        (np.abs(grey[lag:] - grey[:-lag]).mean() + np.abs(grey[:, lag:] - grey[:, :-lag]).mean()) / 2
        for lag in _LAGS
    ])  # fmt: skip
    steps = np.log(steps + 1e-3)
    height, width = (side - side % _TILE for side in grey.shape)
    tiles = grey[:height, :width].reshape(height // _TILE, _TILE, width // _TILE, _TILE)
    contrast = np.log(tiles.std(axis=(1, 3)) + 2e-3)
    ends = np.array([(grey < 0.02).mean(), (grey > 0.98).mean()])
    return np.concatenate(
        [
            np.quantile(grey, _QUANTILES),
            steps[:1],
            np.diff(steps),
            np.quantile(contrast, _QUANTILES),
            np.sqrt(ends),
        ]
    )


@dataclass(frozen=True)
class AppearanceModel:
    """What the training images look like, as the mean and spread of their descriptions.

    Attributes:
        mean: (F,), of `describe`.
        precision: (F, F), inverse covariance.
        limit: Distance beyond which an image is unlike the training images.
    """

    mean: Vector
    precision: npt.NDArray[np.float64]
    limit: float

    @classmethod
    def fit(cls, descriptions: npt.NDArray[np.float64], limit: float = np.inf) -> Self:
        """Fit to descriptions (N, F) of training images."""
        covariance = np.cov(descriptions, rowvar=False)
        covariance += 1e-3 * np.diag(np.diag(covariance)) + 1e-9 * np.eye(len(covariance))
        return cls(descriptions.mean(axis=0), np.linalg.inv(covariance), limit)

    def distance(self, description: Vector) -> float:
        """Give the Mahalanobis distance of a description from the training images."""
        away = description - self.mean
        return float(np.sqrt(away @ self.precision @ away))
