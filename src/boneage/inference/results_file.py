"""A predictions CSV that grows by whole rows, and is taken up after an interruption."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from boneage.errors import BoneAgeError
from boneage.files import hash_file, name_path, save_text
from boneage.imaging.discovery import has_dicom_mark
from boneage.imaging.header import read_header
from boneage.inference.batch import ImageRecord
from boneage.inference.prediction import SEPARATOR, Prediction, columns_of_run
from boneage.inference.quality import ReasonCode, Status

_DECIMALS = 4
_ODD_NAMES = "backslashreplace"


class PredictionsFile:
    """A predictions CSV that grows by whole rows and can be taken up after an interruption.

    A row of an earlier run stays if its file has the same content, even in another place, and
    sex and reference are the same. Predicted again are rows of status `error`, those of changed
    files or facts, those whose heat map is missing, and a last one that was cut off. Rows of files
    that are not in this run stay. The caller holds `files.locked` on its path.

    Args:
        path: The CSV; its folder is made if missing.
        images: The images of this run.
        with_reference: Whether it has the columns of the reference.
        fingerprint: `Predictor.fingerprint`, which all rows must share.
        force: Whether this run predicts rejected images, too; an earlier one may have differed.

    Attributes:
        missing: Those images that it holds no prediction of.
        n_changed: How many of them it had predicted when their files had another content.

    Raises:
        BoneAgeError: If the file there is no such CSV, or another model, calibration or version
            made it.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[ImageRecord],
        *,
        with_reference: bool,
        fingerprint: Mapping[str, str],
        force: bool = False,
    ) -> None:
        self._path = path
        self._with_reference = with_reference
        self._header = _line(columns_of_run(with_reference=with_reference))
        rows = {_place(row["path"]): row for row in (self._read() if path.exists() else [])}
        for row in rows.values():
            self._check(row, fingerprint)
        known = {_place(name_path(record.path)): record for record in records}
        content = {place: _content(record.path) for place, record in known.items()} if rows else {}
        # A row whose file is gone is that of an image of the same content that has moved.
        gone = [place for place in rows if place not in known and _is_gone(place)]
        moved = {rows[place]["image_sha256"]: place for place in gone}
        kept = {place: row for place, row in rows.items() if place not in known}
        self.missing: list[ImageRecord] = []
        self.n_changed = 0
        for place, record in known.items():
            earlier = rows.get(place)
            if earlier is None and content.get(place) in moved:
                earlier = kept.pop(moved.pop(content[place]))
            if earlier is not None and earlier["status"] != "error":
                self.n_changed += earlier["image_sha256"] != content[place]
            if (
                earlier is not None
                and _fits(earlier, force)
                and _holds(earlier, record, content[place])
            ):
                kept[place] = {**earlier, "path": name_path(record.path)}
            else:
                self.missing.append(record)
        order = {place: i for i, place in enumerate(rows)}
        lines = [_line(kept[place].values()) for place in
                 sorted(kept, key=lambda place: order.get(place, len(order)))]  # fmt: skip
        save_text(path, self._header + "".join(lines))

    def append(self, prediction: Prediction) -> None:
        """Write one row, whole."""
        row = to_plain_row(prediction, with_reference=self._with_reference)
        row["reason_codes"] = SEPARATOR.join(prediction.reason_codes)
        line = _line("" if value is None else value for value in row.values())
        with self._path.open("a", encoding="utf-8", errors=_ODD_NAMES, newline="") as file:
            file.write(line)

    def _read(self) -> list[dict[str, str]]:
        """Read the whole rows."""
        text = self._path.read_text(encoding="utf-8", errors="replace")
        if not (text.startswith(self._header) or self._header.startswith(text)):
            raise BoneAgeError(
                f"{self._path} is no predictions file of such a run; its columns differ. Move it "
                "away, or pass another --out."
            )
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]), restval="")
        return [row for row in reader if row["status"] in get_args(Status)]

    def _check(self, row: Mapping[str, str], fingerprint: Mapping[str, str]) -> None:
        """Refuse a row that something else than this run's model has made."""
        for name, now in fingerprint.items():
            then = row[name]
            if then != now and row["status"] != "error":
                raise BoneAgeError(
                    f"{self._path} holds predictions of {name} {then[:12] or 'none'}, this run has "
                    f"{now[:12] or 'none'}. Move it away, or pass another --out."
                )


def _place(path: str) -> str:
    """Give the one way to write a path, by which a row is known wherever the run was started."""
    return os.path.abspath(path)  # noqa: PTH100 (links stay as they are named)


def _is_gone(place: str) -> bool:
    """Whether no file is there; unknown, so false, where its name is not valid text."""
    return r"\udc" not in place and not Path(place).exists()


def _content(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError:
        return ""


def _fits(row: Mapping[str, str], force: bool) -> bool:
    """Whether a row is what this run would give, which predicts rejected images or does not."""
    if force:
        return row["status"] != "reject"
    return ReasonCode.FORCED not in row["reason_codes"].split(SEPARATOR)


def _holds(row: Mapping[str, str], record: ImageRecord, content: str) -> bool:
    """Whether an earlier row is of the image as it is, and its picture is there."""
    if row["status"] == "error" or row["image_sha256"] != content:
        return False
    if row["image_id"] != name_path(Path(record.image_id)):
        return False
    years = "" if record.reference_years is None else str(round(record.reference_years, _DECIMALS))
    if row.get("reference_years", "") != years:
        return False
    if record.heatmap is not None and not record.heatmap.exists() and row["status"] != "reject":
        return False
    sex = record.sex
    if sex is None and has_dicom_mark(record.path):
        sex = read_header(record.path).sex
    return row["sex"] == (sex if sex in ("M", "F") else "")


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
