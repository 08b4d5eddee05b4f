"""How an image's grey values and sharpness compare with those of the training images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from boneage.imaging.preprocess import stretch_grey

Array = npt.NDArray[np.float64]

SIDE = 100
"""Side in pixels of the sample of an image that is described."""

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_LAGS = (1, 2, 4, 8)
_TILE = 5


def describe(image: Image.Image) -> Array:
    """Describe an image in numbers that change when a sender processes it.

    Args:
        image: 8-bit grey, of any size; every one is described at 100 by 100 pixels.

    Returns:
        (18,): quantiles of the grey values; how much pixels differ from those 1, 2, 4 and 8 apart,
        which sharpening and blurring change; quantiles of the local contrast, which equalisation
        evens out; how much is black and white.
    """
    small = stretch_grey(image.convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST))
    grey = np.asarray(small, dtype=np.float64) / 255.0
    steps = np.array([_mean_step(grey, lag) for lag in _LAGS])
    cells = SIDE // _TILE
    contrast = np.log(grey.reshape(cells, _TILE, cells, _TILE).std(axis=(1, 3)) + 2e-3)
    parts = (
        np.quantile(grey, _QUANTILES),
        steps[:1],
        np.diff(steps),
        np.quantile(contrast, _QUANTILES),
        np.sqrt([(grey < 0.02).mean(), (grey > 0.98).mean()]),
        [contrast.std(), float(((grey - grey.mean()) ** 3).mean() / (grey.std() ** 3 + 1e-6))],
    )
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])


def _mean_step(grey: Array, lag: int) -> float:
    down, across = np.abs(grey[lag:] - grey[:-lag]), np.abs(grey[:, lag:] - grey[:, :-lag])
    return float(np.log((down.mean() + across.mean()) / 2 + 1e-3))


@dataclass(frozen=True)
class AppearanceModel:
    """What training images look like, and how processed ones differ from them.

    Attributes:
        mean: (F,), of `describe` over the training images.
        precision: (F, F), inverse covariance.
        unlike_above: Distance from the mean above which an image is unlike them.
        scale: (F,), standard deviations, for the network.
        hidden: (F, H) and its bias (H,), first layer of a network that tells processed images.
        hidden_bias: See `hidden`.
        out: (H,), its second layer; the bias follows.
        out_bias: See `out`.
        processed_above: Probability above which an image counts as heavily processed.
    """

    mean: Array
    precision: Array
    unlike_above: float
    scale: Array
    hidden: Array
    hidden_bias: Array
    out: Array
    out_bias: float
    processed_above: float

    def distance(self, description: Array) -> float:
        """Give the Mahalanobis distance of a description from the training images."""
        away = description - self.mean
        return float(np.sqrt(away @ self.precision @ away))

    def p_processed(self, description: Array) -> float:
        """Give the probability that an image was equalised or sharpened after its exposure."""
        scaled = (description - self.mean) / self.scale
        hidden = np.maximum(scaled @ self.hidden + self.hidden_bias, 0.0)
        return float(1.0 / (1.0 + np.exp(-(hidden @ self.out + self.out_bias))))

    def to_values(self) -> dict[str, Any]:
        """Give plain values, as a model's file has them."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what `to_values` gave.

        Raises:
            KeyError: If a value is missing.
        """
        given: dict[str, Any] = {
            field.name: np.array(value) if isinstance(value := values[field.name], list) else value
            for field in fields(cls)
        }
        return cls(**given)
