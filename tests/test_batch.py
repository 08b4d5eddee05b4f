import csv
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import make_calibration, save_dicom
from PIL import Image
from pydicom.uid import RLELossless

from boneage.batch import (
    Film,
    PredictionsFile,
    calibrate,
    check_heatmaps,
    describe_films,
    find_films,
    predict_films,
    require_own_names,
    to_plain_row,
)
from boneage.config import Told
from boneage.errors import BoneAgeError, ConfigError
from boneage.predict import Predictor
from boneage.prediction import COLUMNS, Prediction

WINDOW = {"WindowCenter": 3040.5, "WindowWidth": 4081}


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor(exported, threads=1)


@pytest.fixture(scope="module")
def films(raw: Path) -> list[Film]:
    """Six films, of boys, girls and unknown."""
    paths = sorted(raw.rglob("*.png"))[:6]
    sexes: list[Told | None] = ["M", "F", None, "unknown", "F", "M"]
    return [Film(path, sex) for path, sex in zip(paths, sexes, strict=True)]


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")


def test_films_are_found_in_folders_and_all_below_them(tmp_path: Path) -> None:
    _touch(tmp_path, "b.png", "a.JPG", "deep/er/c.tiff", "deep/d.dcm", "notes.txt", "x.csv",
           "deep/e.gif", ".f.png", "DICOMDIR")  # fmt: skip
    save_dicom(tmp_path / "deep/1.2.840", np.eye(4, dtype=np.uint8))
    found, others = find_films([tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["a.JPG", "b.png", "deep/1.2.840", "deep/d.dcm", "deep/er/c.tiff"]
    assert others == 5


def test_a_file_that_is_named_is_a_film_whatever_its_name_and_counts_once(tmp_path: Path) -> None:
    _touch(tmp_path, "b.png", "a.png")
    named = [tmp_path / "scan", tmp_path / "b.png", tmp_path, tmp_path / "scan"]
    assert find_films(named) == ([tmp_path / n for n in ("scan", "b.png", "a.png")], 0)


def test_a_disc_s_dicomdir_is_no_film(tmp_path: Path) -> None:
    save_dicom(tmp_path / "DICOMDIR", np.eye(4, dtype=np.uint8))
    with pytest.raises(BoneAgeError, match=r"holds no films \(1 other files\)"):
        find_films([tmp_path])


def test_no_film_at_all_is_an_error(tmp_path: Path) -> None:
    _touch(tmp_path, "a.txt")
    with pytest.raises(BoneAgeError, match=r"holds no films \(1 other files\); expected \.png, "):
        find_films([tmp_path])
    with pytest.raises(BoneAgeError, match=r"nothing to answer; pass films or folders of them\.$"):
        find_films([])


def test_films_are_joined_with_what_a_table_knows_of_them() -> None:
    paths = [Path("a/7.png"), Path("8.dcm"), Path("9.png")]
    table: dict[str, tuple[str | None, float | None]] = {"7": ("M", 10.0), "8": (None, None)}
    assert describe_films(paths, "F", table) == [
        Film(paths[0], "M", 10.0), Film(paths[1]), Film(paths[2], "F"),
    ]  # fmt: skip
    assert describe_films(paths) == [Film(path) for path in paths]


def test_a_table_of_other_films_is_refused() -> None:
    message = (
        r"none of the 2 films is in the table \(its first ids: 1, 2, 3; first films: 7, 1\.2\.3\)"
    )
    with pytest.raises(BoneAgeError, match=message):
        describe_films([Path("7.png"), Path("1.2.3")], None, dict.fromkeys("1234", ("M", None)))


def test_pictures_of_films_of_one_name_have_names_of_their_own() -> None:
    paths = [Path(p) for p in ("a/x/1.png", "b/x/1.png", "b/x/1.jpg", "2.png", "/r/1.png")]
    pictures = [film.heatmap for film in describe_films(paths, heatmaps=Path("maps"))]
    assert len(set(pictures)) == 5
    assert [re.fullmatch(r"1-[0-9a-f]{8}\.png", p.name) is not None for p in pictures if p] == [
        True, True, True, False, True,
    ]  # fmt: skip
    assert pictures[3] == Path("maps/2.png")
    assert {picture.parent for picture in pictures if picture} == {Path("maps")}


def test_the_answer_does_not_depend_on_company_order_or_workers(
    predictor: Predictor, films: list[Film]
) -> None:
    alone = [next(predict_films(predictor, [film], 1)) for film in films]
    assert [a.path for a in alone] == [f.path for f in films]
    assert [a.sex for a in alone] == ["M", "F", None, None, "F", "M"]
    for workers in (1, 3):
        together = list(predict_films(predictor, films, workers))
        reversed_ = list(predict_films(predictor, films[::-1], workers))[::-1]
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


@pytest.fixture(scope="module")
def grey(films: list[Film]) -> npt.NDArray[np.int64]:
    """A film that uses all its grey values."""
    film = np.asarray(Image.open(films[0].path).convert("L")).astype(np.int64)
    film[0, 0], film[-1, -1] = 0, 255
    return film


@pytest.mark.parametrize("name", FORMATS)
def test_a_film_has_one_answer_in_every_format(
    predictor: Predictor, grey: npt.NDArray[np.int64], tmp_path: Path, name: str
) -> None:
    suffix, scale, offset, dtype, tags = FORMATS[name]
    stored: npt.NDArray[Any] = (grey * scale + offset).astype(dtype)
    path = tmp_path / f"film.{suffix}"
    if suffix == "dcm":
        save_dicom(path, stored, **tags)
    else:
        Image.fromarray(stored).save(path)
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "plain.png")
    answer, plain = predict_films(predictor, [Film(path, "M"), Film(tmp_path / "plain.png", "M")])
    assert answer.predicted_years == pytest.approx(plain.predicted_years, abs=1e-4)
    assert answer.status == "ok"


@pytest.mark.parametrize(
    ("suffix", "scale", "tags"),
    [("png", 257, {}), ("tif", 257, {}), ("dcm", 1, {"BitsStored": 8, "HighBit": 7})],
)
def test_a_dull_film_of_8_bits_has_its_answer_in_a_file_of_16(
    predictor: Predictor,
    grey: npt.NDArray[np.int64],
    tmp_path: Path,
    suffix: str,
    scale: int,
    tags: dict[str, Any],
) -> None:
    dull = 40 + grey // 2
    path = tmp_path / f"film.{suffix}"
    stored = (dull * scale).astype(np.uint16)
    if suffix == "dcm":
        save_dicom(path, stored, **tags)
    else:
        Image.fromarray(stored).save(path)
    Image.fromarray(dull.astype(np.uint8)).save(tmp_path / "plain.png")
    answer, plain = predict_films(predictor, [Film(path, "M"), Film(tmp_path / "plain.png", "M")])
    assert answer.predicted_years == plain.predicted_years


def test_a_jpeg_has_nearly_the_answer_of_its_film(
    predictor: Predictor, grey: npt.NDArray[np.int64], tmp_path: Path
) -> None:
    image = Image.fromarray(grey.astype(np.uint8))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.jpg", quality=95)
    png, jpeg, other = (
        answer.predicted_years or 0.0
        for answer in predict_films(
            predictor,
            [
                Film(tmp_path / "a.png", "M"),
                Film(tmp_path / "a.jpg", "M"),
                Film(tmp_path / "a.png"),
            ],
        )
    )
    assert abs(jpeg - png) < 0.05
    assert abs(other - png) > 1e-3


def test_a_film_that_cannot_be_read_is_a_row_and_the_rest_goes_on(
    predictor: Predictor, films: list[Film], tmp_path: Path
) -> None:
    _touch(tmp_path, "text.png", "text.dcm")
    broken = [Film(tmp_path / name, "M", 10.0) for name in ("text.png", "text.dcm", "gone.png")]
    answers = list(predict_films(predictor, [broken[0], films[0], *broken[1:], films[1]], 2))
    assert [a.status for a in answers] == ["error", "ok", "error", "error", "ok"]
    for answer, reason in zip(
        (answers[0], answers[2], answers[3]),
        ("is not an image", "holds no image", "does not exist"),
        strict=True,
    ):
        assert reason in answer.reasons[0]
        assert str(answer.path) in answer.reasons[0]
        assert answer.predicted_years is None
        assert answer.predicted_stage is None
        assert answer.reference_stage == "Child"


def test_films_are_read_no_further_ahead_than_a_few_a_worker(
    predictor: Predictor, films: list[Film]
) -> None:
    taken = 0

    def endless() -> Iterator[Film]:
        nonlocal taken
        while True:
            taken += 1
            yield films[taken % 6]

    answers = predict_films(predictor, endless(), 2)
    for _ in range(5):
        next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert taken <= 5 + 4 * 2


def test_a_heat_map_is_drawn_of_each_film_that_has_an_answer(
    predictor: Predictor, films: list[Film], tmp_path: Path
) -> None:
    _touch(tmp_path, "broken.png")
    paths = [films[0].path, films[1].path, tmp_path / "broken.png"]
    described = describe_films(paths, heatmaps=tmp_path / "maps")
    list(predict_films(predictor, described, 2))
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [
        f"{path.stem}.png" for path in paths[:2]
    ]
    with Image.open(tmp_path / "maps" / f"{paths[0].stem}.png") as picture:
        assert picture.width == 256


def test_a_row_has_plain_numbers_of_four_decimals() -> None:
    row = to_plain_row(Prediction("7", Path("7.png"), None, 1.234567), with_reference=False)
    assert tuple(row) == COLUMNS[:-2]
    assert (row["predicted_years"], row["sex"]) == (1.2346, None)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out.csv"


def _fill(out: Path, predictor: Predictor, films: list[Film]) -> PredictionsFile:
    """Answer what is missing in a predictions file, as the command does."""
    file = PredictionsFile(
        out,
        films,
        with_reference=any(film.reference_years is not None for film in films),
        answer=lambda film: next(predict_films(predictor, [film], 1)),
    )
    for prediction in predict_films(predictor, file.missing, 2):
        file.append(prediction)
    return file


def _never(film: Film) -> Prediction:
    pytest.fail("a film was answered though the file holds no answers")


def test_a_file_grows_by_whole_rows(predictor: Predictor, films: list[Film], out: Path) -> None:
    file = PredictionsFile(out, films, with_reference=False, answer=_never)
    assert out.read_text() == ",".join(COLUMNS[:-2]) + "\n"
    assert file.missing == films
    for n, prediction in enumerate(predict_films(predictor, films[:3], 1), start=1):
        file.append(prediction)
        assert len(_rows(out)) == n
        assert out.read_bytes().endswith(b"\n")
    assert [p.name for p in out.parent.iterdir()] == ["out.csv"]
    assert _rows(out)[2]["sex"] == ""


def test_a_run_is_taken_up_where_it_was_cut_off(
    predictor: Predictor, films: list[Film], out: Path
) -> None:
    _fill(out, predictor, films)
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    for cut in ("".join(lines[:4]), "".join(lines[:4]) + lines[4][:25], lines[0][:9], ""):
        out.write_text(cut)
        file = _fill(out, predictor, films)
        assert [f.path for f in file.missing] == [
            f.path for f in films[max(cut.count("\n") - 1, 0) :]
        ]
        assert out.read_text() == whole
    assert _fill(out, predictor, films).missing == []
    assert out.read_text() == whole


def test_films_that_could_not_be_read_are_tried_again(
    predictor: Predictor, films: list[Film], out: Path, tmp_path: Path
) -> None:
    late = tmp_path / "late.png"
    _fill(out, predictor, [films[0], Film(late), films[1]])
    assert [row["status"] for row in _rows(out)] == ["ok", "error", "ok"]
    shutil.copy(films[2].path, late)
    assert _fill(out, predictor, [films[0], Film(late), films[1]]).missing == [Film(late)]
    assert [row["status"] for row in _rows(out)] == ["ok", "ok", "ok"]
    assert _rows(out)[2]["path"] == str(late)


def test_rows_of_other_films_stay(predictor: Predictor, films: list[Film], out: Path) -> None:
    _fill(out, predictor, films[:2])
    _fill(out, predictor, films[2:4])
    assert [row["path"] for row in _rows(out)] == [str(film.path) for film in films[:4]]


def test_errors_of_other_films_stay(
    predictor: Predictor, films: list[Film], out: Path, tmp_path: Path
) -> None:
    _fill(out, predictor, [Film(tmp_path / "gone.png"), films[0]])
    _fill(out, predictor, films[1:2])
    assert [row["status"] for row in _rows(out)] == ["error", "ok", "ok"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device that is a file")
def test_what_is_no_ordinary_file_is_not_written_over(films: list[Film]) -> None:
    with pytest.raises(BoneAgeError, match=r"/dev/null is no ordinary file.* print with --json\.$"):
        PredictionsFile(Path("/dev/null"), films, with_reference=False, answer=_never)
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize(
    ("before", "now"), [("M", "F"), ("M", "unknown"), ("M", None), (None, "F"), ("unknown", "M")]
)
def test_a_film_of_another_sex_by_now_is_answered_anew_and_has_one_row(
    predictor: Predictor, films: list[Film], out: Path, before: Any, now: Any
) -> None:
    first, second = replace(films[0], sex=before), replace(films[0], sex=now)
    _fill(out, predictor, [first, films[1]])
    assert _fill(out, predictor, [second, films[1]]).missing == [second]
    rows = _rows(out)
    assert [row["path"] for row in rows] == [str(films[1].path), str(films[0].path)]
    assert rows[1]["sex"] == ("" if now in (None, "unknown") else now)
    assert _fill(out, predictor, [second, films[1]]).missing == []


def test_a_dicom_film_s_own_sex_needs_no_second_answer(
    predictor: Predictor, grey: npt.NDArray[np.int64], out: Path, tmp_path: Path
) -> None:
    film = Film(save_dicom(tmp_path / "a.dcm", grey.astype(np.uint8), PatientSex="F"))
    _fill(out, predictor, [film])
    assert _rows(out)[0]["sex"] == "F"
    assert _fill(out, predictor, [film]).missing == []


def test_a_dicom_film_answered_with_a_sex_entered_is_answered_anew_with_its_own(
    predictor: Predictor, grey: npt.NDArray[np.int64], out: Path, tmp_path: Path
) -> None:
    film = Film(save_dicom(tmp_path / "a.dcm", grey.astype(np.uint8), PatientSex="F"))
    _fill(out, predictor, [replace(film, sex="M")])
    assert _fill(out, predictor, [film]).missing == [film]
    assert [row["sex"] for row in _rows(out)] == ["F"]
    _fill(out, predictor, [replace(film, sex="unknown")])
    assert _fill(out, predictor, [film]).missing == [film]


def test_a_film_whose_heat_map_is_missing_is_answered_anew(
    predictor: Predictor, films: list[Film], out: Path, tmp_path: Path
) -> None:
    _fill(out, predictor, films[:3])
    drawn = [replace(film, heatmap=tmp_path / f"{film.path.stem}.png") for film in films[:3]]
    assert _fill(out, predictor, drawn).missing == drawn
    assert all(film.heatmap is not None and film.heatmap.is_file() for film in drawn)
    assert len(_rows(out)) == 3
    assert _fill(out, predictor, drawn).missing == []


def test_a_film_of_another_reference_by_now_is_answered_anew(
    predictor: Predictor, films: list[Film], out: Path
) -> None:
    dated = [replace(film, reference_years=10.0 + i / 3) for i, film in enumerate(films[:3])]
    _fill(out, predictor, dated)
    assert _fill(out, predictor, dated).missing == []
    dated[1] = replace(dated[1], reference_years=None)
    dated[2] = replace(dated[2], reference_years=4.0)
    assert _fill(out, predictor, dated).missing == dated[1:]
    assert [row["reference_years"] for row in _rows(out)] == ["10.0", "", "4.0"]


def test_a_file_of_another_model_is_refused_and_stays(
    exported: Path, predictor: Predictor, films: list[Film], out: Path, tmp_path: Path
) -> None:
    _fill(out, predictor, films[:2])
    before = out.read_bytes()
    site = tmp_path / "site.toml"
    make_calibration(predictor.contract.graph_sha256).save(site)
    message = (
        rf"out\.csv answers {films[0].path} with .* years, this run with .*: it was made with "
        r"another model, calibration or film\. Move it away, or pass another --out\."
    )
    with pytest.raises(BoneAgeError, match=message):
        _fill(out, Predictor(exported, calibration=site, threads=1), films)
    assert out.read_bytes() == before
    out.write_text(out.read_text().replace("Child", "Adult").replace("Adolescent", "Adult"))
    years = _rows(out)[0]["predicted_years"]
    out.write_text(out.read_text().replace(years, "many"))
    with pytest.raises(BoneAgeError, match="with many years, this run with"):
        _fill(out, predictor, films)


def test_a_film_that_has_moved_since_is_no_other_model(
    predictor: Predictor, films: list[Film], out: Path, tmp_path: Path
) -> None:
    inbox = Path(shutil.copy(films[0].path, tmp_path / "inbox.png"))
    _fill(out, predictor, [Film(inbox)])
    inbox.unlink()
    _fill(out, predictor, films[:1])
    assert [row["path"] for row in _rows(out)] == [str(inbox), str(films[0].path)]


@pytest.mark.parametrize("content", ["id,boneage\n1,2\n", "a note without an end of line"])
def test_a_file_that_is_no_predictions_file_is_refused_and_stays(
    films: list[Film], tmp_path: Path, content: str
) -> None:
    out = tmp_path / "out.csv"
    out.write_text(content)
    with pytest.raises(BoneAgeError, match=r"out\.csv is no predictions file of such a run; its"):
        PredictionsFile(out, films, with_reference=False, answer=_never)
    assert out.read_text() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_without_references_does_not_take_rows_with_them(
    predictor: Predictor, films: list[Film], out: Path
) -> None:
    _fill(out, predictor, films[:1])
    with pytest.raises(BoneAgeError, match="its columns differ"):
        _fill(out, predictor, [replace(films[0], reference_years=9.0)])


@pytest.mark.skipif(sys.platform != "linux", reason="names there are bytes")
def test_a_name_that_is_no_text_is_answered_once(
    predictor: Predictor, films: list[Film], out: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(films[0].path, odd)
    _fill(out, predictor, [Film(odd)])
    assert _rows(out)[0]["path"].endswith(r"caf\udce9.png")
    assert _fill(out, predictor, [Film(odd)]).missing == []


@pytest.fixture(scope="module")
def labelled(raw: Path) -> list[Film]:
    paths = sorted(raw.rglob("*.png"))[:32]
    return [Film(path, "MF"[i % 2], 3.0 + i / 3) for i, path in enumerate(paths)]  # type: ignore[arg-type]


def test_a_calibration_is_fitted_to_the_films_that_can_be_read(
    exported: Path, predictor: Predictor, labelled: list[Film], tmp_path: Path
) -> None:
    _touch(tmp_path, "broken.png")
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "small.png")
    broken, small = (Film(tmp_path / f"{name}.png", "M", 10.0) for name in ("broken", "small"))
    fitted, left_out = calibrate(predictor, [*labelled, broken, small], 2)
    assert list(left_out) == [str(broken.path), str(small.path)]
    assert "is not an image" in left_out[str(broken.path)]
    assert "small.png: the film has 40×40 pixels" in left_out[str(small.path)]
    assert fitted.films == 32
    assert fitted.graph_sha256 == predictor.contract.graph_sha256
    fitted.save(tmp_path / "site.toml")
    calibrated = Predictor(exported, calibration=tmp_path / "site.toml", threads=1)
    answers = list(predict_films(calibrated, labelled, 2))
    errors = [
        (answer.predicted_years or 0.0) - (film.reference_years or 0.0)
        for answer, film in zip(answers, labelled, strict=True)
    ]
    assert abs(np.mean(errors)) < 0.05
    assert abs(fitted.bias_male_years) > 1.0


def test_a_sex_of_few_films_is_said_to_have_no_bias_of_its_own(
    predictor: Predictor, labelled: list[Film], caplog: pytest.LogCaptureFixture
) -> None:
    boys = [replace(film, sex="M") for film in labelled]
    fitted, _ = calibrate(predictor, [*boys, replace(boys[0], sex="F")], 2)
    assert caplog.messages == [
        "1 girls' films are too few for a bias of their own (30): it is that of all films."
    ]
    assert fitted.bias_female_years != fitted.bias_male_years


def test_too_few_readable_films_are_no_calibration(
    predictor: Predictor, labelled: list[Film]
) -> None:
    with pytest.raises(ConfigError, match="3 labelled films are too few"):
        calibrate(predictor, labelled[:3], 1)


def test_a_model_without_an_age_cannot_be_calibrated(exported: Path, labelled: list[Film]) -> None:
    predictor = Predictor(exported, threads=1)
    predictor.contract = replace(predictor.contract, outputs=("stage_probabilities",))
    with pytest.raises(BoneAgeError, match="the model answers no age; there is nothing to calib"):
        calibrate(predictor, labelled, 1)


def test_heat_maps_are_not_put_among_the_films(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    check_heatmaps(tmp_path / "maps", [tmp_path / "films"])
    with pytest.raises(BoneAgeError, match=r"maps would be read as films of .*films next time"):
        check_heatmaps(tmp_path / "films" / "maps", [tmp_path / "films"])


def test_heat_maps_do_not_take_the_place_of_films_that_are_named(tmp_path: Path) -> None:
    film = tmp_path / "films" / "1.png"
    film.parent.mkdir()
    check_heatmaps(tmp_path / "films" / "maps", [film])
    with pytest.raises(
        BoneAgeError, match=r"a heat map in .*films could take the place of .*1\.png"
    ):
        check_heatmaps(tmp_path / "maps" / ".." / "films", [film])


def test_films_of_one_name_are_refused_where_each_needs_its_own() -> None:
    films = [Film(Path("a/1.png")), Film(Path("2.png")), Film(Path("b/1.dcm"))]
    require_own_names(films[:2])
    with pytest.raises(BoneAgeError, match=r"a/1\.png and b/1\.dcm have the same image_id '1'"):
        require_own_names(films)


def test_a_sex_that_the_table_does_not_know_is_left_to_the_file() -> None:
    table = {"a": (None, 3.0), "b": ("M", None)}
    films = describe_films([Path("a.png"), Path("b.png"), Path("c.png")], "F", table)
    assert [film.sex for film in films] == [None, "M", "F"]
