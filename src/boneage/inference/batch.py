"""Many images -> predictions, streamed, a few at a time on all cores; or a calibration."""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from boneage.errors import BoneAgeError, ImageError
from boneage.files import cut_suffix, fit_name, hash_file
from boneage.imaging.discovery import match_ids, name_images
from boneage.imaging.overlay import save_overlay
from boneage.inference.calibration import Calibration, Outputs, join_outputs
from boneage.inference.calibration_fit import (
    MIN_IMAGES_OF_GROUP,
    find_contradiction,
    fit_calibration,
)
from boneage.inference.prediction import Prediction, unreadable
from boneage.inference.predictor import Predictor, choose_sex
from boneage.inference.quality import find_fault
from boneage.sex import ProvidedSex

logger = logging.getLogger(__name__)

_PENDING_PER_WORKER = 4


@dataclass(frozen=True)
class ImageRecord:
    """One image to answer.

    Attributes:
        path: The file.
        sex: What to tell the model; None leaves it to the file.
        reference_years: Reference age where known.
        heatmap: Where to draw the age map, or None.
        image_id: The table's id of it, or a name that tells it from the others; by default the
            file's name without its suffix.
    """

    path: Path
    sex: ProvidedSex | None = None
    reference_years: float | None = None
    heatmap: Path | None = None
    image_id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_id", self.image_id or cut_suffix(self.path.name))


def check_heatmaps(heatmaps: Path, paths: Sequence[Path]) -> None:
    """Refuse a folder for heat maps whose pictures would be read as images, or take their place.

    Raises:
        BoneAgeError: If it lies in a folder of images, or holds one of the images.
    """
    for path in paths:
        if not path.is_dir() and heatmaps.resolve() == path.parent.resolve():
            raise BoneAgeError(
                f"a heat map in {heatmaps} could take the place of {path}. Pass a folder elsewhere."
            )
        if path.is_dir() and heatmaps.resolve().is_relative_to(path.resolve()):
            raise BoneAgeError(
                f"heat maps in {heatmaps} would be read as images of {path} next time. Pass a "
                "folder elsewhere."
            )


def make_records(
    paths: Sequence[Path],
    sex: ProvidedSex | None = None,
    table: Mapping[str, tuple[str | None, float | None]] | None = None,
    heatmaps: Path | None = None,
) -> list[ImageRecord]:
    """Join images with what is known of them.

    Args:
        paths: The images.
        sex: What to tell the model of images that the table does not name; one that it names
            without a sex is left to its file.
        table: By image id, the sex ("M", "F" or None) and the reference age in years.
        heatmaps: Folder for age maps.

    Raises:
        BoneAgeError: If the table knows none of the images, or one of its rows fits several.
    """
    known = table or {}
    of_table = match_ids(paths, known)
    names = {**name_images(paths), **of_table}
    if known and not of_table:
        raise BoneAgeError(
            f"none of the {len(paths)} images is in the table (its first ids: "
            f"{', '.join(list(known)[:3])}; first images: {', '.join(list(names.values())[:3])}). "
            "Check that they belong together."
        )
    records = []
    for path in paths:
        name, told, years = names[path], sex, None
        if path in of_table:
            found, years = known[name]
            told = found  # type: ignore[assignment]
        heatmap = heatmaps and (heatmaps / name).with_name(fit_name(Path(name).name, ".png"))
        records.append(ImageRecord(path, told, years, heatmap, name))
    return records


def predict_images(
    predictor: Predictor, records: Iterable[ImageRecord], workers: int | None = None
) -> Iterator[Prediction]:
    """Answer images on several threads, in their order, a few at a time in memory.

    An image that cannot be read becomes a prediction of status `error`.

    Args:
        predictor: Best with `threads=1` if there are several workers.
        records: What to answer.
        workers: Threads; by default one a core.
    """
    workers = workers or os.cpu_count() or 1
    pending: deque[Future[Prediction]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for record in records:
                pending.append(pool.submit(_answer, predictor, record))
                if len(pending) >= _PENDING_PER_WORKER * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _answer(predictor: Predictor, record: ImageRecord) -> Prediction:
    content = None
    with suppress(OSError):  # of which the reader tells in its own words
        content = hash_file(record.path)
    try:
        radiograph = predictor.read(record.path)
    except ImageError as error:
        answer = unreadable(record.path, error)
    else:
        answer = predictor.predict(radiograph, record.sex)
        if record.heatmap is not None and answer.age_map is not None:
            save_overlay(record.heatmap, radiograph.to_image(), answer.age_map)
    if record.reference_years is not None:
        answer = answer.with_reference(record.reference_years)
    return replace(answer, image_id=record.image_id, image_sha256=content)


def calibrate(
    predictor: Predictor, records: Sequence[ImageRecord], workers: int | None = None
) -> tuple[Calibration, dict[str, str]]:
    """Fit bias, intervals and temperature to labelled images that the model never learned from.

    Args:
        predictor: The model; its own calibration lends the shape of the intervals where the
            images are too few to show it.
        records: With their reference ages.
        workers: Threads; by default one a core.

    Returns:
        The calibration, and by path why images were left out that cannot be answered.

    Raises:
        BoneAgeError: If the model answers no age, or too few images could be read.
    """
    told, withheld, years, broken = predict_raw_twice(predictor, records, workers)
    calibration = fit_calibration(
        told, withheld, years, predictor.contract.graph_sha256, base=predictor.calibration
    )
    contradiction = find_contradiction(told, withheld, years)
    if contradiction is not None:
        logger.warning(
            "the images contradict the sexes given with them: %s. Check that the table's rows and "
            "its sex column belong to these images.",
            contradiction,
        )
    for whose, code in (("boys'", 1), ("girls'", -1)):
        n = int((told.sex == code).sum())
        if n < MIN_IMAGES_OF_GROUP:
            logger.warning(
                "%d %s images are too few for a bias of their own (%d): it is that of all images.",
                n, whose, MIN_IMAGES_OF_GROUP,
            )  # fmt: skip
    return calibration, broken


def predict_raw_twice(
    predictor: Predictor, records: Sequence[ImageRecord], workers: int | None = None
) -> tuple[Outputs, Outputs, npt.NDArray[np.float64], dict[str, str]]:
    """Give a network's raw answers to labelled images, which `fit_calibration` asks for.

    Returns:
        The answers with the sex told and with it withheld, the reference ages in years, and by
        path why images were left out that cannot be answered.

    Raises:
        BoneAgeError: If the model answers no age.
    """
    if not predictor.contract.has_age:
        raise BoneAgeError("the model answers no age; there is nothing to calibrate.")
    told, withheld, years, broken = [], [], [], {}

    def look(record: ImageRecord) -> tuple[Outputs, Outputs] | str:
        try:
            radiograph = predictor.read(record.path)
        except ImageError as error:
            return str(error)
        fault = find_fault(radiograph)
        if fault is not None:
            return f"{record.path}: {fault.message}"
        sex = choose_sex(radiograph, record.sex)
        return (
            predictor.predict_raw(radiograph, sex).outputs,
            predictor.predict_raw(radiograph, None).outputs,
        )

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        looks = tqdm(pool.map(look, records), total=len(records), desc="calibrate", unit="image")
        for record, found in zip(records, looks, strict=True):
            if isinstance(found, str):
                broken[str(record.path)] = found
                continue
            told.append(found[0])
            withheld.append(found[1])
            years.append(record.reference_years)
    return join_outputs(told), join_outputs(withheld), np.array(years, dtype=np.float64), broken
