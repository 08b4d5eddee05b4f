"""Images that the hand finder learns from, composed in batches: hands on fields, pairs, and none.

Every image is composed anew from hands with known landmarks: turned, mirrored, scaled, squeezed,
shifted off the field, laid on another background or beside a second hand, inverted, and changed in
its grey values as senders and viewers change them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from boneage.imaging.geometry import JOINTS, LANDMARKS
from boneage.imaging.preprocess import stretch_grey
from boneage.training.hand_network import SIDE

STORED = 192
"""Longer side in pixels at which hands are held in memory."""

_HANDS = 2
_UNIT = ("MCP3", "PIP3")


@dataclass(frozen=True)
class HandImages:
    """Radiographs with landmarks, held in memory.

    Attributes:
        pixels: uint8 (N, 192, 192), each image in the upper left corner.
        sizes: float32 (N, 2), width and height of each image in pixels.
        points: float32 (N, 22, 2), landmarks in pixels; not finite where unknown.
    """

    pixels: Tensor
    sizes: Tensor
    points: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def join(cls, parts: Iterable["HandImages"]) -> "HandImages":
        """Put several sets behind each other."""
        sets = [(part.pixels, part.sizes, part.points) for part in parts]
        return cls(*(torch.cat(column) for column in zip(*sets, strict=True)))


def hold_hands(
    images: Iterable[tuple[Image.Image, npt.NDArray[np.floating]]],
) -> HandImages:
    """Hold grey images, stretched, and their landmarks, (17, 2) or (22, 2) in pixels."""
    pixels, sizes, points = [], [], []
    for image, places in images:
        scale = STORED / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = np.zeros((STORED, STORED), np.uint8)
        small = stretch_grey(image.resize(size, Image.Resampling.BILINEAR))
        canvas[: size[1], : size[0]] = np.asarray(small)
        ratio = np.array(size) / np.array(image.size)
        full = np.full((len(LANDMARKS), 2), np.nan, np.float32)
        full[: len(places)] = places * ratio
        pixels.append(canvas)
        sizes.append(size)
        points.append(full)
    return HandImages(
        torch.from_numpy(np.stack(pixels)),
        torch.tensor(sizes, dtype=torch.float32),
        torch.from_numpy(np.stack(points)),
    )


@dataclass(frozen=True)
class FinderBatch:
    """A batch of composed images with their truth; see `boneage.training.hand_network`."""

    images: Tensor
    points: Tensor
    known: Tensor
    is_labelled: Tensor
    count: Tensor
    is_inverted: Tensor


class Composer:
    """Composes batches from hands and from images without a hand.

    Args:
        hands: What hands there are.
        weights: (N,), how often each is taken.
        others: uint8 (M, 128, 128), images without a hand; also the backgrounds.
        seed: Of everything that is drawn at random.
    """

    def __init__(self, hands: HandImages, weights: Tensor, others: Tensor, seed: int = 0) -> None:
        self.hands, self.weights, self.others = hands, weights, others
        self.generator = torch.Generator().manual_seed(seed)

    def _uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=self.generator)

    def _normal(self, n: int) -> Tensor:
        return torch.randn(n, generator=self.generator)

    def _chance(self, n: int, probability: float) -> Tensor:
        return self._uniform(n) < probability

    def batch(self, n: int) -> FinderBatch:
        """Compose n images: one hand on 70%, two on 14%, none on 16%."""
        kind = self._uniform(n)
        count = torch.where(kind < 0.70, 1, torch.where(kind < 0.84, 2, 0))
        images = self._backgrounds(n)
        points = torch.zeros(n, _HANDS, len(LANDMARKS), 2)
        known = torch.zeros(n, _HANDS, len(LANDMARKS), dtype=torch.bool)
        is_labelled = torch.ones(n, len(LANDMARKS), dtype=torch.bool)
        for slot in range(_HANDS):
            rows = torch.nonzero(count > slot)[:, 0]
            if not len(rows):
                continue
            chosen = torch.multinomial(self.weights, len(rows), True, generator=self.generator)
            layer, inside, placed = self.place(chosen, count[rows] > 1, slot)
            images[rows] = torch.where(inside, layer, images[rows])
            finite = torch.isfinite(placed).all(dim=-1)
            is_labelled[rows] &= finite
            visible = ((placed > 0) & (placed < SIDE)).all(dim=-1)
            points[rows, slot] = torch.nan_to_num(placed)
            known[rows, slot] = finite & visible
        # A hand of which hardly a joint is visible is no hand.
        there = known[:, :, : len(JOINTS)].sum(dim=2) >= 5
        images, is_inverted = self._change_grey(images)
        return FinderBatch(
            images[:, None], points, known, is_labelled, there.sum(dim=1), is_inverted
        )

    def _backgrounds(self, n: int) -> Tensor:
        others = self.others[torch.randint(len(self.others), (n,), generator=self.generator)]
        plain = torch.where(self._chance(n, 0.6), 0.0, self._uniform(n))[:, None, None]
        ramp = torch.linspace(-0.5, 0.5, SIDE) * self._uniform(n, -0.3, 0.3)[:, None]
        plain = (plain + ramp[:, None, :]).clamp(0, 1)
        return torch.where(self._chance(n, 0.45)[:, None, None], others.float() / 255.0, plain)

    def place(self, chosen: Tensor, is_pair: Tensor, slot: int) -> tuple[Tensor, Tensor, Tensor]:
        """Lay hands on fields.

        Args:
            chosen: (n,), which hands.
            is_pair: (n,), whether a field holds two hands.
            slot: 0 for the first hand on each field, 1 for the second.

        Returns:
            Images (n, S, S), where on the field they are, and landmarks (n, L, 2) in pixels.
        """
        n = len(chosen)
        source, sizes = self.hands.points[chosen], self.hands.sizes[chosen]
        a, b = (source[:, LANDMARKS.index(name)] for name in _UNIT)
        unit = (b - a).norm(dim=1)
        wide = self._chance(n, 0.5)
        wanted = torch.where(wide, self._uniform(n, 14.0, 29.0), self._uniform(n, 6.0, 21.0))
        wanted = torch.where(is_pair, self._uniform(n, 6.0, 15.0), wanted)
        upright = self._chance(n, 0.5)
        angle = torch.where(upright, 0.25 * self._normal(n), self._uniform(n, -3.1416, 3.1416))
        mirror = torch.where(self._chance(n, 0.5), -1.0, 1.0)
        aspect = torch.exp((0.14 * self._normal(n)).clamp(-0.35, 0.35))
        cos, sin = torch.cos(angle), torch.sin(angle)
        # Mirror and scale first, then turn, then squeeze along the field's axes.
        turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        flip = torch.stack([mirror, torch.ones(n)], 1)
        linear = turn * flip[:, None, :] * (wanted / unit)[:, None, None]
        linear = linear * torch.stack([aspect.sqrt(), aspect.rsqrt()], 1)[:, :, None]
        joints = source[:, : len(JOINTS)]
        low, high = (joints @ linear.transpose(1, 2)).aminmax(dim=1)
        middle, extent = (low + high) / 2, high - low
        room = ((SIDE - extent) / 2).clamp_min(2.0)
        slack = torch.where(self._chance(n, 0.2), 0.5 * extent.amax(dim=1), torch.zeros(n))
        spread = 2 * torch.rand(n, 2, generator=self.generator) - 1
        centre = SIDE / 2 + spread * (room + slack[:, None])
        if is_pair.any():  # side by side, or one above the other
            along = torch.where(self._chance(n, 0.75), 0, 1)
            side = (1.0 if slot else -1.0) * (extent.gather(1, along[:, None])[:, 0] / 2 + 4)
            centre[torch.arange(n)[is_pair], along[is_pair]] = SIDE / 2 + side[is_pair]
        shift = centre - middle
        placed = source @ linear.transpose(1, 2) + shift[:, None]
        layer, inside = self._warp(chosen, linear, shift, sizes)
        if is_pair.any():  # the second image does not cover the first hand
            border = torch.arange(SIDE) + 0.5
            along_x = border[None, None, :] - SIDE / 2, border[None, :, None] - SIDE / 2
            own = torch.where((along == 0)[:, None, None], along_x[0], along_x[1])
            inside &= ~is_pair[:, None, None] | ((own > 0) == bool(slot))
        cut = self._cut(low + shift, high + shift) | is_pair[:, None, None]
        cells = placed.clamp(0, SIDE - 1).nan_to_num().long()
        is_gone = ~cut[torch.arange(n)[:, None], cells[..., 1], cells[..., 0]]
        is_gone &= torch.isfinite(placed).all(dim=-1)
        return layer, inside & cut, torch.where(is_gone[..., None], -float(SIDE), placed)

    def _cut(self, low: Tensor, high: Tensor) -> Tensor:
        """Cut some hands through, as a field that ends there does.

        Args:
            low: (n, 2), the least x and y of the hands' joints.
            high: (n, 2), the greatest.

        Returns:
            (n, S, S), what is left of the field.
        """
        n = len(low)
        angle = (torch.pi / 2) * torch.randint(4, (n,), generator=self.generator)
        angle = angle + 0.1 * self._normal(n)
        way = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
        at = low + (high - low) * self._uniform(n, 0.1, 0.9)[:, None]
        cells = torch.arange(SIDE) + 0.5
        along = way[:, 0, None, None] * cells + way[:, 1, None, None] * cells[:, None]
        is_left = along < (way * at).sum(dim=1)[:, None, None]
        return is_left | ~self._chance(n, 0.25)[:, None, None]

    def _warp(
        self, chosen: Tensor, linear: Tensor, shift: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Resample stored images; twice as fine as the result, which averages four samples."""
        back = torch.linalg.inv(linear)
        origin = -(back @ shift[..., None])
        # From [-1, 1] of the result to [-1, 1] of the stored square.
        half, stored = SIDE / 2, STORED / 2
        theta = torch.cat(
            [back * half / stored, (back.sum(2, keepdim=True) * half + origin) / stored - 1], 2
        )
        grid = F.affine_grid(theta, [len(chosen), 1, 2 * SIDE, 2 * SIDE], align_corners=False)
        fine = F.grid_sample(
            self.hands.pixels[chosen, None].float() / 255.0, grid, align_corners=False
        )
        place = (grid + 1) * stored
        margin = 0.5
        inside = ((place > margin) & (place < sizes[:, None, None] - margin)).all(dim=-1)
        return F.avg_pool2d(fine, 2)[:, 0], inside[:, ::2, ::2] & inside[:, 1::2, 1::2]

    def _change_grey(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Change grey values, then stretch them as the finder does, some of them inverted."""
        n = len(images)

        def column(values: Tensor) -> Tensor:
            return values[:, None, None]

        images = images ** column(torch.exp(0.35 * self._normal(n)))
        steep = column(self._uniform(n, 4.0, 14.0))
        middle = column(self._uniform(n, 0.15, 0.5))
        curved = torch.sigmoid(steep * (images - middle))  # darkens soft tissue, as prints do
        images = torch.where(column(self._chance(n, 0.25)), curved, images)
        blurred = F.avg_pool2d(images[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
        amount = column(
            torch.where(self._chance(n, 0.4), self._uniform(n, -0.8, 2.0), torch.zeros(n))
        )
        images = images + amount * (images - blurred)  # below 0 blurs, above sharpens
        grain = torch.randn(images.shape, generator=self.generator)
        level = column(
            torch.where(self._chance(n, 0.5), self._uniform(n, 0.0, 0.07), torch.zeros(n))
        )
        coarse = F.interpolate(grain[:, None, ::3, ::3], size=(SIDE, SIDE))[:, 0]
        grain = torch.where(column(self._chance(n, 0.3)), coarse, grain)
        images = (images + level * grain).clamp(0, 1)
        cover = self._chance(n, 0.3)
        corner = torch.randint(0, SIDE, (n, 2), generator=self.generator)
        size = torch.randint(6, 36, (n, 2), generator=self.generator)
        cells = torch.arange(SIDE)
        rows, columns = (
            (cells >= corner[:, i, None]) & (cells < (corner + size)[:, i, None]) for i in (0, 1)
        )
        patch = rows[:, :, None] & columns[:, None, :] & column(cover)
        images = torch.where(patch, column(self._uniform(n)), images)
        is_inverted = self._chance(n, 0.3)
        images = torch.where(column(is_inverted), 1 - images, images)
        return stretch(images), is_inverted


def stretch(images: Tensor) -> Tensor:
    """Stretch grey values (B, H, W) between percentiles 1 and 99 to [0, 1]."""
    flat = images.flatten(1)
    low, high = torch.quantile(flat, torch.tensor([0.01, 0.99]), dim=1)
    spread = (high - low).clamp_min(1e-3)
    return ((images - low[:, None, None]) / spread[:, None, None]).clamp(0, 1)
