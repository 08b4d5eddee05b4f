from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from boneage.imaging.header import Header, read_header
from boneage.imaging.radiograph import read_radiograph
from builders import save_dicom

GREY = np.random.default_rng(0).integers(0, 256, (30, 20)).astype(np.uint8)

# The reader warns of values that the standard does not allow.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def _header(folder: Path, **tags: Any) -> Header:
    return read_radiograph(save_dicom(folder / "a.dcm", GREY, **tags)).header


def test_a_header_has_what_the_file_states_as_plain_values(tmp_path: Path) -> None:
    header = _header(
        tmp_path,
        SOPInstanceUID="1.2.3.4",
        StudyInstanceUID="1.2.3",
        SeriesInstanceUID="1.2.5",
        PatientSex="F",
        PatientAge="010Y",
        PatientBirthDate="20100131",
        StudyDate="20200301",
        Laterality="L",
        BodyPartExamined="HAND",
        ViewPosition="PA",
        Modality="CR",
        PixelSpacing=[0.14, 0.15],
    )
    assert header == Header(
        "1.2.3.4", "1.2.3", "1.2.5", "F", None, 10.0, date(2010, 1, 31), date(2020, 3, 1), "L",
        "HAND", "PA", "CR", (0.14, 0.15), "Digital X-Ray Image Storage - For Presentation", 1,
    )  # fmt: skip
    assert all(type(uid) is str for uid in (header.sop_instance_uid, header.modality))
    assert read_header(tmp_path / "a.dcm") == header


@pytest.mark.parametrize(
    ("stated", "years"),
    [("012Y", 12.0), ("006M", 0.5), ("030W", 210 / 365.25), ("010D", 10 / 365.25), ("12", None)],
)
def test_an_age_of_every_unit_is_in_years(tmp_path: Path, stated: str, years: float | None) -> None:
    assert _header(tmp_path, PatientAge=stated).age_years == pytest.approx(years)


def test_a_date_of_an_older_file_is_read(tmp_path: Path) -> None:
    assert _header(tmp_path, StudyDate="1995.06.30").study_date == date(1995, 6, 30)


def test_an_image_s_own_laterality_and_spacing_come_first(tmp_path: Path) -> None:
    both = {"Laterality": "L", "ImagerPixelSpacing": [0.2, 0.2]}
    header = _header(tmp_path, **both)
    assert (header.laterality, header.pixel_spacing_mm) == ("L", (0.2, 0.2))
    header = _header(tmp_path, **both, ImageLaterality="R", PixelSpacing=[0.1, 0.1])
    assert (header.laterality, header.pixel_spacing_mm) == ("R", (0.1, 0.1))


@pytest.mark.parametrize(
    ("tag", "value", "field"),
    [
        ("PatientBirthDate", "19990230", "birth_date"),
        ("StudyDate", "yesterday", "study_date"),
        ("PixelSpacing", "0.1", "pixel_spacing_mm"),
        ("PixelSpacing", [0.0, 0.1], "pixel_spacing_mm"),
        ("PatientSex", "", "sex_not_understood"),
        ("Modality", "", "modality"),
    ],
)
def test_a_value_that_means_nothing_is_none(
    tmp_path: Path, tag: str, value: Any, field: str
) -> None:
    assert getattr(_header(tmp_path, **{tag: value}), field) is None


@pytest.mark.parametrize(
    ("tag", "field"),
    [(b"\x10\x00\x40\x00CS", "sex"), (b"\x10\x00\x10\x10AS", "age_years")],
)
def test_a_damaged_tag_does_not_stop_the_reading(tmp_path: Path, tag: bytes, field: str) -> None:
    path = save_dicom(tmp_path / "a.dcm", GREY, PatientSex="F", PatientAge="010Y", Modality="DX")
    whole = read_radiograph(path)
    content = path.read_bytes()
    assert tag in content
    path.write_bytes(content.replace(tag, tag[:-1] + b"Q"))
    damaged = read_radiograph(path)
    assert getattr(whole.header, field) is not None
    assert getattr(damaged.header, field) is None
    assert damaged.header.modality == "DX"
    np.testing.assert_array_equal(damaged.pixels, whole.pixels)


def test_what_is_no_dicom_has_an_empty_header(tmp_path: Path) -> None:
    assert read_header(tmp_path / "gone.dcm") == Header()
    assert read_radiograph(GREY).header == Header()


def test_a_word_for_the_sex_that_is_not_understood_stands_as_it_is(tmp_path: Path) -> None:
    header = _header(tmp_path, PatientSex="WEIBLICH")
    assert (header.sex, header.sex_not_understood) == (None, "WEIBLICH")


def test_a_dataset_in_memory_has_the_same_header(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", GREY, PatientSex="M", PatientAge="010Y")
    assert read_radiograph(dcmread(path)).header == read_radiograph(path).header
