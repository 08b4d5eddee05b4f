import csv
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from boneage.errors import BoneAgeError
from boneage.files import hash_file
from boneage.inference.batch import ImageRecord, predict_images
from boneage.inference.prediction import COLUMNS, REFERENCE, Prediction
from boneage.inference.predictor import Predictor
from boneage.inference.quality import Reason, ReasonCode, Severity
from boneage.inference.results_file import PredictionsFile, to_plain_row
from builders import make_calibration, save_dicom

PLAIN = tuple(name for name in COLUMNS if name not in REFERENCE)


@pytest.fixture(scope="module")
def records(raw: Path) -> list[ImageRecord]:
    """Six images, of boys, girls and unknown."""
    sexes: list[Any] = ["M", "F", None, "unknown", "F", "M"]
    paths = sorted(raw.rglob("*.png"))[:6]
    return [ImageRecord(path, sex) for path, sex in zip(paths, sexes, strict=True)]


@pytest.fixture(scope="module")
def grey(records: list[ImageRecord]) -> npt.NDArray[np.int64]:
    return np.asarray(Image.open(records[0].path).convert("L")).astype(np.int64)


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor(exported, threads=1)


def test_a_row_has_plain_numbers_of_four_decimals() -> None:
    row = to_plain_row(Prediction("7", Path("7.png"), None, 1.234567), with_reference=False)
    assert tuple(row) == PLAIN
    assert (row["predicted_years"], row["sex"]) == (1.2346, None)


def test_codes_of_reasons_are_a_list_in_a_row_and_joined_in_the_file(out: Path) -> None:
    reasons = (
        Reason(ReasonCode.INVERTED, Severity.WARN, "bones were dark"),
        Reason(ReasonCode.STAGE_CONTRADICTS_AGE, Severity.INFO, "they differ"),
    )
    prediction = Prediction("7", Path("7.png"), reasons=reasons)
    row = to_plain_row(prediction, with_reference=False)
    assert row["reason_codes"] == ["inverted", "stage_contradicts_age"]
    PredictionsFile(out, [], with_reference=False, fingerprint={}).append(prediction)
    (written,) = _rows(out)
    assert written["reason_codes"] == "inverted; stage_contradicts_age"
    assert written["reasons"] == "bones were dark; note: they differ"
    assert written["status"] == "warn"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out.csv"


def _fill(out: Path, predictor: Predictor, records: list[ImageRecord]) -> PredictionsFile:
    """Answer what is missing in a predictions file, as the command does."""
    file = PredictionsFile(
        out,
        records,
        with_reference=any(record.reference_years is not None for record in records),
        fingerprint=predictor.fingerprint,
    )
    for prediction in predict_images(predictor, file.missing, 2):
        file.append(prediction)
    return file


NEW: dict[str, str] = {"model_sha256": "", "calibration_sha256": "", "boneage_version": ""}
"""The fingerprint of no model, for files without rows."""


def test_a_file_grows_by_whole_rows(
    predictor: Predictor, records: list[ImageRecord], out: Path
) -> None:
    file = PredictionsFile(out, records, with_reference=False, fingerprint=NEW)
    assert out.read_text() == ",".join(PLAIN) + "\n"
    assert file.missing == records
    for n, prediction in enumerate(predict_images(predictor, records[:3], 1), start=1):
        file.append(prediction)
        assert len(_rows(out)) == n
        assert out.read_bytes().endswith(b"\n")
    assert [p.name for p in out.parent.iterdir()] == ["out.csv"]
    assert _rows(out)[2]["sex"] == ""


def test_a_run_is_taken_up_where_it_was_cut_off(
    predictor: Predictor, records: list[ImageRecord], out: Path
) -> None:
    _fill(out, predictor, records)
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    for cut in ("".join(lines[:4]), "".join(lines[:4]) + lines[4][:25], lines[0][:9], ""):
        out.write_text(cut)
        file = _fill(out, predictor, records)
        assert [f.path for f in file.missing] == [
            f.path for f in records[max(cut.count("\n") - 1, 0) :]
        ]
        assert out.read_text() == whole
    assert _fill(out, predictor, records).missing == []
    assert out.read_text() == whole


def test_images_that_could_not_be_read_are_tried_again(
    predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path
) -> None:
    late = tmp_path / "late.png"
    _fill(out, predictor, [records[0], ImageRecord(late), records[1]])
    assert [row["status"] for row in _rows(out)] == ["ok", "error", "ok"]
    shutil.copy(records[2].path, late)
    assert _fill(out, predictor, [records[0], ImageRecord(late), records[1]]).missing == [
        ImageRecord(late)
    ]
    assert [row["status"] for row in _rows(out)] == ["ok", "ok", "ok"]
    assert _rows(out)[2]["path"] == str(late)


def test_rejected_images_are_predicted_again_where_force_has_changed(
    predictor: Predictor, records: list[ImageRecord], grey: npt.NDArray[np.int64], out: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    other = ImageRecord(save_dicom(tmp_path / "ct.dcm", grey.astype(np.uint8), Modality="CT"))

    def run(*, force: bool) -> list[ImageRecord]:
        file = PredictionsFile(out, [records[0], other], with_reference=False,
                               fingerprint=predictor.fingerprint, force=force)  # fmt: skip
        for prediction in predict_images(predictor, file.missing, 1, force=force):
            file.append(prediction)
        return file.missing

    assert run(force=False) == [records[0], other]
    row = _rows(out)[1]
    assert (row["status"], row["predicted_years"], row["p_child"]) == ("reject", "", "")
    assert row["reason_codes"] == "not_a_radiograph"
    assert run(force=False) == []
    assert run(force=True) == [other]
    row = _rows(out)[1]
    assert row["status"] == "warn"
    assert row["reason_codes"].startswith("not_a_radiograph; forced")
    assert float(row["predicted_years"]) > 0.0
    assert run(force=True) == []
    assert run(force=False) == [other]
    assert [row["status"] for row in _rows(out)] == ["ok", "reject"]


def test_rows_of_other_images_stay(
    predictor: Predictor, records: list[ImageRecord], out: Path
) -> None:
    _fill(out, predictor, records[:2])
    _fill(out, predictor, records[2:4])
    assert [row["path"] for row in _rows(out)] == [str(record.path) for record in records[:4]]


def test_errors_of_other_images_stay(
    predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path
) -> None:
    _fill(out, predictor, [ImageRecord(tmp_path / "gone.png"), records[0]])
    _fill(out, predictor, records[1:2])
    assert [row["status"] for row in _rows(out)] == ["error", "ok", "ok"]


@pytest.mark.parametrize(
    ("before", "now"), [("M", "F"), ("M", "unknown"), ("M", None), (None, "F"), ("unknown", "M")]
)
def test_an_image_of_another_sex_by_now_is_predicted_anew_and_has_one_row(
    predictor: Predictor, records: list[ImageRecord], out: Path, before: Any, now: Any
) -> None:
    first, second = replace(records[0], sex=before), replace(records[0], sex=now)
    _fill(out, predictor, [first, records[1]])
    assert _fill(out, predictor, [second, records[1]]).missing == [second]
    rows = _rows(out)
    assert [row["path"] for row in rows] == [str(records[1].path), str(records[0].path)]
    assert rows[1]["sex"] == ("" if now in (None, "unknown") else now)
    assert _fill(out, predictor, [second, records[1]]).missing == []


def test_a_dicom_image_s_own_sex_needs_no_second_prediction(
    predictor: Predictor, grey: npt.NDArray[np.int64], out: Path, tmp_path: Path
) -> None:
    record = ImageRecord(save_dicom(tmp_path / "a.dcm", grey.astype(np.uint8), PatientSex="F"))
    _fill(out, predictor, [record])
    assert _rows(out)[0]["sex"] == "F"
    assert _fill(out, predictor, [record]).missing == []


def test_a_dicom_image_predicted_with_a_sex_entered_is_predicted_anew_with_its_own(
    predictor: Predictor, grey: npt.NDArray[np.int64], out: Path, tmp_path: Path
) -> None:
    record = ImageRecord(save_dicom(tmp_path / "a.dcm", grey.astype(np.uint8), PatientSex="F"))
    _fill(out, predictor, [replace(record, sex="M")])
    assert _fill(out, predictor, [record]).missing == [record]
    assert [row["sex"] for row in _rows(out)] == ["F"]
    _fill(out, predictor, [replace(record, sex="unknown")])
    assert _fill(out, predictor, [record]).missing == [record]


def test_an_image_whose_heat_map_is_missing_is_predicted_anew(
    predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path
) -> None:
    _fill(out, predictor, records[:3])
    drawn = [
        replace(record, heatmap=tmp_path / f"{record.path.stem}.png") for record in records[:3]
    ]
    assert _fill(out, predictor, drawn).missing == drawn
    assert all(record.heatmap is not None and record.heatmap.is_file() for record in drawn)
    assert len(_rows(out)) == 3
    assert _fill(out, predictor, drawn).missing == []


def test_an_image_of_another_reference_by_now_is_predicted_anew(
    predictor: Predictor, records: list[ImageRecord], out: Path
) -> None:
    dated = [replace(record, reference_years=10.0 + i / 3) for i, record in enumerate(records[:3])]
    _fill(out, predictor, dated)
    assert _fill(out, predictor, dated).missing == []
    dated[1] = replace(dated[1], reference_years=None)
    dated[2] = replace(dated[2], reference_years=4.0)
    assert _fill(out, predictor, dated).missing == dated[1:]
    assert [row["reference_years"] for row in _rows(out)] == ["10.0", "", "4.0"]


def test_a_file_of_another_model_is_refused_and_stays(
    exported: Path, predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path
) -> None:
    _fill(out, predictor, records[:2])
    before = out.read_bytes()
    site = tmp_path / "site.toml"
    make_calibration(predictor.contract.graph_sha256).save(site)
    message = (
        r"out\.csv holds predictions of calibration_sha256 none, this run has [0-9a-f]{12}\. Move "
        r"it away, or pass another --out\."
    )
    with pytest.raises(BoneAgeError, match=message):
        _fill(out, Predictor(exported, calibration=site, threads=1), records)
    assert out.read_bytes() == before


@pytest.mark.parametrize("column", ["model_sha256", "boneage_version"])
def test_rows_of_another_model_or_version_are_not_mixed_with_new_ones(
    predictor: Predictor, records: list[ImageRecord], out: Path, column: str
) -> None:
    _fill(out, predictor, records[:2])
    out.write_text(out.read_text().replace(_rows(out)[1][column], "other"))
    with pytest.raises(BoneAgeError, match=f"holds predictions of {column} other, this run has"):
        _fill(out, predictor, records)


def test_a_row_tells_the_file_the_model_and_the_calibration_it_comes_from(
    exported: Path, predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path
) -> None:
    make_calibration(predictor.contract.graph_sha256).save(tmp_path / "site.toml")
    calibrated = Predictor(exported, calibration=tmp_path / "site.toml", threads=1)
    _fill(out, calibrated, records[:1])
    (row,) = _rows(out)
    assert row["image_sha256"] == hash_file(records[0].path)
    assert row["model_sha256"] == predictor.contract.graph_sha256
    assert calibrated.calibration is not None
    assert row["calibration_sha256"] == calibrated.calibration.sha256


def test_a_file_replaced_under_its_name_is_predicted_again_and_counted(
    predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path
) -> None:
    inbox = [ImageRecord(Path(shutil.copy(f.path, tmp_path / f"{i}.png")), "M") for i, f in
             enumerate(records[:3])]  # fmt: skip
    _fill(out, predictor, inbox)
    before = _rows(out)
    stamp = inbox[1].path.stat()
    shutil.copy(records[4].path, inbox[1].path)  # another child
    os.utime(inbox[1].path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    file = _fill(out, predictor, inbox)
    assert (file.n_changed, file.missing) == (1, [inbox[1]])
    after = {row["path"]: row for row in _rows(out)}
    assert len(after) == len(_rows(out)) == 3
    assert after[str(inbox[0].path)] == before[0]
    expected = predictor.predict(records[4].path, "M").predicted_years
    assert float(after[str(inbox[1].path)]["predicted_years"]) == pytest.approx(expected, abs=1e-4)
    assert _fill(out, predictor, inbox).n_changed == 0


def test_rows_that_are_there_twice_become_one(
    predictor: Predictor, records: list[ImageRecord], out: Path
) -> None:
    _fill(out, predictor, records[:2])
    whole = out.read_text()
    out.write_text(whole + "".join(whole.splitlines(keepends=True)[1:]))
    assert _fill(out, predictor, records[:2]).missing == []
    assert out.read_text() == whole


def test_an_image_that_has_moved_since_is_no_other_model(
    predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path
) -> None:
    inbox = Path(shutil.copy(records[0].path, tmp_path / "inbox.png"))
    _fill(out, predictor, [ImageRecord(inbox)])
    inbox.unlink()
    _fill(out, predictor, records[:1])
    assert [row["path"] for row in _rows(out)] == [str(records[0].path)]


def test_a_row_is_known_however_its_path_is_written(
    predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copy(records[0].path, tmp_path / "1.png")
    _fill(out, predictor, [ImageRecord(tmp_path / "1.png")])
    monkeypatch.chdir(tmp_path)
    assert _fill(out, predictor, [ImageRecord(Path("1.png"))]).missing == []
    assert [row["path"] for row in _rows(out)] == ["1.png"]
    (tmp_path / "new").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "new")  # from here the path of the row leads nowhere
    assert _fill(out, predictor, [ImageRecord(Path("../1.png"))]).missing == []
    assert len(_rows(out)) == 1


def test_a_copy_beside_its_original_has_a_row_of_its_own(
    predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path
) -> None:
    copies = [
        ImageRecord(Path(shutil.copy(records[0].path, tmp_path / f"{i}.png"))) for i in range(2)
    ]
    _fill(out, predictor, copies[:1])
    assert _fill(out, predictor, copies).missing == copies[1:]
    assert len(_rows(out)) == 2


def test_a_row_that_does_not_tell_its_model_is_refused(
    predictor: Predictor, records: list[ImageRecord], out: Path
) -> None:
    _fill(out, predictor, records[:2])
    lines = out.read_text().splitlines(keepends=True)
    out.write_text(lines[0] + lines[1].rsplit(",", 4)[0] + "\n" + lines[2])
    with pytest.raises(BoneAgeError, match="holds predictions of model_sha256 none, this run has"):
        _fill(out, predictor, records[:2])


@pytest.mark.parametrize("content", ["id,boneage\n1,2\n", "a note without an end of line"])
def test_a_file_that_is_no_predictions_file_is_refused_and_stays(
    records: list[ImageRecord], tmp_path: Path, content: str
) -> None:
    out = tmp_path / "out.csv"
    out.write_text(content)
    with pytest.raises(BoneAgeError, match=r"out\.csv is no predictions file of such a run; its"):
        PredictionsFile(out, records, with_reference=False, fingerprint=NEW)
    assert out.read_text() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_without_references_does_not_take_rows_with_them(
    predictor: Predictor, records: list[ImageRecord], out: Path
) -> None:
    _fill(out, predictor, records[:1])
    with pytest.raises(BoneAgeError, match="its columns differ"):
        _fill(out, predictor, [replace(records[0], reference_years=9.0)])


@pytest.mark.skipif(sys.platform != "linux", reason="names there are bytes")
def test_a_name_that_is_no_text_is_predicted_once(
    predictor: Predictor, records: list[ImageRecord], out: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(records[0].path, odd)
    _fill(out, predictor, [ImageRecord(odd)])
    assert _rows(out)[0]["path"].endswith(r"caf\udce9.png")
    assert _fill(out, predictor, [ImageRecord(odd)]).missing == []
