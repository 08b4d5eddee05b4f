"""Values of DICOM tags, as real files have them: empty, damaged, with decimal commas."""

import math
from collections.abc import Iterable
from typing import Any

LONGEST_WORD = 64
"""Most characters of a tag's text that are kept: those of a UID, and of most words in DICOM."""


def read_numbers(dataset: Any, keyword: str) -> list[float]:
    """Give the finite numbers of a tag; none where it is absent, empty or damaged.

    A decimal comma counts as a point: European devices write one against the standard.
    """
    numbers = []
    for word in _split(dataset, keyword):
        try:
            number = float(str(word).strip().replace(",", "."))
        except ValueError:
            continue
        if math.isfinite(number):
            numbers.append(number)
    return numbers


def read_number(dataset: Any, keyword: str) -> float | None:
    """Give the first number of a tag; None where it is absent, empty or damaged."""
    return next(iter(read_numbers(dataset, keyword)), None)


def read_words(dataset: Any, keyword: str) -> list[str]:
    """Give the words of a tag in upper case; none where it is absent, empty or damaged."""
    words = (str(word).strip().upper() for word in _split(dataset, keyword))
    return [word for word in words if word]


def read_items(dataset: Any, keyword: str) -> list[Any]:
    """Give the items of a sequence; none where it is absent, empty or damaged."""
    try:
        return list(dataset.get(keyword) or [])
    except Exception:  # pydicom parses a tag when it is asked for, and raises anything
        return []


def tidy(text: str, longest: int = LONGEST_WORD) -> str:
    r"""Give the text of a tag, or of an error about one, in one line: damaged files have any bytes.

    Example:
        >>> tidy("HAND\0 \n LEFT")
        'HAND LEFT'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def replace_tag(dataset: Any, keyword: str, value: object) -> None:
    """Set a tag of a copied Dataset; an assignment would change the element of the source."""
    if keyword in dataset:
        delattr(dataset, keyword)
    setattr(dataset, keyword, value)


def describe_tag(keyword: str) -> str:
    """Name a tag as messages do.

    Example:
        >>> describe_tag("BitsAllocated")
        'BitsAllocated (0028,0100)'
    """
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword) or 0
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _split(dataset: Any, keyword: str) -> Iterable[Any]:
    """Give the values of a tag, or the words of its bytes where pydicom cannot parse them."""
    from pydicom.datadict import tag_for_keyword

    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom parses a tag when it is asked for, and raises anything
        raw = getattr(dataset.get_item(tag_for_keyword(keyword)), "value", None)
        return raw.decode("latin-1").split("\\") if isinstance(raw, bytes) else ()
    if value is None or isinstance(value, bytes):
        return ()
    is_one = isinstance(value, str) or not isinstance(value, Iterable)
    return (value,) if is_one else value
