"""Modality LUT, rescaling, VOI LUT and windows of a DICOM image, where they can be trusted."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from boneage.imaging.decoded import Note
from boneage.imaging.dicom_tags import (
    describe_tag,
    read_items,
    read_number,
    read_numbers,
    read_words,
)
from boneage.imaging.grey_range import Levels

MOST_CLIPPED = 0.5
"""Proportion of an image beyond a window from which the window is not that of the image."""

_DARK_MARGIN = 0.15
"""Proportion of the span of grey values by which air may lie beyond a window's dark end."""

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")

Values = npt.NDArray[np.float64]


class Table(NamedTuple):
    """A lookup table: entry i is for the value first + i; the ends serve all beyond them."""

    first: int
    entries: Values

    def look_up(self, values: Values) -> Values:
        """Give the entry of each value."""
        places = np.rint(values - self.first).clip(0, len(self.entries) - 1)
        return self.entries[places.astype(np.int64)]

    def find_ends(self) -> tuple[float, float]:
        """Give the lowest and highest value that the table does not clip."""
        is_new = np.flatnonzero(np.diff(self.entries))
        if not is_new.size:
            return np.inf, -np.inf
        return float(self.first + is_new[0]), float(self.first + is_new[-1] + 1)


class Window(NamedTuple):
    """A window, and what maps its width.

    Attributes:
        centre: WindowCenter.
        width: WindowWidth, above 0.
        function: VOILUTFunction.
    """

    centre: float
    width: float
    function: str

    def look_up(self, values: Values) -> Values:
        """Give the brightness of each value, 0 to 255.

        Source: PS3.3, sections C.11.2.1.2.1 to C.11.2.1.3.2. LINEAR is defined for widths of 1 or
        more; a narrower one is taken as exact, since its pixels are no integers.
        """
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                return 255.0 / (1.0 + np.exp(-4.0 * (values - self.centre) / self.width))
        low, high = self.find_ends()
        if not low < high:
            return np.where(values > low, 255.0, 0.0)
        return ((values - low) * (255.0 / (high - low))).clip(0.0, 255.0)

    def find_ends(self) -> tuple[float, float]:
        """Give the lowest and highest value that the window does not clip."""
        if self.function == "LINEAR" and self.width >= 1.0:
            half = (self.width - 1.0) / 2.0
            return self.centre - 0.5 - half, self.centre - 0.5 + half
        return self.centre - self.width / 2.0, self.centre + self.width / 2.0


def apply_modality(dataset: Any, levels: Levels) -> tuple[Values, tuple[Note, ...]]:
    """Apply the modality LUT, or else slope and intercept, to the values that occur.

    Returns:
        The values after it; and a note of each table or slope that was left out.
    """
    values = levels.values.astype(np.float64)
    notes: list[Note] = []
    for item in read_items(dataset, "ModalityLUTSequence"):
        table = _read_table(item, dataset, levels)
        if table is not None and _clip(levels, table.find_ends(), dark_is_low=None) <= MOST_CLIPPED:
            return table.look_up(values), tuple(notes)
        notes.append(Note("modality_lut_left_out", "the file's modality LUT is empty, damaged or "
                          "clips most of the image: left out"))  # fmt: skip
    slope, intercept = (
        read_number(dataset, "RescaleSlope"),
        read_number(dataset, "RescaleIntercept"),
    )
    if slope == 0.0:
        notes.append(
            Note("modality_lut_left_out", f"{describe_tag('RescaleSlope')} is 0: taken as 1")
        )
    slope = slope or 1.0
    if (slope, intercept or 0.0) != (1.0, 0.0):
        values = values * slope + (intercept or 0.0)
    return values, tuple(notes)


def apply_voi(
    dataset: Any, levels: Levels, *, dark_is_low: bool
) -> tuple[Values, tuple[Note, ...]]:
    """Apply the first VOI LUT or window that does not clip most of the image.

    Args:
        dataset: A pydicom Dataset.
        levels: The values after the modality LUT that occur in the image, ascending.
        dark_is_low: Whether low values are shown dark (MONOCHROME2).

    Returns:
        The values after it, or as they are without any; and a note of each that was left out.
    """
    notes: list[Note] = []
    for name, shape in _find_candidates(dataset, levels, notes):
        if shape is None:
            notes.append(Note("window_left_out", f"{name}: left out"))
            continue
        clipped = _clip(levels, shape.find_ends(), dark_is_low=dark_is_low)
        if clipped <= MOST_CLIPPED:
            return shape.look_up(levels.values), tuple(notes)
        notes.append(Note("window_left_out", f"{name} clips {clipped:.0%} of the image: left out"))
    return levels.values, tuple(notes)


def _find_candidates(
    dataset: Any, levels: Levels, notes: list[Note]
) -> Iterator[tuple[str, Table | Window | None]]:
    """Give the VOI LUTs and the windows of a Dataset, None for one that means nothing."""
    for item in read_items(dataset, "VOILUTSequence"):
        table = _read_table(item, dataset, levels)
        yield "the file's VOI LUT" + (" is empty or damaged" if table is None else ""), table
    centres, widths = (read_numbers(dataset, f"Window{part}") for part in ("Center", "Width"))
    function = next(iter(read_words(dataset, "VOILUTFunction")), "LINEAR")
    if function not in _FUNCTIONS and centres and widths:
        message = f"{describe_tag('VOILUTFunction')} is {function!r}, not known: taken as LINEAR"
        notes.append(Note("voi_function_unknown", message))
        function = "LINEAR"
    for centre, width in zip(centres, widths, strict=False):
        name = f"the file's window (WindowCenter {centre:g}, WindowWidth {width:g})"
        if width > 0.0:
            yield name, Window(centre, width, function)
        else:
            yield f"{name} has no width", None


def _clip(levels: Levels, ends: tuple[float, float], *, dark_is_low: bool | None) -> float:
    """Give the proportion of an image beyond the ends of a table or window.

    Air may lie a little beyond the dark end, where it is cut off on purpose.

    Args:
        levels: The values that occur in the image.
        ends: The lowest and highest value that is not clipped.
        dark_is_low: Which end is dark; None for neither.
    """
    low, high = ends
    total = levels.counts.cumsum()
    inner = levels.values[np.searchsorted(total, np.array([0.01, 0.99]) * total[-1])]
    margin = _DARK_MARGIN * abs(float(inner[1] - inner[0]))
    # Only where some of the image is inside: what lies beside all pixels shows none of them.
    is_inside = (levels.values > low) & (levels.values < high)
    is_beside = not levels.counts[is_inside].any()
    if not is_beside and dark_is_low is not None:
        low, high = (low - margin, high) if dark_is_low else (low, high + margin)
    is_clipped = (levels.values < low) | (levels.values > high) | is_beside
    return float(levels.counts[is_clipped].sum() / total[-1])


def _read_table(item: Any, dataset: Any, levels: Levels) -> Table | None:
    """Read one item of a LUT sequence; None if it is empty or damaged.

    Source: PS3.3, sections C.11.1.1 and C.11.2.1.1.
    """
    descriptor = read_numbers(item, "LUTDescriptor")
    if len(descriptor) != 3:
        return None
    n = int(descriptor[0]) % 65536 or 65536
    entries = _read_entries(item, dataset, n)
    if entries is None:
        return None
    # Its sign is that of the values it is for, which the file's own type of number may not show.
    first = int(descriptor[1]) % 65536
    firsts = [first, first - 65536] if first >= 32768 else [first]

    def count_inside(first: int) -> int:
        is_inside = (levels.values >= first) & (levels.values < first + n)
        return int(levels.counts[is_inside].sum())

    return Table(max(firsts, key=count_inside), entries)


def _read_entries(item: Any, dataset: Any, n: int) -> Values | None:
    """Read n entries, of a byte each or of a word each, as their number shows."""
    try:
        data = item.get("LUTData")
    except Exception:  # pydicom parses a tag when it is asked for, and raises anything
        return None
    is_little = dataset.original_encoding[1] is not False
    word = "<u2" if is_little else ">u2"
    if data is None:
        return None
    if not isinstance(data, bytes):
        words = [int(number) & 0xFFFF for number in (data if hasattr(data, "__len__") else [data])]
        data = np.array(words, dtype=word).tobytes()
    if len(data) >= 2 * n:
        return np.frombuffer(data, word, n).astype(np.float64)
    if len(data) >= n:  # two entries a word, the first in its lower byte
        is_words = item["LUTData"].VR != "OB" and not is_little
        packed = np.frombuffer(data[: len(data) // 2 * 2], word).astype("<u2").tobytes()
        return np.frombuffer(packed if is_words else data, np.uint8, n).astype(np.float64)
    return None
