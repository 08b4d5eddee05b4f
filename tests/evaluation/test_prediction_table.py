from pathlib import Path

import pytest

from boneage.errors import LabelError
from boneage.evaluation.prediction_table import (
    Predictions,
    name_age_band,
    read_all,
    read_predictions,
)
from boneage.inference.prediction import COLUMNS

PLAIN = "image_id,sex,reference_years,predicted_years\n1,M,10,11\n2,F,12,11.5\n3,,5,5.5\n"
HEADER = "image_id,sex,reference_years,predicted_years"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def read(path: Path, text: str, *by: str) -> Predictions:
    path.write_text(text, encoding="utf-8")
    return read_predictions(path, by)


def refuse(path: Path, text: str, message: str, *by: str) -> None:
    with pytest.raises(LabelError) as caught:
        read(path, text, *by)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_plain_table_is_read_in_years_with_stages_from_the_age(path: Path) -> None:
    found = read(path, PLAIN)
    assert found.name == "table"
    assert found.table["image_id"].tolist() == ["1", "2", "3"]
    assert found.table["sex"].tolist() == ["M", "F", None]
    assert found.table["reference_years"].tolist() == [10.0, 12.0, 5.0]
    assert found.table["predicted_years"].tolist() == [11.0, 11.5, 5.5]
    assert found.table["reference_stage"].tolist() == ["Child", "Adolescent", "Child"]
    assert found.table["predicted_stage"].tolist() == ["Child"] * 3
    assert not found.has_stage
    assert (found.n_unanswered, found.n_without_reference) == (0, 0)


@pytest.mark.parametrize(
    ("columns", "values", "name", "expected"),
    [
        ("sex,reference_months,predicted_years", "M,120,11", "reference_years", 10.0),
        ("sex,reference_years,predicted_months", "M,10,132", "predicted_years", 11.0),
        ("sex,reference_years,predicted_years,predicted_months", "M,1,1.04,12.5",
         "predicted_years", 1.04),  # both units, which agree
        ("sex,reference_years,predicted_years,predicted_low_months,predicted_high_months",
         "M,2,2.1,12,36", "predicted_low_years", 1.0),  # an infant's interval
        ("sex,reference_years,predicted_years,predicted_low_months,predicted_high_months",
         "F,2,1.9,-2,30", "predicted_low_years", -2 / 12),
        ("sex,reference_years,predicted_years,chronological_age_years", "M,10,11,9.5",
         "chronological_age_years", 9.5),
        ("sex,reference_years,predicted_years,p_child,p_adolescent,p_adult", "M,10,10,0.2,0.7,0.1",
         "predicted_stage", "Adolescent"),  # the likeliest stage is the model's
        ("sex,reference_years,predicted_years,reference_stage", "M,12.0,11,Child",
         "reference_stage", "Child"),  # rounding moved the age
    ],
)  # fmt: skip
def test_each_column_has_its_own_unit_and_stands_beside_others(
    path: Path, columns: str, values: str, name: str, expected: object
) -> None:
    found = read(path, f"image_id,{columns}\n1,{values}\n")
    assert found.table.loc[0, name] == expected
    assert found.has_stage == ("p_child" in columns)


def test_our_own_predictions_go_in_as_they_are_and_what_has_no_prediction_is_counted(
    path: Path,
) -> None:
    text = ",".join(COLUMNS) + "\n"
    text += "1,a/1.png,M,1.04,0.5,2,12.48,Child,0.9,0.1,0,0.8,ok,,1.0,Child\n"
    text += "2,a/2.png,F,18.5,17,20,222,Adolescent,0,0.6,0.4,0.1,warn,odd,17.9,Adolescent\n"
    text += "3,a/3.png,,,,,,,,,,,reject,small,9,Child\n"
    text += "4,a/4.png,,9,8,10,108,Child,1,0,0,,ok,,,\n"
    found = read(path, text)
    assert found.table["image_id"].tolist() == ["1", "2"]
    assert found.table["predicted_low_years"].tolist() == [0.5, 17.0]
    assert found.table["p_adolescent"].tolist() == [0.1, 0.6]
    assert found.table["predicted_stage"].tolist() == ["Child", "Adolescent"]
    assert found.has_stage
    assert (found.n_unanswered, found.n_without_reference) == (1, 1)
    # Those of a model without intervals and stages too.
    found = read(path, ",".join(COLUMNS) + "\n1,a/1.png,M,1.04,,,12.48,Child,,,,,ok,,1.0,Child\n")
    assert not {"predicted_low_years", "p_child"} & set(found.table)


def test_the_table_of_an_evaluation_goes_in_as_it_is(path: Path) -> None:
    text = (
        "image_id,split,sex,reference_years,predicted_years,reference_stage,predicted_stage,"
        "p_child,p_adolescent,p_adult\n7,test,F,12.5,11.9,Adolescent,Adolescent,0.4,0.6,0.0\n"
    )
    found = read(path, text, "split")
    assert found.groups["split"].tolist() == ["test"]
    assert found.table.loc[0, "predicted_stage"] == "Adolescent"


def test_groups_are_text_that_no_column_of_the_audit_is_mixed_with(path: Path) -> None:
    found = read(path, PLAIN, "image_id")
    assert found.groups["image_id"].tolist() == ["1", "2", "3"]
    found = read(path, f"{HEADER},site\n1,M,10,11,a\n2,M,10,11, \n", "site", "site")
    assert found.groups["site"].tolist() == ["a", "not given"]
    assert list(found.groups) == ["site"]
    found = read(path, f"{HEADER},chronological_age_years\n1,M,10,11,9.5\n2,M,10,11,\n")
    assert found.table["chronological_age_years"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a readable CSV"),
        (f"{HEADER}\n", "has a header but no rows"),
        ("case,sex,reference_years,predicted_years\n1,M,10,11\n",
         "no column 'image_id'; found: case"),
        ("image_id,reference_years,predicted_years\n1,10,11\n", "no column 'sex'"),
        (f"{HEADER},sex\n1,M,10,11,F\n", "has the column 'sex' twice"),
        (f"{HEADER}\n1,M,10,11,12\n", "Expected 4 fields in line 2, saw 5"),
        ("image_id,sex,predicted_years\n1,M,10\n", "has no reference age"),
        (f"{HEADER}\n1,M,,10\n", "has no reference age"),
        ("image_id,sex,reference_years\n1,M,10\n", "has no prediction"),
        (f"{HEADER}\n1,M,10,11\n1,F,10,11\n", "line 3: id '1' was given on line 2 already"),
        (f"{HEADER}\n1,M,10,11\n ,F,10,11\n", "line 3: the image id is empty"),
        (f"{HEADER}\n1,X,10,11\n", "line 2: sex is 'X'; expected M or F"),
        (f"{HEADER}\n1,M,ten,11\n", "line 2: reference_years is 'ten'; expected years"),
        (f"{HEADER}\n1,M,10,inf\n", "line 2: predicted_years is 'inf'"),
        (f"{HEADER}\n1,M,10,11\n2,M,10,NaN\n", "line 3 has no prediction. Fill it"),
        (f"{HEADER},status\n1,M,10,11,ok\n2,M,10,,ok\n", "line 3 has no prediction"),
        (f"{HEADER},status\n1,M,10,11,final\n", "status is 'final'; expected ok, warn, reject"),
        (f"{HEADER},status\n1,M,10,11,reject\n2,M,,11,ok\n", "no row with both a prediction and a"),
        (f"{HEADER}\n1,M,0,11\n",
         "line 2: reference_years is '0'; expected years, a number above 0"),
        (f"{HEADER}\n1,M,10,-1\n",
         "line 2: predicted_years is '-1'; expected years, a number above -1"),
        (f"{HEADER},predicted_low_years,predicted_high_years\n1,M,10,10,-999,11\n",
         "predicted_low_years is '-999'"),
    ],
)  # fmt: skip
def test_what_cannot_be_audited_is_named_with_its_line(path: Path, text: str, message: str) -> None:
    refuse(path, text, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\n1,M,10,11\n2,M,120,11\n", "line 3: reference_years is 120, which looks like"),
        (f"{HEADER}\n1,M,10,132\n", "Rename the column to predicted_months, or divide it by 12"),
        ("image_id,sex,reference_months,predicted_years\n1,M,10,10\n2,F,15,14\n",
         "reference_months is below 21 in 2 of 2 rows, which looks like years. Rename the"),
        ("image_id,sex,reference_months,predicted_months\n1,M,1200,90\n", "at most 300"),
        (f"{HEADER}\n1,M,0.8,10\n2,F,0.7,9\n", "predictions are 13 times the references"),
        (f"{HEADER},reference_months\n1,M,10,11,10\n", "10 and reference_months 10, which differ"),
        (f"{HEADER},chronological_age_months\n1,M,10,11,10\n",
         "chronological_age_months is below 21"),
        (f"{HEADER},predicted_low_years,predicted_high_years\n1,M,10,10,110,130\n",
         "predicted_low_years is 110, which looks like months"),
    ],
)  # fmt: skip
def test_ages_in_another_unit_than_their_column_says_are_refused(
    path: Path, text: str, message: str
) -> None:
    refuse(path, text, message)


P = ",p_child,p_adolescent,p_adult"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER},predicted_low_years\n1,M,10,11,9\n", "predicted_high_years is empty, where"),
        (f"{HEADER},predicted_low_years,predicted_high_years\n1,M,10,11,9,12\n2,M,9,9,,\n",
         "line 3: predicted_low_years is empty"),
        (f"{HEADER},predicted_low_years,predicted_high_years\n1,M,10,11,12,9\n",
         "from 12 to 9 years ends before it starts"),
        (f"{HEADER}{P}\n1,M,10,11,90,10,0\n", "are 90, 10, 0; expected probabilities, sum 1"),
        (f"{HEADER}{P}\n1,M,10,11,1.5,-0.5,0\n", "are 1.5, -0.5, 0; expected probabilities"),
        (f"{HEADER}{P}\n1,M,10,11,1,0,0\n2,M,10,11,,,\n", "line 3: p_child is empty"),
        (f"{HEADER},predicted_stage\n1,M,10,11,Teen\n", "predicted_stage is 'Teen'; expected Chi"),
        (f"{HEADER},reference_stage\n1,M,10,11,Adult\n", "reference_stage is Adult, but the age 1"),
    ],
)  # fmt: skip
def test_intervals_probabilities_and_stages_that_cannot_be_true_are_refused(
    path: Path, text: str, message: str
) -> None:
    refuse(path, text, message)


def test_groups_that_are_none_and_a_missing_file_are_refused(path: Path) -> None:
    with pytest.raises(LabelError, match=r"table\.csv does not exist; expected a CSV of pred"):
        read_predictions(path)
    refuse(path, PLAIN, "has no column 'site'", "site")
    rows = "".join(f"{i},M,10,11\n" for i in range(51))
    refuse(path, f"{HEADER}\n{rows}", "image_id has 51 values; expected at most 50", "image_id")
    path.write_text(PLAIN)
    with pytest.raises(LabelError, match="given by sex already"):
        read_predictions(path, ["sex"])


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/x/table.csv", "b/x/table.csv", "b/x/other.csv")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PLAIN)
    assert [t.name for t in read_all(paths)] == ["a/x/table.csv", "b/x/table.csv", "b/x/other.csv"]
    assert [t.name for t in read_all(paths[1:])] == ["table", "other"]
    with pytest.raises(LabelError, match="is given twice"):
        read_all([paths[0], paths[1], tmp_path / "a" / ".." / "a/x/table.csv"])


def test_only_the_first_table_needs_the_columns_of_groups(tmp_path: Path) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text(f"{HEADER},site\n1,M,10,11,a\n")
    second.write_text(PLAIN)
    groups = [list(table.groups) for table in read_all([first, second], ["site"])]
    assert groups == [["site"], []]


@pytest.mark.parametrize(
    ("years", "band"),
    [(0.1, "0 to under 6 years"), (5.999, "0 to under 6 years"), (6.0, "6 to under 9 years"),
     (11.999, "9 to under 12 years"), (12.0, "12 to under 15 years"), (15.0, "15 years and over"),
     (25.0, "15 years and over")],
)  # fmt: skip
def test_a_band_of_ages_begins_at_its_first_age_and_ends_before_its_last(
    years: float, band: str
) -> None:
    assert name_age_band(years) == band
