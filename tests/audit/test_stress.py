import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

import boneage.audit.stress
from boneage.audit.robustness import summarise_stress
from boneage.audit.stress import CLEAN, COLUMNS, STRESSES, Stress, stress_images
from boneage.data.labels import find_images, find_labels, read_known
from boneage.errors import BoneAgeError
from boneage.imaging.radiograph import Radiograph
from boneage.inference.batch import ImageRecord, make_records
from boneage.inference.prediction import Prediction
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import draw_image
from builders import make_calibration

Grey = npt.NDArray[np.int64]


def find(family: str, level: str) -> Stress:
    (found,) = (s for s in STRESSES if (s.family, s.level) == (family, level))
    return found


def change(record: Image.Image | Grey, family: str, level: str) -> Grey:
    """Change an image, given and returned in grey values."""
    image = record if isinstance(record, Image.Image) else Image.fromarray(record.astype(np.uint8))
    return np.asarray(find(family, level).change(image), dtype=np.int64)


@pytest.fixture(scope="module")
def record() -> Image.Image:
    """A drawn image whose sides are no multiples of anything."""
    return Image.fromarray(draw_image(120, "M", np.random.default_rng(0), height=121).image)


@pytest.fixture(scope="module")
def grey(record: Image.Image) -> Grey:
    return np.asarray(record, dtype=np.int64)


def spot(x: int, y: int) -> Grey:
    """A dark image of 201×201 with a bright spot."""
    record = np.zeros((201, 201), dtype=np.int64)
    record[y - 3 : y + 4, x - 3 : x + 4] = 255
    return record


def middle(record: Grey) -> tuple[float, float]:
    rows, columns = np.indices(record.shape)
    return (columns * record).sum() / record.sum(), (rows * record).sum() / record.sum()


def test_every_stress_has_a_name_of_its_own() -> None:
    names = [(stress.family, stress.level) for stress in STRESSES]
    assert len(set(names)) == len(names)
    assert CLEAN not in {family for family, _ in names}


@pytest.mark.parametrize("stress", STRESSES, ids=lambda s: f"{s.family} {s.level}")
def test_a_stress_changes_the_image_or_the_sex_and_keeps_size_and_mode(
    stress: Stress, record: Image.Image, grey: Grey
) -> None:
    before = grey.copy()
    changed = stress.change(record)
    is_laid_on_its_side = stress.level in ("90°", "270°")
    assert changed.mode == "L"
    assert changed.size == (record.size[::-1] if is_laid_on_its_side else record.size)
    is_same = np.array_equal(np.asarray(changed), grey) if changed.size == record.size else False
    assert is_same == (stress.sex is not None)
    np.testing.assert_array_equal(np.asarray(stress.change(record)), np.asarray(changed))
    np.testing.assert_array_equal(np.asarray(record), before)


@pytest.mark.parametrize(
    "level", ["-45°", "-20°", "-10°", "-5°", "+5°", "+10°", "+20°", "+45°", "90°", "180°", "270°"]
)
def test_an_image_turns_to_the_left_by_the_degrees_of_its_level(level: str) -> None:
    angle = np.radians(float(level.rstrip("°")))
    found = middle(change(spot(180, 100), "rotation", level))
    assert found == pytest.approx((100 + 80 * np.cos(angle), 100 - 80 * np.sin(angle)), abs=0.6)


def test_right_angles_lose_nothing(grey: Grey) -> None:
    for level, turns in (("90°", 1), ("180°", 2), ("270°", 3)):
        np.testing.assert_array_equal(change(grey, "rotation", level), np.rot90(grey, turns))
    for first, second in (("180°", "180°"), ("90°", "270°"), ("270°", "90°")):
        there = change(grey, "rotation", first)
        np.testing.assert_array_equal(change(there, "rotation", second), grey)


def test_flips_mirror_the_image(grey: Grey) -> None:
    np.testing.assert_array_equal(change(grey, "flip", "left-right"), grey[:, ::-1])
    np.testing.assert_array_equal(change(grey, "flip", "upside down"), grey[::-1])


@pytest.mark.parametrize("level", ["-30%", "-10%", "+10%", "+30%"])
def test_brightness_scales_every_grey_value_up_to_white(grey: Grey, level: str) -> None:
    share = float(level.rstrip("%")) / 100
    changed = change(grey, "brightness", level)
    assert np.abs(changed - np.minimum(grey * (1 + share), 255)).max() <= 0.5 + 1e-9
    assert (np.sign(share) * (changed - grey) >= 0).all()


@pytest.mark.parametrize("level", ["-30%", "-10%", "+10%", "+30%"])
def test_contrast_scales_the_spread_about_the_mean(level: str) -> None:
    flat = np.linspace(80, 170, 120 * 100).reshape(120, 100).astype(np.int64)
    changed = change(flat, "contrast", level)
    assert changed.mean() == pytest.approx(flat.mean(), abs=0.5)
    assert changed.std() / flat.std() == pytest.approx(1 + float(level[:-1]) / 100, abs=0.01)


@pytest.mark.parametrize("level", ["0.67", "0.8", "1.25", "1.5"])
def test_gamma_bends_the_greys_between_black_and_white(level: str) -> None:
    greys = np.arange(256)[None]
    changed = change(greys, "gamma", level)
    assert np.abs(changed - 255 * (greys / 255) ** float(level)).max() <= 0.5 + 1e-9
    assert (changed[0, 0], changed[0, 255]) == (0, 255)
    assert (changed > greys).any() == (float(level) < 1)
    assert (changed < greys).any() == (float(level) > 1)


def test_inversion_exchanges_black_and_white_and_undoes_itself(grey: Grey) -> None:
    changed = change(grey, "inversion", "")
    np.testing.assert_array_equal(changed, 255 - grey)
    np.testing.assert_array_equal(change(changed, "inversion", ""), grey)


@pytest.mark.parametrize("level", ["0.5% of the height", "1% of the height"])
def test_blur_widens_an_edge_by_its_share_of_the_height(level: str) -> None:
    edge = np.zeros((600, 100), dtype=np.int64)
    edge[:, 50:] = 255
    profile = np.diff(change(edge, "blur", level)[300]) / 255
    places = np.arange(len(profile))
    mean = (places * profile).sum()
    sigma = np.sqrt((profile * (places - mean) ** 2).sum())
    assert sigma == pytest.approx(6.0 * float(level.split("%")[0]), rel=0.1)


@pytest.mark.parametrize(("level", "sigma"), [("2% of the range", 5.1), ("5% of the range", 12.75)])
def test_noise_has_its_share_of_the_range_and_no_bias(level: str, sigma: float) -> None:
    plain = np.full((120, 100), 128)
    noise = change(plain, "noise", level) - plain
    assert noise.std() == pytest.approx(sigma, rel=0.03)
    assert abs(noise.mean()) < 0.3


def test_a_lower_resolution_loses_what_is_finer_than_its_pixels(grey: Grey) -> None:
    stripes = np.tile([0, 255], (120, 50))
    assert change(stripes, "resolution", "1/2").std() < 1
    detail = [np.abs(np.diff(record)).mean()
              for record in (grey, change(grey, "resolution", "1/1.5"),
                           change(grey, "resolution", "1/2"))]  # fmt: skip
    assert detail[0] > detail[1] > detail[2]


@pytest.mark.parametrize(("level", "share"), [("3% a side", 0.03), ("8% a side", 0.08)])
def test_a_crop_cuts_the_sides_off_and_magnifies_the_middle(level: str, share: float) -> None:
    record = np.zeros((300, 200), dtype=np.int64)
    record[120:180, 70:130] = 255
    record[: int(300 * share) - 2] = record[:, : int(200 * share) - 2] = 255
    changed = change(record, "crop", level)
    assert changed.sum() / 255 == pytest.approx(3600 / (1 - 2 * share) ** 2, rel=0.02)
    assert middle(changed) == pytest.approx((99.5, 149.5), abs=0.5)


@pytest.mark.parametrize(("level", "share"), [("5%", 0.05), ("10%", 0.1)])
def test_a_translation_moves_the_image_right_and_down_over_black(level: str, share: float) -> None:
    record = 1 + np.random.default_rng(0).integers(0, 255, (120, 100))
    changed = change(record, "translation", level)
    down, right = round(120 * share), round(100 * share)
    np.testing.assert_array_equal(changed[down:, right:], record[:-down, :-right])
    assert not changed[:down].any()
    assert not changed[:, :right].any()


def test_jpeg_loses_more_at_a_lower_quality(grey: Grey) -> None:
    lost = [np.abs(change(grey, "JPEG", f"quality {q}") - grey).mean() for q in (75, 40, 20)]
    assert 0 < lost[0] < lost[1] < lost[2] < 10


def test_a_marker_is_white_and_in_the_upper_left_corner_only(grey: Grey) -> None:
    changed = change(grey, "marker", "added")
    rows, columns = np.nonzero(changed != grey)
    assert (changed[rows, columns] == 255).all()
    assert len(rows) > 20
    assert rows.max() < 0.2 * grey.shape[0]
    assert columns.max() < 0.2 * grey.shape[1]


@pytest.mark.parametrize(("level", "share"), [("3%", 0.03), ("6%", 0.06)])
def test_a_border_is_black_and_leaves_what_is_inside(grey: Grey, level: str, share: float) -> None:
    changed = change(grey, "border", level)
    y, x = (round(share * side) for side in grey.shape)
    inside = (slice(y, grey.shape[0] - y), slice(x, grey.shape[1] - x))
    np.testing.assert_array_equal(changed[inside], grey[inside])
    assert changed.sum() == grey[inside].sum()


FEW = (
    find("rotation", "+20°"), find("inversion", ""), find("sex", "wrong"), find("sex", "unknown")
)  # fmt: skip


class Recorder(Predictor):
    """Notes what it is asked, and can be cut off at an image."""

    cut_off_at: Path | None = None

    def __init__(self, model: Path, **options: Any) -> None:
        super().__init__(model, threads=1, **options)
        self.asked: list[tuple[Radiograph, str | None]] = []

    def answer(self, radiograph: Radiograph, sex: Any = None) -> Prediction:
        if radiograph.path == self.cut_off_at:
            raise KeyboardInterrupt
        self.asked.append((radiograph, sex))
        return super().answer(radiograph, sex)

    def names(self) -> set[str]:
        return {radiograph.path.name for radiograph, _ in self.asked}


@pytest.fixture
def predictor(exported: Path) -> Recorder:
    return Recorder(exported)


@pytest.fixture(scope="module")
def records(raw: Path) -> list[ImageRecord]:
    """Five images with sex and reference."""
    return make_records(list(find_images(raw).values())[:5], None, read_known(find_labels(raw)))


@pytest.fixture(scope="module")
def whole(
    exported: Path, records: list[ImageRecord], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The answers of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "answers.csv"
    stress_images(Predictor(exported, threads=1), records, out, FEW, 1)
    return out


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"level": str, "model": str}, keep_default_na=False)


def test_each_image_has_one_clean_answer_and_one_under_each_stress(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path
) -> None:
    table = stress_images(predictor, records, tmp_path / "answers.csv", FEW, 1)
    assert list(table.columns) == list(COLUMNS)
    assert table["path"].tolist() == [str(f.path) for f in records for _ in range(5)]
    ways = list(zip(table["family"], table["level"], strict=True))
    assert ways == [(CLEAN, ""), *((s.family, s.level) for s in FEW)] * len(records)
    assert table["sex"].tolist() == [f.sex for f in records for _ in range(5)]
    assert table["image_id"].tolist() == [f.path.stem for f in records for _ in range(5)]
    expected = [12 * float(f.reference_years or 0) for f in records for _ in range(5)]
    assert table["reference_months"].tolist() == expected
    assert table["predicted_months"].notna().all()


def test_the_clean_answer_is_that_of_the_file_and_a_wrong_sex_is_the_other_one(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path
) -> None:
    table = stress_images(predictor, records, tmp_path / "answers.csv", FEW, 1)
    for record in records:
        rows = table[table["path"] == str(record.path)].set_index(["family", "level"])
        other = {"M": "F", "F": "M"}[str(record.sex)]
        for way, told in (((CLEAN, ""), record.sex), (("sex", "wrong"), other),
                          (("sex", "unknown"), "unknown")):  # fmt: skip
            alone = predictor.predict(record.path, told)
            assert rows.loc[way, "predicted_months"] == alone.predicted_months
        told_to = [sex for asked, sex in predictor.asked[:25] if asked.path == record.path]
        assert told_to == [record.sex, record.sex, record.sex, other, "unknown"]


def test_an_inverted_image_is_righted_where_a_file_of_it_would_be(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path
) -> None:
    table = stress_images(predictor, records, tmp_path / "answers.csv", FEW, 1)
    righted = 0
    for i, record in enumerate(records):
        asked = predictor.asked[5 * i + 2][0]
        inverted = tmp_path / record.path.name
        find("inversion", "").change(Image.open(record.path)).save(inverted)
        expected = predictor.predict(inverted, record.sex)
        row = table.iloc[5 * i + 2]
        assert row["predicted_months"] == pytest.approx(expected.predicted_months, abs=1e-4)
        assert row["status"] == expected.status == ("warn" if asked.was_inverted else "ok")
        righted += asked.was_inverted
    assert righted > 0


def test_images_without_sex_or_reference_and_unreadable_ones_are_left_out(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    odd = [
        replace(records[0], sex=None), replace(records[1], sex="unknown"),
        replace(records[2], reference_years=None), replace(records[3], path=broken), records[4],
    ]  # fmt: skip
    table = stress_images(predictor, odd, tmp_path / "answers.csv", FEW[:1], 1)
    assert table["path"].tolist() == [str(records[4].path)] * 2
    assert predictor.names() == {records[4].path.name}


def test_without_an_image_of_known_sex_and_reference_there_is_nothing_to_stress(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path
) -> None:
    out = tmp_path / "answers.csv"
    with pytest.raises(BoneAgeError, match="no image has both a sex and a reference"):
        stress_images(predictor, [replace(records[0], sex=None)], out, FEW)
    assert not out.exists()


def test_one_thread_and_two_give_the_same_answers(
    predictor: Recorder, records: list[ImageRecord], whole: Path, tmp_path: Path
) -> None:
    stress_images(predictor, records, tmp_path / "answers.csv", FEW, 2)
    assert (tmp_path / "answers.csv").read_bytes() == whole.read_bytes()


def test_what_is_tried_by_default_is_every_stress(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boneage.audit.stress, "STRESSES", FEW[:2])
    table = stress_images(predictor, records[:1], tmp_path / "answers.csv")
    assert table["family"].tolist() == [CLEAN, "rotation", "inversion"]


def test_an_interrupted_run_is_taken_up_and_ends_as_if_nothing_had_been(
    predictor: Recorder, records: list[ImageRecord], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.csv"
    predictor.cut_off_at = records[2].path
    with pytest.raises(KeyboardInterrupt):
        stress_images(predictor, records, out, FEW, 1)
    assert set(read(out)["path"]) == {str(record.path) for record in records[:2]}
    predictor.cut_off_at, predictor.asked = None, []
    table = stress_images(predictor, records, out, FEW, 1)
    assert predictor.names() == {record.path.name for record in records[2:]}
    assert out.read_bytes() == whole.read_bytes()
    undisturbed = stress_images(predictor, records, tmp_path / "other.csv", FEW, 1)
    pd.testing.assert_frame_equal(table, undisturbed, check_exact=True)


def test_a_run_that_was_finished_asks_nothing_and_gives_the_same(
    predictor: Recorder, records: list[ImageRecord], whole: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copy(whole, tmp_path))
    table = stress_images(predictor, records, out, FEW, 1)
    assert predictor.asked == []
    assert out.read_bytes() == whole.read_bytes()
    assert summarise_stress(table, resamples=20)


def test_a_fingerprint_of_digits_alone_is_known_again(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boneage.audit.stress, "_fingerprint", lambda model: "012345e78901")
    for _ in range(2):
        stress_images(predictor, records[:1], tmp_path / "answers.csv", FEW[:1], 1)
    assert len(predictor.asked) == 2


def test_answers_of_another_model_or_calibration_are_dropped(
    exported: Path, predictor: Recorder, records: list[ImageRecord], whole: Path, tmp_path: Path
) -> None:
    out, site = Path(shutil.copy(whole, tmp_path)), tmp_path / "site.toml"
    make_calibration(predictor.contract.graph_sha256).save(site)
    other = Recorder(exported, calibration=site)
    table = stress_images(other, records, out, FEW, 1)
    assert len(other.asked) == 25
    assert len(set(read(out)["model"])) == 1
    older = table["predicted_months"] - read(whole)["predicted_months"]
    assert older.min() == pytest.approx(120, abs=0.1)


def test_an_image_whose_label_was_changed_is_answered_anew(
    predictor: Recorder, records: list[ImageRecord], whole: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copy(whole, tmp_path))
    other: Any = {"M": "F", "F": "M"}[str(records[1].sex)]
    first, second, *rest = records
    changed = [replace(first, reference_years=9.5), replace(second, sex=other), *rest]
    table = stress_images(predictor, changed, out, FEW, 1)
    assert predictor.names() == {records[0].path.name, records[1].path.name}
    assert table["path"].tolist() == read(whole)["path"].tolist()
    assert table["reference_months"].head(5).tolist() == [114.0] * 5
    assert table["sex"].iloc[5] == other


def test_another_set_of_stresses_is_answered_anew(
    predictor: Recorder, records: list[ImageRecord], whole: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copy(whole, tmp_path))
    others = (find("rotation", "-20°"), *FEW[1:])
    table = stress_images(predictor, records[:2], out, others, 1)
    assert len(predictor.asked) == 10
    assert table["level"].tolist()[1] == "-20°"


def test_images_of_another_run_stay_in_the_file_and_out_of_the_answers(
    predictor: Recorder, records: list[ImageRecord], whole: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copy(whole, tmp_path))
    table = stress_images(predictor, records[3:], out, FEW, 1)
    assert predictor.asked == []
    assert set(table["path"]) == {str(record.path) for record in records[3:]}
    assert set(read(out)["path"]) == {str(record.path) for record in records}


@pytest.mark.parametrize(
    "content",
    [b"", b"image_id,sex\n1,M\n", b"\x89PNG\x00\xff", b"a\n1,2\n1,2,3\n",
     (",".join(COLUMNS) + "\na,b,1,M,clean,,ten,9,Child,ok\n").encode()],
    ids=["empty", "another table", "a picture", "no table", "words for numbers"],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_and_left_as_it_was(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "answers.csv"
    out.write_bytes(content)
    with pytest.raises(BoneAgeError) as caught:
        stress_images(predictor, records, out, FEW, 1)
    assert str(caught.value) == (
        f"{out} is no file of such a run. Move it away, or pass another --out."
    )
    assert out.read_bytes() == content
    assert predictor.asked == []


def test_a_path_that_is_no_valid_text_is_kept_all_the_same(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    record = replace(records[0], path=Path(shutil.copy(records[0].path, folder)))
    for _ in range(2):
        table = stress_images(predictor, [record], tmp_path / "answers.csv", FEW[:1], 1)
    assert len(predictor.asked) == 2
    assert len(table) == 2


def test_a_model_that_answers_nothing_cannot_be_stressed(
    predictor: Recorder, records: list[ImageRecord], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    table = stress_images(
        predictor, [replace(records[0], path=broken)], tmp_path / "answers.csv", FEW, 1
    )
    with pytest.raises(BoneAgeError, match="answered none of the images"):
        summarise_stress(table, resamples=9)
