"""Landmarks of a hand, and the maps from an image to one view of it: pure mathematics.

Points are (x, y) in pixels, x to the right and y down; the centre of the first pixel is
(0.5, 0.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, degrees, hypot
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

Points = npt.NDArray[np.float64]
"""(N, 2): x and y of N points."""

LANDMARKS = (
    "carpus", "radius", "ulna", "MCP1", "MCP2", "MCP3", "MCP4", "MCP5",
    "PIP1", "PIP2", "PIP3", "PIP4", "PIP5", "DIP2", "DIP3", "DIP4", "DIP5",
    "tip1", "tip2", "tip3", "tip4", "tip5",
)  # fmt: skip
"""Carpal centre, distal radius and ulna, finger joints by digit (the thumb is 1, and its PIP the
interphalangeal joint), finger tips."""

JOINTS = LANDMARKS[:17]
"""The landmarks but the finger tips."""

MEAN_HAND: Points = np.array([
    (0.0, 0.0), (0.04, 0.50), (-0.49, 0.56),
    (1.11, -0.86), (0.51, -1.60), (0.0, -1.59), (-0.42, -1.46), (-0.81, -1.24),
    (1.50, -1.39), (0.71, -2.44), (0.03, -2.59), (-0.58, -2.35), (-1.15, -1.85),
    (0.80, -2.92), (0.04, -3.17), (-0.66, -2.89), (-1.33, -2.21),
    (1.77, -1.75), (0.87, -3.30), (0.05, -3.59), (-0.73, -3.24), (-1.47, -2.46),
])  # fmt: skip
"""(22, 2): an upright left hand, palm down, thumb to the right, about its carpal centre.

The unit is the distance from the third MCP to the third PIP joint. Source: medians over annotated
RSNA radiographs (ossification boxes of razorx89, MIT licence); tips by the lengths of the distal
phalanges.
"""

HAND_LENGTH = float(hypot(*MEAN_HAND[LANDMARKS.index("tip3")]))
"""From the carpal centre to the tip of the middle finger, in the unit of `MEAN_HAND`."""


_MAP_SIDE = 24
_PARTS = 16

ASPECTS = np.exp(np.linspace(-0.6, 0.6, 49))
"""Widths over true widths that `ShapeModel` tries, for images that may have been squeezed."""


@dataclass(frozen=True)
class Affine:
    """A linear map and a shift from one plane to another.

    Attributes:
        matrix: (2, 3): a point p goes to matrix[:, :2] @ p + matrix[:, 2].
    """

    matrix: npt.NDArray[np.float64]

    @classmethod
    def scaling(cls, x: float, y: float) -> Self:
        """Give the map that scales each axis by itself."""
        return cls(np.array([[x, 0.0, 0.0], [0.0, y, 0.0]]))

    @property
    def is_mirrored(self) -> bool:
        """Whether left and right are exchanged."""
        return bool(np.linalg.det(self.matrix[:, :2]) < 0.0)

    @property
    def scale(self) -> float:
        """Length of a unit step after the map; of a similarity, in every direction."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    @property
    def rotation(self) -> float:
        """Angle in degrees, within -180 and 180, by which "up" turns clockwise on the screen."""
        x, y = self.matrix[:, 1]
        return degrees(atan2(-x, y))

    def apply(self, points: npt.NDArray[np.floating]) -> Points:
        """Map points (N, 2)."""
        moved: Points = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        return moved

    def inverse(self) -> Self:
        """Give the way back."""
        back = np.linalg.inv(self.matrix[:, :2])
        return type(self)(np.column_stack([back, -back @ self.matrix[:, 2]]))

    def after(self, first: "Affine") -> Self:
        """Give the map that applies `first` and then this one."""
        linear = self.matrix[:, :2] @ first.matrix[:, :2]
        return type(self)(np.column_stack([linear, self.apply(first.matrix[None, :, 2])[0]]))


def fit_similarity(
    source: npt.NDArray[np.floating],
    target: npt.NDArray[np.floating],
    weights: npt.NDArray[np.floating] | None = None,
    mirrored: bool = False,
) -> Affine:
    """Fit the similarity that lays source points on target points, by weighted least squares.

    Args:
        source: (N, 2), at least two different points of positive weight.
        target: (N, 2).
        weights: (N,), 0 or more; by default all the same.
        mirrored: Whether left and right are exchanged on the way.

    Source: Umeyama, IEEE PAMI 1991;13:376, with the sign of the determinant given.
    """
    w = np.ones(len(source)) if weights is None else weights
    w = w / w.sum()
    centre, goal = w @ source, w @ target
    moved, wanted = source - centre, target - goal
    u, singular, vt = np.linalg.svd((wanted * w[:, None]).T @ moved)
    sign = np.sign(np.linalg.det(u @ vt)) * (-1.0 if mirrored else 1.0)
    flip = np.array([1.0, sign])
    linear = (u * flip) @ vt * float(singular @ flip) / float(w @ (moved**2).sum(axis=1))
    return Affine(np.column_stack([linear, goal - linear @ centre]))


@dataclass(frozen=True)
class HandView:
    """A view of a hand: upright, in the layout of a left hand, always at one scale.

    Attributes:
        width: Width of the view over its height.
        unit: Length of the unit of `MEAN_HAND`, as a proportion of the view's height.
        carpus_x: Place of the carpal centre, as a proportion of the view's width.
        carpus_y: The same from the top, of its height.
    """

    width: float
    unit: float
    carpus_x: float
    carpus_y: float

    def size(self, height: int) -> tuple[int, int]:
        """Give width and height in pixels."""
        return max(1, round(self.width * height)), height

    def frame(self, height: int) -> Affine:
        """Give the map from the plane of `MEAN_HAND` to the view at a height in pixels."""
        across, down = self.size(height)
        unit = self.unit * down
        return Affine(np.array([[unit, 0.0, self.carpus_x * across],
                                [0.0, unit, self.carpus_y * down]]))  # fmt: skip

    def of(self, placement: Affine, height: int, aspect: float = 1.0) -> Affine:
        """Give the map from an image to the view.

        Args:
            placement: From the plane of `MEAN_HAND` to the image with its true proportions: a
                similarity, mirrored for a hand in the layout of a right one.
            height: Of the view, in pixels.
            aspect: Width of the image over its true width, where an image was squeezed to a
                square or stretched; the height counts as true.
        """
        true = Affine.scaling(1.0 / aspect, 1.0)
        return self.frame(height).after(placement.inverse()).after(true)


HAND_VIEW = HandView(1.0, 1 / 5.2, 0.471, 0.779)
"""The whole hand in a square, with a margin and the ends of the forearm's bones."""


def is_usual(placement: Affine, size: tuple[int, int], slack: float = 1.0) -> bool:
    """Whether a hand lies on an image as hands do on the RSNA images.

    Source: nine tenths of the RSNA images lie within the limits, see docs/experiments.md.

    Args:
        placement: From the plane of `MEAN_HAND` to the image.
        size: Width and height of the image in pixels.
        slack: Factor by which the limits are wider.
    """
    unit = placement.scale / np.array(size)
    off = np.abs(placement.matrix[:, 2] / size - (0.50, 0.71))
    return bool(
        0.16 / slack < unit[0] < 0.30 * slack
        and 0.135 / slack < unit[1] < 0.225 * slack
        and abs(placement.rotation) < 20.0 * slack
        and off[0] < 0.14 * slack
        and off[1] < 0.16 * slack
    )


def render(
    image: Image.Image, to_view: Affine, size: tuple[int, int], fill: int = 0
) -> Image.Image:
    """Resample an 8-bit grey image as a map places it in a view.

    A much larger image is first reduced by averaging, so that nothing is skipped.

    Args:
        image: A whole image.
        to_view: From the image to the view.
        size: Width and height of the view in pixels.
        fill: Grey of what lies outside the image.
    """
    factor = max(1, int(1.0 / to_view.scale))
    small = image.reduce(factor) if factor > 1 else image
    back = to_view.inverse().matrix / factor
    return small.transform(
        size, Image.Transform.AFFINE, back.ravel().tolist(),
        Image.Resampling.BILINEAR, fillcolor=fill,
    )  # fmt: skip


def undo_turns(placement: Affine, turns: int, size: tuple[int, int]) -> Affine:
    """Give a placement on an image after its quarter turns to the left are undone.

    Args:
        placement: On the image as it is, of the size given.
        turns: Rotations by 90 degrees to the left that the image has.
        size: Its width and height in pixels.
    """
    width, height = size
    for _ in range(turns % 4):  # a quarter turn to the right: (x, y) goes to (height - y, x)
        quarter = Affine(np.array([[0.0, -1.0, height], [1.0, 0.0, 0.0]]))
        placement = quarter.after(placement)
        width, height = height, width
    return placement


def spread_map(
    cells: npt.NDArray[np.float32],
    to_view: Affine,
    view_size: tuple[int, int],
    size: tuple[int, int],
) -> npt.NDArray[np.float32]:
    """Carry a map of a view back to the image.

    Args:
        cells: (h, w) over the view.
        to_view: From the image to the view.
        view_size: Width and height of the view in pixels.
        size: Width and height of the image in pixels.

    Returns:
        (24, 24) over the image, of the same mean: what each cell of the view says lies where its
        part of the image is, or at the border where that is outside.
    """
    rows, columns = (np.arange(n * _PARTS) + 0.5 for n in cells.shape)
    x, y = np.meshgrid(columns * view_size[0] / len(columns), rows * view_size[1] / len(rows))
    places = to_view.inverse().apply(np.stack([x.ravel(), y.ravel()], axis=1))
    column, row = ((places / size * _MAP_SIDE).astype(int).clip(0, _MAP_SIDE - 1)).T
    values = np.kron(cells, np.ones((_PARTS, _PARTS))).ravel()
    spread = np.zeros((_MAP_SIDE, _MAP_SIDE))
    np.add.at(spread, (row, column), values)
    return (spread * (_MAP_SIDE**2 / values.size)).astype(np.float32)


def edge_grey(image: Image.Image) -> int:
    """Give the median grey value of an image's border."""
    grey = np.asarray(image)
    return int(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))


@dataclass(frozen=True)
class ShapeModel:
    """What proportions hands have, and so whether an image has lost its own.

    Attributes:
        mean: (17, 2), joints of hands laid on `MEAN_HAND`.
        precision: (34, 34), inverse covariance of the joints about the mean.
    """

    mean: Points
    precision: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, hands: Sequence[Points], shrinkage: float = 0.02) -> Self:
        """Fit to hands with their true proportions.

        Args:
            hands: (17, 2) each, `JOINTS` of left or right hands at any place.
            shrinkage: Variance, as a proportion of the mean one, that is added to each joint.
        """
        target = MEAN_HAND[: len(JOINTS)]
        laid = np.array([_lay(hand, target) for hand in hands]).reshape(len(hands), -1)
        covariance = np.cov(laid, rowvar=False)
        ridge = shrinkage * np.trace(covariance) / len(covariance)
        precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
        return cls(laid.mean(axis=0).reshape(-1, 2), precision)

    def distance(self, joints: Points) -> float:
        """Give the squared Mahalanobis distance of joints (17, 2) from the mean hand."""
        away = (_lay(joints, self.mean) - self.mean).ravel()
        return float(away @ self.precision @ away)

    def find_aspect(self, joints: Points) -> tuple[float, float]:
        """Estimate how much an image was squeezed along its width.

        Args:
            joints: (17, 2) in pixels of the image.

        Returns:
            The width over the true width, below 1 for a squeezed image; and the squared distance
            of the joints once that is undone.
        """
        distances = np.array([self.distance(joints / (aspect, 1.0)) for aspect in ASPECTS])
        best = int(distances.argmin())
        return float(ASPECTS[best]), float(distances[best])


def _lay(joints: Points, target: Points) -> Points:
    """Lay joints on others, mirrored where that fits better."""
    laid = [fit_similarity(joints, target, mirrored=m).apply(joints) for m in (False, True)]
    return min(laid, key=lambda points: float(((points - target) ** 2).sum()))
