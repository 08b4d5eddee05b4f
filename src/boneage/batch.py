"""Many films -> predictions, streamed: found, answered on all cores, written row by row."""

import csv
import io
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from boneage.calibration import MIN_FILMS, Answers, Calibration, fit_calibration, join_answers
from boneage.config import Told
from boneage.dicomfile import is_dicom, read_sex
from boneage.errors import BoneAgeError, ImageError
from boneage.files import IMAGE_SUFFIXES, cut_suffix, name_path, save_text
from boneage.overlay import save_overlay
from boneage.predict import Predictor, choose_sex, find_fault
from boneage.prediction import COLUMNS, Prediction, Status, unreadable

logger = logging.getLogger(__name__)

TOLERANCE_YEARS = 2e-4
"""How far an earlier run's first answer may lie from this run's for it to be taken up."""

_DECIMALS = 4
_PENDING_PER_WORKER = 4
_ODD_NAMES = "backslashreplace"


@dataclass(frozen=True)
class Film:
    """One film to answer.

    Attributes:
        path: The file.
        sex: What to tell the model; None leaves it to the file.
        reference_years: Reference age where known.
        heatmap: Where to draw the age map, or None.
    """

    path: Path
    sex: Told | None = None
    reference_years: float | None = None
    heatmap: Path | None = None


def find_films(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """Find the films among files and folders.

    A file named is taken as it is. In a folder, and in all below it, films are known by their
    suffix or by DICOM's mark; a DICOMDIR, which lists them, has the mark as well but is none.

    Returns:
        The films, each once, and the number of other files in the folders.

    Raises:
        BoneAgeError: If there is no film.
    """
    films: dict[Path, None] = {}
    others = 0
    for path in paths:
        if not path.is_dir():
            films[path] = None
            continue
        for file in sorted(path.rglob("*")):
            if not file.is_file():
                continue
            is_other = file.name.startswith(".") or file.name.upper() == "DICOMDIR"
            is_film = not is_other and (file.suffix.lower() in IMAGE_SUFFIXES or _has_mark(file))
            if is_film:
                films[file] = None
            else:
                others += 1
    if not paths:
        raise BoneAgeError("there is nothing to answer; pass films or folders of them.")
    if not films:
        where = ", ".join(map(str, paths))
        raise BoneAgeError(
            f"{where} holds no films ({others} other files); expected "
            f"{', '.join(IMAGE_SUFFIXES)} or DICOM."
        )
    return list(films), others


def check_heatmaps(heatmaps: Path, paths: Sequence[Path]) -> None:
    """Refuse a folder for heat maps whose pictures would be read as films, or take their place.

    Raises:
        BoneAgeError: If it lies in a folder of films, or holds one of the films.
    """
    for path in paths:
        if not path.is_dir() and heatmaps.resolve() == path.parent.resolve():
            raise BoneAgeError(
                f"a heat map in {heatmaps} could take the place of {path}. Pass a folder elsewhere."
            )
        if path.is_dir() and heatmaps.resolve().is_relative_to(path.resolve()):
            raise BoneAgeError(
                f"heat maps in {heatmaps} would be read as films of {path} next time. Pass a "
                "folder elsewhere."
            )


def _has_mark(path: Path) -> bool:
    try:
        return is_dicom(path)
    except OSError:
        return False


def describe_films(
    paths: Sequence[Path],
    sex: Told | None = None,
    table: Mapping[str, tuple[str | None, float | None]] | None = None,
    heatmaps: Path | None = None,
) -> list[Film]:
    """Join films with what is known of them.

    Args:
        paths: The films.
        sex: What to tell the model of films that the table does not name; one that it names
            without a sex is left to its file.
        table: By image id, the sex ("M", "F" or None) and the reference age in years.
        heatmaps: Folder for age maps.

    Raises:
        BoneAgeError: If the table knows none of the films.
    """
    known = table or {}
    ids = [cut_suffix(path.name) for path in paths]
    if known and not any(image_id in known for image_id in ids):
        raise BoneAgeError(
            f"none of the {len(ids)} films is in the table (its first ids: "
            f"{', '.join(list(known)[:3])}; first films: {', '.join(ids[:3])}). Check that they "
            "belong together."
        )
    count = Counter(ids)
    films = []
    for path, image_id in zip(paths, ids, strict=True):
        told, years = sex, None
        if image_id in known:
            of_table, years = known[image_id]
            told = of_table  # type: ignore[assignment]
        # Films of one name in several folders or formats must not share a picture.
        mark = f"-{sha256(os.fsencode(path)).hexdigest()[:8]}"
        name = image_id if count[image_id] == 1 else image_id + mark
        films.append(Film(path, told, years, heatmaps and heatmaps / f"{name}.png"))
    return films


def require_own_names(films: Iterable[Film]) -> None:
    """Hold films to one an image id.

    Raises:
        BoneAgeError: If two share an id.
    """
    seen: dict[str, Path] = {}
    for film in films:
        image_id = cut_suffix(film.path.name)
        if image_id in seen:
            raise BoneAgeError(
                f"{seen[image_id]} and {film.path} have the same image_id {image_id!r}; expected "
                "one film each. Move one of them away, or pass a folder that holds one alone."
            )
        seen[image_id] = film.path


def predict_films(
    predictor: Predictor, films: Iterable[Film], workers: int | None = None
) -> Iterator[Prediction]:
    """Answer films on several threads, in their order, a few at a time in memory.

    A film that cannot be read becomes a prediction of status `error`.

    Args:
        predictor: Best with `threads=1` if there are several workers.
        films: What to answer.
        workers: Threads; by default one a core.
    """
    workers = workers or os.cpu_count() or 1
    pending: deque[Future[Prediction]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for film in films:
                pending.append(pool.submit(_answer, predictor, film))
                if len(pending) >= _PENDING_PER_WORKER * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _answer(predictor: Predictor, film: Film) -> Prediction:
    try:
        radiograph = predictor.read(film.path)
    except ImageError as error:
        answer = unreadable(film.path, error)
    else:
        answer = predictor.answer(radiograph, film.sex)
        if film.heatmap is not None and answer.age_map is not None:
            save_overlay(film.heatmap, radiograph.to_image(), answer.age_map)
    if film.reference_years is not None:
        answer = answer.with_reference(film.reference_years)
    return answer


def calibrate(
    predictor: Predictor, films: Sequence[Film], workers: int | None = None
) -> tuple[Calibration, dict[str, str]]:
    """Fit bias, intervals and temperature to labelled films that the model never learned from.

    Args:
        predictor: The model; its own calibration lends the shape of the intervals where the
            films are too few to show it.
        films: With their reference ages.
        workers: Threads; by default one a core.

    Returns:
        The calibration, and by path why films were left out that cannot be answered.

    Raises:
        BoneAgeError: If the model answers no age, or too few films could be read.
    """
    told, withheld, years, broken = look_twice(predictor, films, workers)
    calibration = fit_calibration(
        told, withheld, years, predictor.contract.graph_sha256, base=predictor.calibration
    )
    for whose, code in (("boys'", 1), ("girls'", -1)):
        n = int((told.sex == code).sum())
        if n < MIN_FILMS:
            logger.warning(
                "%d %s films are too few for a bias of their own (%d): it is that of all films.",
                n, whose, MIN_FILMS,
            )  # fmt: skip
    return calibration, broken


def look_twice(
    predictor: Predictor, films: Sequence[Film], workers: int | None = None
) -> tuple[Answers, Answers, npt.NDArray[np.float64], dict[str, str]]:
    """Give a network's raw answers to labelled films, which `fit_calibration` asks for.

    Returns:
        The answers with the sex told and with it withheld, the reference ages in years, and by
        path why films were left out that cannot be answered.

    Raises:
        BoneAgeError: If the model answers no age.
    """
    if not predictor.contract.has_age:
        raise BoneAgeError("the model answers no age; there is nothing to calibrate.")
    told, withheld, years, broken = [], [], [], {}

    def look(film: Film) -> tuple[Answers, Answers] | str:
        try:
            radiograph = predictor.read(film.path)
        except ImageError as error:
            return str(error)
        fault = find_fault(radiograph)
        if fault is not None:
            return f"{film.path}: {fault}"
        sex = choose_sex(radiograph, film.sex)
        return predictor.look(radiograph, sex).answers, predictor.look(radiograph, None).answers

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        looks = tqdm(pool.map(look, films), total=len(films), desc="calibrate", unit="film")
        for film, found in zip(films, looks, strict=True):
            if isinstance(found, str):
                broken[str(film.path)] = found
                continue
            told.append(found[0])
            withheld.append(found[1])
            years.append(film.reference_years)
    return join_answers(told), join_answers(withheld), np.array(years, dtype=np.float64), broken


class PredictionsFile:
    """A predictions CSV that grows by whole rows and can be taken up after an interruption.

    Rows of an earlier run stay, but for those that are answered anew: of status `error`, of films
    whose sex or reference is another by now or whose heat map is missing, and a last one that was
    cut off. One film is answered again, to see that model and settings are still the same.

    Args:
        path: The CSV; its folder is made if missing.
        films: The films of this run.
        with_reference: Whether it has the columns of the reference.
        answer: Gives the answer of this run to a film of the earlier one.

    Attributes:
        missing: Those films that it holds no answer to.

    Raises:
        BoneAgeError: If the file there is no such CSV, or holds other answers.
    """

    def __init__(
        self,
        path: Path,
        films: Sequence[Film],
        *,
        with_reference: bool,
        answer: Callable[[Film], Prediction],
    ) -> None:
        self._path = path
        self._with_reference = with_reference
        self._header = _line(COLUMNS if with_reference else COLUMNS[:-2])
        known = {name_path(film.path): film for film in films}
        rows = self._read() if path.exists() else []
        kept = [row for row in rows if row["path"] not in known or _holds(row, known[row["path"]])]
        self._check(kept, answer)
        done = {row["path"] for row in kept}
        self.missing = [film for name, film in known.items() if name not in done]
        save_text(path, self._header + "".join(_line(row.values()) for row in kept))

    def append(self, prediction: Prediction) -> None:
        """Write one row, whole."""
        row = to_plain_row(prediction, with_reference=self._with_reference)
        line = _line("" if value is None else value for value in row.values())
        with self._path.open("a", encoding="utf-8", errors=_ODD_NAMES, newline="") as file:
            file.write(line)

    def _read(self) -> list[dict[str, str]]:
        """Read the whole rows."""
        if not self._path.is_file():
            raise BoneAgeError(
                f"{self._path} is no ordinary file, so it cannot be taken up. Pass a file as "
                "--out, or print with --json."
            )
        text = self._path.read_text(encoding="utf-8", errors="replace")
        if not (text.startswith(self._header) or self._header.startswith(text)):
            raise BoneAgeError(
                f"{self._path} is no predictions file of such a run; its columns differ. Move it "
                "away, or pass another --out."
            )
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return [row for row in reader if row["status"] in get_args(Status)]

    def _check(self, rows: list[dict[str, str]], answer: Callable[[Film], Prediction]) -> None:
        """Answer one film of the earlier run again, if any is still there."""
        then = next(
            (row for row in rows if row["predicted_stage"] and Path(row["path"]).is_file()), None
        )
        if then is None:
            return
        told: Told = then["sex"] or "unknown"  # type: ignore[assignment]
        now = to_plain_row(answer(Film(Path(then["path"]), told)), with_reference=False)
        numbers = [n for n in COLUMNS if n.startswith(("predicted_", "p_")) and n in now]
        numbers.remove("predicted_stage")
        is_same = now["predicted_stage"] == then["predicted_stage"] and all(
            _is_near(now[name], then[name]) for name in numbers
        )
        if not is_same:
            raise BoneAgeError(
                f"{self._path} answers {then['path']} with {then['predicted_years']} years, this "
                f"run with {now['predicted_years']}: it was made with another model, calibration "
                "or film. Move it away, or pass another --out."
            )


def _holds(row: Mapping[str, str], film: Film) -> bool:
    """Whether an earlier row answers the film with its sex and reference, and has its picture."""
    if row["status"] == "error":
        return False
    years = "" if film.reference_years is None else str(round(film.reference_years, _DECIMALS))
    if row.get("reference_years", "") != years:
        return False
    if film.heatmap is not None and not film.heatmap.exists() and row["status"] != "reject":
        return False
    told = film.sex
    if told is None and _has_mark(film.path):
        told = read_sex(film.path)
    return row["sex"] == (told if told in ("M", "F") else "")


def _is_near(now: object, then: str) -> bool:
    if now is None or then == "":
        return now is None and then == ""
    try:
        return abs(float(str(now)) - float(then)) <= 12.0 * TOLERANCE_YEARS
    except ValueError:  # somebody has edited the file
        return False


def to_plain_row(prediction: Prediction, *, with_reference: bool) -> dict[str, object]:
    """Give a prediction's columns with numbers rounded as a predictions file has them."""
    return {
        name: round(value, _DECIMALS) if isinstance(value, float) else value
        for name, value in prediction.to_row(with_reference=with_reference).items()
    }


def _line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
