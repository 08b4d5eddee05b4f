"""One radiograph -> the square 8-bit image a network is fed; a raw folder -> a processed one."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from boneage.config import Films, Invert
from boneage.errors import BoneAgeError, ImageError
from boneage.files import MAX_PROCESSES, replacing
from boneage.radiograph import read_radiograph

logger = logging.getLogger(__name__)

_PNG_KEY = "boneage"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class Preprocessing:
    """How a file becomes the network's image; travels with the weights.

    A film that went through the processed folder was resized once to `stored_size`, kept as 8
    bits, and again to `image_size`. Serving repeats exactly that, because a network notices how
    its pixels were made.

    Attributes:
        image_size: Side of the square the network sees, in pixels.
        stored_size: Side of the square in the processed folder, or None if films were read raw.
        invert: How films with dark bones are treated.
    """

    image_size: int
    stored_size: int | None
    invert: Invert

    def read(self, path: Path) -> Image.Image:
        """Read a raw film as the 8-bit grey image that training started from.

        Raises:
            ImageError: If the file cannot be read.
        """
        image = read_radiograph(path, self.invert).to_image()
        return image if self.stored_size is None else resize(image, self.stored_size)


def resize(image: Image.Image, size: int) -> Image.Image:
    """Stretch to size x size, antialiased bilinear, as torchvision's Resize does on such images."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def to_grey_array(image: Image.Image, size: int) -> npt.NDArray[np.float32]:
    """Turn an 8-bit grey image into the network's: (size, size) float32 in [0, 1]."""
    square = image if image.size == (size, size) else resize(image, size)
    return np.asarray(square, dtype=np.float32) / 255.0


@dataclass(frozen=True)
class PreprocessSummary:
    """What became of each film of a folder.

    Attributes:
        written: Films resized now.
        up_to_date: Films that were there already, from the same source and settings.
        inverted: Ids of films among those written that had dark bones and were turned.
        broken: Error message by id of films that could not be read.
    """

    written: int
    up_to_date: int
    inverted: tuple[str, ...]
    broken: Mapping[str, str]

    @property
    def total(self) -> int:
        """Films looked at."""
        return self.written + self.up_to_date + len(self.broken)


def preprocess_folder(
    images: Mapping[str, Path], processed: Path, films: Films, workers: int | None = None
) -> PreprocessSummary:
    """Resize every film to `processed/<id>.png`.

    Each file carries its source's size and time and the settings it was made with, and is
    written under a temporary name and renamed. So the work can be cut off anywhere and started
    again: whole files that are still right stay, all others are made anew.

    Args:
        images: Path by image id.
        processed: Folder to fill; made if missing.
        films: Size and polarity of the images.
        workers: Processes; by default one a core.

    Returns:
        What was done; a film that cannot be read is named there and stops nothing.

    Raises:
        ImageError: If no film at all could be read.
    """
    processed.mkdir(parents=True, exist_ok=True)
    for leftover in processed.glob(".*.part"):
        leftover.unlink()
    jobs = [(path, processed / f"{i}.png", films.image_size, films.invert)
            for i, path in images.items()]  # fmt: skip
    workers = workers if workers is not None else os.cpu_count() or 1
    inverted, broken, up_to_date = [], {}, 0
    pool = ProcessPoolExecutor(min(workers, MAX_PROCESSES)) if workers > 1 else nullcontext()
    with pool as executor:
        outcomes: Iterable[str] = (
            map(_preprocess_file, jobs)
            if executor is None
            else executor.map(_preprocess_file, jobs, chunksize=8)
        )
        progress = tqdm(outcomes, total=len(jobs), desc="preprocess", unit="film")
        for image_id, outcome in zip(images, progress, strict=True):
            if outcome == "up to date":
                up_to_date += 1
            elif outcome == "inverted":
                inverted.append(image_id)
            elif outcome != "written":
                broken[image_id] = outcome
    if len(broken) == len(jobs):
        first = next(iter(broken.values()), "there is none")
        raise ImageError(f"none of {len(jobs)} films could be read; the first: {first}")
    return PreprocessSummary(
        len(jobs) - up_to_date - len(broken), up_to_date, tuple(inverted), broken
    )


def _preprocess_file(job: tuple[Path, Path, int, Invert]) -> str:
    """Make one processed file; answers "written", "inverted", "up to date" or an error message."""
    source, target, size, invert = job
    try:
        length, mtime_ns = _fingerprint(source)
    except OSError as error:
        return f"{source} cannot be read: {error.strerror}."
    stamp = json.dumps({"bytes": length, "mtime_ns": mtime_ns, "size": size, "invert": invert})
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
        resize(radiograph.to_image(), size).save(part, format="PNG", pnginfo=text)
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
    processed: Path, sources: Mapping[str, Path | None], invert: Invert
) -> tuple[dict[str, Path], int]:
    """Find the processed films of the given ids and the one size and polarity they share.

    Args:
        processed: Folder that `preprocess_folder` filled.
        sources: By wanted id, the raw film, or None where it is not at hand any more.
        invert: Polarity setting of the run.

    Returns:
        Path by id for those that exist, and their side in pixels.

    Raises:
        BoneAgeError: If there is none, one was not made by `preprocess` or from another raw film,
            or they differ in size or polarity setting.
    """
    images: dict[str, Path] = {}
    stale: list[str] = []
    made: dict[tuple[int, str], str] = {}
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
        made.setdefault((values["size"], values["invert"]), image_id)
        images[image_id] = path
        if source is not None and _fingerprint(source) != (values["bytes"], values["mtime_ns"]):
            stale.append(image_id)
    if not images:
        raise BoneAgeError(
            f"{processed} holds none of the films. Run `boneage preprocess` first, or leave "
            "--use-processed out."
        )
    if stale:
        raise BoneAgeError(
            f"{len(stale)} of {len(images)} films in {processed} were made from other files than "
            f"those there now, such as {sources[stale[0]]}. Run `boneage preprocess` again."
        )
    if len(made) > 1:
        found = " and ".join(f"{s} px, invert {i} ({eg}.png)" for (s, i), eg in made.items())
        raise BoneAgeError(f"{processed} mixes films of {found}. Run `boneage preprocess` again.")
    (size, made_with), _ = next(iter(made.items()))
    if made_with != invert:
        raise BoneAgeError(
            f"{processed} was made with --invert {made_with}, this run has {invert}. Run "
            f"`boneage preprocess --invert {invert}` first."
        )
    return images, size


def _fingerprint(path: Path) -> tuple[int, int]:
    """Size and time of a file, by which a changed film is known."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
