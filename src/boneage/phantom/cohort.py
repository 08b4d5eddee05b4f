"""A cohort of synthetic hand radiographs, drawn from anatomy: never patient data.

The images take the place of the RSNA set, which may not be redistributed: same folders, same CSV,
same ages by sex. The bone age shows in the bones, not in the size of the hand or the grey values.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from boneage.errors import BoneAgeError
from boneage.files import MAX_PROCESSES, replacing, save_text
from boneage.phantom import exposure
from boneage.phantom.anatomy import ADULT_MONTHS, check_age_and_sex
from boneage.phantom.hand import build_hand

FIRST_ID = 900_001
DRAWING = 1
MIN_HEIGHT = 64
_NAME = "boneage-training-dataset"
_NOTICE = "SYNTHETIC.txt"
_ADULT_EVERY = 25

# Plate ages, Greulich & Pyle 1959: radiologists' labels are heaped on them (age heaping).
_PLATE_AGES = {
    "M": (3, 6, 9, 12, 15, 18, 24, 32, 36, 42, 48, 54, 60, 72, 84, 96, 108, 120, 132, 138, 150,
          156, 162, 168, 180, 186, 192, 204, 216),
    "F": (3, 6, 9, 12, 15, 18, 24, 30, 36, 42, 50, 60, 69, 82, 94, 106, 120, 132, 144, 156, 162,
          168, 180, 192, 204, 216),
}  # fmt: skip

# Quantiles of the 12,611 public RSNA training labels by sex, children only (Halabi et al.,
# Radiology 2019;290:498): months at these cumulative proportions.
_PROPORTIONS = (0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95,
                0.975, 0.99, 1)  # fmt: skip
_AGES = {
    "M": (9, 24, 36, 54, 72, 84, 96, 120, 138, 150, 156, 162, 168, 180, 192, 204, 214, 216),
    "F": (4, 24, 36, 50, 69, 82, 84, 94, 106, 120, 132, 144, 150, 162, 175, 182, 192, 216),
}  # fmt: skip
_MALE_PROPORTION = 0.542
_HEAPED_PROPORTION = 0.85


@dataclass(frozen=True)
class SyntheticImage:
    """One synthetic image.

    Attributes:
        image: uint8, shape (height, width), bone bright.
        masks: bool, same shape, by name: "bone:PP3", "plate:radius", ...; empty unless
            asked for. Masks of bones overlap where the bones do. Only open growth plates
            of at least one pixel have a mask.
        landmarks: (x, y) in pixels by name, as in `boneage.phantom.hand.Hand`: pixel centres lie
            at halves, and a landmark may lie outside the image.
    """

    image: np.ndarray
    masks: dict[str, np.ndarray]
    landmarks: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class PhantomLabel:
    """One row of the cohort's CSV.

    Attributes:
        id: From 900001 on, outside the ids of RSNA.
        boneage: Whole months, 1..228.
        male: Whether the sex is male.
    """

    id: int
    boneage: int
    male: bool

    @property
    def sex(self) -> str:
        """Sex as `draw_image` takes it."""
        return "M" if self.male else "F"


def draw_image(
    age_months: float,
    sex: str,
    rng: np.random.Generator,
    *,
    height: int = 256,
    masks: bool = False,
) -> SyntheticImage:
    """Draw a synthetic left-hand radiograph at a bone age.

    Args:
        age_months: Bone age, 0..240.
        sex: "M" or "F".
        rng: Decides the person, the posture, the exposure and the noise.
        height: Height of the image in pixels, at least 64; the width is random.
        masks: Also return masks of every bone and open growth plate.

    Raises:
        BoneAgeError: If age, sex or height is impossible.
    """
    check_age_and_sex(age_months, sex)
    _check_whole("height", height, MIN_HEIGHT, " of pixels")
    hand = build_hand(age_months, sex, rng)
    frame = exposure.place(hand, height, age_months, rng)
    image, truth = exposure.expose(hand, frame, rng, masks)
    places = frame.to_image_plane(np.array(list(hand.landmarks.values())))
    landmarks = {
        name: (float(x), float(y)) for name, (x, y) in zip(hand.landmarks, places, strict=True)
    }
    return SyntheticImage(image, truth, landmarks)


def _check_whole(name: str, value: int, least: int, unit: str = "") -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise BoneAgeError(
            f"{name} is {value!r}; expected a whole number{unit}, at least {least}. "
            f"Pass another {name}."
        )


def sample_labels(n: int, seed: int) -> list[PhantomLabel]:
    """Draw sexes and bone ages as in RSNA, but every 25th image is of a man over 18 years.

    RSNA has 21 such images in 12,611, too few to learn or test the adult stage. A label
    depends on the seed and its id only, so a longer cohort begins with the shorter one.

    Raises:
        BoneAgeError: If n is not positive or the seed is negative.
    """
    _check_whole("n", n, 1, " of images")
    _check_whole("seed", seed, 0)
    return [_sample_label(FIRST_ID + i, seed) for i in range(n)]


def _sample_label(image_id: int, seed: int) -> PhantomLabel:
    rng = np.random.default_rng(np.random.SeedSequence([seed, image_id, 1]))
    if (image_id - FIRST_ID) % _ADULT_EVERY == 0:
        return PhantomLabel(image_id, int(rng.integers(ADULT_MONTHS + 1, 229)), True)
    adults = 1 / _ADULT_EVERY
    male = bool(rng.random() < (_MALE_PROPORTION - adults) / (1 - adults))
    sex = "M" if male else "F"
    age = float(np.interp(rng.random(), _PROPORTIONS, _AGES[sex]))
    if rng.random() < _HEAPED_PROPORTION:
        age = min(_PLATE_AGES[sex], key=lambda plate: abs(plate - age))
    return PhantomLabel(image_id, round(age), male)


def write_cohort(
    out: Path,
    n: int = 800,
    seed: int = 0,
    height: int = 256,
    masks: bool = False,
    workers: int | None = None,
) -> Path:
    """Write a cohort in the RSNA layout; the same seed writes the same bytes.

    Under `out`: `boneage-training-dataset.csv` (id,boneage,male), written last;
    `boneage-training-dataset/boneage-training-dataset/<id>.png`; `SYNTHETIC.txt`, which
    says what this is; on request `masks/<id>.npz`, one bool array per bone or plate.

    An unfinished cohort with the same settings is completed. One with other settings is replaced;
    nothing but its own files is removed.

    Args:
        out: A new or empty folder, or an earlier cohort.
        n: Number of images.
        seed: Image i depends on the seed and its id, not on n or workers.
        height: Height of every image in pixels.
        masks: Also write masks of bones and growth plates.
        workers: Number of processes; by default one per core.

    Returns:
        The path of the CSV.

    Raises:
        BoneAgeError: If a setting cannot be used, or `out` holds anything else.
    """
    out = Path(out)
    labels = sample_labels(n, seed)
    _check_whole("height", height, MIN_HEIGHT, " of pixels")
    workers = (os.cpu_count() or 1) if workers is None else workers
    _check_whole("workers", workers, 0, " of processes")
    _prepare_folder(
        out, {"images": int(n), "seed": int(seed), "height": int(height), "masks": bool(masks)}
    )
    _image_path(out, FIRST_ID).parent.mkdir(parents=True, exist_ok=True)
    if masks:
        (out / "masks").mkdir(exist_ok=True)
    missing = [label for label in labels if not _is_done(out, label.id, masks)]
    write = partial(_write_image, out=out, seed=seed, height=height, masks=masks)
    with tqdm(total=n, initial=n - len(missing), desc="phantom", unit="image") as bar:
        if workers <= 1:
            for label in missing:
                write(label)
                bar.update()
        else:
            with ProcessPoolExecutor(min(workers, MAX_PROCESSES)) as pool:
                for _ in pool.map(write, missing, chunksize=4):
                    bar.update()
    rows = [f"{label.id},{label.boneage},{label.male}\n" for label in labels]
    csv = out / f"{_NAME}.csv"
    save_text(csv, "".join(["id,boneage,male\n", *rows]))
    return csv


def _image_path(out: Path, image_id: int) -> Path:
    return out / _NAME / _NAME / f"{image_id}.png"


def _mask_path(out: Path, image_id: int) -> Path:
    return out / "masks" / f"{image_id}.npz"


def _is_done(out: Path, image_id: int, masks: bool) -> bool:
    return _image_path(out, image_id).exists() and (not masks or _mask_path(out, image_id).exists())


def _notice(settings: dict[str, int]) -> str:
    return (
        "These images are computer drawings of hand radiographs made by boneage.\n"
        "They are NOT patient data and show no person. Do not use them as clinical evidence.\n"
        f"{json.dumps({'drawing': DRAWING, **settings})}\n"
    )


def _prepare_folder(out: Path, settings: dict[str, int]) -> None:
    """Leave `out` empty, or with a part of this same cohort, and its notice there.

    Raises:
        BoneAgeError: If `out` holds anything but a cohort.
    """
    notice = out / _NOTICE
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not notice.exists())):
        raise BoneAgeError(
            f"{out} holds something other than a synthetic cohort (no {_NOTICE}); expected a "
            "new or empty folder. Choose another folder; nothing was changed."
        )
    wanted = _notice(settings)
    if notice.exists():
        held = notice.read_text()
        if held == wanted:
            return
        _remove_cohort(out, held)
    out.mkdir(parents=True, exist_ok=True)
    save_text(notice, wanted)


def _remove_cohort(out: Path, held: str) -> None:
    try:
        images = int(json.loads(held.splitlines()[-1])["images"])
    except (IndexError, KeyError, TypeError, ValueError):
        raise BoneAgeError(
            f"{out / _NOTICE} does not end with the settings of a cohort, so its images are not "
            'known; expected a line such as {"images": 800}. Remove the folder or choose another.'
        ) from None
    (out / f"{_NAME}.csv").unlink(missing_ok=True)
    for image_id in range(FIRST_ID, FIRST_ID + images):
        _image_path(out, image_id).unlink(missing_ok=True)
        _mask_path(out, image_id).unlink(missing_ok=True)


def _write_image(label: PhantomLabel, out: Path, seed: int, height: int, masks: bool) -> None:
    rng = np.random.default_rng(np.random.SeedSequence([seed, label.id]))
    synthetic = draw_image(label.boneage, label.sex, rng, height=height, masks=masks)
    if masks:
        with replacing(_mask_path(out, label.id)) as part, part.open("wb") as file:
            np.savez_compressed(file, **synthetic.masks)  # type: ignore[arg-type]
    with replacing(_image_path(out, label.id)) as part:
        Image.fromarray(synthetic.image).save(part, format="PNG")


def contact_sheet(height: int = 224, seed: int = 0) -> Image.Image:
    """Draw one image per year of age, labelled: boys of 1 to 19 years, girls of 1 to 18 years."""
    _check_whole("height", height, MIN_HEIGHT, " of pixels")
    _check_whole("seed", seed, 0)
    columns, width, title = 10, round(0.8 * height), height // 12
    years = {"M": range(1, 20), "F": range(1, 19)}
    sheet = Image.new("L", (columns * width, 4 * (height + title)))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(0.8 * title)
    for block, (sex, ages) in enumerate(years.items()):
        for i, age in enumerate(ages):
            rng = np.random.default_rng(np.random.SeedSequence([seed, block, age]))
            picture = Image.fromarray(draw_image(12 * age, sex, rng, height=height).image)
            picture.thumbnail((width - 2, height))
            left, top = (i % columns) * width, (2 * block + i // columns) * (height + title)
            name = f"{'boy' if sex == 'M' else 'girl'}, {age} y"
            draw.text((left + width / 2, top), name, 255, font, anchor="ma")
            sheet.paste(picture, (left + (width - picture.width) // 2, top + title))
    return sheet
