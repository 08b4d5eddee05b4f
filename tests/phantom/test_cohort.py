import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from boneage.errors import BoneAgeError
from boneage.phantom import cohort
from boneage.phantom.anatomy import CARPALS
from boneage.phantom.cohort import SyntheticImage, draw_image, sample_labels, write_cohort

PALE = 0.02  # grey difference that counts, as a proportion of the image's range


def _image(age: float, sex: str = "M", seed: int = 0, height: int = 256) -> SyntheticImage:
    return draw_image(age, sex, np.random.default_rng(seed), height=height, masks=True)


def _near(mask: np.ndarray, steps: int) -> np.ndarray:
    """Pixels within `steps` of the mask, along rows and columns."""
    cross = scipy.ndimage.generate_binary_structure(2, 1)
    return scipy.ndimage.binary_dilation(mask, cross, steps)


def _all_bones(synthetic: SyntheticImage) -> np.ndarray:
    return np.any([m for name, m in synthetic.masks.items() if name.startswith("bone:")], axis=0)


def _bytes(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _write(out: Path, n: int = 3, workers: int = 1, **settings: int) -> Path:
    return write_cohort(out, n, height=72, workers=workers, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("height", [100, 256])
def test_image_is_8_bit_of_the_height_asked_for_and_not_wider_than_high(height: int) -> None:
    synthetic = draw_image(120, "F", np.random.default_rng(1), height=height)
    assert synthetic.image.dtype == np.uint8
    assert synthetic.image.shape[0] == height
    assert 1.0 <= height / synthetic.image.shape[1] <= 1.65
    assert synthetic.masks == {}


def test_same_generator_state_draws_the_same_image_with_masks_or_without() -> None:
    bare = draw_image(100, "M", np.random.default_rng(3))
    assert np.array_equal(bare.image, _image(100, seed=3).image)
    assert not np.array_equal(_image(100, seed=3).image[:, :90], _image(100, seed=4).image[:, :90])


@pytest.mark.parametrize("age", [2, 40, 100, 150, 190, 225])
def test_bones_are_brighter_than_the_flesh_beside_them(age: int) -> None:
    synthetic = _image(age, seed=age)
    bones = _all_bones(synthetic)
    beside = _near(bones, 4) & ~_near(bones, 1)
    spread = np.ptp(np.quantile(synthetic.image, (0.02, 0.98)))
    assert synthetic.image[bones].mean() - synthetic.image[beside].mean() > PALE * spread


@pytest.mark.parametrize("age", [60, 120, 168])
def test_growth_plates_are_darker_than_the_bone_beside_them(age: int) -> None:
    synthetic = _image(age, seed=age)
    plates = {n[6:]: mask for n, mask in synthetic.masks.items() if n.startswith("plate:")}
    assert len(plates) >= 18
    darker = [
        synthetic.image[mask].mean()
        < synthetic.image[_near(mask, 3) & synthetic.masks[f"bone:{name}"]].mean()
        for name, mask in plates.items()
    ]
    assert np.mean(darker) > 0.9


def test_every_mask_lies_in_the_image_and_plates_lie_by_their_bone() -> None:
    synthetic = _image(130)
    for name, mask in synthetic.masks.items():
        assert mask.shape == synthetic.image.shape
        assert mask.dtype == bool
        assert mask.any()
        if name.startswith("plate:"):
            assert not (mask & ~_near(synthetic.masks[f"bone:{name[6:]}"], 3)).any()


def test_overlapping_bones_are_both_whole_in_the_masks() -> None:
    synthetic = _image(220)
    both = synthetic.masks["bone:pisiform"] & synthetic.masks["bone:triquetrum"]
    assert both.sum() > 0.5 * synthetic.masks["bone:pisiform"].sum()


def test_fingers_point_up_and_the_thumb_to_the_right() -> None:
    masks = _image(120, seed=5).masks
    row = {n: np.argwhere(m)[:, 0].mean() for n, m in masks.items()}
    column = {n: np.argwhere(m)[:, 1].mean() for n, m in masks.items()}
    assert row["bone:DP3"] < row["bone:MC3"] < row["bone:capitate"] < row["bone:radius"]
    assert column["bone:MC5"] < column["bone:MC3"] < column["bone:MC1"] < column["bone:DP1"]
    assert column["bone:ulna"] < column["bone:radius"]


@pytest.mark.parametrize(
    ("sex", "ages"), [("M", (8, 40, 90, 140, 222)), ("F", (6, 30, 70, 120, 200))]
)
def test_visible_centres_increase_with_age(sex: str, ages: tuple[int, ...]) -> None:
    wrist = {f"bone:{carpal}" for carpal in CARPALS}
    found = [len(wrist & set(_image(age, sex).masks)) for age in ages]
    assert found == sorted(found)
    assert found[0] < found[-1] == 8


def test_carpal_area_over_hand_area_grows_with_age() -> None:
    def area(age: int, seed: int) -> float:
        masks = _image(age, seed=seed).masks
        carpals = sum(masks[f"bone:{c}"].sum() for c in CARPALS if f"bone:{c}" in masks)
        return carpals / masks["bone:PP3"].sum()

    areas = [np.mean([area(age, seed) for seed in range(3)]) for age in (12, 48, 84, 132, 180)]
    assert areas == sorted(areas)


def test_open_plates_vanish_as_the_skeleton_fuses() -> None:
    count = [sum(name.startswith("plate:") for name in _image(age).masks)
             for age in (150, 190, 203, 217)]  # fmt: skip
    assert count == sorted(count, reverse=True)
    assert (count[0], count[-1]) == (21, 0)


def test_hand_size_and_mean_grey_do_not_tell_the_age() -> None:
    rows, ages = [], []
    for label in sample_labels(90, 7):
        synthetic = _image(label.boneage, label.sex, seed=label.id, height=96)
        bones = _all_bones(synthetic)
        extent = np.ptp(np.flatnonzero(bones.any(axis=1)))
        rows.append((1.0, bones.sum(), extent, synthetic.image.mean()))
        ages.append(label.boneage)
    inputs, target = np.array(rows, float), np.array(ages, float)
    fit = inputs @ np.linalg.lstsq(inputs, target, rcond=None)[0]
    assert 1 - ((target - fit) ** 2).sum() / ((target - target.mean()) ** 2).sum() <= 0.5


def test_labels_follow_rsna_by_sex_with_more_adults_all_male() -> None:
    labels = sample_labels(2000, 0)
    for is_male, mean, sd in ((True, 135.3, 42.1), (False, 117.9, 37.9)):
        ages = [label.boneage for label in labels if label.boneage <= 216 and label.male == is_male]
        assert np.mean(ages) == pytest.approx(mean, abs=5)
        assert np.std(ages) == pytest.approx(sd, abs=5)
    adults = [label for label in labels if label.boneage > 216]
    assert np.mean([label.male for label in labels]) == pytest.approx(0.542, abs=0.04)
    assert len(adults) >= 0.03 * len(labels)
    assert all(label.male for label in adults)
    assert all(1 <= label.boneage <= 228 for label in labels)


@pytest.mark.parametrize("n", [1, 7, 30])
def test_even_a_small_cohort_has_three_percent_adults(n: int) -> None:
    assert sum(label.boneage > 216 for label in sample_labels(n, 0)) >= 0.03 * n


def test_longer_cohort_begins_with_the_shorter_one() -> None:
    assert sample_labels(40, 5)[:10] == sample_labels(10, 5)
    assert sample_labels(10, 5) != sample_labels(10, 6)


def test_cohort_has_the_rsna_layout_and_says_what_it_is(tmp_path: Path) -> None:
    csv = _write(tmp_path / "out")
    lines = csv.read_text().splitlines()
    images = sorted((csv.parent / "boneage-training-dataset/boneage-training-dataset").iterdir())
    assert csv.name == "boneage-training-dataset.csv"
    assert lines[0] == "id,boneage,male"
    assert [f"{f.stem}" for f in images] == [line.split(",")[0] for line in lines[1:]]
    assert {line.split(",")[2] for line in lines[1:]} <= {"True", "False"}
    assert min(int(f.stem) for f in images) > 900_000
    assert Image.open(images[0]).mode == "L"
    notice = (csv.parent / "SYNTHETIC.txt").read_text()
    assert "NOT patient data" in notice
    assert json.loads(notice.splitlines()[-1])["images"] == 3


def test_same_seed_writes_the_same_bytes_whatever_the_workers_and_the_length(
    tmp_path: Path,
) -> None:
    csv = _write(tmp_path / "one", masks=True)
    _write(tmp_path / "two", masks=True, workers=2)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
    _write(tmp_path / "short", n=2)
    second = "boneage-training-dataset/boneage-training-dataset/900002.png"
    assert _bytes(tmp_path / "short")[second] == _bytes(tmp_path / "one")[second]
    label = sample_labels(3, 0)[1]
    rng = np.random.default_rng(np.random.SeedSequence([0, label.id]))
    synthetic = draw_image(label.boneage, label.sex, rng, height=72, masks=True)
    with np.load(csv.parent / "masks" / f"{label.id}.npz") as stored:
        assert set(stored) == set(synthetic.masks)
        assert all(np.array_equal(stored[name], mask) for name, mask in synthetic.masks.items())


def test_interrupted_cohort_is_finished_and_its_images_are_kept(tmp_path: Path) -> None:
    csv = _write(tmp_path / "out")
    whole = _bytes(tmp_path / "out")
    folder = csv.parent / "boneage-training-dataset/boneage-training-dataset"
    csv.unlink()
    (folder / "900002.png").unlink()
    kept = (folder / "900001.png").stat().st_mtime_ns
    _write(tmp_path / "out")
    assert _bytes(tmp_path / "out") == whole
    assert (folder / "900001.png").stat().st_mtime_ns == kept


def test_other_settings_replace_the_cohort_but_not_other_files(tmp_path: Path) -> None:
    _write(tmp_path / "out", n=4, masks=True)
    note = tmp_path / "out" / "note.txt"
    note.write_text("mine")
    _write(tmp_path / "out", n=2, seed=1)
    assert note.read_text() == "mine"
    note.unlink()
    _write(tmp_path / "new", n=2, seed=1)
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "message"),
    [("data.csv", r"no SYNTHETIC\.txt.*expected a new or empty folder"),
     ("SYNTHETIC.txt", "does not end with the settings of a cohort")],
)  # fmt: skip
def test_folder_with_other_content_is_refused_and_left_alone(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / name).write_text("something else")
    with pytest.raises(BoneAgeError, match=message):
        _write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, r"n is 0; expected a whole number of images, at least 1\. Pass another n\."),
        ({"n": 2.5}, r"n is 2\.5; expected a whole number"),
        ({"height": 10}, r"height is 10; expected a whole number of pixels, at least 64\."),
        ({"seed": -1}, r"seed is -1; expected a whole number"),
        ({"workers": -1}, r"workers is -1; expected a whole number of processes, at least 0\."),
    ],
)
def test_impossible_setting_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(BoneAgeError, match=message):
        write_cohort(tmp_path / "out", **{"n": 1, **settings})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_impossible_hand_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(BoneAgeError, match="sex is 'X'"):
        draw_image(100, "X", rng)
    with pytest.raises(BoneAgeError, match="bone age is 999 months"):
        draw_image(999, "M", rng)


def test_contact_sheet_shows_an_image_for_every_year() -> None:
    sheet = np.asarray(cohort.contact_sheet(height=64))
    cells = sheet.reshape(4, -1, 10, sheet.shape[1] // 10)[:, 5:]
    assert (cells.std(axis=(1, 3)) > 5).sum(axis=1).tolist() == [10, 9, 10, 8]
