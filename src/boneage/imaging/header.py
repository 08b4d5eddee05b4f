"""What a DICOM file states beside its pixels, as plain values."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from boneage.imaging.dicom_tags import tidy
from boneage.sex import Sex, parse_sex

T = TypeVar("T")

_AGE = re.compile(r"(\d{1,3})([DWMY])")
_DAYS_PER_YEAR = 365.25
_YEARS_PER_UNIT = {"D": 1.0 / _DAYS_PER_YEAR, "W": 7.0 / _DAYS_PER_YEAR, "M": 1.0 / 12.0, "Y": 1.0}


@dataclass(frozen=True)
class Header:
    """What a DICOM file states of its image and patient.

    A field is None where the tag is absent, empty, or damaged, and for an image of another format.

    Attributes:
        sop_instance_uid: Unique identifier of the image.
        study_instance_uid: Unique identifier of its study.
        series_instance_uid: Unique identifier of its series.
        sex: PatientSex where it means male or female.
        sex_not_understood: PatientSex, as it stands, where it is not one of the words for a sex.
        age_years: PatientAge: the chronological age at the time of the study.
        birth_date: PatientBirthDate.
        study_date: StudyDate.
        laterality: ImageLaterality, or else Laterality, such as "L".
        body_part: BodyPartExamined, such as "HAND", or else the meaning of AnatomicRegionSequence.
        view_position: ViewPosition, such as "PA".
        modality: Modality, such as "DX" or "CR".
        pixel_spacing_mm: PixelSpacing, or else ImagerPixelSpacing: distance of neighbouring rows,
            then of neighbouring columns. The latter is that of the detector, on which a hand
            above it appears slightly enlarged.
        kind: Name of the SOP class, such as "CT Image Storage".
        frames: NumberOfFrames; 1 where it is absent.
    """

    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    sex: Sex | None = None
    sex_not_understood: str | None = None
    age_years: float | None = None
    birth_date: date | None = None
    study_date: date | None = None
    laterality: str | None = None
    body_part: str | None = None
    view_position: str | None = None
    modality: str | None = None
    pixel_spacing_mm: tuple[float, float] | None = None
    kind: str | None = None
    frames: int = 1


def parse_header(dataset: Any) -> Header:
    """Read the header of a pydicom Dataset; a damaged tag counts as absent."""
    sex_word = _first(dataset, _to_text, "PatientSex")
    try:
        sex, sex_not_understood = parse_sex(sex_word or ""), None
    except ValueError:
        sex, sex_not_understood = None, sex_word
    return Header(
        sop_instance_uid=_first(dataset, _to_text, "SOPInstanceUID"),
        study_instance_uid=_first(dataset, _to_text, "StudyInstanceUID"),
        series_instance_uid=_first(dataset, _to_text, "SeriesInstanceUID"),
        sex=sex,
        sex_not_understood=sex_not_understood,
        age_years=_first(dataset, _to_years, "PatientAge"),
        birth_date=_first(dataset, _to_date, "PatientBirthDate"),
        study_date=_first(dataset, _to_date, "StudyDate"),
        laterality=_first(dataset, _to_text, "ImageLaterality", "Laterality"),
        body_part=_first(dataset, _to_text, "BodyPartExamined")
        or _first(dataset, _to_meaning, "AnatomicRegionSequence"),
        view_position=_first(dataset, _to_text, "ViewPosition"),
        modality=_first(dataset, _to_text, "Modality"),
        pixel_spacing_mm=_first(dataset, _to_spacing, "PixelSpacing", "ImagerPixelSpacing"),
        kind=_first(dataset, _to_name, "SOPClassUID"),
        frames=max(1, _first(dataset, int, "NumberOfFrames") or 1),
    )


def read_header(path: Path) -> Header:
    """Read the header of a DICOM file without its pixels; empty if the file cannot be read."""
    from pydicom import dcmread

    try:
        return parse_header(dcmread(path, force=True, stop_before_pixels=True))
    except Exception:  # the reader raises whatever the bytes provoke
        return Header()


def _first(dataset: Any, parse: Callable[[Any], T | None], *tags: str) -> T | None:
    """Give the value of the first of the tags that is there and can be parsed."""
    for tag in tags:
        try:
            value = dataset.get(tag)
            parsed = None if value is None else parse(value)
        except Exception:  # pydicom parses a tag when it is asked for, and raises anything
            continue
        if parsed is not None:
            return parsed
    return None


def _to_text(value: Any) -> str | None:
    return tidy(str(value)) or None


def _to_name(value: Any) -> str | None:
    """Give the name of a UID that the standard knows."""
    return value.name if value.name != str(value) else None


def _to_meaning(value: Any) -> str | None:
    """Give the meaning of the first code of a sequence."""
    return _to_text(value[0].CodeMeaning) if value else None


def _to_years(value: Any) -> float | None:
    """Parse an age string, such as 012Y or 006M."""
    found = _AGE.fullmatch(str(value).strip().upper())
    return int(found[1]) * _YEARS_PER_UNIT[found[2]] if found else None


def _to_date(value: Any) -> date | None:
    """Parse YYYYMMDD, or YYYY.MM.DD as older files have it."""
    digits = str(value).strip().replace(".", "")
    return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) if len(digits) == 8 else None


def _to_spacing(value: Any) -> tuple[float, float] | None:
    row, column = (float(number) for number in value)
    is_length = 0.0 < row < float("inf") and 0.0 < column < float("inf")
    return (row, column) if is_length else None
