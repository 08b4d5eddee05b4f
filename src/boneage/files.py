"""Files that are whole or not there, and how many processes may write them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
"""Suffixes of the files that are taken for films."""

MAX_PROCESSES = 61
"""Most processes that Windows lets one pool have."""


def cut_suffix(name: str) -> str:
    """Cut a known image suffix off a file's name, and only that: an id may hold dots."""
    return name[: -len(Path(name).suffix)] if name.lower().endswith(IMAGE_SUFFIXES) else name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, which takes its place when the block ends well.

    When the block fails, the temporary file is removed and what was at `path` stays. The folder
    is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        if error.filename == str(part):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        with suppress(OSError):  # which would hide what went wrong
            part.unlink()


def save_text(path: Path, text: str) -> None:
    """Write a text file, whole, with the line ends that `text` has."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def name_path(path: Path) -> str:
    """Give a path as a CSV has it, where a file's name need not be valid text."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")
