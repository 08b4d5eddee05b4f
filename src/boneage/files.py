"""Files that are whole or not there, known by their content, and written by one process."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from boneage.errors import BoneAgeError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
"""Suffixes of the files that are taken for images."""

LONGEST_NAME = 255
"""Most bytes in a file's name that common file systems take."""

_WHOLE_FLOAT = re.compile(r"\d+\.0+")

MAX_PROCESSES = 61
"""Most processes that Windows lets one pool have."""


def cut_suffix(name: str) -> str:
    """Cut a known image suffix off a file's name, and only that: an id may hold dots."""
    return name[: -len(Path(name).suffix)] if name.lower().endswith(IMAGE_SUFFIXES) else name


def clean_id(name: str) -> str:
    r"""Give an image id as it is compared: without a file's suffix, with `/` between folders.

    Example:
        >>> clean_id("900004.0"), clean_id(r"patientA\00001.png")
        ('900004', 'patientA/00001')
    """
    text = name.strip().replace("\\", "/").removeprefix("./").strip("/")
    while (cut := cut_suffix(text)) != text:  # 00001.dcm.png is 00001
        text = cut
    return text.partition(".")[0] if _WHOLE_FLOAT.fullmatch(text) else text


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, which takes its place when the block ends well.

    When the block fails, the temporary file is removed and what was at `path` stays. The folder
    is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name's digest, since the name itself may be as long as the system takes.
    part = path.with_name(f".{hash_text(path.name)[:16]}.{os.getpid()}.part")
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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs from writing `path` while the block runs.

    The lock is a hidden file beside it, which stays, and is free again when this process ends,
    however that comes.

    Raises:
        BoneAgeError: If another run holds it, or it is no file, such as a device.
    """
    path = path.resolve()  # whichever link leads there
    if path.exists() and not path.is_file():
        raise BoneAgeError(
            f"{path} is no ordinary file, so it cannot be taken up. Pass a file as --out."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{hash_text(path.name)[:16]}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BoneAgeError(
            f"{path} is being written by another run. Wait for it, or pass another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


def hash_file(path: Path) -> str:
    """Fingerprint a file's content: its sha256.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """Fingerprint text, which need not be valid: the sha256 of its bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def fit_name(stem: str, suffix: str) -> str:
    """Give a file's name that the system takes: a stem too long is cut, and marked by its digest.

    Example:
        >>> len(fit_name("a" * 255, ".png"))
        255
    """
    name = stem + suffix
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    mark = f"-{hash_text(stem)[:8]}{suffix}"
    kept = os.fsencode(stem)[: LONGEST_NAME - len(mark)]
    return kept.decode("utf-8", "ignore") + mark
