"""Files and folders -> the images in them, and the ids by which tables know those images."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from boneage.errors import BoneAgeError, LabelError
from boneage.files import IMAGE_SUFFIXES, clean_id, cut_suffix
from boneage.imaging.dicom import holds_image, is_dicom

SKIPPED_FOLDERS = {
    "@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx", "lost+found",
    "system volume information", "checkpoints", "ipynb_checkpoints",
}  # fmt: skip
"""Folders, in lower case, in which storage devices and programs keep thumbnails and leftovers."""


@dataclass
class Found:
    """What was found in files and folders.

    Attributes:
        images: The images, each once, those of a folder sorted by path.
        others: Number of other files in the folders.
        without_image: Number of DICOM objects that hold no image, such as structured reports.
        skipped: Folders that were not read, and links that lead nowhere, each with the reason.
    """

    images: list[Path] = field(default_factory=list)
    others: int = 0
    without_image: int = 0
    skipped: list[str] = field(default_factory=list)

    def describe_rest(self) -> list[str]:
        """Say what was left out, a phrase a kind."""
        parts = []
        if self.without_image:
            parts.append(
                f"{self.without_image} DICOM object{'s' * (self.without_image != 1)} without an "
                "image left out"
            )
        if self.others:
            parts.append(f"{self.others} other file{'s' * (self.others != 1)} left out")
        if self.skipped:
            shown = ", ".join(self.skipped[:3]) + (", …" if len(self.skipped) > 3 else "")
            parts.append(f"{len(self.skipped)} not read: {shown}")
        return parts


def discover(paths: Sequence[Path]) -> Found:
    """Find the images among files and folders.

    A file named is taken as it is. In a folder, and in all below it, linked folders included,
    images are known by their suffix or by DICOM's mark; a DICOMDIR, which lists them, is none.
    Hidden folders and `SKIPPED_FOLDERS` are not read.

    Raises:
        BoneAgeError: If there is no image.
    """
    found = Found()
    images: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            images[path] = None
            continue
        images |= dict.fromkeys(sorted(_search(path, found)))
    found.images = list(images)
    if not paths:
        raise BoneAgeError("there is nothing to predict; pass images or folders of them.")
    if not images:
        where = ", ".join(map(str, paths))
        rest = f" ({'; '.join(found.describe_rest())})" if found.describe_rest() else ""
        raise BoneAgeError(
            f"{where} holds no images{rest}; expected {', '.join(IMAGE_SUFFIXES)} or DICOM."
        )
    return found


def _search(folder: Path, found: Found) -> Iterator[Path]:
    """Give the images below a folder, and count in `found` what else is there."""

    def note(error: OSError) -> None:
        found.skipped.append(f"{error.filename} ({error.strerror})")

    seen = {_identify_folder(folder)}

    def is_new(below: Path) -> bool:
        if below.name.startswith(".") or below.name.lower() in SKIPPED_FOLDERS:
            found.skipped.append(str(below))
            return False
        identity = _identify_folder(below)
        if identity in seen:
            found.skipped.append(f"{below} (linked, read elsewhere)")
            return False
        seen.add(identity)
        return True

    def is_image(path: Path) -> bool:
        if not path.exists():
            found.skipped.append(f"{path} (a link to nothing)")
        elif not _looks_like_image(path):
            found.others += 1
        elif not holds_image(path):
            found.without_image += 1
        else:
            return True
        return False

    def holds(check: Callable[[Path], bool], path: Path) -> bool:
        try:
            return check(path)
        except OSError as error:  # such as a link into a folder that may not be read
            note(error)
            return False

    for here, folders, files in os.walk(folder, followlinks=True, onerror=note):
        folders[:] = [name for name in sorted(folders) if holds(is_new, Path(here, name))]
        yield from (path for name in files if holds(is_image, path := Path(here, name)))


def _identify_folder(path: Path) -> tuple[int, int]:
    """Identify a folder, the same through every link to it."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _looks_like_image(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES or has_dicom_mark(path)


def has_dicom_mark(path: Path) -> bool:
    """Whether a file can be opened and is DICOM."""
    try:
        return is_dicom(path)
    except OSError:
        return False


def match_ids(paths: Iterable[Path], ids: Iterable[str]) -> dict[Path, str]:
    """Find the table's id of each image: the end of its path, folder by folder, without suffix.

    `patientA/00001` is the id of `.../patientA/00001.png` alone; `00001` is one too, unless the
    table also has the longer one. Images without an id are left out.

    Args:
        paths: Images.
        ids: As `clean_id` gives them.

    Raises:
        LabelError: If one id fits several images.
    """
    known = set(ids)
    deepest = max((i.count("/") for i in known), default=0) + 1
    found: dict[Path, str] = {}
    holder: dict[str, Path] = {}
    for path in paths:
        parts = _parts(path)
        ends = ("/".join(parts[-depth:]) for depth in range(min(deepest, len(parts)), 0, -1))
        image_id = next((end for end in map(clean_id, ends) if end in known), None)
        if image_id is None:
            continue
        if image_id in holder:
            is_twin = _parts(holder[image_id]) == parts
            remedy = "Move" if is_twin else f"Write ids as {'/'.join(parts[-2:])}, or move"
            raise LabelError(
                f"the table's id {image_id!r} fits {holder[image_id]} and {path}; expected one "
                f"image a row. {remedy} one of the images away."
            )
        holder[image_id] = path
        found[path] = image_id
    return found


def name_images(paths: Sequence[Path]) -> dict[Path, str]:
    """Name each image by its stem, with as many folders before it as make it unique.

    Example:
        >>> list(name_images([Path("a/1.png"), Path("b/1.png"), Path("2.png")]).values())
        ['a/1', 'b/1', '2']
    """
    parts = {path: _parts(path) for path in paths}
    # Paths that differ in the suffix alone get it in brackets, where no reader of ids cuts it off.
    whole = Counter(parts.values())
    parts = {
        path: p if whole[p] == 1 else (*p[:-1], f"{p[-1]} ({path.suffix.lstrip('.')})")
        for path, p in parts.items()
    }
    depth = dict.fromkeys(paths, 1)
    while True:
        names = {path: "/".join(parts[path][-depth[path] :]) for path in paths}
        count = Counter(names.values())
        again = [p for p in paths if count[names[p]] > 1 and depth[p] < len(parts[p])]
        if not again:
            break
        for path in again:
            depth[path] += 1
    return names


def _parts(path: Path) -> tuple[str, ...]:
    """Folders and stem of an image, from the root."""
    whole = Path(os.path.abspath(path))  # noqa: PTH100 (links stay as they are named)
    return (*whole.parts[1:-1], cut_suffix(whole.name))
