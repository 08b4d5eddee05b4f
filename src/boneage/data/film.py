"""Random variation of how a radiograph was exposed, printed, scanned and processed.

The parameters of each image are drawn first (`FilmLook.draw`), then applied to a batch of images
that are already resized for the network; each image's result is the same alone and in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from boneage.config import Recipe

_KERNELS = (3, 7, 25)
"""Sides in pixels of the means against which an image is sharpened; the widest evens out."""

_REDUCTIONS = ("area", "bilinear", "nearest")
_PERCENTILES = (0.01, 0.99)
_STEP = 3
"""Distance in pixels of the grey values from which the percentiles are taken."""


@dataclass(frozen=True)
class FilmLook:
    """How each of B images differs in look. Every attribute has shape (B,); 0 changes nothing.

    Attributes:
        background: Proportion by which what lies outside the hand is darkened.
        gamma: Logarithm of the exponent of the grey values.
        steepness: Of a sigmoid curve that darkens soft tissue and brightens bone, as prints do.
        threshold: Grey value at the middle of that curve.
        reduction: Factor less 1 by which the image is reduced and enlarged again.
        reduced_by: Place in "area", "bilinear", "nearest".
        sharpness: Above 0 sharpens against a mean of `kernel`, below 0 blurs, by the least one.
        kernel: Place in (3, 7, 25) pixels.
        grain: Standard deviation of noise in the grey values.
        coarseness: Pixels for one grain, less 1.
        frame: Largest proportion of the side that a frame covers at each border.
        cover: Side of a covered square, as a proportion of the image's.
        cover_right: Where it lies, as a proportion.
        cover_down: The same.
        cover_grey: Its grey value, and that of the frame.
        seed: Of the noise and the frame.
    """

    background: Tensor
    gamma: Tensor
    steepness: Tensor
    threshold: Tensor
    reduction: Tensor
    reduced_by: Tensor
    sharpness: Tensor
    kernel: Tensor
    grain: Tensor
    coarseness: Tensor
    frame: Tensor
    cover: Tensor
    cover_right: Tensor
    cover_down: Tensor
    cover_grey: Tensor
    seed: Tensor

    @property
    def changes(self) -> bool:
        """Whether any image changes."""
        changing = (self.background, self.gamma, self.steepness, self.reduction, self.sharpness,
                    self.grain, self.frame, self.cover)  # fmt: skip
        return any(bool(values.any()) for values in changing)

    @classmethod
    def draw(cls, recipe: Recipe, generators: Sequence[torch.Generator | None]) -> Self:
        """Draw the look of one image from each generator; None is torch's global one."""
        u = torch.stack([torch.rand(26, generator=g) for g in generators], dim=1)

        def given(chance: Tensor, probability: float, value: Tensor) -> Tensor:
            return torch.where(chance < probability, value, torch.zeros_like(value))

        def between(number: Tensor, low: float | Tensor, high: float) -> Tensor:
            return low + (high - low) * number

        kernel = (3 * u[12]).long()
        return cls(
            background=given(u[0], recipe.background, between(u[1], 0.2, 1.0)),
            gamma=given(u[2], recipe.film_curve, between(u[3], -0.4, 0.6)),
            steepness=given(u[4], 0.6 * recipe.film_curve, between(u[5], 4.0, 11.0)),
            threshold=between(u[6], 0.3, 0.65),
            reduction=given(u[7], recipe.resolution, between(u[8], 0.2, 2.5)),
            reduced_by=(3 * u[9]).long(),
            sharpness=given(
                u[10], recipe.sharpness, between(u[11], torch.where(kernel > 0, 0.0, -0.9), 2.0)
            ),
            kernel=kernel,
            grain=given(u[13], recipe.grain, between(u[14], 0.01, 0.09)),
            coarseness=(4 * u[15] ** 2).long(),
            frame=given(u[16], recipe.cover, between(u[17], 0.02, 0.12)),
            cover=given(u[18], recipe.cover, between(u[19], 0.05, 0.25)),
            cover_right=u[20],
            cover_down=u[21],
            cover_grey=torch.where(u[22] < 0.5, (2 * u[23]).round(), u[23]).clamp(0, 1),
            seed=(2**31 * u[24]).long(),
        )


def change_look(images: Tensor, outlines: Tensor | None, look: FilmLook) -> Tensor:
    """Change grey values and detail of images, and stretch their grey values again.

    Args:
        images: (B, 1, S, S), in [0, 1].
        outlines: (B, 1, S, S) in [0, 1], 1 on the hand; without them no background is darkened.
        look: Of B images.
    """
    x = images
    if outlines is not None and look.background.any():
        soft = F.avg_pool2d(outlines, 9, 1, 4, count_include_pad=False)
        x = x * (1.0 - _column(look.background) * (1.0 - soft))
    x = x.clamp(0, 1) ** _column(look.gamma.exp())
    if look.steepness.any():
        curved = torch.sigmoid(_column(look.steepness) * (x - _column(look.threshold)))
        x = torch.where(_column(look.steepness) > 0, curved, x)
    x = torch.cat([_reduce(x[i : i + 1], look, i) for i in range(len(x))])
    for i, side in enumerate(_KERNELS):
        amount = torch.where(look.kernel == i, look.sharpness, 0.0)
        if amount.any():
            mean = F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
            x = x + _column(amount) * (x - mean)
    x = torch.stack([_add_grain_and_frame(x[i], look, i) for i in range(len(x))])
    return stretch(x.clamp(0, 1), outlines)


def stretch(images: Tensor, outlines: Tensor | None = None) -> Tensor:
    """Stretch grey values (B, 1, S, S) between percentiles 1 and 99, of the hands, to [0, 1]."""
    some = images[:, :, ::_STEP, ::_STEP].flatten(1)
    if outlines is not None:
        is_hand = outlines[:, :, ::_STEP, ::_STEP].flatten(1) >= 0.5
        is_hand |= ~is_hand.any(dim=1, keepdim=True)
        some = some.masked_fill(~is_hand, torch.nan)
    low, high = torch.nanquantile(some, some.new_tensor(_PERCENTILES), dim=1)
    return ((images - _column(low)) / _column((high - low).clamp_min(1e-3))).clamp(0, 1)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _reduce(image: Tensor, look: FilmLook, i: int) -> Tensor:
    factor = 1.0 + float(look.reduction[i])
    if factor == 1.0:
        return image
    size = list(image.shape[2:])
    mode = _REDUCTIONS[int(look.reduced_by[i])]
    small = [max(8, round(side / factor)) for side in size]
    options = {"antialias": True} if mode == "bilinear" else {}
    return F.interpolate(F.interpolate(image, small, mode=mode, **options), size, mode="bilinear")


def _add_grain_and_frame(image: Tensor, look: FilmLook, i: int) -> Tensor:
    """Add noise, a frame and a covered square to one image (1, S, S)."""
    size = image.shape[1:]
    generator = torch.Generator().manual_seed(int(look.seed[i]))
    grey = float(look.cover_grey[i])
    if look.grain[i] > 0:
        cells = [-(-side // (1 + int(look.coarseness[i]))) for side in size]
        noise = torch.randn(1, 1, *cells, generator=generator)
        if look.coarseness[i] > 0:
            noise = F.interpolate(noise, list(size), mode="bilinear")
        image = image + look.grain[i] * noise[0].to(image.device)
    if look.frame[i] > 0:
        edges = (torch.rand(4, generator=generator) * look.frame[i]).tolist()
        top, bottom, left, right = (
            round(e * s) for e, s in zip(edges, (size[0], size[0], size[1], size[1]), strict=True)
        )
        framed = torch.full_like(image, grey)
        inner = (slice(None), slice(top, size[0] - bottom), slice(left, size[1] - right))
        framed[inner] = image[inner]
        image = framed
    if look.cover[i] > 0:
        side = round(float(look.cover[i]) * size[0])
        y = round(float(look.cover_down[i]) * (size[0] - side))
        x = round(float(look.cover_right[i]) * (size[1] - side))
        image = image.clone()
        image[:, y : y + side, x : x + side] = grey
    return image
