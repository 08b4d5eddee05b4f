"""Deep grey values -> the range that the image itself takes up, without marks at the extremes."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from boneage.imaging.decoded import Mask, Note

MARK_GAP = 0.75
"""Least gap between a mark and the image's grey values, in proportion to their span.

Source: 12 and 14 bits of a hand beside 65535 leave gaps of 15 and 3 spans, and dense bone beside
soft tissue leaves none. A gap below this one costs the image less than half of its grey levels.
"""

FEWEST_LEVELS = 32
"""Least number of grey values of an image beside which a mark is looked for."""

_LEAST_SHARE = 0.05  # of an image beside its marks
_LEAST_MARK = 0.0025  # below this, the percentiles leave a mark out
_BINS = 256
_SPARSE = 0.05 / _BINS  # a bin of less is empty: the smooth edges of letters
_WIDEST_MARK = _BINS // 50
_MOST_MARKS = 4

_PERCENTILES = (0.005, 0.995)
_MARGIN = 1.0  # of their span, so that ordinary images keep their minimum and maximum
_SAMPLE = 1 << 20


class Levels(NamedTuple):
    """Grey values and how often each occurs.

    Attributes:
        values: (N,), distinct, ascending unless a lookup table has mapped them.
        counts: (N,).
    """

    values: npt.NDArray[Any]
    counts: npt.NDArray[np.integer]


def count_levels(grey: npt.NDArray[Any], left_out: Mask | None = None) -> Levels:
    """Count grey values: all of up to 16 bits, and those of an even sample of deeper ones."""
    kept = grey.ravel() if left_out is None else grey[~left_out]
    if kept.dtype.kind in "ui" and kept.dtype.itemsize <= 2 and kept.size:
        lowest = int(kept.min())
        counts = np.bincount((kept.astype(np.int32) - lowest).ravel())
        places = np.flatnonzero(counts)
        return Levels(places + lowest, counts[places])
    return Levels(*np.unique(kept[:: max(1, kept.size // _SAMPLE)], return_counts=True))


def find_marks(grey: npt.NDArray[Any], levels: Levels) -> tuple[Mask | None, tuple[Note, ...]]:
    """Find strips, frames and letters at the extremes of a deep image's grey values.

    A mark is a narrow plateau at the lowest or highest grey values, apart from all others by a
    gap that is empty but for the smooth edges of letters. What is cut off at the end of a range,
    such as dense bone, has no gap beside it.

    Args:
        grey: (H, W).
        levels: The grey values of its pixels, without those that are left out already.

    Returns:
        Where the marks are, None without any; and a note of them.
    """
    low, high = _find_ends_without_marks(levels)
    is_mark = (levels.values < low) | (levels.values > high)
    if not is_mark.any():
        return None, ()
    share = levels.counts[is_mark].sum() / levels.counts.sum()
    where = " and ".join(
        [f"below {low:g}"] * bool(levels.values[0] < low)
        + [f"above {high:g}"] * bool(levels.values[-1] > high)
    )
    note = Note(
        "marks_left_out",
        f"{share:.1%} of the image are a strip, frame or letters of grey values {where}, far from "
        "all others: they were left out",
    )
    return (grey < low) | (grey > high), (note,)


def _find_ends_without_marks(levels: Levels) -> tuple[float, float]:
    """Give the lowest and highest grey value that no mark has."""
    values = levels.values.astype(np.float64)
    shares = levels.counts / max(int(levels.counts.sum()), 1)
    low, high = -np.inf, np.inf
    for _ in range(_MOST_MARKS):
        keep = (values >= low) & (values <= high)
        top = _find_mark(values[keep], shares[keep])
        bottom = _find_mark(-values[keep][::-1], shares[keep][::-1])
        if top is None and bottom is None:
            break
        high = high if top is None else top
        low = low if bottom is None else -bottom
    return float(low), float(high)


def _find_mark(values: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> float | None:
    """Give the middle of the gap below a mark at the highest values; None if there is no mark."""
    if len(values) <= FEWEST_LEVELS:
        return None
    span = values[-1] - values[0]
    if not 0.0 < span < np.inf:
        return None
    bins = np.minimum((_BINS * ((values - values[0]) / span)).astype(np.int64), _BINS - 1)
    is_filled = np.bincount(bins, shares, _BINS) >= _SPARSE
    is_filled[-1] = True
    below = np.flatnonzero(~is_filled)
    if not below.size or _BINS - 1 - below[-1] > _WIDEST_MARK:
        return None
    filled = np.flatnonzero(is_filled[: below[-1]])
    if not filled.size:
        return None
    is_body = bins <= filled[-1]
    is_mark = bins > below[-1]
    body, mark = values[is_body], values[is_mark]
    gap = mark[0] - body[-1]
    is_far = gap >= MARK_GAP * (body[-1] - body[0])
    is_image = len(body) >= FEWEST_LEVELS and shares[is_body].sum() >= _LEAST_SHARE
    is_seen = shares[is_mark].sum() >= _LEAST_MARK
    return float(body[-1] + gap / 2) if is_far and is_image and is_seen else None


def find_range(levels: Levels) -> tuple[float, float]:
    """Give the grey values that become black and white.

    Percentiles 0.5 and 99.5, widened by their span at each end, but not beyond what occurs: the
    minimum and maximum of an ordinary image, and not those of one with a few far values. What lies
    between the percentiles has a third of the grey levels or more.
    """
    total = levels.counts.cumsum()
    places = np.searchsorted(total, np.array(_PERCENTILES) * total[-1])
    inner_low, inner_high = (float(levels.values[place]) for place in places)
    lowest, highest = float(levels.values[0]), float(levels.values[-1])
    margin = _MARGIN * (inner_high - inner_low)
    if not margin > 0.0:
        return lowest, highest
    return max(lowest, inner_low - margin), min(highest, inner_high + margin)
