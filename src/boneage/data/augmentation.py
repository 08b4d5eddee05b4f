"""Random variation of training images: a pure function of seed, epoch and row.

The parameters of a row are drawn first (`Augmentation`), then applied to images already resized.
`vary` takes a batch; each image's result is the same alone and in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from boneage.config import Recipe


@dataclass(frozen=True)
class Augmentation:
    """How each of B training images is varied. Every attribute has shape (B,).

    Attributes:
        is_mirrored: Whether left and right are exchanged.
        rotation: Degrees by which an image is rotated, counter-clockwise.
        zoom: Magnification; 1 leaves the size as it is.
        shift_right: Shift as a proportion of the width.
        shift_down: Shift as a proportion of the height.
        stretch: Factor on the width, whose inverse is the factor on the height.
        brightness: Factor on the grey values, at most 1.
        contrast: Factor on their distances from the image's mean, at most 1.
    """

    is_mirrored: torch.Tensor
    rotation: torch.Tensor
    zoom: torch.Tensor
    shift_right: torch.Tensor
    shift_down: torch.Tensor
    stretch: torch.Tensor
    brightness: torch.Tensor
    contrast: torch.Tensor

    @classmethod
    def draw(cls, recipe: Recipe, generators: Sequence[torch.Generator | None]) -> Self:
        """Draw the parameters of one image from each generator; None is torch's global one."""
        uniform = torch.stack([torch.rand(8, generator=g) for g in generators], dim=1)
        mirror, angle, zoom, right, down, brightness, contrast, wide = uniform

        def both_ways(number: torch.Tensor, limit: float) -> torch.Tensor:
            return limit * (2.0 * number - 1.0)

        return cls(
            is_mirrored=(mirror < 0.5) & recipe.horizontal_flip,
            rotation=both_ways(angle, recipe.rotation),
            zoom=1.0 + both_ways(zoom, recipe.zoom),
            shift_right=both_ways(right, recipe.shift),
            shift_down=both_ways(down, recipe.shift),
            stretch=(1.0 + both_ways(wide, recipe.stretch)).sqrt(),
            # Downwards only: upwards would clip the brightest bones of an image of full range.
            brightness=1.0 - recipe.brightness * brightness,
            contrast=1.0 - recipe.brightness * contrast,
        )

    @classmethod
    def of_rows(cls, recipe: Recipe, seed: int, epoch: int, rows: Sequence[int]) -> Self:
        """Draw the parameters of rows of a data set; each depends on seed, epoch and row alone."""
        return cls.draw(
            recipe, [torch.Generator().manual_seed(row_seed(seed, epoch, row)) for row in rows]
        )


def row_seed(seed: int, epoch: int, row: int) -> int:
    """Give the seed of one row's augmentation in one epoch."""
    return hash((seed, epoch, row))  # of whole numbers, so it is the same in every process


def vary(images: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Mirror, rotate, zoom and shift images, then reduce their contrast and brightness.

    Args:
        images: (B, 1, S, S), float in [0, 1], resized for the network.
        augmentation: Of B images.
    """
    return dim(move(images, augmentation), augmentation)


def dim(images: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Reduce the contrast and brightness of images (B, 1, S, S)."""
    a = augmentation
    # In fp64, so that rounding does not depend on how a batch is summed.
    mean = images.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float()
    brightness, contrast = (
        factor.to(images.device)[:, None, None, None] for factor in (a.brightness, a.contrast)
    )
    return brightness * (contrast * images + (1.0 - contrast) * mean)


def move(images: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Mirror images (B, C, H, W), rotate, magnify and stretch them about the middle, shift them.

    Interpolation is bilinear; what comes in from outside the image is black. Images that do not
    move keep their pixels exactly.
    """
    a, device, (height, width) = augmentation, images.device, images.shape[2:]
    degrees, zoom, right, down, is_mirrored, stretch = (
        values.to(device)
        for values in (a.rotation, a.zoom, a.shift_right, a.shift_down, a.is_mirrored, a.stretch)
    )
    moves = (degrees != 0) | (zoom != 1) | (right != 0) | (down != 0) | is_mirrored | (stretch != 1)
    if not moves.any():
        return images
    radians, zoom, right, down, sign, stretch = (
        values[moves, None, None]
        for values in (degrees.deg2rad(), zoom, right, down, 1.0 - 2.0 * is_mirrored, stretch)
    )
    # Each pixel of the result, in pixels from the middle, and where in the image it comes from.
    x = torch.arange(width, device=device) - (width - 1) / 2 - right * width
    y = torch.arange(height, device=device)[:, None] - (height - 1) / 2 - down * height
    cos, sin = radians.cos() / zoom, radians.sin() / zoom
    grid = torch.stack(
        [
            sign * (cos * x - sin * y) / (stretch * width / 2),
            stretch * (sin * x + cos * y) / (height / 2),
        ],
        dim=3,
    )
    moved = images.clone()
    moved[moves] = nn.functional.grid_sample(images[moves], grid, align_corners=False)
    return moved
