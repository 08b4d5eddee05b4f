"""The network that finds a hand's landmarks, and what it learns from."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boneage.imaging.geometry import LANDMARKS

SIDE = 128
"""Side of the square image that the network sees, in pixels."""

STRIDE = 2
"""Pixels of the image for one cell of a heat map."""

SPREAD = 1.3
"""Standard deviation in cells of the spot that a heat map shows for a landmark."""

COUNTS = 3
"""Classes of the number of hands: none, one, several."""

_WIDTHS = (16, 32, 64, 96, 128)
_SPOT_WEIGHT = 40.0


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class HandNetwork(nn.Module):
    """A small U-Net: a heat map for each landmark, the number of hands, and the polarity.

    Shape:
        - input: (B, 1, 128, 128), grey in [0, 1], whatever its polarity and orientation.
        - output: heat maps (B, 22, 64, 64) in [0, 1]; logits (B, 3) of no hand, one, several;
          logits (B,) that bones are dark.

    Reference: Ronneberger et al., MICCAI 2015.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = _WIDTHS
        self.down = nn.ModuleList(
            [_block(1, widths[0], STRIDE)] + [_block(a, b, 2) for a, b in pairwise(widths)]
        )
        self.up = nn.ModuleList(
            _block(b + a, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.maps = nn.Conv2d(widths[0], len(LANDMARKS), 1)
        bias = nn.Parameter(torch.full((len(LANDMARKS),), -4.0))  # most of a heat map is empty
        self.maps.bias = bias
        self.facts = nn.Sequential(
            nn.Linear(2 * widths[-1], 64), nn.ReLU(inplace=True), nn.Linear(64, COUNTS + 1)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give heat maps, logits of the number of hands, and the logit of dark bones."""
        levels = []
        x = images - 0.5
        for block in self.down:
            x = block(x)
            levels.append(x)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        for block, skipped in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skipped], dim=1))
        facts = self.facts(pooled)
        return torch.sigmoid(self.maps(x)), facts[:, :COUNTS], facts[:, COUNTS]


def draw_spots(points: Tensor, known: Tensor) -> Tensor:
    """Draw the heat maps that the network should give.

    Args:
        points: (B, H, L, 2), x and y in pixels of the landmarks of up to H hands.
        known: (B, H, L), whether a landmark is there; one outside the image leaves no spot.

    Returns:
        (B, L, 64, 64) in [0, 1].
    """
    cells = torch.arange(SIDE // STRIDE, device=points.device) + 0.5
    along = -((points[..., None] / STRIDE - cells) ** 2) / (2 * SPREAD**2)  # (B, H, L, 2, 64)
    x, y = torch.exp(along).unbind(dim=3)
    spots = y[..., :, None] * x[..., None, :]
    return torch.amax(spots * known[..., None, None], dim=1)


def finder_loss(
    outputs: tuple[Tensor, Tensor, Tensor],
    spots: Tensor,
    is_labelled: Tensor,
    count: Tensor,
    is_inverted: Tensor,
) -> Tensor:
    """Compare the network's outputs with the truth.

    Args:
        outputs: Of `HandNetwork`.
        spots: (B, L, 64, 64), of `draw_spots`.
        is_labelled: (B, L), whether the truth of a landmark is known; others do not count.
        count: (B,), 0, 1 or 2 for several.
        is_inverted: (B,), whether bones are dark; counts where there is a hand.
    """
    maps, counts, polarity = outputs
    weight = (1.0 + _SPOT_WEIGHT * spots) * is_labelled[..., None, None]
    heat = ((maps - spots) ** 2 * weight).mean()
    has_hand = (count > 0).float()
    dark = F.binary_cross_entropy_with_logits(polarity, is_inverted.float(), reduction="none")
    number = F.cross_entropy(counts, count)
    return (
        10.0 * heat + 0.05 * number + 0.05 * (dark * has_hand).sum() / has_hand.sum().clamp_min(1)
    )
