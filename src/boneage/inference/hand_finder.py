"""Find the hand on an image: its landmarks, how it lies, how many there are; without torch."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from boneage.errors import CheckpointError
from boneage.files import hash_file
from boneage.imaging.geometry import (
    HAND_LENGTH,
    HAND_VIEW,
    JOINTS,
    LANDMARKS,
    MEAN_HAND,
    Affine,
    Points,
    ShapeModel,
    edge_grey,
    fit_similarity,
    render,
)
from boneage.imaging.orientation import TURNS, Orientation
from boneage.imaging.preprocess import stretch_grey
from boneage.inference.session import open_session

Array = npt.NDArray[np.float32]

FINDER = Path(__file__).parents[1] / "weights" / "hand_finder.onnx"
"""The hand finder in the package."""

FACTS_KEY = "boneage_hand_finder"
"""Name under which a hand finder's file keeps its facts."""

Network = Callable[[Array], tuple[Array, Array, Array]]
"""Images (B, 1, 128, 128) in [0, 1] -> heat maps (B, 22, 64, 64), probabilities (B, 3) of no hand,
one and several, and probability (B,) that bones are dark."""

SIDE = 128
"""Side of the square image that the network sees, in pixels."""

_SECOND_LOOK = replace(HAND_VIEW, unit=1 / 5.4)

_LEAST_PEAK = 0.08
_REACH = 0.45
"""Distance in units of `MEAN_HAND` at which a landmark no longer counts as where it should be."""

_ROUNDS = 6

_SMALLEST_UNIT = 1.5
"""Pixels of the first look for the unit of `MEAN_HAND` below which a find is no hand."""

_MAYBE_SEVERAL = 0.0005
"""Probability of several hands from which another one is looked for."""

_WORSE = 0.1
"""By how much the second look's score may be lower than the first's and still count."""


@dataclass(frozen=True)
class FoundHand:
    """The hand that an image shows best.

    Attributes:
        landmarks: (22, 2), x and y of `LANDMARKS` in pixels of the image; a landmark that was not
            seen is where the others leave it.
        confidence: (22,) in [0, 1], how clearly each was seen; 0 for one outside the image.
        placement: From the plane of `MEAN_HAND` to the image.
        score: How much of a hand was seen where a hand has it, in [0, 1].
        p_hands: Probabilities that the image shows no hand, one, several.
        p_inverted: Probability that bones are dark.
        is_outside: bool (22,), whether the place of a landmark in such a hand is off the image.
    """

    landmarks: Points
    confidence: npt.NDArray[np.float64]
    placement: Affine
    score: float
    p_hands: tuple[float, float, float]
    p_inverted: float
    is_outside: npt.NDArray[np.bool_]

    @property
    def is_mirrored(self) -> bool:
        """Whether the hand has the layout of a right hand, palm down: its thumb on the left."""
        return self.placement.is_mirrored

    @property
    def rotation(self) -> float:
        """Degrees by which the hand is turned clockwise from upright, within -180 and 180."""
        return self.placement.rotation

    @property
    def orientation(self) -> Orientation:
        """The nearest of the eight orientations."""
        return Orientation(round(-self.rotation / 90.0) % TURNS, self.p_inverted > 0.5)

    def box(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Give the rows and columns that hold the landmarks, for an image of a width and height."""
        low = np.floor(self.landmarks.min(axis=0)).astype(int).clip(0, size)
        high = np.ceil(self.landmarks.max(axis=0)).astype(int).clip(0, size)
        return slice(low[1], high[1]), slice(low[0], high[0])

    def find_missing(self, facts: "FinderFacts") -> str:
        """Say which part without which an age cannot be told is not seen; empty if none is.

        A finger may be missing, such as one that lies under another, but not off the image; one
        more may be where there is no doubt of a whole hand.
        """
        seen = dict(zip(LANDMARKS, self.confidence >= facts.least_confidence, strict=True))
        if not seen["carpus"] or not (seen["radius"] or seen["ulna"]):
            return "the wrist"
        outside = dict(zip(LANDMARKS, self.is_outside, strict=True))
        fingers = [(f"MCP{digit}", f"PIP{digit}") for digit in range(1, 6)]
        missing = [joints for joints in fingers if not any(seen[joint] for joint in joints)]
        cut = [joints for joints in missing if any(outside[joint] for joint in joints)]
        most = 1 if self.is_doubtful(facts) else 2
        is_whole = len(missing) <= most and len(cut) < most
        return "" if is_whole else f"{len(missing)} of the fingers"

    def is_doubtful(self, facts: "FinderFacts") -> bool:
        """Whether there is the slightest doubt that the image shows a hand."""
        return self.p_hands[0] > facts.least_doubt

    def is_there(self, facts: "FinderFacts") -> bool:
        """Whether so much of a hand was seen that there is one."""
        least = facts.least_score if self.is_doubtful(facts) else facts.least_sure_score
        return self.score >= least

    def place(self, aspect: float) -> Affine:
        """Give the placement once an image has its true proportions again.

        Args:
            aspect: Width of the image over its true width; the height counts as true.
        """
        if aspect == 1.0:
            return self.placement
        true = Affine.scaling(1.0 / aspect, 1.0).apply(self.landmarks)
        return fit_similarity(MEAN_HAND, true, self.confidence + 1e-3, self.is_mirrored)

    @property
    def length(self) -> float:
        """Length in pixels from the carpal centre to the tip of the middle finger."""
        return self.placement.scale * HAND_LENGTH


@dataclass(frozen=True)
class FinderFacts:
    """What travels with a hand finder.

    Attributes:
        least_score: Score from which there is a hand, where there is the slightest doubt.
        least_sure_score: The same where there is none.
        most_none: Probability of no hand up to which there is one.
        most_several: Probability of several hands up to which there is one.
        most_unlike: Squared distance from the mean hand, whatever its aspect, up to which what was
            found is a whole hand, where there is the slightest doubt.
        least_confidence: How clearly a landmark is seen that counts as being there.
        least_doubt: Probability of no hand from which on there is a doubt.
        sure_aspect: Logarithm of the width over the true width from which on, in either direction,
            an image counts as stretched.
        sure_aspect_of_square: The same of a square image that seems wider than it truly is.
        usual_aspect_of_square: Its mean in images of hands that were stretched to a square.
        aspect_gain: Part of the way from that mean to the joints' estimate that is the best guess.
        shape: What proportions hands have.
        provenance: What it was trained on, and how.
    """

    least_score: float
    least_sure_score: float
    most_none: float
    most_several: float
    most_unlike: float
    least_confidence: float
    least_doubt: float
    sure_aspect: float
    sure_aspect_of_square: float
    usual_aspect_of_square: float
    aspect_gain: float
    shape: ShapeModel
    provenance: Mapping[str, Any]

    def to_json(self) -> str:
        """Write the facts as text."""
        shape = {"mean": self.shape.mean.tolist(), "precision": self.shape.precision.tolist()}
        return json.dumps({**vars(self), "shape": shape})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If it is not that.
        """
        values = json.loads(text)
        try:
            shape = {name: np.array(values["shape"][name]) for name in ("mean", "precision")}
            return cls(**{**values, "shape": ShapeModel(**shape)})
        except (TypeError, KeyError) as error:
            raise ValueError(str(error)) from None


class HandFinder:
    """Finds hands with the network in the package, or with another file of `export_finder`.

    It can be used by several threads, and copied or sent to other processes.

    Args:
        path: File of the network.
        threads: Threads of ONNX Runtime for one image; 0 takes every core.

    Attributes:
        facts: What travels with the network.
        sha256: Fingerprint of the file.

    Raises:
        CheckpointError: If the file is missing, damaged, or no hand finder.
    """

    def __init__(self, path: Path = FINDER, threads: int = 0) -> None:
        self._path, self._threads = path, threads
        self._session = open_session(path, threads)
        text = self._session.get_modelmeta().custom_metadata_map.get(FACTS_KEY)
        if text is None:
            raise CheckpointError(f"{path} is no hand finder; expected the one in the package.")
        self.facts = FinderFacts.from_json(text)
        self.sha256 = hash_file(path)

    def __getstate__(self) -> dict[str, Any]:
        """Give what a copy or another process needs; the open session cannot travel."""
        return {"path": self._path, "threads": self._threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def find(self, image: Image.Image) -> FoundHand:
        """Find the hand on a whole 8-bit grey image of any orientation and polarity."""
        return find_hand(self._run, image)

    def _run(self, images: Array) -> tuple[Array, Array, Array]:
        maps, hands, inverted = self._session.run(None, {"images": images})
        return maps, hands, inverted


def find_hand(network: Network, image: Image.Image) -> FoundHand:
    """Find the hand on a whole 8-bit grey image of any orientation and polarity.

    The network looks twice: at the whole image, and at the hand that it found there, upright and
    enlarged.
    """
    first, whole = _look_at_whole(image)
    maps, counts, polarity = network(whole[None, None])
    found = _place(*_read_maps(maps[0]))
    if found[0].scale > _SMALLEST_UNIT:
        to_look = _SECOND_LOOK.of(first.inverse().after(found[0]), SIDE)
        maps, _, _ = network(_look_through(image, to_look)[None, None])
        closer = _place(*_read_maps(maps[0]))
        if closer[3] > found[3] - _WORSE:
            found, first = closer, to_look
    placement, points, confidence, score = found
    if counts[0, 2] > _MAYBE_SEVERAL:
        counts[0, 2] = max(counts[0, 2], _find_another(network, image, first, placement))
    back = first.inverse()
    places = back.apply(points)
    inside = ((places > 0) & (places < image.size)).all(axis=1)
    expected = back.after(placement).apply(MEAN_HAND)
    is_outside: npt.NDArray[np.bool_] = np.any((expected <= 0) | (expected >= image.size), axis=1)
    return FoundHand(
        places,
        np.where(inside, confidence, 0.0),
        back.after(placement),
        score,
        tuple(float(p) for p in counts[0]),  # type: ignore[arg-type]
        float(polarity[0]),
        is_outside,
    )


def _find_another(network: Network, image: Image.Image, first: Affine, placement: Affine) -> float:
    """Give the score of another hand on an image, once the one that was found is covered."""
    corners = np.array([(x, y) for x in (-2.3, 2.6) for y in (-4.4, 2.6)])
    outline = first.inverse().after(placement).apply(corners)[[0, 1, 3, 2]]
    covered = image.copy()
    ImageDraw.Draw(covered).polygon([(x, y) for x, y in outline.tolist()], edge_grey(image))
    _, whole = _look_at_whole(covered)
    maps, _, _ = network(whole[None, None])
    return _place(*_read_maps(maps[0]))[3]


def _look_at_whole(image: Image.Image) -> tuple[Affine, Array]:
    """Fit an image into the network's square; a border as its own edges goes around it."""
    scale = SIDE / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    small = image.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
    stretched = stretch_grey(small)
    grey = np.asarray(stretched, dtype=np.float32) / 255.0
    square = np.full((SIDE, SIDE), edge_grey(stretched) / 255.0, dtype=np.float32)
    left, top = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    square[top : top + size[1], left : left + size[0]] = grey
    # Both axes by their common scale: the rounding of a size is less than a pixel.
    return Affine(np.array([[scale, 0.0, left], [0.0, scale, top]])), square


def _look_through(image: Image.Image, to_look: Affine) -> Array:
    """Resample an image as a map places it in the network's square."""
    look = render(image, to_look, (SIDE, SIDE), edge_grey(image))
    return np.asarray(stretch_grey(look), dtype=np.float32) / 255.0


def _read_maps(maps: Array) -> tuple[Points, npt.NDArray[np.float64]]:
    """Give the brightest spot of each heat map, (L, 2) in pixels, and how bright it is, (L,)."""
    n, cells, _ = maps.shape
    stride = SIDE / cells
    best = maps.reshape(n, -1).argmax(axis=1)
    row, column = np.divmod(best, cells)
    padded = np.pad(maps, ((0, 0), (2, 2), (2, 2)))
    steps = np.arange(5)
    window = padded[
        np.arange(n)[:, None, None],
        row[:, None, None] + steps[:, None],
        column[:, None, None] + steps[None, :],
    ].astype(np.float64)
    total = window.sum(axis=(1, 2)) + 1e-9
    offset = steps - 2.0
    x = column + (window.sum(axis=1) @ offset) / total
    y = row + (window.sum(axis=2) @ offset) / total
    points = (np.stack([x, y], axis=1) + 0.5) * stride
    return points, maps.reshape(n, -1).max(axis=1).astype(np.float64)


def _place(
    points: Points, peaks: npt.NDArray[np.float64]
) -> tuple[Affine, Points, npt.NDArray[np.float64], float]:
    """Lay the mean hand on the spots, as a left or a right one, whichever fits.

    Returns:
        The placement, the landmarks (spots that fit, else the mean hand's), how clearly each was
        seen, and the score.
    """
    fitted = [_fit_robustly(points, peaks, mirrored) for mirrored in (False, True)]
    return max(fitted, key=lambda fit: fit[3])


def _fit_robustly(
    points: Points, peaks: npt.NDArray[np.float64], mirrored: bool
) -> tuple[Affine, Points, npt.NDArray[np.float64], float]:
    clear = np.where(peaks < _LEAST_PEAK, 0.0, peaks) + 1e-4
    weights = clear.copy()
    placement = fit_similarity(MEAN_HAND, points, weights, mirrored)
    away = np.zeros(len(points))
    for i in range(_ROUNDS):
        unit = max(placement.scale, 1e-6)
        away = np.hypot(*(points - placement.apply(MEAN_HAND)).T) / unit
        reach = _REACH * (1.0 + 2.0 * (1.0 - i / (_ROUNDS - 1)))  # wide at first
        weights = clear * np.clip(1.0 - (away / reach) ** 2, 0.0, 1.0) ** 2 + 1e-6
        placement = fit_similarity(MEAN_HAND, points, weights, mirrored)
    fits = np.clip(1.0 - (away / _REACH) ** 2, 0.0, 1.0)
    # A thumb held off, or a squeezed image, moves joints far from the mean hand's.
    is_near = (away < 2.0 * _REACH) & (peaks >= _LEAST_PEAK)
    seen = peaks * is_near
    landmarks = np.where(is_near[:, None], points, placement.apply(MEAN_HAND))
    return placement, landmarks, seen, float((peaks * fits)[: len(JOINTS)].mean())
