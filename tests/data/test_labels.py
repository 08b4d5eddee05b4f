import hashlib
import itertools
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from boneage.data.labels import (
    data_sha256,
    find_images,
    find_labels,
    match_images,
    read_further,
    read_known,
    read_labels,
)
from boneage.errors import LabelError

KAGGLE = "boneage-training-dataset"

# Three children, one written line each, under the headers in circulation (docs: RSNA 2017 data).
DIALECTS = {
    "Kaggle train": "id,boneage,male\n1377,180,False\n96,12,True\n4360,94,True",
    "RSNA validation": "Image ID,male,Bone Age (months)\n1377,FALSE,180\n96,TRUE,12\n4360,TRUE,94",
    "RSNA test": "Case ID,Sex,Ground truth bone age (months)\n1377,F,180.0\n96,M,12.00\n4360,M,94",
    "seed report, sex": "id,bone_age,sex\n1377,180,F\n96,12,M\n4360,94,M",
    "seed report, male": "id,bone_age,male\n1377,180,0\n96,12,1\n4360,94,1",
    "with further columns": "image_ID,dataset,sex,bone_age\n1377.png,7,female,180\n"
    "96.png,8,male,12\n4360.png,9,Male,94",
}


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def _one(csv: Path, text: str, **options: Any) -> Any:
    """Read a table of one row and give that row."""
    csv.write_text(text)
    (row,) = read_labels(csv, **options).itertuples()
    return row


@pytest.mark.parametrize("text", DIALECTS.values(), ids=list(DIALECTS))
def test_every_dialect_reads_the_same_in_every_column_order(csv: Path, text: str) -> None:
    columns = list(zip(*(line.split(",") for line in text.splitlines()), strict=True))
    for order in itertools.permutations(columns):
        csv.write_text("".join(",".join(line) + "\n" for line in zip(*order, strict=True)))
        table = read_labels(csv)
        assert table["image_id"].tolist() == ["96", "1377", "4360"]
        assert table["months"].tolist() == [12.0, 180.0, 94.0]
        assert table["sex"].tolist() == ["M", "F", "M"]
        assert table["sex_int"].tolist() == [1, 0, 1]
        assert table["stage"].tolist() == [0, 1, 0]


def test_the_table_has_the_agreed_columns_and_no_others(csv: Path) -> None:
    csv.write_text("dataset,male,boneage,id\n7,True,94,1\n")
    columns = ["image_id", "months", "age_years", "stage", "sex", "sex_int"]
    assert list(read_labels(csv)) == columns


@pytest.mark.parametrize("text", ["Case ID,Sex\n4360,F\n", "Sex,Case ID\nF,4360\n"])
def test_a_table_without_ages_can_be_asked_for(csv: Path, text: str) -> None:
    row = _one(csv, text, require_age=False)
    assert (row.image_id, row.sex) == ("4360", "F")
    assert not hasattr(row, "months")


def test_ages_are_read_where_they_are_not_required(csv: Path) -> None:
    assert _one(csv, "id,boneage,male\n1,94,True\n", require_age=False).months == 94.0


@pytest.mark.parametrize(
    ("header", "lacking"),
    [
        ("name,boneage,male", "image_id"),
        ("id,age,male", "months"),
        ("id,boneage,mail", "sex"),
        ("name,age,male", "image_id and months"),
        ("a,b,c", "image_id and months and sex"),
        ("name;age;male", "image_id and months"),
    ],
)
def test_a_missing_column_is_named_with_what_was_found(
    csv: Path, header: str, lacking: str
) -> None:
    csv.write_text(f"{header}\n1,2,3\n" if "," in header else f"{header}\n1;2;3\n")
    found = header.replace(",", ", ").replace(";", ", ")
    message = rf"labels\.csv lacks a column for {lacking}; found: {found}; accepted: id \(or Image"
    with pytest.raises(LabelError, match=message):
        read_labels(csv)


def test_a_missing_sex_column_is_an_error_without_ages_too(csv: Path) -> None:
    csv.write_text("Case ID,boneage\n1,94\n")
    with pytest.raises(LabelError, match="lacks a column for sex; found: Case ID, boneage"):
        read_labels(csv, require_age=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,Image ID,boneage,male\n1,2,3,4\n",
         "has 2 columns that could be image_id: id, Image ID. Keep one of them."),
        ("id,boneage,bone_age,male\n1,2,3,4\n", "could be months: boneage, bone_age. Keep one of"),
        ("id,boneage,Sex,gender\n1,2,3,4\n", "could be sex: Sex, gender. Keep one of them."),
        ("id,boneage,boneage,male\n1,94,180,True\n", "has 2 columns that could be months"),
        ("id,boneage,male\n1377,180,94,1\n", "labels.csv"),
        ("id,boneage,male\n", "has a header but no rows; expected one row per image"),
        ("id,boneage,male\n7,94,True\n8,94,True\n7,94,True\n",
         "line 4: id '7' was given on line 2 already. Keep one"),
        ("id,boneage,male\n7,94,True\n7.png,94,True\n", "line 3: id '7' was given on line 2"),
        ("id,boneage,male\n7,94,True\n 7 ,94,True\n", "line 3: id '7' was given on line 2"),
        ("id,boneage,male\n7,94,1\n,94,1\n", "line 3: the image id is empty; expected a file's st"),
        ("id,boneage,male\n7,94,True\n  ,94,True\n", "line 3: the image id is empty"),
        ("id,boneage,male\n7,94,True\n.png,94,True\n", "line 3: the image id is empty"),
        ("id,boneage,male\n7,94,True\n\n8,abc,True\n", "line 4: boneage is 'abc'"),
        ("id,boneage,male,Sex\n7,94,1,M\n8,94,1,F\n", "line 3: Sex says F but male says M"),
        ("id,boneage,male,Sex\n7,94,1,M\n8,94,0,M\n", "male says F. Make them agree."),
    ],
)  # fmt: skip
def test_a_faulty_table_is_refused_with_the_fault_and_its_line(
    csv: Path, text: str, message: str
) -> None:
    csv.write_text(text)
    with pytest.raises(LabelError, match=re.escape(message)):
        read_labels(csv)


def test_a_missing_table_or_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"gone\.csv does not exist; expected a label CSV"):
        read_labels(tmp_path / "gone.csv")
    with pytest.raises(LabelError, match="expected a label CSV"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "No columns to parse"),
        (b"\n\n", "No columns to parse"),
        (b"id,boneage,male\n\xe9,94,True\n", "utf-8"),
        (b"id,boneage,male\n1,94,True\n2,94,True,7\n", "Expected 3 fields in line 3, saw 4"),
        (b'id,boneage,male\n1,94,True\n"2,94,True\n', "EOF inside string"),
    ],
)
def test_a_file_that_is_no_csv_is_refused_with_the_reason_in_one_line(
    csv: Path, content: bytes, reason: str
) -> None:
    csv.write_bytes(content)
    with pytest.raises(LabelError, match=rf"labels\.csv is not a readable CSV: .*{reason}") as no:
        read_labels(csv)
    assert "\n" not in str(no.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xef\xbb\xbfid,boneage,male\n1,94,False\n", id="byte order mark"),
        pytest.param(b'\xef\xbb\xbf"id","boneage","male"\n"1","94","False"\n', id="quoted"),
        pytest.param(b"id,boneage,male\r\n1,94,False\r\n", id="Windows line ends"),
        pytest.param(b"id, boneage, male\n 1 , 94 , False \n", id="blanks"),
        pytest.param(b'id, boneage, male\n1, "94", "False"\n', id="blanks and quotes"),
        pytest.param(b"id,boneage,male\n1,94,False\n\n\n", id="blank lines at the end"),
    ],
)
def test_harmless_variations_of_a_csv_are_read(csv: Path, content: bytes) -> None:
    csv.write_bytes(content)
    (row,) = read_labels(csv).itertuples()
    assert (row.image_id, row.months, row.sex) == ("1", 94.0, "F")


@pytest.mark.parametrize(
    ("written", "image_id"),
    [("1377", "1377"), ("1377.png", "1377"), ("1377.PNG", "1377"), ("1377.jpeg", "1377"),
     ("1377.tif", "1377"), ("007", "007"), ("NA", "NA"), ("site.3.child", "site.3.child"),
     ("site.3.png", "site.3")],
)  # fmt: skip
def test_an_id_is_the_file_stem_as_it_is_written(csv: Path, written: str, image_id: str) -> None:
    assert _one(csv, f"id,boneage,male\n{written},94,True\n").image_id == image_id


def test_rows_are_sorted_by_number_and_then_by_name(csv: Path) -> None:
    ids = ["b", "10", "a", "9", "100"]
    csv.write_text("id,boneage,male\n" + "".join(f"{i},94,True\n" for i in ids))
    table = read_labels(csv)
    assert table["image_id"].tolist() == ["9", "10", "100", "a", "b"]
    assert table.index.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "age", ["0", "-1", "241", "240.01", "abc", "", "inf", "12 months", '"1,024.5"']
)
def test_an_impossible_age_is_refused_with_line_and_value(csv: Path, age: str) -> None:
    csv.write_text(f"id,Bone Age (months),male\n7,94,True\n8,{age},True\n")
    value = age.strip('"')
    message = (
        rf"labels\.csv line 3: Bone Age \(months\) is '{value}'; expected months, a number above "
        r"0 and at most 240\. Fix or remove the row\."
    )
    with pytest.raises(LabelError, match=message):
        read_labels(csv)


@pytest.mark.parametrize("months", [0.5, 1.0, 168.9320481, 240.0])
def test_ages_up_to_the_limits_are_read_to_their_last_digit(csv: Path, months: float) -> None:
    csv.write_text(f"id,boneage,male\n7,{months},True\n8,94,True\n")
    assert read_labels(csv)["months"].tolist() == [months, 94.0]


def test_years_are_months_over_twelve_exactly(csv: Path) -> None:
    csv.write_text("id,boneage,male\n" + "".join(f"{m},{m},True\n" for m in range(1, 241)))
    table = read_labels(csv)
    assert table["age_years"].tolist() == [m / 12 for m in range(1, 241)]


@pytest.mark.parametrize(
    ("months", "stage"), [(143, 0), (143.9, 0), (144, 1), (216, 1), (216.1, 2), (217, 2)]
)
def test_twelve_and_eighteen_years_are_adolescent(csv: Path, months: float, stage: int) -> None:
    assert _one(csv, f"id,boneage,male\n7,{months},True\n").stage == stage


@pytest.mark.parametrize(
    ("columns", "spellings", "sex"),
    [
        (["male"], ["True", "TRUE", "1", "1.0", "M"], "M"),
        (["male"], ["False", "false", "0", "0.0", "female"], "F"),
        (["sex", "Sex", "gender"], ["M", "m", "Male", "boy", "1"], "M"),
        (["sex", "Sex", "gender"], ["F", "f", "female", "Girl", "0"], "F"),
    ],
)
def test_each_spelling_of_sex_is_read(
    csv: Path, columns: list[str], spellings: list[str], sex: str
) -> None:
    for column, written in itertools.product(columns, spellings):
        row = _one(csv, f"id,boneage,{column}\n7,94,{written}\n")
        assert (row.sex, row.sex_int) == (sex, {"M": 1, "F": 0}[sex]), written


@pytest.mark.parametrize("mode", ["error", "drop", "keep"])
@pytest.mark.parametrize(
    ("column", "written"), [("sex", "W"), ("sex", "2"), ("male", "yes"), ("male", "2")]
)
def test_an_unreadable_sex_is_refused_in_every_mode(
    csv: Path, mode: Any, column: str, written: str
) -> None:
    csv.write_text(f"id,boneage,{column}\n8,94,{written}\n")
    more = "" if mode == "error" else ", or U or nothing where it is unknown"
    message = (
        rf"labels\.csv line 2: {column} is '{written}'; expected M or F \(also male, female, boy, "
        rf"girl, 1 for male, 0 for female\){more}\. Fix it\.$"
    )
    with pytest.raises(LabelError, match=message):
        read_labels(csv, unknown_sex=mode)


@pytest.mark.parametrize("unknown", ["", "U", "unknown", "O", "Other", "nan", "None", "null"])
def test_an_unknown_sex_is_refused_and_on_request_kept_as_none_or_left_out(
    csv: Path, unknown: str
) -> None:
    csv.write_text(f"id,boneage,Sex\n7,94,M\n8,94,{unknown}\n9,94,F\n")
    message = (
        rf"line 3: Sex is '{unknown}'; expected M or F .*\. Fix it, or pass --drop-unknown-sex"
    )
    with pytest.raises(LabelError, match=message):
        read_labels(csv)
    table = read_labels(csv, unknown_sex="keep")
    assert table["sex"].tolist() == ["M", None, "F"]
    assert table["sex_int"].isna().tolist() == [False, True, False]
    table = read_labels(csv, unknown_sex="drop")
    assert table["image_id"].tolist() == ["7", "9"]
    assert table.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("n", "shown"),
    [(1, "1"), (5, "1, 2, 3, 4, 5"), (6, "1, 2, 3, 4, 5, …"), (9, "1, 2, 3, 4, 5, …")],
)
def test_rows_left_out_are_counted_and_the_first_named(
    csv: Path, caplog: pytest.LogCaptureFixture, n: int, shown: str
) -> None:
    csv.write_text("id,boneage,sex\n100,94,F\n")
    read_labels(csv, unknown_sex="drop")
    assert not caplog.records
    csv.write_text(csv.read_text() + "".join(f"{i},94,U\n" for i in range(1, n + 1)))
    read_labels(csv, unknown_sex="drop")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{csv}: left out {n} rows without sex: {shown}"


def test_sex_and_male_may_both_be_given_and_agree(csv: Path) -> None:
    assert _one(csv, "id,boneage,sex,male\n7,94,F,False\n").sex == "F"


def test_one_sex_column_fills_what_the_other_leaves_open(csv: Path) -> None:
    csv.write_text("id,boneage,sex,male\n1,94,,0\n2,94,M,\n3,94,,\n")
    assert read_labels(csv, unknown_sex="keep")["sex"].tolist() == ["F", "M", None]


def test_a_group_column_is_kept_as_group_and_refused_where_it_lacks_or_is_empty(csv: Path) -> None:
    csv.write_text("id,boneage,male,patient\n2,94,True,ann\n1,94,True, bob \n")
    assert read_labels(csv, group_column="patient")["group"].tolist() == ["bob", "ann"]
    csv.write_text("id,boneage,male,patient\n2,94,True,ann\n1,94,True, \n")
    with pytest.raises(LabelError, match="line 3: patient is empty; expected a group id"):
        read_labels(csv, group_column="patient")
    csv.write_text("id,boneage,male\n2,94,True\n")
    with pytest.raises(LabelError, match="no column 'patient' to group by; found: id, boneage, ma"):
        read_labels(csv, group_column="patient")


def _touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.csv", f"{KAGGLE}.csv", "z.csv"], f"{KAGGLE}.csv"),
        (["mine.csv", "readme.txt"], "mine.csv"),
        (["labels.csv", "._labels.csv"], "labels.csv"),
    ],
)
def test_the_table_is_kaggles_or_the_only_one_that_is_not_hidden(
    tmp_path: Path, names: list[str], found: str
) -> None:
    _touch(tmp_path, *names)
    assert find_labels(tmp_path) == tmp_path / found


@pytest.mark.parametrize(
    ("names", "found"), [([], "none"), (["b.csv", "a.csv"], r"a\.csv, b\.csv")]
)
def test_no_table_or_several_are_an_error(tmp_path: Path, names: list[str], found: str) -> None:
    _touch(tmp_path, *names)
    message = rf"should hold one label CSV; found: {found}\. Pass --labels FILE\."
    with pytest.raises(LabelError, match=message):
        find_labels(tmp_path)


def test_a_raw_folder_that_is_missing_says_how_to_get_one(tmp_path: Path) -> None:
    message = r"gone is not a folder; .*`boneage phantom .*gone`, .*`boneage download`"
    with pytest.raises(LabelError, match=message):
        find_labels(tmp_path / "gone")


@pytest.mark.parametrize("folder", [f"{KAGGLE}/{KAGGLE}", KAGGLE, "images", "."])
def test_images_are_found_nested_once_nested_and_flat(tmp_path: Path, folder: str) -> None:
    _touch(tmp_path / folder, "1377.png", "96.png")
    assert find_images(tmp_path) == {
        "96": tmp_path / folder / "96.png",
        "1377": tmp_path / folder / "1377.png",
    }


def test_the_innermost_folder_with_images_is_taken_alone(tmp_path: Path) -> None:
    (tmp_path / KAGGLE / KAGGLE).mkdir(parents=True)
    _touch(tmp_path, "labels.csv")
    with pytest.raises(
        LabelError, match=r"holds no images; expected \.png, \.jpg, .*\.dicom files"
    ):
        find_images(tmp_path)
    for folder, image_id in ((tmp_path, "1"), (tmp_path / KAGGLE, "2"),
                             (tmp_path / KAGGLE / KAGGLE, "3")):  # fmt: skip
        _touch(folder, f"{image_id}.png")
        assert list(find_images(tmp_path)) == [image_id]


def test_images_of_every_format_are_found_and_nothing_else(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png", "b.PNG", "c.jpg", "d.jpeg", "e.tif", "f.TIFF", "g.bmp", "h.v2.png")
    _touch(tmp_path, "labels.csv", "notes.txt", "._a.png", "thumbs.db")
    assert sorted(find_images(tmp_path)) == ["a", "b", "c", "d", "e", "f", "g", "h.v2"]


def test_two_images_with_one_id_are_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "7.jpg", "7.png")
    message = r"holds two images with id '7': 7\.jpg and 7\.png\. Keep one\."
    with pytest.raises(LabelError, match=message):
        find_images(tmp_path)


def _labels(*ids: str) -> pd.DataFrame:
    return pd.DataFrame({"image_id": list(ids), "months": np.arange(1.0, len(ids) + 1)})


def test_each_row_gets_its_own_image_by_id(caplog: pytest.LogCaptureFixture) -> None:
    labels = _labels("1", "2", "3")
    samples = match_images(labels, {i: Path(f"{i}.png") for i in ("3", "1", "2", "extra")})
    assert [p.stem for p in samples["path"]] == ["1", "2", "3"]
    assert list(samples) == ["image_id", "months", "path"]
    assert list(labels) == ["image_id", "months"]
    assert caplog.messages == ["left out 1 images without a row"]


def test_ids_with_folders_find_their_own_images_of_one_name(tmp_path: Path) -> None:
    _touch(tmp_path / "A", "1.png")
    _touch(tmp_path / "B", "1.png", "2.png")
    images = find_images(tmp_path)
    assert set(images) == {"A/1", "B/1", "2"}
    samples = match_images(_labels("A/1", "B/1", "B/2"), images)
    assert [path.relative_to(tmp_path).as_posix() for path in samples["path"]] == [
        "A/1.png", "B/1.png", "B/2.png",
    ]  # fmt: skip
    with pytest.raises(LabelError, match="the table's id '1' fits"):
        match_images(_labels("1", "2"), images)


def test_rows_without_an_image_are_left_out_counted_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = [str(i) for i in range(1, 11)]
    images = {i: Path(f"{i}.png") for i in ("4", "9")}
    samples = match_images(_labels(*ids), images)
    assert samples["image_id"].tolist() == ["4", "9"]
    assert samples["months"].tolist() == [4.0, 9.0]
    assert [p.stem for p in samples["path"]] == ["4", "9"]
    assert samples.index.tolist() == [0, 1]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "left out 8 rows without an image: 1, 2, 3, 5, 6, …"


def test_labels_and_images_without_a_common_id_are_an_error_with_the_first_of_each() -> None:
    images = {f"x{i}": Path(f"x{i}.png") for i in range(5)}
    message = (
        r"none of the 4 labelled ids has an image \(first ids: 1, 2, 3; first images: x0, x1, "
        r"x2\)\. Check that --data and --labels belong together"
    )
    with pytest.raises(LabelError, match=message):
        match_images(_labels("1", "2", "3", "4"), images)


def _data() -> pd.DataFrame:
    return pd.DataFrame(
        {"image_id": ["2", "10"], "months": [94.0, 120.5], "sex": ["M", None]}, dtype=object
    )


def test_the_fingerprint_of_the_data_is_the_sha256_of_its_sorted_lines() -> None:
    expected = hashlib.sha256(b"10,120.5,None\n2,94,M\n").hexdigest()
    assert data_sha256(_data()) == data_sha256(_data()[::-1]) == expected


@pytest.mark.parametrize(("column", "value"), [("image_id", "3"), ("months", 95.0), ("sex", "F")])
def test_the_fingerprint_of_the_data_changes_with_every_label(column: str, value: Any) -> None:
    changed = _data()
    changed.loc[0, column] = value
    assert data_sha256(changed) != data_sha256(_data())


def test_what_is_known_of_images_is_their_sex_and_their_age_in_years(csv: Path) -> None:
    csv.write_text("Image ID,Sex,Bone Age (months)\n7.png,F,90\n8,U,132.6\n9,male,12\n")
    assert read_known(csv) == {"7": ("F", 7.5), "8": (None, pytest.approx(11.05)), "9": ("M", 1.0)}
    csv.write_text("id,male\n7,True\n8,\n")
    assert read_known(csv) == {"7": ("M", None), "8": (None, None)}


def test_what_is_known_of_images_may_lack_some_ages_but_holds_no_wrong_one(csv: Path) -> None:
    csv.write_text("id,sex,boneage\n7,F,120\n8,M,\n")
    assert read_known(csv) == {"7": ("F", 10.0), "8": ("M", None)}
    csv.write_text("id,sex,boneage\n7,F,120\n8,M,young\n")
    with pytest.raises(LabelError, match="line 3: boneage is 'young'; expected months"):
        read_known(csv)


def test_further_columns_are_text_under_the_id_and_what_lacks_is_left(csv: Path) -> None:
    csv.write_text("sex,site, Case ID,age\nF,north,7.png,007\n,,8,\n")
    found = read_further(csv, ["site", "race", "age", "site"])
    assert list(found.columns) == ["site", "age", "image_id"]
    assert found.to_numpy().tolist() == [["north", "007", "7"], ["", "", "8"]]
    assert list(read_further(csv, [])) == ["image_id"]


def test_further_columns_of_ids_given_twice_are_refused(csv: Path) -> None:
    csv.write_text("id,sex,site\n7,F,a\n7.png,F,b\n")
    with pytest.raises(LabelError, match="line 3: id '7' was given on line 2 already"):
        read_further(csv, ["site"])
