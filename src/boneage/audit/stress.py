"""The same images, changed in known ways: how far do the answers move?

The families are those of Santomartino et al., Radiology AI 2024 (doi 10.1148/ryai.230240), and what
an image meets on its way: noise, blur, compression, a marker, a collimation border, a wrong sex.
"""

import io
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from boneage.errors import BoneAgeError, ImageError
from boneage.files import hash_file, hash_text, name_path, save_text
from boneage.imaging.radiograph import INVERTED_BELOW, Radiograph, polarity_score
from boneage.inference.batch import ImageRecord
from boneage.inference.predictor import Predictor

Change = Callable[[Image.Image], Image.Image]

CLEAN = "clean"
COLUMNS = ("model", "path", "image_sha256", "image_id", "sex", "family", "level",
           "reference_months", "predicted_months", "predicted_stage", "status")  # fmt: skip
_NUMBERS = ("reference_months", "predicted_months")
_KEPT_EVERY_S = 60.0
_OTHER = {"M": "F", "F": "M"}


@dataclass(frozen=True)
class Stress:
    """One change of an image.

    Attributes:
        family: What kind of change.
        level: How much of it.
        change: Applied to an 8-bit grey image; the image itself for changes of the sex.
        sex: None to leave the sex, "wrong", or "unknown" to withhold it.
    """

    family: str
    level: str
    change: Change
    sex: str | None = None


def _turn(degrees: float) -> Change:
    return lambda image: image.rotate(degrees, Image.Resampling.BILINEAR, expand=degrees % 90 == 0)


def _map(levels: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Change:
    """Change grey values in [0, 1] by a table, clipped."""
    table = np.rint(255.0 * levels(np.arange(256) / 255.0).clip(0.0, 1.0)).astype(np.uint8).tolist()
    return lambda image: image.point(table)


def _contrast(factor: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        mean = float(np.asarray(image).mean()) / 255.0
        return _map(lambda grey: mean + factor * (grey - mean))(image)

    return change


def _blur(share: float) -> Change:
    return lambda image: image.filter(ImageFilter.GaussianBlur(share * image.height))


def _noise(sigma: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        grey = np.asarray(image, dtype=np.float64)
        noise = np.random.default_rng(0).normal(0.0, 255.0 * sigma, grey.shape)
        return Image.fromarray(np.rint((grey + noise).clip(0, 255)).astype(np.uint8))

    return change


def _coarser(factor: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
        return image.resize(small, Image.Resampling.BOX).resize(
            image.size, Image.Resampling.BILINEAR
        )

    return change


def _crop(share: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        x, y = share * image.width, share * image.height
        box = (x, y, image.width - x, image.height - y)
        return image.resize(image.size, Image.Resampling.BILINEAR, box=box)

    return change


def _shift(right: float, down: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        matrix = (1, 0, -right * image.width, 0, 1, -down * image.height)
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    return change


def _compress(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        data = io.BytesIO()
        image.save(data, format="JPEG", quality=quality)
        return Image.open(data).convert("L")

    return change


def _mark(image: Image.Image) -> Image.Image:
    """Add a lead letter in the upper left corner."""
    marked = image.copy()
    side = max(4, image.width // 12)
    x, y = image.width // 25, image.height // 25
    pen = ImageDraw.Draw(marked)
    pen.rectangle((x, y, x + side // 3, y + side), fill=255)
    pen.rectangle((x, y + side - side // 3, x + side * 2 // 3, y + side), fill=255)
    return marked


def _frame(share: float) -> Change:
    """Blacken a border, as collimation does."""

    def change(image: Image.Image) -> Image.Image:
        grey = np.array(image)
        y, x = round(share * image.height), round(share * image.width)
        inside = np.zeros_like(grey)
        inside[y : image.height - y, x : image.width - x] = 1
        return Image.fromarray(grey * inside)

    return change


def _same(image: Image.Image) -> Image.Image:
    return image


STRESSES = (
    *(Stress("rotation", f"{a:+d}°", _turn(a)) for a in (-45, -20, -10, -5, 5, 10, 20, 45)),
    *(Stress("rotation", f"{a}°", _turn(a)) for a in (90, 180, 270)),
    Stress("flip", "left-right", lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    Stress("flip", "upside down", lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)),
    *(Stress("brightness", f"{100 * b:+.0f}%", _map(lambda g, b=b: g * (1 + b)))  # type: ignore[misc]
      for b in (-0.3, -0.1, 0.1, 0.3)),
    *(Stress("contrast", f"{100 * c:+.0f}%", _contrast(1 + c)) for c in (-0.3, -0.1, 0.1, 0.3)),
    *(Stress("gamma", f"{g:g}", _map(lambda grey, g=g: grey**g)) for g in (0.67, 0.8, 1.25, 1.5)),  # type: ignore[misc]
    Stress("inversion", "", _map(lambda grey: 1 - grey)),
    *(Stress("blur", f"{100 * b:g}% of the height", _blur(b)) for b in (0.005, 0.01)),
    *(Stress("noise", f"{100 * s:.0f}% of the range", _noise(s)) for s in (0.02, 0.05)),
    *(Stress("resolution", f"1/{f:g}", _coarser(f)) for f in (1.5, 2.0)),
    *(Stress("crop", f"{100 * c:.0f}% a side", _crop(c)) for c in (0.03, 0.08)),
    *(Stress("translation", f"{100 * s:.0f}%", _shift(s, s)) for s in (0.05, 0.1)),
    *(Stress("JPEG", f"quality {q}", _compress(q)) for q in (75, 40, 20)),
    Stress("marker", "added", _mark),
    *(Stress("border", f"{100 * b:.0f}%", _frame(b)) for b in (0.03, 0.06)),
    Stress("sex", "wrong", _same, "wrong"),
    Stress("sex", "unknown", _same, "unknown"),
)  # fmt: skip
"""What is tried, family by family."""


def stress_images(
    predictor: Predictor,
    records: Sequence[ImageRecord],
    out: Path,
    stresses: Sequence[Stress] | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Answer every image as it is and under every stress.

    Images whose sex or reference is unknown are left out, and so are unreadable ones. The answers
    are kept in `out` every minute, and an interrupted run is taken up from there: what it
    holds of another model, file, sex, reference or set of stresses is answered anew.

    Args:
        predictor: Best with `threads=1`.
        records: With sex and reference.
        out: CSV of the answers.
        stresses: What to try; by default `STRESSES`.
        workers: Threads; by default one a core.

    Returns:
        One row an answer, `COLUMNS`, in the order of the images; the clean answer has family
        "clean".

    Raises:
        BoneAgeError: If there is no such image, or `out` holds something else.
    """
    known = [f for f in records if f.sex in _OTHER and f.reference_years is not None]
    if not known:
        raise BoneAgeError("no image has both a sex and a reference; there is nothing to stress.")
    plan = [Stress(CLEAN, "", _same), *(STRESSES if stresses is None else stresses)]
    model = _fingerprint(predictor)
    answered = _read_kept(out, model, plan, known)
    missing = [image for image in known if name_path(image.path) not in answered]

    def answer(image: ImageRecord) -> list[dict[str, object]]:
        try:
            clean = predictor.read(image.path)
        except ImageError:
            return []
        made_of = {"model": model, "image_sha256": hash_file(image.path)}
        return [_answer(predictor, image, clean, stress) | made_of for stress in plan]

    def keep() -> None:
        save_text(out, _to_table(answered.values()).to_csv(index=False, lineterminator="\n"))

    kept_at = time.monotonic()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        found = tqdm(pool.map(answer, missing), total=len(missing), desc="stress", unit="image")
        try:
            for image, rows in zip(missing, found, strict=True):
                answered[name_path(image.path)] = rows
                if time.monotonic() - kept_at > _KEPT_EVERY_S:
                    keep()
                    kept_at = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            keep()
    return _to_table(answered[name_path(image.path)] for image in known)


def _to_table(answers: Iterable[Sequence[Mapping[str, object]]]) -> pd.DataFrame:
    table = pd.DataFrame([row for rows in answers for row in rows], columns=COLUMNS)
    return table.astype(dict.fromkeys(_NUMBERS, float))


def _fingerprint(predictor: Predictor) -> str:
    """Tell models, calibrations and versions apart."""
    return hash_text(" ".join(predictor.fingerprint.values()))[:12]


def _read_kept(
    out: Path, model: str, plan: Sequence[Stress], records: Sequence[ImageRecord]
) -> dict[str, Sequence[Mapping[str, object]]]:
    """Read by path what an earlier run of the same model and plan has answered.

    Images that are not in this run stay; those whose file, sex or reference is another by now do
    not.
    """
    if not out.exists():
        return {}
    try:
        # As text first: pandas' own reading of numbers may be off by the last bit.
        table = pd.read_csv(
            out, dtype=str, keep_default_na=False, na_values={"predicted_months": ""}
        ).astype(dict.fromkeys(_NUMBERS, float))
    except (ValueError, KeyError):  # no table, words that should be numbers, other columns
        table = pd.DataFrame()
    if list(table.columns) != list(COLUMNS):
        raise BoneAgeError(f"{out} is no file of such a run. Move it away, or pass another --out.")
    ways = [(stress.family, stress.level) for stress in plan]
    known = {name_path(image.path): image for image in records}
    kept: dict[str, Sequence[Mapping[str, object]]] = {}
    for path, rows in table[table["model"] == model].groupby("path", sort=False):
        is_whole = list(zip(rows["family"], rows["level"], strict=True)) == ways
        image = known.get(str(path))
        if is_whole and (image is None or _is_of(rows.iloc[0], image)):
            kept[str(path)] = [
                {str(name): value for name, value in row.items()} for row in rows.to_dict("records")
            ]
    return kept


def _is_of(row: pd.Series, image: ImageRecord) -> bool:
    """Whether an earlier row is of the image as it is now."""
    if (row["sex"], row["reference_months"]) != (image.sex, _reference_months(image)):
        return False
    return image.path.is_file() and row["image_sha256"] == hash_file(image.path)


def _reference_months(image: ImageRecord) -> float:
    return 12.0 * float(image.reference_years or 0.0)


def _answer(
    predictor: Predictor, image: ImageRecord, clean: Radiograph, stress: Stress
) -> dict[str, object]:
    """Answer one image under one stress, read as a file of such pixels would be."""
    pixels = np.asarray(stress.change(clean.to_image()), dtype=np.float32) / 255.0
    was_inverted = (
        predictor.contract.preprocessing.invert == "auto"
        and polarity_score(pixels) < INVERTED_BELOW
    )
    changed = replace(
        clean, pixels=1.0 - pixels if was_inverted else pixels, was_inverted=was_inverted
    )
    told: Any = image.sex if stress.sex is None else stress.sex
    if told == "wrong":
        told = _OTHER[str(image.sex)]
    found = predictor.answer(changed, told)
    return {
        "path": name_path(image.path),
        "image_id": image.image_id,
        "sex": image.sex,
        "family": stress.family,
        "level": stress.level,
        "reference_months": _reference_months(image),
        "predicted_months": found.predicted_months,
        "predicted_stage": found.predicted_stage,
        "status": found.status,
    }
