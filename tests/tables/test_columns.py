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


def test_errors_name_the_line_of_the_file(path: Path) -> None:
    path.write_text("sep=;\nid;boneage;sex\n1;94;M\n2;old;F\n")
    with pytest.raises(LabelError, match="line 4: boneage is 'old'"):
        read_known(path)


def test_a_ragged_row_is_refused_and_the_message_names_the_separators(path: Path) -> None:
    path.write_text("id,boneage,sex\n1,132,5,M\n")
    with pytest.raises(
        LabelError, match=r"saw 4 \(fields separated by comma; accepted: comma, semicolon, tab;"
    ):
        read_csv(path)


def test_a_workbook_is_refused_and_called_one(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04rest")
    with pytest.raises(LabelError, match="is a workbook or an archive; save the sheet as CSV"):
        read_csv(path)


@pytest.mark.parametrize(
    ("written", "clean"),
    [
        ("900004.0", "900004"),
        ("900004.png", "900004"),
        (" 7 ", "7"),
        ("A/7.png", "A/7"),
        ("A\\7", "A/7"),
        ("/A/7", "A/7"),
        ("1.2.840", "1.2.840"),
        ("3.5", "3.5"),
        ("007", "007"),
    ],
)
def test_an_id_is_compared_without_suffix_blanks_and_decimal_zero(written: str, clean: str) -> None:
    assert clean_id(written) == clean


@pytest.mark.parametrize("unit", ["boneage", "Bone Age (months)", "reference_months"])
def test_years_in_a_column_of_months_are_refused_with_the_column(path: Path, unit: str) -> None:
    path.write_text(f"id,{unit},sex\n1,11.0,M\n2,18.75,F\n")
    with pytest.raises(
        LabelError, match=r"is below 21 in 2 of 2 rows, which looks like years\. Rename the"
    ):
        read_known(path)


def test_one_odd_row_does_not_hide_that_a_column_holds_years(path: Path) -> None:
    rows = "".join(f"{i},{5 + i / 10},M\n" for i in range(99))
    path.write_text(f"id,boneage,sex\n{rows}99,150,M\n")
    with pytest.raises(LabelError, match="boneage is below 21 in 99 of 100 rows, which looks like"):
        read_known(path)


def test_months_in_a_column_of_years_are_refused_with_the_line(path: Path) -> None:
    path.write_text("id,boneage_years,sex\n1,11.0,M\n2,132,F\n")
    with pytest.raises(
        LabelError,
        match=r"line 3: boneage_years is 132, which looks like months\. Rename the column",
    ):
        read_known(path)


def test_infants_are_read_in_years(path: Path) -> None:
    path.write_text("id,boneage_years,sex\n1,0.5,M\n")
    assert read_known(path) == {"1": ("M", 0.5)}


def test_an_age_given_in_both_units_must_agree(path: Path) -> None:
    path.write_text("id,boneage,boneage_years,sex\n1,94,9.0,M\n")
    with pytest.raises(LabelError, match="boneage_years is 9 and boneage 94, which differ"):
        read_known(path)


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


def test_a_column_that_is_not_there_is_empty(path: Path) -> None:
    path.write_text(PLAIN)
    raw = read_csv(path)
    assert read_numbers(path, raw, "none").isna().all()
    assert read_ages(path, raw, months=None, years=None).isna().all()


def test_a_value_that_is_no_number_is_named_with_its_line(path: Path) -> None:
    path.write_text("id,x\n1,3\n2,1.2.3\n")
    with pytest.raises(LabelError, match=r"line 3: x is '1\.2\.3'; expected a number or nothing"):
        read_numbers(path, read_csv(path), "x")
