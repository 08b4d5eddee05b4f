from pathlib import Path

import pytest

from boneage.data.labels import read_known
from boneage.errors import LabelError
from boneage.evaluation.prediction_table import read_predictions
from boneage.files import clean_id
from boneage.tables.columns import find_columns, read_ages, read_csv, read_numbers

PLAIN = "id,boneage,sex\n1,132.5,M\n2,90,F\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", ";").replace(".", ",").encode(),
        PLAIN.replace(",", "\t").replace(".", ",").encode(),
        b"\xef\xbb\xbf" + PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode("utf-16"),
        b"sep=;\r\n" + PLAIN.replace(",", ";").encode(),
        PLAIN.replace("132.5", '"132,5"').encode(),
        b'"id";"Bone Age (months)";"Sex"\n1;132,5;boy\n2;90;girl\n',
        b"filename,boneage_years,male\n1.png,11.0416667,1\n2.png,7.5,0\n",
    ],
    ids=["comma", "semicolon", "decimal comma", "tab", "byte order mark", "UTF-16", "sep line",
         "quoted decimal comma", "quoted header", "years and file names"],
)  # fmt: skip
def test_a_table_is_read_as_spreadsheets_around_the_world_write_it(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    known = read_known(path)
    assert known == {
        "1": ("M", pytest.approx(132.5 / 12, abs=1e-6)),
        "2": ("F", pytest.approx(7.5)),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,boneage,sex\n1,132,5,M\n",
         r"saw 4 \(fields separated by comma; accepted: comma, semicolon, tab;"),
        (b"PK\x03\x04rest", "is a workbook or an archive; save the sheet as CSV"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(LabelError, match=message):
        read_csv(path)


@pytest.mark.parametrize(
    ("written", "clean"),
    [("900004.0", "900004"), ("900004.png", "900004"), (" 7 ", "7"), ("A/7.png", "A/7"),
     ("A\\7", "A/7"), ("/A/7", "A/7"), ("1.2.840", "1.2.840"), ("3.5", "3.5"), ("007", "007")],
)  # fmt: skip
def test_an_id_is_compared_without_suffix_blanks_and_decimal_zero(written: str, clean: str) -> None:
    assert clean_id(written) == clean


YEARS = "id,{},sex\n1,11.0,M\n2,18.75,F\n"
ALMOST_YEARS = "".join(f"{i},{5 + i / 10},M\n" for i in range(99))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((YEARS.format(name), r"is below 21 in 2 of 2 rows, which looks like years\. Rename the")
          for name in ("boneage", "Bone Age (months)", "reference_months")),
        (f"id,boneage,sex\n{ALMOST_YEARS}99,150,M\n",
         "boneage is below 21 in 99 of 100 rows, which looks like"),
        ("id,boneage_years,sex\n1,11.0,M\n2,132,F\n",
         r"line 3: boneage_years is 132, which looks like months\. Rename the column"),
        ("id,boneage,boneage_years,sex\n1,94,9.0,M\n",
         "boneage_years is 9 and boneage 94, which differ"),
        ("sep=;\nid;boneage;sex\n1;94;M\n2;old;F\n", "line 4: boneage is 'old'"),
    ],
)  # fmt: skip
def test_ages_that_cannot_be_what_their_column_says_are_refused(
    path: Path, text: str, message: str
) -> None:
    path.write_text(text)
    with pytest.raises(LabelError, match=message):
        read_known(path)


def test_infants_are_read_in_years(path: Path) -> None:
    path.write_text("id,boneage_years,sex\n1,0.5,M\n")
    assert read_known(path) == {"1": ("M", 0.5)}


@pytest.mark.parametrize("header", ["Case ID;male;bone_age", "id;Gender;Bone Age (months)"])
def test_predictions_may_have_the_columns_that_labels_have(path: Path, header: str) -> None:
    path.write_text(f"{header};predicted_years\n7.png;1;94,5;8,1\n8.0;0;120;9,9\n")
    table = read_predictions(path).table
    assert table["image_id"].tolist() == ["7", "8"]
    assert table["sex"].tolist() == ["M", "F"]
    assert table["reference_years"].tolist() == [94.5 / 12, 10.0]


def test_our_own_column_names_win_in_a_table_that_has_others_too(path: Path) -> None:
    header = ["id", "image_id", "boneage", "reference_months", "sex"]
    assert find_columns(path, header, names_win=True) == {
        "image_id": "image_id", "months": "reference_months", "sex": "sex",
    }  # fmt: skip
    with pytest.raises(LabelError, match="has 2 columns that could be image_id: id, image_id"):
        find_columns(path, header)


def test_a_column_that_is_not_there_is_empty_and_one_of_words_is_refused(path: Path) -> None:
    path.write_text("id,x\n1,3\n2,1.2.3\n")
    raw = read_csv(path)
    assert read_numbers(path, raw, "none").isna().all()
    assert read_ages(path, raw, months=None, years=None).isna().all()
    with pytest.raises(LabelError, match=r"line 3: x is '1\.2\.3'; expected a number or nothing"):
        read_numbers(path, raw, "x")
