import csv
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from boneage.errors import BoneAgeError
from boneage.files import hash_file
from boneage.inference.batch import ImageRecord, predict_images
from boneage.inference.prediction import COLUMNS, REFERENCE, Prediction
from boneage.inference.predictor import Predictor
from boneage.inference.quality import Reason, ReasonCode, Severity
from boneage.inference.results_file import PredictionsFile, to_plain_row
from builders import draw_radiograph, make_calibration, save_dicom

Records = list[ImageRecord]
PLAIN = tuple(name for name in COLUMNS if name not in REFERENCE)


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


Fill = Callable[..., PredictionsFile]


@pytest.fixture
def fill(out: Path, predictor: Predictor) -> Fill:
    """Predict what is missing in the predictions file, as the command does."""

    def run(records: Records, predictor: Predictor = predictor) -> PredictionsFile:
        has_reference = any(record.reference_years is not None for record in records)
        file = PredictionsFile(
            out, records, with_reference=has_reference, fingerprint=predictor.fingerprint
        )
        for prediction in predict_images(predictor, file.missing, 2):
            file.append(prediction)
        return file

    return run


NEW: dict[str, str] = {"model_sha256": "", "calibration_sha256": "", "boneage_version": ""}
"""The fingerprint of no model, for files without rows."""


def test_a_file_grows_by_whole_rows(predictor: Predictor, records: Records, out: Path) -> None:
    file = PredictionsFile(out, records, with_reference=False, fingerprint=NEW)
    assert out.read_text() == ",".join(PLAIN) + "\n"
    assert file.missing == records
    for n, prediction in enumerate(predict_images(predictor, records[:3], 1), start=1):
        file.append(prediction)
        assert len(_rows(out)) == n
        assert out.read_bytes().endswith(b"\n")
    assert [p.name for p in out.parent.iterdir()] == ["out.csv"]
    assert _rows(out)[2]["sex"] == ""


def test_a_run_is_taken_up_where_it_was_cut_off(fill: Fill, records: Records, out: Path) -> None:
    fill(records)
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    for cut, n in (("".join(lines[:4]), 3), ("".join(lines[:4]) + lines[4][:25], 3),
                   (lines[0][:9], 0), ("", 0)):  # fmt: skip
        out.write_text(cut)
        assert fill(records).missing == records[n:]
        assert out.read_text() == whole
    assert fill(records).missing == []
    # Rows that are there twice become one.
    out.write_text(whole + "".join(lines[1:]))
    assert fill(records).missing == []
    assert out.read_text() == whole


def test_images_that_could_not_be_read_are_tried_again(
    fill: Fill, records: Records, out: Path, tmp_path: Path
) -> None:
    late = ImageRecord(tmp_path / "late.png")
    fill([records[0], late, records[1]])
    late.path.write_text("no image")
    for _ in range(2):
        assert fill([records[0], late, records[1]]).missing == [late]
        assert [row["status"] for row in _rows(out)] == ["ok", "ok", "error"]
    shutil.copy(records[2].path, late.path)
    assert fill([records[0], late, records[1]]).missing == [late]
    assert [row["status"] for row in _rows(out)] == ["ok", "ok", "ok"]
    assert _rows(out)[2]["path"] == str(late.path)


def test_rejected_images_are_predicted_again_where_force_has_changed(
    predictor: Predictor, records: Records, out: Path, tmp_path: Path
) -> None:
    other = ImageRecord(save_dicom(tmp_path / "ct.dcm", draw_radiograph(), Modality="CT"))

    def run(*, force: bool) -> Records:
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
    assert row["predicted_years"]
    assert run(force=True) == []
    assert run(force=False) == [other]
    assert [row["status"] for row in _rows(out)] == ["ok", "reject"]


def test_rows_and_errors_of_other_images_stay(
    fill: Fill, records: Records, out: Path, tmp_path: Path
) -> None:
    gone = ImageRecord(tmp_path / "gone.png")
    fill([gone, records[0]])
    fill(records[1:3])
    assert [row["status"] for row in _rows(out)] == ["error", "ok", "ok", "ok"]
    assert [row["path"] for row in _rows(out)] == [str(r.path) for r in (gone, *records[:3])]


@pytest.mark.parametrize(
    ("before", "now"), [("M", "F"), ("M", "unknown"), ("M", None), (None, "F"), ("unknown", "M")]
)
def test_an_image_of_another_sex_by_now_is_predicted_anew_and_has_one_row(
    fill: Fill, records: Records, out: Path, before: Any, now: Any
) -> None:
    first, second = replace(records[0], sex=before), replace(records[0], sex=now)
    fill([first, records[1]])
    assert fill([second, records[1]]).missing == [second]
    rows = _rows(out)
    assert [row["path"] for row in rows] == [str(records[1].path), str(records[0].path)]
    assert rows[1]["sex"] == ("" if now in (None, "unknown") else now)
    assert fill([second, records[1]]).missing == []


def test_a_dicom_image_predicted_with_a_sex_entered_is_predicted_anew_with_its_own(
    fill: Fill, grey: npt.NDArray[np.int64], out: Path, tmp_path: Path
) -> None:
    record = ImageRecord(save_dicom(tmp_path / "a.dcm", grey.astype(np.uint8), PatientSex="F"))
    for entered in ("M", "unknown"):
        fill([replace(record, sex=entered)])
        assert fill([record]).missing == [record]
        assert [row["sex"] for row in _rows(out)] == ["F"]
        assert fill([record]).missing == []


def test_an_image_whose_heat_map_is_missing_is_predicted_anew(
    fill: Fill, records: Records, out: Path, tmp_path: Path
) -> None:
    fill(records[:3])
    drawn = [replace(r, heatmap=tmp_path / f"{r.path.stem}.png") for r in records[:3]]
    assert fill(drawn).missing == drawn
    assert all(record.heatmap is not None and record.heatmap.is_file() for record in drawn)
    assert len(_rows(out)) == 3
    assert fill(drawn).missing == []


def test_an_image_of_another_reference_by_now_is_predicted_anew(
    fill: Fill, records: Records, out: Path
) -> None:
    dated = [replace(record, reference_years=10.0 + i / 3) for i, record in enumerate(records[:3])]
    fill(dated)
    assert fill(dated).missing == []
    dated[1] = replace(dated[1], reference_years=None)
    dated[2] = replace(dated[2], reference_years=4.0)
    assert fill(dated).missing == dated[1:]
    assert [row["reference_years"] for row in _rows(out)] == ["10.0", "", "4.0"]


def test_a_file_of_another_model_or_calibration_is_refused_and_stays(
    exported: Path, predictor: Predictor, fill: Fill, records: Records, out: Path, tmp_path: Path
) -> None:
    fill(records[:2])
    whole = out.read_text()
    make_calibration(predictor.contract.graph_sha256).save(tmp_path / "site.toml")
    calibrated = Predictor(exported, calibration=tmp_path / "site.toml", threads=1)
    message = (
        r"out\.csv holds predictions of calibration_sha256 none, this run has [0-9a-f]{12}\. Move "
        r"it away, or pass another --out\."
    )
    with pytest.raises(BoneAgeError, match=message):
        fill(records, calibrated)
    assert out.read_text() == whole
    row = _rows(out)[1]
    header, first, second = whole.splitlines(keepends=True)
    for text, column, found in (
        (whole.replace(row["model_sha256"], "other"), "model_sha256", "other"),
        (whole.replace(row["boneage_version"], "other"), "boneage_version", "other"),
        (header + first.rsplit(",", 5)[0] + "\n" + second, "model_sha256", "none"),
    ):
        out.write_text(text)
        with pytest.raises(BoneAgeError, match=f"predictions of {column} {found}, this run has"):
            fill(records[:2])


def test_a_row_tells_the_file_the_model_and_the_calibration_it_comes_from(
    exported: Path, predictor: Predictor, fill: Fill, records: Records, out: Path, tmp_path: Path
) -> None:
    make_calibration(predictor.contract.graph_sha256).save(tmp_path / "site.toml")
    calibrated = Predictor(exported, calibration=tmp_path / "site.toml", threads=1)
    fill(records[:1], calibrated)
    (row,) = _rows(out)
    assert row["image_sha256"] == hash_file(records[0].path)
    assert row["model_sha256"] == predictor.contract.graph_sha256
    assert calibrated.calibration is not None
    assert row["calibration_sha256"] == calibrated.calibration.sha256


def test_a_file_replaced_under_its_name_is_predicted_again_and_counted(
    predictor: Predictor, fill: Fill, records: Records, out: Path, tmp_path: Path
) -> None:
    inbox = [ImageRecord(Path(shutil.copy(f.path, tmp_path / f"{i}.png")), "M") for i, f in
             enumerate(records[:3])]  # fmt: skip
    fill(inbox)
    before = _rows(out)
    stamp = inbox[1].path.stat()
    shutil.copy(records[4].path, inbox[1].path)  # another child
    os.utime(inbox[1].path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    file = fill(inbox)
    assert (file.n_changed, file.missing) == (1, [inbox[1]])
    after = {row["path"]: row for row in _rows(out)}
    assert len(after) == len(_rows(out)) == 3
    assert after[str(inbox[0].path)] == before[0]
    expected = predictor.predict(records[4].path, "M").predicted_years
    assert float(after[str(inbox[1].path)]["predicted_years"]) == pytest.approx(expected, abs=1e-4)
    assert fill(inbox).n_changed == 0


def test_an_image_that_has_moved_since_is_no_other_model(
    fill: Fill, records: Records, out: Path, tmp_path: Path
) -> None:
    inbox = Path(shutil.copy(records[0].path, tmp_path / "inbox.png"))
    fill([ImageRecord(inbox)])
    inbox.unlink()
    fill(records[:1])
    assert [row["path"] for row in _rows(out)] == [str(records[0].path)]


def test_a_row_is_known_however_its_path_is_written(
    fill: Fill, records: Records, out: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copy(records[0].path, tmp_path / "1.png")
    fill([ImageRecord(tmp_path / "1.png")])
    monkeypatch.chdir(tmp_path)
    assert fill([ImageRecord(Path("1.png"))]).missing == []
    assert [row["path"] for row in _rows(out)] == ["1.png"]
    (tmp_path / "new").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "new")  # from here the path of the row leads nowhere
    assert fill([ImageRecord(Path("../1.png"))]).missing == []
    assert len(_rows(out)) == 1


def test_a_copy_beside_its_original_has_a_row_of_its_own(
    fill: Fill, records: Records, out: Path, tmp_path: Path
) -> None:
    copies = [ImageRecord(Path(shutil.copy(records[0].path, tmp_path / name))) for name in "ab"]
    fill(copies[:1])
    assert fill(copies).missing == copies[1:]
    assert len(_rows(out)) == 2


@pytest.mark.parametrize("content", ["id,boneage\n1,2\n", "a note without an end of line"])
def test_a_file_that_is_no_predictions_file_is_refused_and_stays(
    records: Records, tmp_path: Path, content: str
) -> None:
    out = tmp_path / "out.csv"
    out.write_text(content)
    with pytest.raises(BoneAgeError, match=r"out\.csv is no predictions file of such a run; its"):
        PredictionsFile(out, records, with_reference=False, fingerprint=NEW)
    assert out.read_text() == content
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_without_references_does_not_take_rows_with_them(
    fill: Fill, records: Records
) -> None:
    fill(records[:1])
    with pytest.raises(BoneAgeError, match="its columns differ"):
        fill([replace(records[0], reference_years=9.0)])


@pytest.mark.skipif(sys.platform != "linux", reason="names there are bytes")
def test_a_name_that_is_no_text_is_predicted_once(
    fill: Fill, records: Records, out: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(records[0].path, odd)
    fill([ImageRecord(odd)])
    assert _rows(out)[0]["path"].endswith(r"caf\udce9.png")
    assert fill([ImageRecord(odd)]).missing == []
