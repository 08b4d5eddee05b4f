import hashlib
import itertools
import logging
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
from boneage.errors import BoneAgeError, LabelError

KAGGLE = "boneage-training-dataset"

# Three children, one written line each, under the headers in circulation (docs: RSNA 2017 data).
DIALECTS: dict[str, dict[str, list[str]]] = {
    "Kaggle train": {
        "id": ["1377", "96", "4360"],
        "boneage": ["180", "12", "94"],
        "male": ["False", "True", "True"],
    },
    "RSNA validation": {
        "Image ID": ["1377", "96", "4360"],
        "male": ["FALSE", "TRUE", "TRUE"],
        "Bone Age (months)": ["180", "12", "94"],
    },
    "RSNA test": {
        "Case ID": ["1377", "96", "4360"],
        "Sex": ["F", "M", "M"],
        "Ground truth bone age (months)": ["180.0", "12.00", "94"],
    },
    "seed report, sex": {
        "id": ["1377", "96", "4360"],
        "bone_age": ["180", "12", "94"],
        "sex": ["F", "M", "M"],
    },
    "seed report, male": {
        "id": ["1377", "96", "4360"],
        "bone_age": ["180", "12", "94"],
        "male": ["0", "1", "1"],
    },
    "with further columns": {
        "image_ID": ["1377.png", "96.png", "4360.png"],
        "dataset": ["7", "8", "9"],
        "sex": ["female", "male", "Male"],
        "bone_age": ["180", "12", "94"],
    },
}
ORDERS = [
    pytest.param(rows, order, id=f"{name}: {','.join(order)}")
    for name, rows in DIALECTS.items()
    for order in itertools.permutations(rows)
]


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def _one(csv: Path, text: str, **options: Any) -> Any:
    """Read a table of one row and give that row."""
    csv.write_text(text)
    (row,) = read_labels(csv, **options).itertuples()
    return row


@pytest.mark.parametrize(("rows", "order"), ORDERS)
def test_every_dialect_reads_the_same_in_every_column_order(
    csv: Path, rows: dict[str, list[str]], order: tuple[str, ...]
) -> None:
    lines = [order, *zip(*(rows[name] for name in order), strict=True)]
    csv.write_text("".join(",".join(line) + "\n" for line in lines))
    table = read_labels(csv)
    assert table["image_id"].tolist() == ["96", "1377", "4360"]
    assert table["months"].tolist() == [12.0, 180.0, 94.0]
    assert table["sex"].tolist() == ["M", "F", "M"]
    assert table["sex_int"].tolist() == [1, 0, 1]
    assert table["stage"].tolist() == [0, 1, 0]


def test_the_table_has_the_agreed_columns_and_no_others(csv: Path) -> None:
    csv.write_text("dataset,male,boneage,id\n7,True,94,1\n")
    assert list(read_labels(csv)) == [
        "image_id",
        "months",
        "age_years",
        "stage",
        "sex",
        "sex_int",
    ]


@pytest.mark.parametrize("header", ["Case ID,Sex", "Sex,Case ID"])
def test_a_table_without_ages_can_be_asked_for(csv: Path, header: str) -> None:
    values = {"Case ID": "4360", "Sex": "F"}
    text = f"{header}\n{','.join(values[name] for name in header.split(','))}\n"
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
    ("header", "ours", "theirs"),
    [
        ("id,Image ID,boneage,male", "image_id", "id, Image ID"),
        ("id,boneage,bone_age,male", "months", "boneage, bone_age"),
        ("id,boneage,Sex,gender", "sex", "Sex, gender"),
    ],
)
def test_two_columns_for_one_thing_are_refused(
    csv: Path, header: str, ours: str, theirs: str
) -> None:
    csv.write_text(f"{header}\n1,2,3,4\n")
    message = f"has 2 columns that could be {ours}: {theirs}. Keep one of them."
    with pytest.raises(LabelError, match=message):
        read_labels(csv)


def test_a_column_given_twice_under_one_name_is_refused(csv: Path) -> None:
    csv.write_text("id,boneage,boneage,male\n1,94,180,True\n")
    with pytest.raises(LabelError, match="has 2 columns that could be months"):
        read_labels(csv)


def test_rows_with_more_fields_than_the_header_are_refused(csv: Path) -> None:
    csv.write_text("id,boneage,male\n1377,180,94,1\n")
    with pytest.raises(LabelError, match=r"labels\.csv"):
        read_labels(csv)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"gone\.csv does not exist; expected a label CSV"):
        read_labels(tmp_path / "gone.csv")


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
def test_a_file_that_is_no_csv_is_refused_with_the_reason(
    csv: Path, content: bytes, reason: str
) -> None:
    csv.write_bytes(content)
    with pytest.raises(LabelError, match=rf"labels\.csv is not a readable CSV: .*{reason}"):
        read_labels(csv)


def test_an_unreadable_csv_is_reported_in_one_line(csv: Path) -> None:
    csv.write_text("id,boneage,male\n1,94,True\n2,94,True,7\n")
    with pytest.raises(LabelError) as caught:
        read_labels(csv)
    assert "\n" not in str(caught.value)


def test_a_header_without_rows_is_refused(csv: Path) -> None:
    csv.write_text("id,boneage,male\n")
    with pytest.raises(LabelError, match="has a header but no rows; expected one row per image"):
        read_labels(csv)


def test_a_folder_given_as_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="expected a label CSV"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfid,boneage,male\n1,94,False\n",
        b'\xef\xbb\xbf"id","boneage","male"\n"1","94","False"\n',
        b"id,boneage,male\r\n1,94,False\r\n",
        b"id, boneage, male\n 1 , 94 , False \n",
        b'id, boneage, male\n1, "94", "False"\n',
        b"id,boneage,male\n1,94,False\n\n\n",
    ],
    ids=[
        "byte order mark",
        "quoted",
        "Windows line ends",
        "blanks",
        "blanks and quotes",
        "blank lines at the end",
    ],
)
def test_harmless_variations_of_a_csv_are_read(csv: Path, content: bytes) -> None:
    csv.write_bytes(content)
    (row,) = read_labels(csv).itertuples()
    assert (row.image_id, row.months, row.sex) == ("1", 94.0, "F")


def test_a_label_error_is_one_that_the_command_line_prints() -> None:
    assert issubclass(LabelError, BoneAgeError)


@pytest.mark.parametrize(
    ("written", "image_id"),
    [
        ("1377", "1377"),
        ("1377.png", "1377"),
        ("1377.PNG", "1377"),
        ("1377.jpeg", "1377"),
        ("1377.tif", "1377"),
        ("007", "007"),
        ("NA", "NA"),
        ("site.3.child", "site.3.child"),
        ("site.3.png", "site.3"),
    ],
)
def test_an_id_is_the_file_stem_as_it_is_written(csv: Path, written: str, image_id: str) -> None:
    assert _one(csv, f"id,boneage,male\n{written},94,True\n").image_id == image_id


def test_rows_are_sorted_by_number_and_then_by_name(csv: Path) -> None:
    ids = ["b", "10", "a", "9", "100"]
    csv.write_text("id,boneage,male\n" + "".join(f"{i},94,True\n" for i in ids))
    table = read_labels(csv)
    assert table["image_id"].tolist() == ["9", "10", "100", "a", "b"]
    assert table.index.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("again", ["7", "7.png", " 7 "])
def test_an_id_given_twice_is_refused_with_both_lines(csv: Path, again: str) -> None:
    csv.write_text(f"id,boneage,male\n7,94,True\n8,94,True\n{again},94,True\n")
    with pytest.raises(LabelError, match=r"line 4: id '7' was given on line 2 already\. Keep one"):
        read_labels(csv)


@pytest.mark.parametrize("empty", ["", "  ", ".png"])
def test_an_empty_id_is_refused(csv: Path, empty: str) -> None:
    csv.write_text(f"id,boneage,male\n7,94,True\n{empty},94,True\n")
    with pytest.raises(LabelError, match="line 3: the image id is empty; expected a file's stem"):
        read_labels(csv)


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


def test_line_numbers_count_blank_lines(csv: Path) -> None:
    csv.write_text("id,boneage,male\n7,94,True\n\n8,abc,True\n")
    with pytest.raises(LabelError, match="line 4: boneage is 'abc'"):
        read_labels(csv)


@pytest.mark.parametrize("months", [0.5, 1.0, 240.0])
def test_ages_up_to_the_limits_are_read(csv: Path, months: float) -> None:
    csv.write_text(f"id,boneage,male\n7,{months},True\n8,94,True\n")
    assert read_labels(csv)["months"].tolist() == [months, 94.0]


def test_years_are_months_over_twelve_exactly(csv: Path) -> None:
    csv.write_text("id,boneage,male\n" + "".join(f"{m},{m},True\n" for m in range(1, 241)))
    table = read_labels(csv)
    assert table["age_years"].tolist() == [m / 12 for m in range(1, 241)]


def test_decimal_months_keep_their_digits(csv: Path) -> None:
    assert _one(csv, "Case ID,boneage,Sex\n4360,168.9320481,M\n").months == 168.9320481


@pytest.mark.parametrize(
    ("months", "stage"), [(143, 0), (143.9, 0), (144, 1), (216, 1), (216.1, 2), (217, 2)]
)
def test_twelve_and_eighteen_years_are_adolescent(csv: Path, months: float, stage: int) -> None:
    assert _one(csv, f"id,boneage,male\n7,{months},True\n").stage == stage


@pytest.mark.parametrize(
    ("column", "written", "sex"),
    [
        ("male", "True", "M"),
        ("male", "TRUE", "M"),
        ("male", "1", "M"),
        ("male", "1.0", "M"),
        ("male", "False", "F"),
        ("male", "false", "F"),
        ("male", "0", "F"),
        ("male", "0.0", "F"),
        ("sex", "M", "M"),
        ("sex", "m", "M"),
        ("Sex", "Male", "M"),
        ("sex", "F", "F"),
        ("sex", "f", "F"),
        ("gender", "female", "F"),
        ("sex", "boy", "M"),
        ("sex", "Girl", "F"),
        ("sex", "1", "M"),
        ("sex", "0", "F"),
        ("male", "M", "M"),
        ("male", "female", "F"),
    ],
)
def test_each_spelling_of_sex_is_read(csv: Path, column: str, written: str, sex: str) -> None:
    row = _one(csv, f"id,boneage,{column}\n7,94,{written}\n")
    assert (row.sex, row.sex_int) == (sex, {"M": 1, "F": 0}[sex])


@pytest.mark.parametrize("mode", ["error", "drop", "keep"])
@pytest.mark.parametrize(
    ("column", "written"),
    [
        ("sex", "W"),
        ("sex", "2"),
        ("male", "yes"),
        ("male", "2"),
    ],
)
def test_an_unreadable_sex_is_refused_in_every_mode(
    csv: Path, mode: str, column: str, written: str
) -> None:
    csv.write_text(f"id,boneage,{column}\n8,94,{written}\n")
    more = "" if mode == "error" else ", or U or nothing where it is unknown"
    message = (
        rf"labels\.csv line 2: {column} is '{written}'; expected M or F \(also male, female, boy, "
        rf"girl, 1 for male, 0 for female\){more}\. Fix it\.$"
    )
    with pytest.raises(LabelError, match=message):
        read_labels(csv, unknown_sex=mode)  # type: ignore[arg-type]


UNKNOWN = pytest.mark.parametrize(
    "unknown", ["", "U", "unknown", "O", "Other", "nan", "None", "null"]
)


@UNKNOWN
def test_an_unknown_sex_is_refused_by_default(csv: Path, unknown: str) -> None:
    csv.write_text(f"id,boneage,Sex\n7,94,M\n8,94,{unknown}\n")
    message = (
        rf"line 3: Sex is '{unknown}'; expected M or F .*\. Fix it, or pass --drop-unknown-sex"
    )
    with pytest.raises(LabelError, match=message):
        read_labels(csv)


@UNKNOWN
def test_an_unknown_sex_is_kept_as_none_on_request(csv: Path, unknown: str) -> None:
    csv.write_text(f"id,boneage,Sex\n7,94,M\n8,94,{unknown}\n")
    table = read_labels(csv, unknown_sex="keep")
    assert table["sex"].tolist() == ["M", None]
    assert table["sex_int"].isna().tolist() == [False, True]


@UNKNOWN
def test_an_unknown_sex_is_left_out_on_request(csv: Path, unknown: str) -> None:
    csv.write_text(f"id,boneage,Sex\n7,94,{unknown}\n8,94,F\n")
    table = read_labels(csv, unknown_sex="drop")
    assert table["image_id"].tolist() == ["8"]
    assert table.index.tolist() == [0]


@pytest.mark.parametrize(
    ("n", "shown"),
    [(1, "1"), (5, "1, 2, 3, 4, 5"), (6, "1, 2, 3, 4, 5, …"), (9, "1, 2, 3, 4, 5, …")],
)
def test_rows_left_out_are_counted_and_the_first_named(
    csv: Path, caplog: pytest.LogCaptureFixture, n: int, shown: str
) -> None:
    rows = "".join(f"{i},94,U\n" for i in range(1, n + 1))
    csv.write_text(f"id,boneage,sex\n{rows}100,94,F\n")
    read_labels(csv, unknown_sex="drop")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{csv}: left out {n} rows without sex: {shown}"


def test_nothing_is_said_where_nothing_was_left_out(
    csv: Path, caplog: pytest.LogCaptureFixture
) -> None:
    csv.write_text("id,boneage,sex\n8,94,F\n")
    read_labels(csv, unknown_sex="drop")
    assert not caplog.records


def test_sex_and_male_may_both_be_given_and_agree(csv: Path) -> None:
    assert _one(csv, "id,boneage,sex,male\n7,94,F,False\n").sex == "F"


@pytest.mark.parametrize(
    ("sex", "male", "says"), [("F", "1", "Sex says F but male says M"), ("M", "0", "male says F")]
)
def test_sex_and_male_that_contradict_each_other_are_refused(
    csv: Path, sex: str, male: str, says: str
) -> None:
    csv.write_text(f"id,boneage,male,Sex\n7,94,1,M\n8,94,{male},{sex}\n")
    with pytest.raises(LabelError, match=rf"line 3: .*{says}.*Make them agree\."):
        read_labels(csv)


def test_one_sex_column_fills_what_the_other_leaves_open(csv: Path) -> None:
    csv.write_text("id,boneage,sex,male\n1,94,,0\n2,94,M,\n3,94,,\n")
    assert read_labels(csv, unknown_sex="keep")["sex"].tolist() == ["F", "M", None]


def test_a_group_column_is_kept_as_group(csv: Path) -> None:
    csv.write_text("id,boneage,male,patient\n2,94,True,ann\n1,94,True, bob \n")
    assert read_labels(csv, group_column="patient")["group"].tolist() == ["bob", "ann"]


def test_a_group_column_that_is_not_there_is_named(csv: Path) -> None:
    csv.write_text("id,boneage,male\n2,94,True\n")
    message = "has no column 'patient' to group by; found: id, boneage, male"
    with pytest.raises(LabelError, match=message):
        read_labels(csv, group_column="patient")


def test_an_empty_group_is_refused(csv: Path) -> None:
    csv.write_text("id,boneage,male,patient\n2,94,True,ann\n1,94,True, \n")
    with pytest.raises(LabelError, match="line 3: patient is empty; expected a group id"):
        read_labels(csv, group_column="patient")


def _touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_the_kaggle_table_is_preferred_to_others(tmp_path: Path) -> None:
    _touch(tmp_path, "a.csv", f"{KAGGLE}.csv", "z.csv")
    assert find_labels(tmp_path) == tmp_path / f"{KAGGLE}.csv"


def test_the_only_table_of_a_folder_is_found(tmp_path: Path) -> None:
    _touch(tmp_path, "mine.csv", "readme.txt")
    assert find_labels(tmp_path) == tmp_path / "mine.csv"


@pytest.mark.parametrize(
    ("names", "found"), [([], "none"), (["b.csv", "a.csv"], r"a\.csv, b\.csv")]
)
def test_no_table_or_several_are_an_error(tmp_path: Path, names: list[str], found: str) -> None:
    _touch(tmp_path, *names)
    message = rf"should hold one label CSV; found: {found}\. Pass --labels FILE\."
    with pytest.raises(LabelError, match=message):
        find_labels(tmp_path)


def test_a_hidden_table_is_passed_over(tmp_path: Path) -> None:
    _touch(tmp_path, "labels.csv", "._labels.csv")
    assert find_labels(tmp_path) == tmp_path / "labels.csv"


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
    _touch(tmp_path, "1.png")
    _touch(tmp_path / KAGGLE, "2.png")
    _touch(tmp_path / KAGGLE / KAGGLE, "3.png")
    assert list(find_images(tmp_path)) == ["3"]


def test_an_empty_nested_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / KAGGLE / KAGGLE).mkdir(parents=True)
    _touch(tmp_path, "1.png")
    assert list(find_images(tmp_path)) == ["1"]


def test_images_of_every_format_are_found_and_nothing_else(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png", "b.PNG", "c.jpg", "d.jpeg", "e.tif", "f.TIFF", "g.bmp", "h.v2.png")
    _touch(tmp_path, "labels.csv", "notes.txt", "._a.png", "thumbs.db")
    assert sorted(find_images(tmp_path)) == ["a", "b", "c", "d", "e", "f", "g", "h.v2"]


def test_two_images_with_one_id_are_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "7.jpg", "7.png")
    message = r"holds two images with id '7': 7\.jpg and 7\.png\. Keep one\."
    with pytest.raises(LabelError, match=message):
        find_images(tmp_path)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    _touch(tmp_path, "labels.csv")
    with pytest.raises(
        LabelError, match=r"holds no images; expected \.png, \.jpg, .*\.dicom files"
    ):
        find_images(tmp_path)


def _labels(*ids: str) -> pd.DataFrame:
    return pd.DataFrame({"image_id": list(ids), "months": np.arange(1.0, len(ids) + 1)})


def test_each_row_gets_its_own_image_by_id(caplog: pytest.LogCaptureFixture) -> None:
    images = {i: Path(f"{i}.png") for i in ("3", "1", "2", "extra")}
    samples = match_images(_labels("1", "2", "3"), images)
    assert [p.stem for p in samples["path"]] == ["1", "2", "3"]
    assert list(samples) == ["image_id", "months", "path"]
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


def test_matching_leaves_the_labels_as_they_were() -> None:
    labels = _labels("1", "2")
    match_images(labels, {"1": Path("1.png"), "2": Path("2.png")})
    assert list(labels.columns) == ["image_id", "months"]


def _data() -> pd.DataFrame:
    return pd.DataFrame(
        {"image_id": ["2", "10"], "months": [94.0, 120.5], "sex": ["M", None]}, dtype=object
    )


def test_the_fingerprint_of_the_data_is_the_sha256_of_its_sorted_lines() -> None:
    assert data_sha256(_data()) == hashlib.sha256(b"10,120.5,None\n2,94,M\n").hexdigest()


def test_the_fingerprint_of_the_data_does_not_depend_on_row_order() -> None:
    assert data_sha256(_data()[::-1]) == data_sha256(_data())


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
