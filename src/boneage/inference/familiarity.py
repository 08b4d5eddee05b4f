"""How familiar an image is to a network: how far its features lie from the training images'."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

QUANTILES = 101
"""Number of quantiles that a model keeps of the distances of other images, 0 to 100%."""


def measure_distance(embedding: npt.NDArray[np.floating]) -> Array:
    """Give how far images lie from the training images.

    Args:
        embedding: (B, K), the network's features in K numbers that have variance 1 and no
            correlation over the training images.

    Returns:
        (B,), root mean square; 1 for an average training image.
    """
    squares: Array = np.square(embedding.astype(np.float64))
    return np.sqrt(squares.mean(axis=1))


@dataclass(frozen=True)
class FamiliarityModel:
    """What distances images of the same kind have that the network did not learn from.

    Attributes:
        distances: (101,), quantiles from 0 to 100%.
        warn_below: Familiarity below which an image is unlike the training images.
    """

    distances: Array
    warn_below: float

    @classmethod
    def fit(cls, distances: Array, warn_below: float) -> Self:
        """Fit to the distances (N,) of images that the network did not learn from."""
        return cls(np.quantile(distances, np.linspace(0, 1, QUANTILES)), warn_below)

    def rate(self, distance: float) -> float:
        """Give the proportion of those images that lie as far away, or farther: 0 to 1."""
        places = np.linspace(0.0, 1.0, len(self.distances))
        return float(1.0 - np.interp(distance, self.distances, places))

    def to_values(self) -> dict[str, Any]:
        """Give plain values, as a model's file has them."""
        return {"distances": self.distances.tolist(), "warn_below": self.warn_below}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what `to_values` gave.

        Raises:
            KeyError: If a value is missing.
        """
        return cls(np.array(values["distances"]), float(values["warn_below"]))
