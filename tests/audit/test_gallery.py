import base64
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from boneage.audit.gallery import Case, Shown, Thumbnail, explain_cases, make_gallery
from boneage.data.labels import find_images, find_labels, read_known
from boneage.inference.batch import ImageRecord, make_records, predict_record
from boneage.inference.predictor import Predictor


@pytest.fixture(scope="module")
def records(raw: Path) -> list[ImageRecord]:
    known = read_known(find_labels(raw))
    return make_records(list(find_images(raw).values())[:12], None, known)


@pytest.fixture(scope="module")
def table(records: list[ImageRecord]) -> pd.DataFrame:
    reference = [float(record.reference_years or 0) for record in records]
    return pd.DataFrame(
        {"image_id": [record.path.stem for record in records],
         "sex": pd.Series([record.sex for record in records], dtype=object),
         "reference_years": reference, "predicted_years": np.add(reference, 0.25)}
    )  # fmt: skip


def rows(table: pd.DataFrame, *places: int) -> list[dict[str, str]]:
    return [{"image_id": table["image_id"][place]} for place in places]


def make_result(
    table: pd.DataFrame,
    difficult: tuple[int, ...] = (),
    uncertain: tuple[int, ...] = (),
    suspects: tuple[int, ...] = (),
) -> dict[str, Any]:
    """The lists of a result, as the places of their cases in the table."""
    lists = {"difficult": difficult, "uncertain": uncertain, "suspects": suspects}
    return {name: rows(table, *places) for name, places in lists.items()}


def read_thumbnails(predictor: Predictor, records: list[ImageRecord]) -> Callable[[str], Thumbnail]:
    def get(image_id: str) -> Thumbnail:
        (record,) = (record for record in records if record.image_id == image_id)
        radiograph, prediction = predict_record(predictor, record)
        assert radiograph is not None
        return Thumbnail.of(radiograph, prediction)

    return get


@pytest.fixture(scope="module")
def get_thumbnail(predictor: Predictor, records: list[ImageRecord]) -> Callable[[str], Thumbnail]:
    return read_thumbnails(predictor, records)


def open_jpeg(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    assert image.format == "JPEG"
    image.load()
    return image


Get = Callable[[str], Thumbnail]


def test_the_first_of_the_worst_and_of_the_uncertain_are_shown_with_all_their_reasons(
    get_thumbnail: Get, table: pd.DataFrame
) -> None:
    result = make_result(table, tuple(range(10)), (3, 8, 9, 10, 11), (0, 3, 11))
    gallery = make_gallery(table, result, get_thumbnail)
    shown = [(case.record.image_id, case.why) for case in gallery]
    why = ["large error"] * 8
    why[0] = "large error, potential label error"
    why[3] = "large error, wide interval, potential label error"
    why += ["large error, wide interval"] * 2 + ["wide interval"]
    assert shown == list(zip(table["image_id"].head(11), why, strict=True))
    assert explain_cases(result)[table["image_id"][11]] == "wide interval, potential label error"
    assert make_gallery(table, make_result(table), get_thumbnail) == []


def test_no_image_is_shown_twice(get_thumbnail: Get, table: pd.DataFrame) -> None:
    gallery = make_gallery(table, make_result(table, (0, 1, 2, 3)), get_thumbnail)
    ids = [shown.image_id for case in gallery for shown in (case.record, *case.neighbours)]
    assert len(set(ids)) == len(ids) > 4


@pytest.fixture(scope="module")
def case(get_thumbnail: Get, table: pd.DataFrame) -> Case:
    (found,) = make_gallery(table, make_result(table, (0,)), get_thumbnail)
    return found


def test_a_case_stands_beside_those_of_its_sex_that_are_nearest_in_age(
    case: Case, table: pd.DataFrame
) -> None:
    first = table.iloc[0]
    others = table[(table["sex"] == first["sex"]) & (table["image_id"] != first["image_id"])]
    years = dict(zip(others["image_id"], others["reference_years"], strict=True))
    assert len(years) > 3
    nearest = sorted(years, key=lambda i: abs(years[i] - first["reference_years"]))[:2]
    assert [shown.image_id for shown in case.neighbours] == nearest
    assert {shown.facts["sex"] for shown in case.neighbours} == {first["sex"]}


def test_a_case_of_unknown_sex_stands_beside_those_of_either_and_one_alone_of_its_sex_alone(
    get_thumbnail: Get, table: pd.DataFrame
) -> None:
    unknown = table.assign(sex=pd.Series([None, *table["sex"][1:]], dtype=object))
    (found,) = make_gallery(unknown, make_result(table, (0,)), get_thumbnail)
    years = table.set_index("image_id")["reference_years"]
    apart = (years.iloc[1:] - years.iloc[0]).abs().sort_values(kind="stable")
    assert [shown.image_id for shown in found.neighbours] == list(apart.index[:2])
    odd = table.assign(sex=["F", *"M" * 11])
    (found,) = make_gallery(odd, make_result(table, (0,)), get_thumbnail)
    assert found.neighbours == []


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
            reduced = np.asarray(image.convert("L").resize(size), dtype=float)
        assert plain.size == overlay.size == size
        assert (plain.mode, overlay.mode) == ("L", "RGB")
        assert np.abs(np.asarray(plain, dtype=float) - reduced).mean() < 5
        colours = np.asarray(overlay, dtype=float)
        assert (colours[..., 0] - colours[..., 2]).max() > 50


def test_a_model_without_a_map_shows_the_image_alone(
    exported: Path, records: list[ImageRecord], table: pd.DataFrame
) -> None:
    predictor = Predictor(exported, threads=1)
    outputs = tuple(name for name in predictor.contract.outputs if name != "age_map")
    predictor.contract = replace(predictor.contract, outputs=outputs)
    get = read_thumbnails(predictor, records)
    (case,) = make_gallery(table, make_result(table, (1,)), get)
    assert isinstance(case.record, Shown)
    assert case.record.overlay is None
    assert open_jpeg(case.record.picture).mode == "L"
