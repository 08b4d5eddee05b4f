import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from boneage.audit.saliency import (
    ALL,
    GRID,
    Region,
    find_hand,
    measure_images,
    measure_map,
    read_regions,
    summarise_regions,
)
from boneage.data.labels import find_images, find_labels, read_known
from boneage.errors import BoneAgeError, LabelError
from boneage.inference.batch import ImageRecord, make_records
from boneage.inference.predictor import Predictor
from boneage.inference.registry import find_model
from boneage.phantom.cohort import draw_image, write_cohort
from builders import load_script

HEADER = "id,width,height,region,xmin,ymin,xmax,ymax\n"


def read(folder: Path, text: str) -> dict[str, list[Region]]:
    path = folder / "regions.csv"
    path.write_text(text, encoding="utf-8")
    return read_regions(path)


def names_of(found: dict[str, list[Region]]) -> dict[str, list[str]]:
    return {image_id: [region.name for region in regions] for image_id, regions in found.items()}


def box(top: int, left: int, height: int, width: int, name: str = "box") -> Region:
    """A region of whole cells."""
    mask = np.zeros((GRID, GRID), dtype=np.float32)
    mask[top : top + height, left : left + width] = 1.0
    return Region(name, mask)


def reduce_exactly(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The mean over each cell, by way of a size that both the image and the grid divide."""
    height, width = (np.lcm(side, GRID) for side in mask.shape)
    rows, columns = mask.shape
    fine = mask.repeat(height // rows, axis=0).repeat(width // columns, axis=1)
    return fine.reshape(GRID, height // GRID, GRID, width // GRID).mean(axis=(1, 3))


def test_a_box_covers_the_cells_that_it_does_by_hand(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + "7,192,96,wrist,3,0,8,1.25\n")
    (region,) = found["7"]
    expected = np.zeros((GRID, GRID))
    expected[0, 1:4] = 0.5, 1.0, 1.0  # two pixels a cell across, one down
    expected[1, 1:4] = 0.125, 0.25, 0.25
    assert region.name == "wrist"
    np.testing.assert_allclose(region.mask, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(96, 192), (100, 77), (45, 30), (300, 217)])
def test_a_box_and_a_mask_of_the_same_pixels_are_the_same_region(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    height, width = size
    top, left, bottom, right = 5, 7, height - 11, width - 9
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    (tmp_path / "masks").mkdir()
    np.savez(tmp_path / "masks" / "7.npz", allow_pickle=False, **{"plate:PP3": mask})
    (drawn,) = read_regions(tmp_path / "masks")["7"]
    row = f"7.png,{width},{height},PP,{left},{top},{right},{bottom}\n"
    (boxed,) = read(tmp_path, HEADER + row)["7"]
    assert drawn.name == boxed.name == "PP"
    np.testing.assert_allclose(boxed.mask, reduce_exactly(mask), atol=1e-6)
    np.testing.assert_allclose(drawn.mask, boxed.mask, atol=1e-6)


def test_a_mask_of_any_shape_is_reduced_by_the_mean_of_its_cells(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((100, 70)) < 0.5
    np.savez(tmp_path / "1.npz", allow_pickle=False, **{"plate:radius": mask, "bone:PP3": ~mask})
    (region,) = read_regions(tmp_path)["1"]
    assert region.name == "radius"
    np.testing.assert_allclose(region.mask, reduce_exactly(mask), atol=1e-6)


def test_the_masks_of_a_synthetic_cohort_give_its_open_growth_plates(cohort: Path) -> None:
    found = read_regions(cohort / "masks")
    assert set(found) == set(find_images(cohort))
    for image_id, regions in found.items():
        with np.load(cohort / "masks" / f"{image_id}.npz") as masks:
            names = [name.removeprefix("plate:").rstrip("12345")
                     for name in masks.files if name.startswith("plate:")]  # fmt: skip
        assert [region.name for region in regions] == names
    assert {"DP", "MC", "radius"} <= {region.name for rs in found.values() for region in rs}
    assert any(not regions for regions in found.values())  # an adult's


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        pytest.param(
            HEADER, "1.png ,96,96,wrist ,0,0,9,9\n2,96,96,wrist,0,0,9,9\n1,96,96,ulna,5,5,9,9\n",
            {"1": ["wrist", "ulna"], "2": ["wrist"]}, id="every region under its id",
        ),
        pytest.param(
            HEADER.replace("id,", "id,reader,"), "1,b,96,96,x,0,0,9,9\n1.png,a,96,96,y,0,0,9,9\n"
            "2,a,96,96,z,0,0,9,9\n1,b ,96,96,w,0,0,9,9\n",
            {"1": ["x", "w"], "2": ["z"]}, id="of each image its first reader's",
        ),
    ],
)  # fmt: skip
def test_regions_are_kept_by_image(
    tmp_path: Path, header: str, rows: str, expected: dict[str, list[str]]
) -> None:
    assert names_of(read(tmp_path, header + rows)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace(",ymax", ""), "has no column 'ymax'; found: id, width, height, region, x"),
        (HEADER.replace("id,", "image,"), "has no column 'id'; found: image, width"),
        (HEADER.replace("region", "xmin"), "has no column 'region'"),
        (HEADER.replace("\n", ",xmin\n"), "has the column 'xmin' twice. Keep one of them"),
        (HEADER + "1,96,96,a,0,0,9,9\n ,96,96,a,0,0,9,9\n", "line 3: the id is empty"),
        (HEADER + "1,96,80,a,5,5,5,9\n", "line 2: the box 5, 5, 5, 9 does not lie in an image"),
        (HEADER + "1,96,80,a,9,5,5,9\n", "line 2: the box 9, 5, 5, 9 does not lie"),
        (HEADER + "1,96,80,a,0,0,97,9\n", "line 2: the box 0, 0, 97, 9 does not lie in an image"),
        (HEADER + "1,96,80,a,0,0,9,81\n", "does not lie in an image of 96×80 pixels. Fix or rem"),
        (HEADER + "1,96,80,a,-1,0,9,9\n", "line 2: the box -1, 0, 9, 9 does not lie"),
        (HEADER + "1,96,80,a,0,nine,9,9\n", "line 2: the box 0, nine, 9, 9 does not lie"),
        (HEADER + "1,,80,a,0,0,9,9\n", "line 2: the box 0, 0, 9, 9 does not lie in an image of ×8"),
        (HEADER + "1,inf,80,a,0,0,9,9\n", "does not lie in an image of inf×80 pixels"),
    ],
)  # fmt: skip
def test_what_is_no_region_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "regions.csv"))
    assert "\n" not in str(caught.value)


def test_what_holds_no_regions_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"does not exist; expected a CSV of regions, or a fold"):
        read_regions(tmp_path / "gone.csv")
    with pytest.raises(LabelError, match=r"holds no masks; expected those of `boneage phantom"):
        read_regions(tmp_path)
    for content in (b"", b"no archive", b"PK\x03\x04 cut short"):
        (tmp_path / "1.npz").write_bytes(content)
        with pytest.raises(LabelError, match=r"1\.npz holds no masks; expected a file of"):
            read_regions(tmp_path)


def test_the_hand_that_is_found_covers_the_bones_and_not_the_image() -> None:
    proportions, sizes = [], []
    for age in (12, 36, 72, 120, 168, 216):
        for seed, sex in enumerate("MFMF"):
            drawn = draw_image(age, sex, np.random.default_rng(seed), height=128, masks=True)
            hand = find_hand((drawn.image / 255.0).astype(np.float32), [])
            bones = np.any([m for n, m in drawn.masks.items() if n.startswith("bone:")], axis=0)
            proportions.append(hand[reduce_exactly(bones) > 0.5].mean())
            sizes.append(hand.mean())
    assert np.mean(proportions) > 0.92
    assert min(proportions) > 0.75  # thin fingers of infants lose their tips
    assert max(sizes) < 0.5


def test_the_hand_is_the_largest_bright_part_without_holes_and_every_region() -> None:
    image = np.zeros((192, 192), dtype=np.float32)
    image[20:120, 20:120] = 0.8
    image[50:80, 50:80] = 0.0
    image[150:170, 150:170] = 1.0
    hand = find_hand(image, [])
    assert hand[30:35, 30:35].all()  # the hole
    assert not hand[70:, 70:].any()
    assert hand.sum() == pytest.approx(50 * 50, rel=0.05)
    region = box(85, 80, 4, 6)
    np.testing.assert_array_equal(find_hand(image, [region]), hand | (region.mask > 0))


EVERYWHERE = np.ones((GRID, GRID), dtype=bool)
CENTRE = box(30, 30, 36, 36).mask > 0


def test_a_map_that_lies_in_a_region_has_its_energy_and_its_peak_there() -> None:
    age_map = np.zeros((12, 12))
    age_map[4, 7] = 2.0
    age_map[4, 8] = 1.0
    found = measure_map(age_map, [box(24, 48, 24, 32)], EVERYWHERE)
    assert found["box"]["energy"] > 0.99
    assert found["box"]["hit"] == 1.0
    assert found["box"]["area"] == pytest.approx(24 * 32 / GRID**2)
    assert found["box"]["energy_shifted"] < 0.3
    assert found["box"]["hit_shifted"] < 0.3
    elsewhere = measure_map(age_map, [box(60, 0, 24, 32)], EVERYWHERE)["box"]
    assert elsewhere["energy"] == elsewhere["hit"] == 0.0


def test_a_map_is_measured_as_it_lies_on_the_image() -> None:
    age_map = np.zeros((4, 8))
    age_map[3, 0] = 1.0
    corner = measure_map(age_map, [box(72, 0, 24, 12)], EVERYWHERE)["box"]
    assert corner["hit"] == 1.0
    assert corner["energy"] > 0.5


def test_a_uniform_map_has_the_energy_of_the_area_wherever_the_region_lies() -> None:
    regions = [box(40, 45, 11, 8), box(50, 30, 6, 7, "other")]
    found = measure_map(np.full((7, 7), 0.3), regions, CENTRE)
    for values in found.values():
        assert values["energy"] == pytest.approx(values["area"], rel=1e-4)
    for name in ("box", "other"):  # away from the borders, a region keeps its size
        assert found[name]["energy_shifted"] == pytest.approx(found[name]["area"], rel=1e-4)
    assert found[ALL]["energy_shifted"] == pytest.approx(found[ALL]["area"], rel=0.1)


def test_a_region_that_is_moved_over_the_border_loses_what_leaves_the_image() -> None:
    corner = np.zeros((GRID, GRID), dtype=bool)
    corner[0, 0] = True
    whole, half = box(40, 40, 20, 10), box(40, 40, 20, 10)
    half.mask[40:50] /= 2  # the upper half, which leaves the image
    for region, hand, cells in ((whole, corner, 10 * 5), (half, corner, 10 * 5),
                                (whole, corner[::-1, ::-1], 11 * 6)):  # fmt: skip
        found = measure_map(np.ones((7, 7)), [region], hand)["box"]
        assert found["energy_shifted"] == pytest.approx(cells / GRID**2, rel=1e-4)


def test_a_region_is_moved_so_that_its_middle_lies_in_the_hand() -> None:
    hand = np.zeros((GRID, GRID), dtype=bool)
    hand[20, 70] = True
    age_map = np.zeros((GRID, GRID))
    age_map[20, 70] = 1.0
    found = measure_map(age_map, [box(80, 5, 3, 3)], hand)["box"]
    assert (found["energy"], found["hit"]) == (0.0, 0.0)
    assert (found["energy_shifted"], found["hit_shifted"]) == (pytest.approx(1.0), 1.0)


def test_regions_of_one_name_are_taken_together_and_what_overlaps_counts_once() -> None:
    regions = [box(10, 10, 8, 8), box(10, 14, 8, 8), box(50, 50, 4, 4, "other")]
    found = measure_map(np.ones((7, 7)), regions, CENTRE)
    assert list(found) == [ALL, "box", "other"]
    assert found["box"]["area"] == pytest.approx(8 * 12 / GRID**2)
    assert found[ALL]["area"] == pytest.approx((8 * 12 + 16) / GRID**2)


def test_negative_values_of_the_map_count_as_zero() -> None:
    age_map = np.full((6, 6), -5.0)
    age_map[0, 0] = 1.0
    assert measure_map(age_map, [box(0, 0, 32, 32)], EVERYWHERE)["box"]["energy"] > 0.99
    found = measure_map(-np.ones((6, 6)), [box(0, 0, 32, 32)], EVERYWHERE)
    for values in found.values():
        assert values["energy"] == values["energy_shifted"] == 0.0
        assert values["hit"] == values["hit_shifted"] == 0.0


def test_the_random_places_depend_on_the_seed_alone() -> None:
    age_map = np.random.default_rng(0).random((7, 7))
    regions = [box(20, 20, 9, 9), box(60, 60, 5, 5, "other")]
    first, again, other = (measure_map(age_map, regions, CENTRE, seed) for seed in (1, 1, 2))
    assert first == again
    assert first["box"]["energy_shifted"] != other["box"]["energy_shifted"]
    assert first["box"]["energy"] == other["box"]["energy"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen synthetic images with the true outlines of their bones."""
    folder = tmp_path_factory.mktemp("regions") / "cohort"
    write_cohort(folder, 12, 3, 112, masks=True, workers=1)
    return folder


@pytest.fixture(scope="module")
def records(cohort: Path) -> list[ImageRecord]:
    return make_records(list(find_images(cohort).values()), None, read_known(find_labels(cohort)))


@pytest.fixture(scope="module")
def bones(cohort: Path) -> dict[str, list[Region]]:
    found = {}
    for path in sorted((cohort / "masks").glob("*.npz")):
        with np.load(path) as masks:
            every = np.any([masks[n] for n in masks.files if n.startswith("bone:")], axis=0)
        found[path.stem] = [Region("bones", reduce_exactly(every).astype(np.float32))]
    return found


@pytest.mark.slow
def test_saliency_maps_of_the_model_in_the_package_lie_on_the_bones_of_shuffled_weights_not(
    records: list[ImageRecord], bones: dict[str, list[Region]], tmp_path: Path
) -> None:
    shuffled = tmp_path / "shuffled.onnx"
    load_script("benchmarks/saliency.py").shuffle_weights(find_model(), shuffled)
    ours, theirs = (
        measure_images(Predictor(model, threads=1), records, bones, 1).query(f"region == {ALL!r}")
        for model in (find_model(), shuffled)
    )
    area = ours["area"].to_numpy()
    assert len(ours) == len(theirs) == 12
    assert ours["energy"].mean() > 1.7 * area.mean()
    assert ours["energy"].mean() > ours["energy_shifted"].mean() + 0.05
    # A shuffled network's map may lie on bones, as they are bright, but its predictions do not
    # depend on the age.
    assert np.abs(ours["energy"].to_numpy() - theirs["energy"].to_numpy()).mean() > 0.1
    spreads = [
        np.std([Predictor(model, threads=1).predict(record.path, "M").predicted_years or 0.0
                for record in records])
        for model in (find_model(), shuffled)
    ]  # fmt: skip
    assert spreads[1] < 0.05 * spreads[0]


def test_images_with_regions_are_measured_one_row_a_region(
    predictor: Predictor, records: list[ImageRecord], bones: dict[str, list[Region]], tmp_path: Path
) -> None:
    first, second, third, fourth, fifth = records[:5]
    broken = tmp_path / third.path.name
    broken.write_text("no image")
    square = [box(9, 9, 9, 9)]
    nothing = Region("nothing", np.zeros((GRID, GRID), dtype=np.float32))
    some = {
        first.path.stem: [*bones[first.path.stem], *square, nothing], second.path.stem: square,
        broken.stem: square, fourth.path.stem: [nothing], "stranger": square,
    }  # fmt: skip
    unlabelled = replace(second, reference_years=None)
    given = [first, unlabelled, replace(third, path=broken), fourth, fifth]
    table = measure_images(predictor, given, some, 1)
    assert table["image_id"].tolist() == [first.path.stem] * 3 + [second.path.stem] * 2
    assert table["region"].tolist() == [ALL, "bones", "box", ALL, "box"]
    prediction = predictor.predict(first.path, first.sex)
    assert prediction.saliency is not None
    assert prediction.predicted_years is not None
    assert (table.loc[0, "rows"], table.loc[0, "columns"]) == prediction.saliency.shape
    assert table.loc[0, "reference_years"] == first.reference_years
    error = 12 * (prediction.predicted_years - float(first.reference_years or 0))
    assert table.loc[0, "error_months"] == pytest.approx(error)
    assert table.loc[3:, ["reference_years", "error_months"]].isna().all(axis=None)
    measures = ["hit", "energy", "area", "energy_shifted", "hit_shifted"]
    assert table[measures].apply(lambda values: values.between(0, 1)).all(axis=None)


def test_one_thread_and_two_measure_the_same(
    predictor: Predictor, records: list[ImageRecord], bones: dict[str, list[Region]]
) -> None:
    one, two = (measure_images(predictor, records[:4], bones, workers) for workers in (1, 2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_each_image_has_random_places_of_its_own(
    predictor: Predictor, records: list[ImageRecord], bones: dict[str, list[Region]], tmp_path: Path
) -> None:
    same = Path(shutil.copy(records[0].path, tmp_path / "copy.png"))
    regions = bones | {"copy": bones[records[0].path.stem]}
    table = measure_images(predictor, [records[0], ImageRecord(same, records[0].sex)], regions, 1)
    first, second = table[table["region"] == ALL].to_dict("records")
    assert first["energy"] == second["energy"]
    assert first["energy_shifted"] != second["energy_shifted"]


def test_images_and_regions_that_do_not_belong_together_or_have_no_map_are_refused(
    predictor: Predictor, records: list[ImageRecord], bones: dict[str, list[Region]]
) -> None:
    with pytest.raises(BoneAgeError) as caught:
        measure_images(predictor, records, {"a": [], "b": [], "c": [], "d": []})
    assert str(caught.value) == (
        "none of the 12 images has a region (first ids of regions: a, b, c; first images: "
        "900001, 900002, 900003). Check that they belong together."
    )
    with pytest.raises(BoneAgeError, match="none of the images with regions has both a prediction"):
        measure_images(predictor, records, {"900001": []}, 1)
    mute = copy(predictor)
    mute.contract = replace(mute.contract, outputs=("age_years",))
    with pytest.raises(BoneAgeError, match="gives no saliency map"):
        measure_images(mute, records, bones)


def make_measures() -> pd.DataFrame:
    """Three images with two regions each; the last one's reference is unknown."""
    rows: list[dict[str, Any]] = []
    for i, (years, error) in enumerate([(14.0, -3.0), (4.0, 12.5), (np.nan, np.nan)]):
        for region, energy in ((ALL, 0.6), ("wrist", 0.4), ("MC", 0.2)):
            rows.append(
                {"region": region, "area": 0.1, "energy": energy + 0.1 * i,
                 "energy_shifted": 0.2, "hit": float(i > 0), "hit_shifted": 0.25,
                 "image_id": str(i), "rows": 6, "columns": 5, "reference_years": years,
                 "error_months": error}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_measures_are_summarised_by_region_age_and_size_of_the_error() -> None:
    unlabelled = make_measures().assign(reference_years=np.nan, error_months=np.nan)
    groups = summarise_regions(unlabelled, resamples=0)["groups"]
    assert [group["by"] for group in groups] == ["region"] * 3
    found = summarise_regions(make_measures(), resamples=200)
    assert (found["n"], found["cells"]) == (3, [6, 5])
    names = [(group["by"], group["group"], group["n"]) for group in found["groups"]]
    assert names == [
        ("region", ALL, 3), ("region", "wrist", 3), ("region", "MC", 3),
        ("age", "0 to under 6 years", 1), ("age", "12 to under 15 years", 1),
        ("error", "beyond 12 months", 1), ("error", "within 12 months", 1),
    ]  # fmt: skip
    whole = found["groups"][0]
    assert whole["area"] == pytest.approx(0.1)
    assert whole["energy"]["value"] == pytest.approx(0.7)
    assert whole["energy"]["low"] < 0.7 < whole["energy"]["high"]
    assert whole["energy_difference"]["value"] == pytest.approx(0.5)
    assert whole["energy_shifted"] == {"value": pytest.approx(0.2), "low": None, "high": None}
    assert whole["hit"]["value"] == pytest.approx(2 / 3)
    assert whole["hit_difference"]["value"] == pytest.approx(2 / 3 - 0.25)
    assert whole["wilcoxon_p"] == pytest.approx(0.25)  # three of three: two of eight signs
    old = found["groups"][4]
    assert old["energy"] == {"value": pytest.approx(0.6), "low": None, "high": None}


def test_small_regions_are_tested_as_large_ones_are() -> None:
    table = make_measures()
    small = table.assign(energy=table["energy"] / 1e4, energy_shifted=table["energy_shifted"] / 1e4)
    large, tiny = (summarise_regions(t, resamples=0)["groups"] for t in (table, small))
    assert [g["wilcoxon_p"] for g in tiny] == [g["wilcoxon_p"] for g in large]
    assert min(g["wilcoxon_p"] for g in tiny) < 1.0
