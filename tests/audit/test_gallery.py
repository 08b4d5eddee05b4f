import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from boneage.audit.gallery import ACQUISITION, Case, Shown, describe_acquisition, make_gallery
from boneage.data.labels import find_images, find_labels, read_known
from boneage.inference.batch import ImageRecord, make_records
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import draw_image


@pytest.fixture(scope="module")
def record() -> Image.Image:
    """A hand that stands upright, or nearly so."""
    return Image.fromarray(draw_image(150, "F", np.random.default_rng(6), height=128).image)


def look(folder: Path, **records: Image.Image) -> pd.DataFrame:
    """Say how images were taken, a row a name."""
    for name, record in records.items():
        record.save(folder / f"{name}.png")
    table = describe_acquisition([ImageRecord(folder / f"{name}.png") for name in records], 1)
    assert list(table.columns) == ["image_id", *ACQUISITION]
    assert table["image_id"].tolist() == list(records)
    return table.set_index("image_id")


def background(record: Image.Image) -> int:
    return int(np.asarray(record)[:10].mean())


def test_darker_and_brighter_images_are_told_by_the_grey_of_the_hand(
    record: Image.Image, tmp_path: Path
) -> None:
    dark, bright = record.point(lambda g: 0.5 * g), record.point(lambda g: 1.3 * g)
    found = look(tmp_path, plain=record, dark=dark, bright=bright)
    assert found["exposure"].to_dict() == {
        "plain": "2 of 3", "dark": "1 of 3, darkest", "bright": "3 of 3, brightest"
    }  # fmt: skip


def test_flat_and_hard_images_are_told_by_the_range_of_their_greys(
    record: Image.Image, tmp_path: Path
) -> None:
    flat, hard = record.point(lambda g: 100 + 0.4 * (g - 100)), ImageOps.autocontrast(record)
    found = look(tmp_path, flat=flat, hard=hard, plain=record)
    assert found["contrast"].to_dict() == {
        "flat": "1 of 3, flattest", "hard": "3 of 3, hardest", "plain": "2 of 3"
    }  # fmt: skip


def test_small_and_large_hands_are_told_by_the_share_of_the_image(
    record: Image.Image, tmp_path: Path
) -> None:
    wide = ImageOps.expand(record, 40, fill=background(record))
    wider = ImageOps.expand(record, 80, fill=background(record))
    found = look(tmp_path, plain=record, wide=wide, wider=wider)
    assert found["hand size"].to_dict() == {
        "plain": "3 of 3, largest", "wide": "2 of 3", "wider": "1 of 3, smallest"
    }  # fmt: skip


def test_a_tilt_is_the_angle_of_the_hand_either_way(record: Image.Image, tmp_path: Path) -> None:
    wide = ImageOps.expand(record, 30, fill=background(record))
    turned = {
        name: wide.rotate(angle, Image.Resampling.BILINEAR, fillcolor=background(record))
        for name, angle in (("left", 30), ("right", -30), ("lying", 80))
    }
    found = look(tmp_path, wide=wide, **turned)["tilt"].to_dict()
    assert found.pop("wide") in ("0 to 5°", "5 to 15°")
    assert set(found.values()) == {"15 to 90°"}


@pytest.mark.parametrize("grey", [0, 255])
def test_a_frame_of_one_grey_value_is_told(record: Image.Image, tmp_path: Path, grey: int) -> None:
    found = look(
        tmp_path,
        plain=record,
        narrow=ImageOps.expand(record, 1, fill=grey),
        framed=ImageOps.expand(record, 12, fill=grey),
        side=ImageOps.expand(record, (30, 0, 0, 0), fill=grey),
    )
    assert found["frame"].to_dict() == {
        "plain": "without a frame", "narrow": "without a frame", "framed": "with a frame",
        "side": "with a frame",
    }  # fmt: skip


def test_an_image_is_looked_at_in_the_polarity_of_the_model(
    record: Image.Image, tmp_path: Path
) -> None:
    ImageOps.invert(record).save(tmp_path / "dark_bones.png")
    record.point(lambda g: 0.5 * g).save(tmp_path / "dim.png")
    records = [ImageRecord(tmp_path / "dark_bones.png"), ImageRecord(tmp_path / "dim.png")]
    for invert, brighter in (("auto", 0), ("never", 0), ("always", 1)):
        exposure = describe_acquisition(records, 1, invert)["exposure"]  # type: ignore[arg-type]
        assert exposure[brighter].endswith("brightest"), invert


def test_unreadable_images_have_no_look(record: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    record.save(tmp_path / "whole.png")
    records = [ImageRecord(tmp_path / "broken.png"), ImageRecord(tmp_path / "whole.png")]
    assert describe_acquisition(records, 2)["image_id"].tolist() == ["whole"]
    nothing = describe_acquisition(records[:1])
    assert nothing.empty
    assert list(nothing.columns) == ["image_id", *ACQUISITION]


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor(exported, threads=1)


@pytest.fixture(scope="module")
def records(raw: Path) -> list[ImageRecord]:
    known = read_known(find_labels(raw))
    return make_records(list(find_images(raw).values())[:12], None, known)


@pytest.fixture(scope="module")
def table(records: list[ImageRecord]) -> pd.DataFrame:
    reference = [12.0 * float(record.reference_years or 0) for record in records]
    return pd.DataFrame(
        {"image_id": [record.path.stem for record in records],
         "sex": pd.Series([record.sex for record in records], dtype=object),
         "reference_months": reference, "predicted_months": np.add(reference, 3.0)}
    )  # fmt: skip


def rows(table: pd.DataFrame, *places: int) -> list[dict[str, str]]:
    return [{"image_id": table["image_id"][place]} for place in places]


def open_jpeg(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    assert image.format == "JPEG"
    image.load()
    return image


def test_the_first_of_the_worst_and_of_the_uncertain_are_shown_once(
    predictor: Predictor, records: list[ImageRecord], table: pd.DataFrame
) -> None:
    worst, uncertain = rows(table, *range(10)), rows(table, 3, 8, 9, 10, 11)
    gallery = make_gallery(predictor, records, table, worst, uncertain)
    shown = [(case.record.image_id, case.why) for case in gallery]
    ids = table["image_id"]
    assert shown == [
        *((ids[i], "large error") for i in range(8)),
        *((ids[i], "wide interval") for i in (8, 9, 10)),
    ]
    assert make_gallery(predictor, records, table, [], []) == []


@pytest.fixture(scope="module")
def case(predictor: Predictor, records: list[ImageRecord], table: pd.DataFrame) -> Case:
    (found,) = make_gallery(predictor, records, table, rows(table, 0), [])
    return found


def test_a_case_stands_beside_those_of_its_sex_that_are_nearest_in_age(
    case: Case, table: pd.DataFrame
) -> None:
    first = table.iloc[0]
    others = table[(table["sex"] == first["sex"]) & (table["image_id"] != first["image_id"])]
    months = dict(zip(others["image_id"], others["reference_months"], strict=True))
    assert len(months) > 3
    nearest = sorted(months, key=lambda i: abs(months[i] - first["reference_months"]))[:2]
    assert [shown.image_id for shown in case.neighbours] == nearest
    assert {shown.facts["sex"] for shown in case.neighbours} == {first["sex"]}


def test_a_case_of_unknown_sex_stands_beside_those_of_either(
    predictor: Predictor, records: list[ImageRecord], table: pd.DataFrame
) -> None:
    unknown = table.assign(sex=pd.Series([None, *table["sex"][1:]], dtype=object))
    (found,) = make_gallery(predictor, records, unknown, rows(table, 0), [])
    months = table.set_index("image_id")["reference_months"]
    apart = (months.iloc[1:] - months.iloc[0]).abs().sort_values(kind="stable")
    assert [shown.image_id for shown in found.neighbours] == list(apart.index[:2])


def test_the_facts_of_an_image_are_those_of_its_row(case: Case, table: pd.DataFrame) -> None:
    assert dict(case.record.facts) == table.set_index("image_id").iloc[0].to_dict()


def test_the_pictures_are_the_image_and_its_evidence_in_colour(
    case: Case, records: list[ImageRecord]
) -> None:
    for shown in (case.record, *case.neighbours):
        path = next(record.path for record in records if record.path.stem == shown.image_id)
        plain, overlay = open_jpeg(shown.picture), open_jpeg(str(shown.overlay))
        with Image.open(path) as image:
            size = (round(image.width * 240 / image.height), 240)
            record = np.asarray(image.convert("L").resize(size), dtype=float)
        assert plain.size == overlay.size == size
        assert (plain.mode, overlay.mode) == ("L", "RGB")
        assert np.abs(np.asarray(plain, dtype=float) - record).mean() < 5
        colours = np.asarray(overlay, dtype=float)
        assert (colours[..., 0] - colours[..., 2]).max() > 50


def test_a_case_alone_of_its_sex_has_no_neighbours(
    predictor: Predictor, records: list[ImageRecord], table: pd.DataFrame
) -> None:
    odd = table.assign(sex=["F", *"M" * 11])
    (case,) = make_gallery(predictor, records, odd, rows(table, 0), [])
    assert case.neighbours == []


def test_a_model_without_a_map_shows_the_image_alone(
    exported: Path, records: list[ImageRecord], table: pd.DataFrame
) -> None:
    predictor = Predictor(exported, threads=1)
    outputs = tuple(name for name in predictor.contract.outputs if name != "age_map")
    predictor.contract = replace(predictor.contract, outputs=outputs)
    (case,) = make_gallery(predictor, records, table, rows(table, 1), [])
    assert isinstance(case.record, Shown)
    assert case.record.overlay is None
    assert open_jpeg(case.record.picture).mode == "L"
