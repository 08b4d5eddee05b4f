"""Many images: join them with their labels, work on several at a time, predict or calibrate."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from boneage.errors import BoneAgeError, ImageError
from boneage.files import cut_suffix, fit_name, hash_file
from boneage.imaging.discovery import match_ids, name_images
from boneage.imaging.overlay import save_overlay
from boneage.imaging.radiograph import Radiograph
from boneage.inference.calibration import Calibration, Outputs, join_outputs
from boneage.inference.calibration_fit import (
    MIN_IMAGES_OF_GROUP,
    find_contradiction,
    fit_calibration,
)
from boneage.inference.prediction import Prediction, unreadable
from boneage.inference.predictor import Predictor, choose_sex
from boneage.sex import ProvidedSex

logger = logging.getLogger(__name__)

_PENDING_PER_WORKER = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageRecord:
    """One image to predict, and what is known of it.

    Attributes:
        path: The file.
        sex: Sex to provide to the model; None leaves it to the file.
        reference_years: Reference age, where known.
        heatmap: File to save the saliency map to, or None.
        image_id: Its id in the table of labels, or a name that no other image of the run has; by
            default the file's name without its suffix.
    """

    path: Path
    sex: ProvidedSex | None = None
    reference_years: float | None = None
    heatmap: Path | None = None
    image_id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_id", self.image_id or cut_suffix(self.path.name))


def check_heatmaps(heatmaps: Path, paths: Sequence[Path]) -> None:
    """Check that heat maps will not be read as radiographs next time, nor overwrite one.

    Raises:
        BoneAgeError: If the folder lies in a folder of images, or holds one of the images.
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
    """Join images with the sex and the reference age that a table has for them.

    Args:
        paths: The images.
        sex: Sex to provide for images that the table does not name. For an image that it names
            without a sex, the file decides.
        table: By image id, the sex ("M", "F" or None) and the reference age in years.
        heatmaps: Folder for saliency maps.

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
        name, provided_sex, years = names[path], sex, None
        if path in of_table:
            table_sex, years = known[name]
            provided_sex = table_sex  # type: ignore[assignment]
        heatmap = heatmaps and (heatmaps / name).with_name(fit_name(Path(name).name, ".png"))
        records.append(ImageRecord(path, provided_sex, years, heatmap, name))
    return records


def map_images(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
    *,
    progress: str | None = None,
) -> Iterator[Result]:
    """Apply a function to many images on several threads and yield the results in their order.

    No more than `_PENDING_PER_WORKER` images a worker are submitted before their results are
    taken, so that memory stays bounded however many images there are. If the caller stops or is
    interrupted, or `work` raises, the images that are not yet begun are cancelled.

    Args:
        work: Called with one item. It handles the exceptions that concern one image only.
        items: What to work on, taken as it is needed.
        workers: Threads; by default one a core.
        progress: Label of a progress bar on stderr; without a label there is no bar.
    """
    workers = workers or os.cpu_count() or 1
    total = len(items) if isinstance(items, Sized) else None
    remaining = iter(items)
    pending: deque[Future[Result]] = deque()
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, desc=progress, unit="image", disable=progress is None) as bar,
    ):
        try:
            while True:
                for item in islice(remaining, _PENDING_PER_WORKER * workers - len(pending)):
                    pending.append(pool.submit(work, item))
                if not pending:
                    return
                result = pending.popleft().result()
                bar.update()
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def predict_images(
    predictor: Predictor,
    records: Iterable[ImageRecord],
    workers: int | None = None,
    *,
    force: bool = False,
) -> Iterator[Prediction]:
    """Predict images on several threads and yield the predictions in their order.

    An image that cannot be read becomes a prediction of status `error`.

    Args:
        predictor: Best with `threads=1` if there are several workers.
        records: The images.
        workers: Threads; by default one a core.
        force: As in `Predictor.predict`.
    """
    return map_images(
        lambda record: predict_record(predictor, record, force=force)[1], records, workers
    )


def predict_record(
    predictor: Predictor, record: ImageRecord, *, force: bool = False
) -> tuple[Radiograph | None, Prediction]:
    """Read one image and predict it.

    Returns:
        The decoded image, None if it cannot be read; and its prediction, with the record's id and
        reference and the file's content, of status `error` if the image cannot be read.
    """
    content = None
    with suppress(OSError):  # the reader gives a better message
        content = hash_file(record.path)
    radiograph = None
    try:
        radiograph = predictor.read(record.path)
    except ImageError as error:
        prediction = unreadable(record.path, error)
    else:
        predict = partial(predictor.predict, force=True) if force else predictor.predict
        prediction = predict(radiograph, record.sex)
        if record.heatmap is not None and prediction.saliency is not None:
            saliency = prediction.saliency
            save_overlay(record.heatmap, radiograph.to_image(), saliency, prediction.title)
    if record.reference_years is not None:
        prediction = prediction.with_reference(record.reference_years)
    return radiograph, replace(prediction, image_id=record.image_id, image_sha256=content)


def calibrate(
    predictor: Predictor, records: Sequence[ImageRecord], workers: int | None = None
) -> tuple[Calibration, dict[str, str]]:
    """Fit bias, intervals and temperature to labelled images that the model was not trained on.

    Args:
        predictor: The model. Where the images are too few to show the shape of the intervals, that
            of its own calibration is used.
        records: With their reference ages.
        workers: Threads; by default one a core.

    Returns:
        The calibration, and by path why an image was left out.

    Raises:
        BoneAgeError: If the model predicts no age, or too few images could be read.
    """
    with_sex, without_sex, years, left_out = predict_raw_twice(predictor, records, workers)
    calibration = fit_calibration(
        with_sex, without_sex, years, predictor.contract.graph_sha256, base=predictor.calibration
    )
    contradiction = find_contradiction(with_sex, without_sex, years)
    if contradiction is not None:
        logger.warning(
            "the images contradict the sexes given with them: %s. Check that the table's rows and "
            "its sex column belong to these images.",
            contradiction,
        )
    for whose, code in (("boys'", 1), ("girls'", -1)):
        n = int((with_sex.sex == code).sum())
        if n < MIN_IMAGES_OF_GROUP:
            logger.warning(
                "%d %s images are too few for a bias of their own (%d): it is that of all images.",
                n, whose, MIN_IMAGES_OF_GROUP,
            )  # fmt: skip
    return calibration, left_out


def predict_raw_twice(
    predictor: Predictor, records: Sequence[ImageRecord], workers: int | None = None
) -> tuple[Outputs, Outputs, npt.NDArray[np.float64], dict[str, str]]:
    """Give a network's uncalibrated outputs for labelled images, as `fit_calibration` needs them.

    Returns:
        The outputs with the sex provided and with it not provided; the reference ages in years;
        and by path why an image was left out.

    Raises:
        BoneAgeError: If the model predicts no age.
    """
    if not predictor.contract.has_age:
        raise BoneAgeError("the model predicts no age; there is nothing to calibrate.")

    def predict_twice(record: ImageRecord) -> tuple[Outputs, Outputs] | str:
        try:
            radiograph = predictor.read(record.path)
        except ImageError as error:
            return str(error)
        hand = predictor.find_hand(radiograph)
        faults = predictor.find_faults(radiograph, hand)
        if faults:
            return f"{record.path}: {faults[0].message}"
        sex = choose_sex(radiograph, record.sex)
        return (
            predictor.predict_raw(radiograph, sex, hand).outputs,
            predictor.predict_raw(radiograph, None, hand).outputs,
        )

    with_sex, without_sex, years, left_out = [], [], [], {}
    found = map_images(predict_twice, records, workers, progress="calibrate")
    for record, outputs in zip(records, found, strict=True):
        if isinstance(outputs, str):
            left_out[str(record.path)] = outputs
            continue
        with_sex.append(outputs[0])
        without_sex.append(outputs[1])
        years.append(record.reference_years)
    return (
        join_outputs(with_sex),
        join_outputs(without_sex),
        np.array(years, dtype=np.float64),
        left_out,
    )
