import base64
import doctest
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import boneage.audit.report
from boneage.audit.charts import format_figure, format_p
from boneage.audit.figures import audit
from boneage.audit.report import CHECKLIST, FIGURES, flatten, make_checklist, save_audit
from boneage.evaluation.prediction_table import Predictions, read_all
from builders import EVIL, Page, add_intervals, make_biased, make_full_table


def read_tables(folder: Path, *tables: pd.DataFrame, by: tuple[str, ...] = ()) -> list[Predictions]:
    paths = [folder / f"model {i}.csv" for i in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        table.to_csv(path, index=False)
    return read_all(paths, by)


def save(
    folder: Path, *tables: pd.DataFrame, by: tuple[str, ...] = (), resamples: int = 100
) -> Path:
    read = read_tables(folder, *tables, by=by)
    return save_audit(folder / "out", audit(read, resamples=resamples), read[0].table)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section filled."""
    table = make_full_table()
    folder = tmp_path_factory.mktemp("audit")
    return save(folder, table, table.assign(predicted_months=120.0), by=("site",))


@pytest.fixture(scope="module")
def parsed(page: Path) -> Page:
    return Page(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def result(page: Path) -> dict[str, Any]:
    return json.loads(page.with_name("audit.json").read_text(), parse_constant=pytest.fail)


def test_the_folder_holds_the_page_the_json_and_the_tables(page: Path) -> None:
    names = {path.name for path in page.parent.iterdir()}
    tables = {
        "accuracy", "baselines", "stages", "approaches", "calibration", "clinical", "groups",
        "comparison", "difficult", "uncertain", "suspects", "shared", "checklist",
    }  # fmt: skip
    assert names == {"report.html", "audit.json", *(f"{name}.csv" for name in tables)}


def test_the_page_is_whole_html_in_one_language_with_a_title(page: Path, parsed: Page) -> None:
    assert page.read_text().startswith("<!doctype html>")
    assert parsed.stack == []
    assert parsed.every("html") == [{"lang": "en"}]
    assert len(parsed.every("h1")) == len(parsed.every("title")) == 1


def test_the_page_asks_the_network_for_nothing_and_runs_no_script(page: Path, parsed: Page) -> None:
    for tag in ("script", "link", "iframe", "object", "embed", "base", "form"):
        assert parsed.every(tag) == []
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "srcset"]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    style = re.findall(r"<style>.*?</style>", page.read_text(), re.DOTALL)
    assert not re.search(r"url\(|@import", "".join(style))
    assert not re.search(r"https?://", page.read_text())


def test_every_picture_is_there_and_said_in_words(parsed: Page) -> None:
    pictures = parsed.every("img")
    assert len(pictures) == 4
    for picture in pictures:
        assert len(picture["alt"] or "") > 30
        data = (picture["src"] or "").partition(",")[2]
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert min(image.size) > 200


def test_every_link_of_the_page_leads_to_a_section(parsed: Page) -> None:
    sections = [section["id"] for section in parsed.every("section")]
    assert sections == ["cases", "accuracy", "agreement", "stages", "calibration", "groups",
                        "clinical", "comparison", "difficult", "checklist"]  # fmt: skip
    assert {link["href"] for link in parsed.every("a")} == {f"#{name}" for name in sections}


def test_the_page_shows_the_figures_of_the_json(parsed: Page, result: dict[str, Any]) -> None:
    assert {name for name, _, _ in FIGURES} == set(result["accuracy"])
    for name, label, digits in FIGURES:
        ends = result["accuracy"][name]
        assert parsed.row(label) == [label, format_figure(ends, digits)]
        shown = [
            float(number.replace("−", "-"))
            for number in re.findall(r"−?[0-9]+\.[0-9]+", parsed.row(label)[1])
        ]
        scale = 100 if digits < 0 else 1
        expected = [scale * end for end in ends.values() if end is not None]
        assert shown == pytest.approx(expected, abs=0.51 * 10.0 ** -abs(digits))


def test_the_page_shows_every_group_and_marks_the_small(
    parsed: Page, result: dict[str, Any], page: Path
) -> None:
    small = [group for group in result["groups"] if group["is_small"]]
    assert 0 < len(small) < len(result["groups"])
    for group in result["groups"]:
        row = parsed.row(group["group"])
        figures, apart = group["figures"], group["difference"]
        assert [cell.replace("\xa0", " ") for cell in row[1:11]] == [
            f"{group['n']}" + " (small)" * group["is_small"],
            format_figure(figures["mae_months"], 1),
            format_figure(apart["mae_months"], 1),
            format_p(group["p_corrected"]),
            format_figure(figures["bias_months"], 1),
            format_figure(apart["bias_months"], 1),
            format_p(group["bias_p_corrected"]),
            format_figure(figures["coverage"], -1),
            format_p(group["coverage_p_corrected"]),
            format_figure(figures["accuracy"], -1),
        ]
    classes = [(row.get("class") or "").split() for row in parsed.every("tr")]
    assert sum("small" in found for found in classes) == len(small)
    assert "Not assessable with these columns: race or ethnicity, diagnosis" in page.read_text()


def read_groups(page: Path) -> dict[str, dict[str, float]]:
    """Rows of groups.csv by group."""
    rows = pd.read_csv(page.with_name("groups.csv")).to_dict("records")
    return {str(row["group"]): {str(name): value for name, value in row.items()} for row in rows}


def classes_of(text: str, group: str) -> list[str]:
    """Classes of a group's row in the page."""
    opened = text.rpartition(f'<th scope="row">{group}</th>')[0].rpartition("<tr")[2]
    return re.findall("[a-z]+", opened.replace("class", ""))


def test_opposite_biases_are_named_marked_and_in_the_table(tmp_path: Path) -> None:
    page = save(tmp_path, make_biased(), resamples=2000)
    text, groups = page.read_text(), read_groups(page)
    apart = json.loads(page.with_name("audit.json").read_text())["male_minus_female"]
    shown = format_figure(apart["bias_months"], 1)
    assert re.fullmatch(r"−(19|20)\.\d \[−2\d\.\d, −1\d\.\d\]", shown)
    assert f"Signed error, male minus female: {shown} months." in text
    assert f"male ({shown} months)" in text
    assert "Signed error differs significantly" in text
    assert "No group's absolute error differs significantly" in html.unescape(text)
    parsed = Page(text)
    for name in ("male", "female"):
        assert parsed.row(name)[-1] == "signed error"
        assert "differs" in classes_of(text, name)
        assert groups[name]["bias_p_corrected"] < 0.05 < groups[name]["p_corrected"]
        assert np.isnan(groups[name]["coverage_p_corrected"])
    assert len(parsed.row("male")) == len(parsed.row("female")) == 10


def test_coverage_that_differs_is_named_and_marked(tmp_path: Path) -> None:
    table = make_biased(girls=0.0, boys=0.0)
    chance = np.where(table["sex"] == "F", 0.75, 0.95)
    covered = np.random.default_rng(7).random(len(table)) < chance
    page = save(tmp_path, add_intervals(table, covered), resamples=2000)
    text = html.unescape(page.read_text())
    assert Page(text).row("female")[-1] == "coverage"
    assert "differs" in classes_of(text, "female")
    assert re.search(
        r"Coverage differs significantly .*female \(−\d+\.\d \[.*\] percentage p", text
    )
    assert "No group's signed error differs significantly" in text
    assert "No group's absolute error differs significantly" in text
    groups = read_groups(page)
    assert groups["female"]["coverage_p_corrected"] < 0.05
    assert groups["female"]["difference_coverage"] < -0.1


def test_where_nothing_differs_the_page_says_so_and_marks_nothing(tmp_path: Path) -> None:
    table = make_biased(girls=0.0, boys=0.0)
    covered = np.random.default_rng(8).random(len(table)) < 0.9
    text = html.unescape(save(tmp_path, add_intervals(table, covered), resamples=2000).read_text())
    for measure in ("signed error", "absolute error", "coverage"):
        assert f"No group's {measure} differs significantly" in text
    assert "Signed error, male minus female: " in text
    parsed = Page(text)
    assert not any("differs" in (row.get("class") or "") for row in parsed.every("tr"))
    assert {row[-1] for row in parsed.rows if row and row[0] in ("male", "female")} == {"–"}


def test_groups_that_could_not_be_tested_are_not_said_to_be_alike(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    text = html.unescape(save(tmp_path / "none", make_biased(), resamples=0).read_text())
    assert "No difference was tested: no permutations were asked for (--resamples 0)." in text
    assert "differs significantly from" not in text
    assert Page(text).row("male")[-1] == "not tested"
    assert re.search(r"Signed error, male minus female: −\d+\.\d months\.", text)
    alike = make_biased(40).assign(sex="", reference_months=100.0, predicted_months=104.0)
    (tmp_path / "one").mkdir()
    text = html.unescape(save(tmp_path / "one", alike).read_text())
    assert "No difference was tested: every group holds all the cases." in text
    assert "The sexes cannot be compared: the cases are not known to be of both." in text
    assert "male minus female" not in text


def test_names_from_the_table_are_text_and_no_markup(parsed: Page, page: Path) -> None:
    assert parsed.row(EVIL)[1] == "30 (small)"
    assert "&lt;script&gt;" in page.read_text()


def test_the_tables_hold_the_figures_of_the_json(page: Path, result: dict[str, Any]) -> None:
    accuracy = pd.read_csv(page.with_name("accuracy.csv"), index_col="figure")
    assert accuracy.loc["mae_months"].to_dict() == pytest.approx(result["accuracy"]["mae_months"])
    groups = pd.read_csv(page.with_name("groups.csv"))
    assert groups["group"].tolist() == [group["group"] for group in result["groups"]]
    expected = [group["figures"]["mae_months"]["high"] for group in result["groups"]]
    assert groups["mae_months_high"].tolist() == pytest.approx(expected)
    for name in ("p_corrected", "bias_p", "bias_p_corrected", "coverage_p_corrected"):
        assert groups[name].tolist() == pytest.approx([g[name] for g in result["groups"]])
    for name in ("bias_months", "coverage"):
        expected = [group["difference"][name]["low"] for group in result["groups"]]
        assert groups[f"difference_{name}_low"].tolist() == pytest.approx(expected)
    for name, rows in (("stages", result["stages"]), ("clinical", result["clinical"])):
        cells = pd.read_csv(page.with_name(f"{name}.csv"), index_col="reference")
        assert cells.to_numpy().tolist() == rows["confusion_matrix"]
    bins = pd.read_csv(page.with_name("calibration.csv"))
    expected = [row["accuracy"]["low"] for row in result["calibration"]["bins"]]
    assert bins["accuracy_low"].tolist() == pytest.approx(expected)
    (approaches,) = pd.read_csv(page.with_name("approaches.csv")).to_dict("records")
    assert approaches["mcnemar_p"] == pytest.approx(result["approaches"]["mcnemar_p"])
    assert approaches["direct_accuracy"] == pytest.approx(
        result["approaches"]["direct_accuracy"]["value"]
    )
    columns = {"difficult": "error_months", "uncertain": "interval_width_months",
               "suspects": "error_in_half_widths", "shared": "p_corrected"}  # fmt: skip
    for name, column in columns.items():
        table = pd.read_csv(page.with_name(f"{name}.csv"))
        assert table[column].tolist() == pytest.approx([row[column] for row in result[name]])
    comparison = pd.read_csv(page.with_name("comparison.csv"))
    (found,) = result["comparison"]
    assert comparison["mae_months_second"].tolist() == pytest.approx(
        [found["mae_months"]["second"]["value"]]
    )
    assert comparison["mae_difference_months_low"].tolist() == pytest.approx(
        [found["mae_difference_months"]["low"]]
    )


def test_the_page_shows_the_uncertain_the_suspects_and_what_failures_share(
    parsed: Page, result: dict[str, Any], page: Path
) -> None:
    text = page.read_text(encoding="utf-8")
    assert "The 20 widest intervals" in text
    assert "Labels to look at again" in text
    first = result["suspects"][0]
    row = [row for row in parsed.rows if row and row[0] == first["image_id"]][-1]
    assert row[5] == f"{first['error_in_half_widths']:.1f}"
    shared = result["shared"][0]
    row = parsed.row(f"{shared['by']}: {shared['group']}")
    assert row[1:3] == [str(shared["n"]), format_figure(shared["failed"], -1)]
    assert row[4] == format_p(shared["p_corrected"])


def test_the_comparison_is_shown(parsed: Page, result: dict[str, Any]) -> None:
    (found,) = result["comparison"]
    row = parsed.row("model 0")
    assert row[1:3] == ["model 1", "300"]
    assert row[4] == format_figure(found["mae_difference_months"], 2)
    assert row[6] == format_p(found["mcnemar_p"])


def test_what_was_not_asked_is_said_and_not_shown(tmp_path: Path) -> None:
    table = make_full_table(1)[["image_id", "sex", "reference_months", "predicted_months"]]
    text = save(tmp_path, table).read_text()
    parsed = Page(text)
    assert "Not assessable: the table has no chronological age." in text
    assert "One table was given; pass a second one to compare with it." in text
    assert len(parsed.every("img")) == 3
    topics = {row[1]: row[2] for row in parsed.rows if row[0].startswith(("CLAIM", "TRIPOD"))}
    assert topics["calibration of probabilities"] == "not answered"
    assert topics["calibration of intervals"] == "not answered"
    assert topics["what an error means for a patient"] == "not answered"
    assert topics["analysis of failures"] == "difficult"
    assert parsed.row("intraclass correlation ICC(2,1)")[1] == "–"
    assert "[" not in parsed.row("mean absolute error, months")[1]
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"base64,[^\"]+", "", text))


def test_figures_become_columns() -> None:
    ends = {"value": 1.0, "low": None, "high": 2.0}
    flat = {"mae": 1.0, "mae_low": None, "mae_high": 2.0}
    assert flatten({"mae": ends}) == flat
    assert flatten({"figure": "mae", **ends}) == {"figure": "mae", **ends}
    assert flatten({"n": 3, "figures": {"mae": ends}, "p": None}) == {"n": 3, **flat, "p": None}
    assert flatten({"difference": {"mae": ends}}) == {f"difference_{k}": v for k, v in flat.items()}
    assert flatten({"clinical": {"n": 2, "clean": ends}}) == {
        "clinical_n": 2, "clinical_clean": 1.0, "clinical_clean_low": None,
        "clinical_clean_high": 2.0,
    }  # fmt: skip
    assert doctest.testmod(boneage.audit.report).failed == 0


def test_cases_left_out_are_counted(tmp_path: Path) -> None:
    table = make_full_table(20).assign(status=["ok"] * 16 + ["reject"] * 4)
    table.loc[:2, "reference_months"] = None
    text = save(tmp_path, table.drop(columns="chronological_age_months")).read_text()
    assert "13 cases with a prediction and a reference; 4 more had no answer" in text
    assert "; 3 were answered but have no reference" in text
    assert "no row is marked" not in text


def test_a_page_without_draws_speaks_of_no_intervals(tmp_path: Path) -> None:
    text = save(tmp_path, make_full_table(20).drop(columns="site"), resamples=0).read_text()
    assert "bootstrap intervals (" not in text
    assert "no bootstrap resamples were asked for (--resamples 0)." in text
    assert "20 cases with a prediction and a reference; no row is marked as one without" in text


Rows = dict[str, dict[str, str | None]]


def check(folder: Path, table: pd.DataFrame, *more: pd.DataFrame, **options: Any) -> Rows:
    """Rows of the checklist by topic, from the JSON; the page and the CSV hold the same."""
    folder.mkdir(exist_ok=True)
    page = save(folder, table, *more, **options)
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
        assert shown[row["topic"]] == [row["section"] or "not answered", row["missing"] or ""]
    return {row["topic"]: row for row in rows}


def judge(
    folder: Path, *tables: pd.DataFrame, by: tuple[str, ...] = (), resamples: int = 100
) -> Rows:
    """Rows of the checklist by topic, without the page."""
    folder.mkdir(exist_ok=True)
    rows = make_checklist(audit(read_tables(folder, *tables, by=by), resamples=resamples))
    return {str(row["topic"]): row for row in rows}


GUIDES = {guide for guide, _, _ in CHECKLIST}
FAIRNESS = "performance and fairness in groups of people"
BARE = ["image_id", "sex", "reference_months", "predicted_months"]


def test_the_checklist_of_a_full_report_names_the_sections_and_what_they_lack(
    page: Path, result: dict[str, Any]
) -> None:
    rows = {row["topic"]: row for row in result["checklist"]}
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
    assert "outside the reference tables" in rows["what an error means for a patient"]["missing"]


def test_a_reference_standard_is_never_said_to_be_described(tmp_path: Path) -> None:
    row = check(tmp_path, make_full_table())["what the reference standard is, and how good it is"]
    assert row["section"] is None
    assert "noise floor from the literature" in str(row["missing"])


def test_the_checklist_of_a_bare_table_answers_what_it_can(tmp_path: Path) -> None:
    rows = check(tmp_path, make_biased()[BARE])
    assert rows["calibration of probabilities"]["section"] is None
    assert rows["calibration of intervals"]["section"] is None
    assert rows["comparison with other models or readers, paired"]["section"] is None
    assert rows["what an error means for a patient"]["section"] is None
    assert rows["what an error means for a patient"]["missing"] == (
        "the table has no chronological age"
    )
    assert rows["robustness to changes of the image"]["section"] is None
    assert rows["where on the image the evidence lies"]["section"] is None
    assert rows["analysis of failures"]["section"] == "difficult"
    assert rows[FAIRNESS]["section"] == "groups"


def test_probabilities_and_intervals_are_answered_one_without_the_other(tmp_path: Path) -> None:
    table = make_full_table()
    ends = ["predicted_low_months", "predicted_high_months"]
    chances = ["p_child", "p_adolescent", "p_adult"]
    rows = check(tmp_path / "probabilities", table.drop(columns=ends))
    assert rows["calibration of probabilities"]["section"] == "calibration"
    assert "likeliest stage" in str(rows["calibration of probabilities"]["missing"])
    assert rows["calibration of intervals"]["section"] is None
    rows = check(tmp_path / "intervals", table.drop(columns=chances))
    assert rows["calibration of probabilities"]["section"] is None
    assert rows["calibration of intervals"]["section"] == "groups"
    assert "nominal coverage" in str(rows["calibration of intervals"]["missing"])


def test_without_draws_neither_uncertainty_nor_tests_are_claimed(tmp_path: Path) -> None:
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
    # One group is no comparison, and how an image was taken no group of people.
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


def test_the_comparison_is_answered_where_there_is_one(tmp_path: Path) -> None:
    topic = "comparison with other models or readers, paired"
    table = make_biased()
    rows = judge(tmp_path / "two", table, table.assign(predicted_months=120.0))
    assert rows[topic] == {
        "guide": "CLAIM", "topic": topic, "section": "comparison", "missing": None
    }  # fmt: skip
    others = [table.assign(predicted_months=age) for age in (120.0, 121.0)]
    missing = judge(tmp_path / "three", table, *others)[topic]["missing"]
    assert "correction for the number of comparisons" in str(missing)


def test_a_page_without_single_cases_says_what_of_the_failures_is_missing(
    result: dict[str, Any],
) -> None:
    def answer(**changes: Any) -> dict[str, str | None]:
        rows = make_checklist({**result, "uncertain": [], "suspects": [], **changes})
        return next(row for row in rows if row["topic"] == "analysis of failures")

    assert answer(difficult=[])["section"] == "difficult"
    assert "single cases" in str(answer(difficult=[])["missing"])
    assert answer(difficult=[], shared=[])["section"] is None


def test_the_caption_of_the_groups_says_what_the_picture_shows(parsed: Page) -> None:
    (caption,) = (
        picture["alt"] or "" for picture in parsed.every("img")
        if "by group" in (picture["alt"] or "").lower()
    )  # fmt: skip
    for words in ("mean absolute error", "signed error", "coverage", "95% interval", "all cases",
                  "under 50 cases"):  # fmt: skip
        assert words in caption
