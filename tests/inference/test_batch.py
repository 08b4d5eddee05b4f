import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from boneage.errors import BoneAgeError, ConfigError
from boneage.inference.batch import (
    ImageRecord,
    calibrate,
    check_heatmaps,
    make_records,
    map_images,
    predict_images,
)
from boneage.inference.prediction import Prediction
from boneage.inference.predictor import Predictor
from builders import save_dicom

Table = dict[str, tuple[str | None, float | None]]
WINDOW = {"WindowCenter": 3040.5, "WindowWidth": 4081}


def test_images_are_joined_with_what_a_table_knows_of_them() -> None:
    paths = [Path("a/7.png"), Path("8.dcm"), Path("9.png")]
    table: Table = {"7": ("M", 10.0), "8": (None, None)}
    # A sex that the table does not know is left to the file.
    assert make_records(paths, "F", table) == [
        ImageRecord(paths[0], "M", 10.0), ImageRecord(paths[1]), ImageRecord(paths[2], "F"),
    ]  # fmt: skip
    assert make_records(paths) == [ImageRecord(path) for path in paths]


def test_a_row_whose_id_has_folders_is_that_image_s_alone() -> None:
    paths = [Path("in/patientA/1.png"), Path("in/patientB/1.png"), Path("in/2.png")]
    table: Table = {"patientA/1": ("M", 9.0), "2": ("F", None)}
    found = [(r.sex, r.reference_years, r.image_id) for r in make_records(paths, None, table)]
    assert found == [("M", 9.0, "patientA/1"), (None, None, "patientB/1"), ("F", None, "2")]


def test_a_row_that_fits_two_images_is_refused_with_both() -> None:
    paths = [Path("patientA/1.png"), Path("patientB/1.png")]
    with pytest.raises(BoneAgeError, match=r"id '1' fits patientA/1\.png and patientB/1\.png;"):
        make_records(paths, None, {"1": ("M", None)})


def test_a_table_of_other_images_is_refused() -> None:
    message = (
        r"none of the 2 images is in the table \(its first ids: 1, 2, 3; first images: 7, 1\.2\.3\)"
    )
    with pytest.raises(BoneAgeError, match=message):
        make_records([Path("7.png"), Path("1.2.3")], None, dict.fromkeys("1234", ("M", None)))


def test_pictures_of_images_of_one_name_have_names_of_their_own() -> None:
    paths = [Path(p) for p in ("/r/a/x/1.png", "/r/b/x/1.png", "/r/b/x/1.jpg", "/r/2.png")]
    pictures = [record.heatmap for record in make_records(paths, heatmaps=Path("maps"))]
    assert [p.relative_to("maps").as_posix() for p in pictures if p] == [
        "1.png", "1 (png).png", "1 (jpg).png", "2.png",
    ]  # fmt: skip


def test_an_image_with_the_longest_name_possible_is_predicted_and_its_heat_map_saved(
    predictor: Predictor, records: list[ImageRecord], tmp_path: Path
) -> None:
    long = tmp_path / "in" / ("x" * 251 + ".png")
    long.parent.mkdir()
    shutil.copy(records[0].path, long)
    no_suffix = tmp_path / "in" / ("y" * 255)
    shutil.copy(records[1].path, no_suffix)
    described = make_records([long, no_suffix], heatmaps=tmp_path / "maps")
    assert [p.status for p in predict_images(predictor, described, 1)] == ["ok", "ok"]
    assert len(list((tmp_path / "maps").iterdir())) == 2


def test_the_prediction_does_not_depend_on_other_images_order_or_workers(
    predictor: Predictor, records: list[ImageRecord]
) -> None:
    alone = [next(predict_images(predictor, [record], 1)) for record in records]
    assert [a.path for a in alone] == [f.path for f in records]
    assert [a.sex for a in alone] == ["M", "F", None, None, "F", "M"]
    for workers in (1, 3):
        together = list(predict_images(predictor, records, workers))
        reversed_ = list(predict_images(predictor, records[::-1], workers))[::-1]
        for a, b, c in zip(alone, together, reversed_, strict=True):
            assert a.image_id == b.image_id == c.image_id
            assert b.predicted_years == pytest.approx(a.predicted_years, abs=1e-4)
            assert c.predicted_years == pytest.approx(a.predicted_years, abs=1e-4)
            assert b.p_child == pytest.approx(a.p_child, abs=1e-5)


FORMATS: dict[str, tuple[str, int, int, type, dict[str, Any]]] = {
    "png": ("png", 1, 0, np.uint8, {}),
    "png of 16 bits": ("png", 257, 0, np.uint16, {}),
    "tiff": ("tif", 1, 0, np.uint8, {}),
    "tiff of 16 bits": ("tif", 16, 0, np.uint16, {}),
    "bmp": ("bmp", 1, 0, np.uint8, {}),
    "dicom": ("dcm", 1, 0, np.uint8, {}),
    "dicom of 16 bits": ("dcm", 16, 0, np.uint16, {}),
    "dicom with window": ("dcm", 16, 1000, np.uint16, WINDOW),
    "dicom, white is zero": ("dcm", -1, 255, np.uint8,
                             {"PhotometricInterpretation": "MONOCHROME1"}),
    "dicom, modality LUT": ("dcm", 4, 0, np.uint16, {"RescaleSlope": 3, "RescaleIntercept": 5}),
    "dicom, RLE": ("dcm", 1, 0, np.uint8, {"compress": RLELossless}),
}  # fmt: skip
DULL: dict[str, tuple[str, int, int, type, dict[str, Any]]] = {
    "dull png": ("png", 257, 0, np.uint16, {}),
    "dull tiff": ("tif", 257, 0, np.uint16, {}),
    "dull dicom": ("dcm", 1, 0, np.uint16, {"BitsStored": 8, "HighBit": 7}),
}
"""Images of 8 bits in files of 16."""


@pytest.fixture(scope="module")
def grey(grey: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """An image that uses all its grey values."""
    pixels = grey.copy()
    pixels[0, 0], pixels[-1, -1] = 0, 255
    return pixels


def predict_pairs(
    predictor: Predictor, stored: npt.NDArray[Any], plain: npt.NDArray[Any], path: Path, **tags: Any
) -> tuple[Prediction, Prediction]:
    """Predict an image in a format and the same image as a plain PNG."""
    if path.suffix == ".dcm":
        save_dicom(path, stored, **tags)
    else:
        Image.fromarray(stored).save(path)
    png = path.with_name("plain.png")
    Image.fromarray(plain.astype(np.uint8)).save(png)
    found, expected = predict_images(predictor, [ImageRecord(path, "M"), ImageRecord(png, "M")])
    return found, expected


@pytest.mark.parametrize("name", [*FORMATS, *DULL])
def test_an_image_has_one_prediction_in_every_format(
    predictor: Predictor, grey: npt.NDArray[np.int64], tmp_path: Path, name: str
) -> None:
    suffix, scale, offset, dtype, tags = (FORMATS | DULL)[name]
    plain = 40 + grey // 2 if name in DULL else grey
    stored: npt.NDArray[Any] = (plain * scale + offset).astype(dtype)
    path = tmp_path / f"image.{suffix}"
    found, expected = predict_pairs(predictor, stored, plain, path, **tags)
    tolerance = 0.0 if name in DULL else 1e-4
    assert found.predicted_years == pytest.approx(expected.predicted_years, rel=0, abs=tolerance)
    assert found.status == "ok"


def test_a_jpeg_has_nearly_the_prediction_of_its_image(
    predictor: Predictor, grey: npt.NDArray[np.int64], tmp_path: Path
) -> None:
    pixels = grey.astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    jpeg, png, other = (
        predictor.predict(source, sex).predicted_years or 0.0
        for source, sex in ((tmp_path / "a.jpg", "M"), (pixels, "M"), (pixels, None))
    )
    assert abs(jpeg - png) < 0.05
    assert abs(other - png) > 1e-3


def test_an_image_that_cannot_be_read_is_a_row_and_the_rest_goes_on(
    predictor: Predictor, records: list[ImageRecord], tmp_path: Path
) -> None:
    reasons = {"text.png": "is not an image", "text.dcm": "holds no image", "gone.png": "does not "}
    for name in ("text.png", "text.dcm"):
        (tmp_path / name).write_text("content")
    broken = [ImageRecord(tmp_path / name, "M", 10.0) for name in reasons]
    given = [broken[0], records[0], *broken[1:], records[1]]
    predictions = list(predict_images(predictor, given, 2))
    assert [a.status for a in predictions] == ["error", "ok", "error", "error", "ok"]
    failed = [prediction for prediction in predictions if prediction.status == "error"]
    for prediction, reason in zip(failed, reasons.values(), strict=True):
        assert reason in prediction.reasons[0].message
        assert str(prediction.path) in prediction.reasons[0].message
        assert prediction.predicted_years is prediction.predicted_stage is None
        assert prediction.reference_stage == "Child"


def test_images_are_read_only_a_few_a_worker_ahead(
    predictor: Predictor, records: list[ImageRecord]
) -> None:
    taken = 0

    def endless() -> Iterator[ImageRecord]:
        nonlocal taken
        while True:
            taken += 1
            yield records[taken % 6]

    predictions = predict_images(predictor, endless(), 2)
    for _ in range(5):
        next(predictions)
    predictions.close()  # type: ignore[attr-defined]
    assert taken <= 5 + 4 * 2


def test_results_come_in_the_order_of_the_images_whatever_takes_longest() -> None:
    waits = [0.05, 0.0, 0.02, 0.0, 0.0]

    def work(i: int) -> int:
        time.sleep(waits[i])
        return 10 * i

    assert list(map_images(work, range(5), 3)) == [0, 10, 20, 30, 40]
    assert list(map_images(work, [], 3)) == []


def test_an_error_ends_the_work_and_cancels_what_is_not_begun() -> None:
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 1:
            raise KeyboardInterrupt
        return i

    results = map_images(work, range(100), 1)
    assert next(results) == 0
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert len(begun) < 10
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


def test_progress_is_shown_where_it_has_a_label(capsys: pytest.CaptureFixture[str]) -> None:
    list(map_images(str, range(3), 1))
    assert capsys.readouterr().err == ""
    list(map_images(str, range(3), 1, progress="count"))
    assert "count: 100%" in capsys.readouterr().err


def test_a_heat_map_is_saved_of_each_image_that_has_a_prediction(
    predictor: Predictor, records: list[ImageRecord], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_text("content")
    paths = [records[0].path, records[1].path, tmp_path / "broken.png"]
    list(predict_images(predictor, make_records(paths, heatmaps=tmp_path / "maps"), 2))
    maps = sorted((tmp_path / "maps").iterdir())
    assert [path.name for path in maps] == [f"{path.stem}.png" for path in paths[:2]]
    with Image.open(maps[0]) as picture:
        assert picture.width == 256


@pytest.fixture(scope="module")
def labelled(raw: Path) -> list[ImageRecord]:
    paths = sorted(raw.rglob("*.png"))[:32]
    return [ImageRecord(path, "MF"[i % 2], 3.0 + i / 3) for i, path in enumerate(paths)]  # type: ignore[arg-type]


def test_a_calibration_is_fitted_to_the_images_that_can_be_read(
    exported: Path, predictor: Predictor, labelled: list[ImageRecord], tmp_path: Path
) -> None:
    broken, small = (ImageRecord(tmp_path / f"{n}.png", "M", 10.0) for n in ("broken", "small"))
    broken.path.write_text("content")
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(small.path)
    fitted, left_out = calibrate(predictor, [*labelled, broken, small], 2)
    assert list(left_out) == [str(broken.path), str(small.path)]
    assert "is not an image" in left_out[str(broken.path)]
    assert "small.png: the image has 40×40 pixels" in left_out[str(small.path)]
    assert fitted.images == 32
    assert fitted.graph_sha256 == predictor.contract.graph_sha256
    fitted.save(tmp_path / "site.toml")
    calibrated = Predictor(exported, calibration=tmp_path / "site.toml", threads=1)
    predictions = predict_images(calibrated, labelled, 2)
    predicted = [prediction.predicted_years for prediction in predictions]
    references = [record.reference_years for record in labelled]
    assert np.mean(predicted) == pytest.approx(np.mean(references), abs=0.05)  # type: ignore[arg-type]
    assert abs(fitted.bias_male_years) > 1.0


def test_a_sex_of_few_images_has_no_bias_of_its_own_and_a_warning_says_so(
    predictor: Predictor, labelled: list[ImageRecord], caplog: pytest.LogCaptureFixture
) -> None:
    boys = [replace(record, sex="M") for record in labelled]
    fitted, _ = calibrate(predictor, [*boys, replace(boys[0], sex="F")], 2)
    assert caplog.messages == [
        "1 girls' images are too few for a bias of their own (30): it is that of all images."
    ]
    assert fitted.bias_female_years != fitted.bias_male_years


def test_too_few_readable_images_or_a_model_without_an_age_are_no_calibration(
    exported: Path, predictor: Predictor, labelled: list[ImageRecord]
) -> None:
    with pytest.raises(ConfigError, match="3 labelled images are too few"):
        calibrate(predictor, labelled[:3], 1)
    mute = Predictor(exported, threads=1)
    mute.contract = replace(mute.contract, outputs=("stage_probabilities",))
    with pytest.raises(BoneAgeError, match="the model predicts no age; there is nothing to calib"):
        calibrate(mute, labelled, 1)


def test_heat_maps_are_not_put_among_the_images_or_in_the_place_of_one(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    check_heatmaps(tmp_path / "maps", [images])
    with pytest.raises(BoneAgeError, match=r"maps would be read as images of .*images next time"):
        check_heatmaps(images / "maps", [images])
    check_heatmaps(images / "maps", [images / "1.png"])
    message = r"a heat map in .*images could take the place of .*1\.png"
    with pytest.raises(BoneAgeError, match=message):
        check_heatmaps(tmp_path / "maps" / ".." / "images", [images / "1.png"])
