import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from boneage.audit.checklist import CHECKLIST, make_checklist
from boneage.audit.figures import audit
from boneage.audit.report import save_audit
from builders import Page, make_biased, make_full_table, read_tables

Rows = dict[str, dict[str, str | None]]


def judge(
    folder: Path, *tables: pd.DataFrame, by: tuple[str, ...] = (), resamples: int = 100
) -> Rows:
    """Rows of the checklist by topic, without the page."""
    folder.mkdir(exist_ok=True)
    rows = make_checklist(audit(read_tables(folder, *tables, by=by), resamples=resamples))
    return {str(row["topic"]): row for row in rows}


def check(folder: Path, table: pd.DataFrame, resamples: int = 100) -> Rows:
    """Rows of the checklist by topic, from the JSON; the page and the CSV hold the same."""
    folder.mkdir(exist_ok=True)
    (read,) = read_tables(folder, table)
    page = save_audit(folder / "out", audit([read], resamples=resamples), read.table)
    rows = json.loads(page.with_name("audit.json").read_text())["checklist"]
    assert len(rows) == len(CHECKLIST)
    parsed = Page(page.read_text())
    sections = {section["id"] for section in parsed.every("section")}
    kept = pd.read_csv(page.with_name("checklist.csv"), keep_default_na=False)
    assert kept.to_dict("records") == [{k: v or "" for k, v in row.items()} for row in rows]
    shown = {row[1]: row[2:] for row in parsed.rows if row and row[0] in GUIDES}
    for row in rows:
        assert set(row) == {"guide", "topic", "section", "missing"}
        assert row["section"] is None or row["section"] in sections
        assert row["section"] or row["missing"], row["topic"]
        assert shown[row["topic"]] == [row["section"] or "not covered", row["missing"] or ""]
    return {row["topic"]: row for row in rows}


GUIDES = {guide for guide, _, _ in CHECKLIST}
FAIRNESS = "performance and fairness in groups of people"
BARE = ["image_id", "sex", "reference_months", "predicted_months"]


def test_the_checklist_of_a_full_report_names_the_sections_and_what_they_lack(
    tmp_path: Path,
) -> None:
    table = make_full_table()
    other = table.assign(predicted_months=120.0)
    rows = judge(tmp_path, table, other, by=("site",))
    sections = {topic: row["section"] for topic, row in rows.items()}
    assert {topic: where for topic, where in sections.items() if where} == {
        "cases without a prediction, and what was done with them": "cases",
        "number of cases, overall and in each group": "groups",
        "performance with its uncertainty": "accuracy",
        "comparison with predictions that need no model": "accuracy",
        "agreement and calibration of what is predicted": "agreement",
        "calibration of probabilities": "calibration",
        "calibration of intervals": "groups",
        FAIRNESS: "groups",
        "groups that the data do not show": "groups",
        "analysis of failures": "difficult",
        "comparison with other models or readers, paired": "comparison",
        "what an error means for a patient": "clinical",
    }
    assert rows["performance with its uncertainty"]["missing"] is None
    assert "race or ethnicity, diagnosis" in (rows[FAIRNESS]["missing"] or "")
    assert "outside the" in str(rows["what an error means for a patient"]["missing"])


def test_the_checklist_of_a_bare_table_covers_what_it_can(tmp_path: Path) -> None:
    rows = check(tmp_path, make_biased()[BARE])
    for topic in (
        "calibration of probabilities", "calibration of intervals",
        "comparison with other models or readers, paired", "what an error means for a patient",
        "robustness to changes of the image", "where on the image the evidence lies",
        "what the reference standard is, and how good it is",
    ):  # fmt: skip
        assert rows[topic]["section"] is None
    missing = {topic: str(row["missing"]) for topic, row in rows.items()}
    assert missing["what an error means for a patient"] == "the table has no chronological age"
    standard = missing["what the reference standard is, and how good it is"]
    assert "noise floor from the literature" in standard
    assert rows["analysis of failures"]["section"] == "difficult"
    assert rows[FAIRNESS]["section"] == "groups"


def test_probabilities_and_intervals_are_covered_one_without_the_other(tmp_path: Path) -> None:
    table = make_full_table()
    ends = ["predicted_low_months", "predicted_high_months"]
    probabilities = ["p_child", "p_adolescent", "p_adult"]
    rows = check(tmp_path / "probabilities", table.drop(columns=ends))
    assert rows["calibration of probabilities"]["section"] == "calibration"
    assert "likeliest stage" in str(rows["calibration of probabilities"]["missing"])
    assert rows["calibration of intervals"]["section"] is None
    rows = check(tmp_path / "intervals", table.drop(columns=probabilities))
    assert rows["calibration of probabilities"]["section"] is None
    assert rows["calibration of intervals"]["section"] == "groups"
    assert "nominal coverage" in str(rows["calibration of intervals"]["missing"])


def test_without_resamples_neither_uncertainty_nor_tests_are_claimed(tmp_path: Path) -> None:
    rows = check(tmp_path, make_biased()[BARE], resamples=0)
    uncertainty = rows["performance with its uncertainty"]
    assert uncertainty["section"] is None
    assert "--resamples 0" in str(uncertainty["missing"])
    assert "tests of the differences (--resamples 0)" in str(rows[FAIRNESS]["missing"])


def test_one_case_has_no_uncertainty_no_agreement_and_no_groups(tmp_path: Path) -> None:
    rows = check(tmp_path, make_full_table(1)[BARE])
    assert rows["performance with its uncertainty"]["section"] is None
    assert "--resamples" not in str(rows["performance with its uncertainty"]["missing"])
    assert rows["agreement and calibration of what is predicted"]["section"] is None
    assert rows[FAIRNESS]["section"] is None
    assert "what failures have in common" in str(rows["analysis of failures"]["missing"])


@pytest.mark.parametrize("sex", ["", "M"])
def test_age_bands_alone_are_no_groups_of_people(tmp_path: Path, sex: str) -> None:
    table = make_biased().assign(sex=sex, site=["a", "b", "b", "c"] * 100, lot="x", exposure="")
    table.loc[:99, "exposure"] = "1 of 3, darkest"
    row = judge(tmp_path / "bare", table)[FAIRNESS]
    assert row["section"] is None
    assert "both sexes" in str(row["missing"])
    # One group is no comparison, and acquisition characteristics are no group of people.
    row = judge(tmp_path / "lot", table, by=("lot", "exposure"))[FAIRNESS]
    assert row["section"] is None
    row = judge(tmp_path / "site", table, by=("site",))[FAIRNESS]
    assert row["section"] == "groups"
    assert "both sexes" in str(row["missing"])


def test_small_groups_of_people_are_a_gap(tmp_path: Path) -> None:
    table = make_biased().assign(site=["a"] * 30 + ["b"] * 370)
    row = judge(tmp_path, table, by=("site",))[FAIRNESS]
    assert "1 of 4 groups has under 50 cases" in str(row["missing"])


def test_cases_of_unknown_sex_or_group_are_no_group_of_people(tmp_path: Path) -> None:
    table = make_biased().assign(site=["a", "a", "a", ""] * 100)
    row = judge(tmp_path / "site", table.assign(sex=["M", ""] * 200), by=("site",))[FAIRNESS]
    assert row["section"] is None
    table.loc[:20, "sex"] = ""
    row = judge(tmp_path / "sexes", table, by=("site",), resamples=2000)[FAIRNESS]
    assert row["section"] == "groups"
    assert row["missing"] == "groups by race or ethnicity, diagnosis"
    row = judge(tmp_path / "few", table, by=("site",), resamples=20)[FAIRNESS]
    assert "tests of the differences (--resamples 20)" in str(row["missing"])


def test_the_comparison_is_met_where_there_is_one(tmp_path: Path) -> None:
    topic = "comparison with other models or readers, paired"
    table = make_biased()
    rows = judge(tmp_path / "two", table, table.assign(predicted_months=120.0))
    assert rows[topic] == {
        "guide": "CLAIM", "topic": topic, "section": "comparison", "missing": None
    }  # fmt: skip
    others = [table.assign(predicted_months=age) for age in (120.0, 121.0)]
    missing = judge(tmp_path / "three", table, *others)[topic]["missing"]
    assert "correction for the number of comparisons" in str(missing)


def test_a_result_without_single_cases_lacks_those_of_the_failures(tmp_path: Path) -> None:
    result = audit(read_tables(tmp_path, make_full_table()), resamples=0)

    def judge_failures(**changes: Any) -> dict[str, str | None]:
        rows = make_checklist({**result, "uncertain": [], "suspects": [], **changes})
        return next(row for row in rows if row["topic"] == "analysis of failures")

    assert judge_failures(difficult=[])["section"] == "difficult"
    assert "single cases" in str(judge_failures(difficult=[])["missing"])
    assert judge_failures(difficult=[], shared=[])["section"] is None
