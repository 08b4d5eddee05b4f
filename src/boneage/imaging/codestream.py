"""Compressed frames: the size that they declare, and a damage of their headers that is common."""

from collections.abc import Iterator
from typing import NamedTuple

_SIZES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG and JPEG-LS whose segment holds the size of the image."""

_SEQUENTIAL = (0xC0, 0xC1)
_SCAN = 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
_JPEG_2000 = b"\xff\x4f\xff\x51"


class _Segment(NamedTuple):
    marker: int
    start: int  # of what follows the length
    end: int


def read_size(frame: bytes) -> tuple[int, int] | None:
    """Give the height and width that a JPEG, JPEG-LS or JPEG 2000 frame declares, if it does.

    Source: ITU-T T.81, B.2.2; ITU-T T.800, A.5.1.
    """
    place = frame.find(_JPEG_2000)
    if not frame.startswith(b"\xff\xd8") and place >= 0:
        numbers = frame[place + 8 : place + 24]
        if len(numbers) < 16:
            return None
        right, bottom, left, top = (int.from_bytes(numbers[i : i + 4]) for i in range(0, 16, 4))
        return bottom - top, right - left
    for segment in _iterate_segments(frame):
        if segment.marker in _SIZES:
            numbers = frame[segment.start + 1 : segment.start + 5]
            return int.from_bytes(numbers[:2]), int.from_bytes(numbers[2:])
    return None


def mend_scan(frame: bytes) -> bytes:
    """Give a frame whose scan headers say what a sequential JPEG's must: coefficients 0 to 63.

    Some encoders write 0 to 0, which a strict codec refuses. Nothing else can be meant.

    Source: ITU-T T.81, table B.3.
    """
    mended = bytearray(frame)
    is_sequential = False
    for segment in _iterate_segments(frame):
        is_sequential |= segment.marker in _SEQUENTIAL
        if segment.marker == _SCAN and is_sequential and segment.end - segment.start >= 6:
            mended[segment.end - 3 : segment.end] = b"\x00\x3f\x00"
    return bytes(mended)


def _iterate_segments(frame: bytes) -> Iterator[_Segment]:
    """Give the segments of a JPEG up to its first scan."""
    place = 2
    while frame.startswith(b"\xff\xd8") and place + 4 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:  # fill bytes, or a marker alone
            place += 1 if marker == 0xFF else 2
            continue
        end = place + 2 + int.from_bytes(frame[place + 2 : place + 4])
        if end > len(frame) or end < place + 4:
            return
        yield _Segment(marker, place + 4, end)
        if marker == _SCAN:
            return
        place = end
