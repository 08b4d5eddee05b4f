import hashlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from boneage.data.split import SPLITS, read_split, split_samples, split_sha256
from boneage.errors import LabelError
from boneage.stages import STAGES


def _samples(*counts: int) -> pd.DataFrame:
    """Rows of each stage, in an order that has nothing to do with the stage."""
    stages = np.repeat(np.arange(len(counts)), counts)
    stages = np.random.default_rng(5).permutation(stages)
    return pd.DataFrame({"image_id": [str(i) for i in range(1, len(stages) + 1)], "stage": stages})


def _grouped(patients: int, images: int = 3) -> pd.DataFrame:
    """Patients of several images; two in three images show the stage of the patient."""
    rng = np.random.default_rng(2)
    rows = [
        {"image_id": str(p * images + f), "group": f"p{p}", "stage": p % 2 if f else 1 - p % 2}
        for p in range(patients)
        for f in range(images)
    ]
    return pd.DataFrame(rows).iloc[rng.permutation(len(rows))].reset_index(drop=True)


def _by_id(samples: pd.DataFrame, seed: int = 0) -> dict[str, str]:
    return dict(zip(samples["image_id"], split_samples(samples, seed), strict=True))


def _reference(units: npt.NDArray[Any], stages: npt.NDArray[Any], seed: int) -> dict[Any, str]:
    """The seed report's split, written out: 70 against 30, then the 30 in halves."""
    train, rest, _, rest_stages = train_test_split(
        units, stages, test_size=0.30, random_state=seed, stratify=stages
    )
    val, test = train_test_split(rest, test_size=0.50, random_state=seed, stratify=rest_stages)
    return {
        u: name for name, part in (("train", train), ("val", val), ("test", test)) for u in part
    }


def test_a_thousand_rows_split_into_700_150_150() -> None:
    assert Counter(split_samples(_samples(570, 400, 30))) == {"train": 700, "val": 150, "test": 150}
    assert set(SPLITS) == {"train", "val", "test"}


@pytest.mark.parametrize("seed", [0, 1, 42])
@pytest.mark.parametrize("counts", [(569, 410, 21), (120, 63, 17), (50, 40, 10), (30, 30)])
def test_each_part_has_its_proportion_of_each_stage(counts: tuple[int, ...], seed: int) -> None:
    samples = _samples(*counts)
    parts = split_samples(samples, seed)
    for part, proportion in (("train", 0.70), ("val", 0.15), ("test", 0.15)):
        for stage, total in enumerate(counts):
            n = int(((samples["stage"] == stage) & (parts == part)).sum())
            assert abs(n - proportion * total) < 1.5, (part, stage)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_split_is_scikit_learns_in_two_steps(seed: int) -> None:
    samples = _samples(143, 101, 13)
    expected = _reference(samples["image_id"].to_numpy(), samples["stage"].to_numpy(), seed)
    assert _by_id(samples, seed) == expected


@pytest.mark.parametrize("samples", [_samples(143, 101, 13), _grouped(60)], ids=["rows", "groups"])
def test_the_split_does_not_depend_on_row_order_and_keeps_the_index(samples: pd.DataFrame) -> None:
    shuffled = samples.sample(frac=1.0, random_state=3)
    assert _by_id(shuffled) == _by_id(samples)
    assert split_samples(shuffled).index.equals(shuffled.index)


def test_the_split_of_a_fixed_table_never_changes() -> None:
    stages = [0] * 50 + [1] * 40 + [2] * 10
    samples = pd.DataFrame({"image_id": [str(i) for i in range(100)], "stage": stages})
    assert (
        split_sha256(samples["image_id"], split_samples(samples))
        == "c97dfecda4d1f2db5e277b905b52e4dbecf10a693fdbdc74ff5c28fa43350733"
    )


def test_the_images_of_a_group_stay_together_and_groups_are_split_70_15_15() -> None:
    samples = _grouped(100)
    parts = split_samples(samples).groupby(samples["group"])
    assert parts.agg(set).map(len).max() == 1
    assert Counter(parts.first()) == {"train": 70, "val": 15, "test": 15}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_are_stratified_by_their_most_frequent_stage(seed: int) -> None:
    samples = _grouped(100)
    parts = split_samples(samples, seed).groupby(samples["group"]).first()
    is_odd = parts.index.str.slice(1).astype(int) % 2 == 1
    assert Counter(parts[is_odd])["train"] == 35
    assert {Counter(parts[is_odd])["val"], Counter(parts[~is_odd])["val"]} == {7, 8}


@pytest.mark.parametrize(
    ("adults", "sizes"), [(1, (63, 14, 14)), (2, (64, 14, 14)), (3, (65, 14, 14))]
)
def test_too_few_adults_are_stratified_as_adolescents_with_a_warning(
    adults: int, sizes: tuple[int, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    parts = split_samples(_samples(50, 40, adults))
    assert Counter(parts) == dict(zip(("train", "val", "test"), sizes, strict=True))
    (message,) = set(caplog.messages)
    assert message.startswith("a single Adult image or group")
    assert message.endswith("stratified as Adolescent")


@pytest.mark.parametrize(
    ("counts", "single", "other"), [((50, 40, 1), 2, 1), ((1, 40, 40), 0, 1), ((50, 1, 20), 1, 0)]
)
def test_a_single_image_of_a_stage_does_not_spoil_the_stratification_of_the_others(
    counts: tuple[int, ...], single: int, other: int, caplog: pytest.LogCaptureFixture
) -> None:
    samples = _samples(*counts)
    merged = samples.assign(stage=samples["stage"].replace(single, other))
    assert _by_id(samples) == _by_id(merged)
    assert f"a single {STAGES[single]} image or group" in caplog.text
    assert f"stratified as {STAGES[other]}" in caplog.text


@pytest.mark.parametrize("counts", [(50, 40), (50, 40, 20), (0, 40, 20)])
def test_nothing_is_said_where_every_stage_can_be_stratified(
    counts: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    split_samples(_samples(*counts))
    assert not caplog.records


@pytest.mark.parametrize("counts", [(1,), (2,), (3,), (2, 2, 2)])
def test_too_few_rows_or_groups_are_an_error_with_their_number(counts: tuple[int, ...]) -> None:
    message = (
        rf"^{sum(counts)} images .*too few to split 70/15/15 by stage \(.+\)\. "
        r"Add images, or pass .+ --split\.$"
    )
    with pytest.raises(LabelError, match=message):
        split_samples(_samples(*counts))
    with pytest.raises(LabelError, match="images or groups are too few to split"):
        split_samples(_grouped(2, images=30))


def test_the_fingerprint_of_a_split_is_the_sha256_of_its_sorted_lines() -> None:
    ids, parts = pd.Series(["2", "9", "10"]), pd.Series(["train", "test", "val"])
    assert split_sha256(ids, parts) == hashlib.sha256(b"10,val\n2,train\n9,test\n").hexdigest()
    assert split_sha256(ids[::-1], parts[::-1]) == split_sha256(ids, parts)
    assert split_sha256(ids, parts) == (
        "23a505ec984fe11997a0883ec89e6d2c1b9d16e55b38c28c5902f82871d9c7e8"
    )


def test_a_split_is_not_fingerprinted_in_part() -> None:
    with pytest.raises(ValueError, match="shorter"):
        split_sha256(pd.Series(["1", "2"]), pd.Series(["train"]))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A split of six images, one of them of another folder."""
    path = tmp_path / "split.csv"
    path.write_text("image_id,split\n1,train\n2.png, val\n3,test\n4,train\n5,test\n99,unused\n")
    return path


def test_a_split_is_read_from_a_file_whatever_its_order_and_further_images(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = _samples(3, 2)[::-1]
    with caplog.at_level(logging.INFO):
        parts = read_split(file, samples)
    assert parts.index.equals(samples.index)
    assert dict(zip(samples["image_id"], parts, strict=True)) == {
        "1": "train", "2": "val", "3": "test", "4": "train", "5": "test",
    }  # fmt: skip
    assert "1 rows without a labelled image here: 99" in caplog.text


def test_a_split_that_was_written_is_read_back(tmp_path: Path) -> None:
    samples = _samples(57, 40, 3)
    parts = split_samples(samples, 3)
    samples.assign(split=parts)[["image_id", "split"]].to_csv(tmp_path / "s.csv", index=False)
    assert read_split(tmp_path / "s.csv", samples).tolist() == parts.tolist()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("split\n", "part\n", r"split.csv needs one column split; found: image_id, part\. It sh"),
        ("split\n", "split,split\n", "needs one column split; found: image_id, split, split"),
        ("image_id", "image", r"needs one column image_id; found: image, split"),
        ("image_id,split", "split,split", r"needs one column image_id; found: split, split"),
        ("3,test", "3,valid", r"line 4: split is 'valid'; expected train, val, test\. Fix or"),
        ("3,test\n", "3,\n", r"line 4: split is ''; expected train, val, test"),
        ("4,train", "1,test", r"line 5: id '1' was given on line 2 already"),
        ("4,train\n", "", r"split.csv: 1 rows without a part: 4\. Add them"),
        ("2.png, val", "2,test", r"split.csv puts none of these images in val\. Add some"),
    ],
)
def test_an_unfit_or_missing_split_file_is_refused(
    file: Path, old: str, new: str, message: str
) -> None:
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(LabelError, match=message):
        read_split(file, _samples(3, 2))
    file.unlink()
    with pytest.raises(LabelError, match="does not exist; expected a CSV of image_id and"):
        read_split(file, _samples(3, 2))


def test_a_split_file_may_not_part_a_group(file: Path) -> None:
    samples = _samples(3, 2)
    samples["group"] = samples["image_id"].map({"1": "a", "4": "a", "2": "b", "3": "c", "5": "b"})
    with pytest.raises(LabelError, match=r"split.csv puts the images of b in test and val\. Keep"):
        read_split(file, samples)
    samples["group"] = samples["group"].where(samples["image_id"] != "5", "c")
    assert read_split(file, samples).tolist() == ["train", "val", "test", "train", "test"]
