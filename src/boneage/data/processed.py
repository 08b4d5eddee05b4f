"""The processed folder: raw images resized once, each stamped with what it was made from."""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin
from tqdm import tqdm

from boneage.config import ImageSettings, Invert
from boneage.errors import BoneAgeError, ImageError
from boneage.files import MAX_PROCESSES, replacing
from boneage.imaging.preprocess import Preprocessing, Reader
from boneage.imaging.radiograph import read_radiograph

_PNG_KEY = "boneage"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


_STAMP = {"bytes", "mtime_ns", "size", "invert", "crop", "hand_finder_sha256"}
"""What the stamp of a processed file may hold; see `Reader.stamp`."""


@dataclass(frozen=True)
class PreprocessSummary:
    """What became of each image of a folder.

    Attributes:
        written: Images resized now.
        up_to_date: Images that were there already, from the same source and settings.
        inverted: Ids of images among those written that had dark bones and were inverted.
        broken: Error message by id of images that could not be read.
    """

    written: int
    up_to_date: int
    inverted: tuple[str, ...]
    broken: Mapping[str, str]

    @property
    def total(self) -> int:
        """Number of images of the folder."""
        return self.written + self.up_to_date + len(self.broken)


def preprocess_folder(
    images: Mapping[str, Path],
    processed: Path,
    settings: ImageSettings,
    workers: int | None = None,
    reader: Reader | None = None,
) -> PreprocessSummary:
    """Resize every image to `processed/<id>.png`.

    Each file carries its source's size and time and the settings it was made with, and is
    written under a temporary name and renamed. So the work can be cut off anywhere and started
    again: whole files that are still right stay, all others are made anew.

    Args:
        images: Path by image id.
        processed: Folder to fill; made if missing.
        settings: Size, polarity and crop of the images.
        workers: Processes; by default one a core.
        reader: What makes the images of those settings, if it must find the hand.

    Returns:
        What was done; an image that cannot be read is named there and stops nothing.

    Raises:
        ImageError: If no image at all could be read.
    """
    processed.mkdir(parents=True, exist_ok=True)
    for leftover in processed.rglob(".*.part"):
        leftover.unlink()
    reader = reader or Preprocessing.of_processed(settings)
    jobs = [(path, processed / f"{i}.png", settings.invert, reader) for i, path in images.items()]
    workers = workers if workers is not None else os.cpu_count() or 1
    inverted, broken, up_to_date = [], {}, 0
    pool = ProcessPoolExecutor(min(workers, MAX_PROCESSES)) if workers > 1 else nullcontext()
    with pool as executor:
        outcomes: Iterable[str] = (
            map(_preprocess_file, jobs)
            if executor is None
            else executor.map(_preprocess_file, jobs, chunksize=8)
        )
        progress = tqdm(outcomes, total=len(jobs), desc="preprocess", unit="image")
        for image_id, outcome in zip(images, progress, strict=True):
            if outcome == "up to date":
                up_to_date += 1
            elif outcome == "inverted":
                inverted.append(image_id)
            elif outcome != "written":
                broken[image_id] = outcome
    if len(broken) == len(jobs):
        first = next(iter(broken.values()), "there is none")
        raise ImageError(f"none of {len(jobs)} images could be read; the first: {first}")
    return PreprocessSummary(
        len(jobs) - up_to_date - len(broken), up_to_date, tuple(inverted), broken
    )


def _preprocess_file(job: tuple[Path, Path, Invert, Reader]) -> str:
    """Make one processed file; returns "written", "inverted", "up to date" or an error message."""
    source, target, invert, reader = job
    try:
        length, mtime_ns = _fingerprint(source)
    except OSError as error:
        return f"{source} cannot be read: {error.strerror}."
    stamp = json.dumps({"bytes": length, "mtime_ns": mtime_ns, **reader.stamp})
    if _read_stamp(target) == stamp:
        return "up to date"
    try:
        radiograph = read_radiograph(source, invert)
    except ImageError as error:
        target.unlink(missing_ok=True)  # made of an earlier source
        return str(error)
    text = PngImagePlugin.PngInfo()
    text.add_text(_PNG_KEY, stamp)
    with replacing(target) as part:
        reader.prepare(radiograph).save(part, format="PNG", pnginfo=text)
    return "inverted" if radiograph.was_inverted else "written"


def _read_stamp(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            stamp = image.info.get(_PNG_KEY)
        with path.open("rb") as file:  # the stamp is written first, so look for the end as well
            file.seek(-len(_PNG_END), os.SEEK_END)
            return stamp if file.read() == _PNG_END else None
    except OSError:
        return None


def find_processed(
    processed: Path, sources: Mapping[str, Path | None], settings: ImageSettings
) -> tuple[dict[str, Path], int]:
    """Find the processed images of the given ids and the one size that they share.

    Args:
        processed: Folder that `preprocess_folder` filled.
        sources: By wanted id, the raw image, or None where it is not at hand any more.
        settings: Those of the run, of which polarity and crop must be the folder's.

    Returns:
        Path by id for those that exist, and their side in pixels.

    Raises:
        BoneAgeError: If there is none, one was not made by `preprocess` or from another raw image,
            or they differ in size, sampling, polarity setting or crop.
    """
    images: dict[str, Path] = {}
    stale: list[str] = []
    made: dict[tuple[int, str, str, str], str] = {}
    for image_id, source in sources.items():
        path = processed / f"{image_id}.png"
        if not path.is_file():
            continue
        stamp = _read_stamp(path)
        if stamp is None:
            raise BoneAgeError(
                f"{path} was not made by `boneage preprocess`. Move it away and run preprocess."
            )
        values = json.loads(stamp)
        if not set(values) <= _STAMP:
            raise BoneAgeError(
                f"{path} was made by another version of boneage. Run `boneage preprocess` again."
            )
        crop = values.get("crop", "none")
        finder = values.get("hand_finder_sha256", "")
        made.setdefault((values["size"], values["invert"], crop, finder), image_id)
        images[image_id] = path
        if source is not None and _fingerprint(source) != (values["bytes"], values["mtime_ns"]):
            stale.append(image_id)
    if not images:
        raise BoneAgeError(
            f"{processed} holds none of the images. Run `boneage preprocess` first, or leave "
            "--use-processed out."
        )
    if stale:
        raise BoneAgeError(
            f"{len(stale)} of {len(images)} images in {processed} were made from other files than "
            f"those there now, such as {sources[stale[0]]}. Run `boneage preprocess` again."
        )
    if len(made) > 1:
        found = " and ".join(
            f"{size} px, invert {invert}"
            f"{f', crop {crop} (hand finder {finder[:8]})' * (crop != 'none')} ({example}.png)"
            for (size, invert, crop, finder), example in made.items()
        )
        raise BoneAgeError(f"{processed} mixes images of {found}. Run `boneage preprocess` again.")
    size, invert, crop, _ = next(iter(made))
    if crop != settings.crop:
        raise BoneAgeError(
            f"{processed} was made with --crop {crop}, this run has {settings.crop}. Run `boneage "
            f"preprocess --crop {settings.crop}` first."
        )
    if invert != settings.invert:
        raise BoneAgeError(
            f"{processed} was made with --invert {invert}, this run has {settings.invert}. Run "
            f"`boneage preprocess --invert {settings.invert}` first."
        )
    return images, size


def _fingerprint(path: Path) -> tuple[int, int]:
    """Size and time of a file, by which a changed image is known."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
