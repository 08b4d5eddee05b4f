import base64
import doctest
import hashlib
import html
import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import boneage.audit.report
from boneage.audit.figures import audit
from boneage.audit.report import FIGURES, describe_run, flatten, list_cases, make_page, save_audit
from boneage.audit.wording import format_figure, format_p
from builders import EVIL, Page, add_intervals, make_biased, make_full_table, read_tables

COMMAND = ["boneage", "audit", "model 0.csv", "--by", "site"]


def save(
    folder: Path, *tables: pd.DataFrame, by: tuple[str, ...] = (), resamples: int = 100
) -> Path:
    read = read_tables(folder, *tables, by=by)
    inputs = [folder / f"model {i}.csv" for i in range(len(tables))]
    result = audit(read, resamples=resamples) | describe_run(COMMAND, inputs)
    return save_audit(folder / "out", result, read[0].table)


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


def test_the_page_is_whole_html_in_one_language_that_shows_names_as_text(
    page: Path, parsed: Page
) -> None:
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert parsed.stack == []
    assert parsed.every("html") == [{"lang": "en"}]
    assert len(parsed.every("h1")) == len(parsed.every("title")) == 1
    sections = [section["id"] for section in parsed.every("section")]
    assert sections == ["summary", "cases", "accuracy", "agreement", "stages", "calibration",
                        "groups", "clinical", "comparison", "difficult", "checklist"]  # fmt: skip
    assert {link["href"] for link in parsed.every("a")} == {f"#{name}" for name in sections}
    assert parsed.row(EVIL)[1] == "30 (small)"
    assert "&lt;script&gt;" in text


def test_the_page_asks_the_network_for_nothing_and_runs_no_script(page: Path, parsed: Page) -> None:
    for tag in ("script", "link", "iframe", "object", "embed", "base", "form"):
        assert parsed.every(tag) == []
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "srcset"]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?://|url\(|@import", page.read_text())


def test_every_chart_is_there_with_its_caption(parsed: Page) -> None:
    pictures = parsed.every("img")
    assert len(pictures) == 5
    for picture in pictures:
        assert len(picture["alt"] or "") > 30
        data = (picture["src"] or "").partition(",")[2]
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert min(image.size) > 200


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
    missing = "Groups that cannot be assessed with these columns: race or ethnicity, diagnosis."
    assert missing in page.read_text()


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
    for words in (f"Signed error, male minus female: {shown} months.", f"male ({shown} months)",
                  "Signed error differs significantly",
                  "No group's absolute error differs significantly",
                  "There are no prediction intervals, so coverage cannot be assessed.",
                  "<strong>–</strong> the table has no intervals"):  # fmt: skip
        assert words in html.unescape(text)
    parsed = Page(text)
    for name in ("male", "female"):
        assert len(parsed.row(name)) == 10
        assert parsed.row(name)[-1] == "signed error"
        assert "differs" in classes_of(text, name)
        assert groups[name]["bias_p_corrected"] < 0.05 < groups[name]["p_corrected"]
        assert np.isnan(groups[name]["coverage_p_corrected"])


def test_coverage_that_differs_is_named_and_marked(tmp_path: Path) -> None:
    table = make_biased(girls=0.0, boys=0.0)
    probability = np.where(table["sex"] == "F", 0.75, 0.95)
    covered = np.random.default_rng(7).random(len(table)) < probability
    page = save(tmp_path, add_intervals(table, covered), resamples=2000)
    text = html.unescape(page.read_text())
    assert Page(text).row("female")[-1] == "coverage"
    assert "differs" in classes_of(text, "female")
    assert re.search(
        r"Coverage differs significantly .*female \(−\d+\.\d \[.*\] percentage p", text
    )
    for measure in ("signed error", "absolute error"):
        assert f"No group's {measure} differs significantly" in text
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


def test_groups_that_could_not_be_tested_are_marked_so(tmp_path: Path) -> None:
    text = html.unescape(save(tmp_path, make_biased(), resamples=0).read_text())
    assert "No difference was tested: no permutations were asked for (--resamples 0)." in text
    assert "differs significantly from" not in text
    assert Page(text).row("male")[-1] == "not tested"
    assert re.search(r"Signed error, male minus female: −\d+\.\d months\.", text)
    assert "bootstrap resamples of the cases" not in text
    assert "no bootstrap resamples were asked for (--resamples 0)." in text
    assert "400 cases with a prediction and a reference; the table has no row without" in text
    alike = make_biased(40).assign(sex="", reference_months=100.0, predicted_months=104.0)
    text = html.unescape(save(tmp_path, alike).read_text())
    assert "No difference was tested: every group holds all the cases." in text
    assert "The sexes cannot be compared: there are no cases of both sexes." in text
    assert "male minus female" not in text


def test_the_tables_hold_the_figures_of_the_json(page: Path, result: dict[str, Any]) -> None:
    def column(table: str, name: str) -> list[Any]:
        return pd.read_csv(page.with_name(f"{table}.csv"))[name].tolist()

    accuracy = pd.read_csv(page.with_name("accuracy.csv"), index_col="figure")
    assert accuracy.loc["mae_months"].to_dict() == pytest.approx(result["accuracy"]["mae_months"])
    for name in ("stages", "clinical"):
        cells = pd.read_csv(page.with_name(f"{name}.csv"), index_col="reference")
        assert cells.to_numpy().tolist() == result[name]["confusion_matrix"]
    groups, bins = result["groups"], result["calibration"]["bins"]
    approaches, (found,) = result["approaches"], result["comparison"]
    assert column("groups", "group") == [group["group"] for group in groups]
    for table, name, expected in (
        ("groups", "mae_months_high", [group["figures"]["mae_months"]["high"] for group in groups]),
        *(("groups", p, [group[p] for group in groups])
          for p in ("p_corrected", "bias_p", "bias_p_corrected", "coverage_p_corrected")),
        *(("groups", f"difference_{figure}_low", [g["difference"][figure]["low"] for g in groups])
          for figure in ("bias_months", "coverage")),
        ("calibration", "accuracy_low", [row["accuracy"]["low"] for row in bins]),
        ("approaches", "mcnemar_p", [approaches["mcnemar_p"]]),
        ("approaches", "direct_accuracy", [approaches["direct_accuracy"]["value"]]),
        *((table, name, [row[name] for row in result[table]])
          for table, name in (("difficult", "error_months"), ("shared", "p_corrected"),
                              ("uncertain", "interval_width_months"),
                              ("suspects", "error_in_half_widths"))),
        ("comparison", "mae_months_second", [found["mae_months"]["second"]["value"]]),
        ("comparison", "mae_difference_months_low", [found["mae_difference_months"]["low"]]),
    ):  # fmt: skip
        assert column(table, name) == pytest.approx(expected), (table, name)


def test_the_page_lists_each_difficult_case_once_with_its_reasons(
    parsed: Page, result: dict[str, Any]
) -> None:
    words = {"difficult": "large error", "uncertain": "wide interval",
             "suspects": "potential label error"}  # fmt: skip
    lists = {name: [row["image_id"] for row in result[name]] for name in words}
    assert all(lists.values())
    header = next(row for row in parsed.rows if row[-1:] == ["listed for"])
    start = parsed.rows.index(header) + 1
    rows = {row[0]: row for row in parsed.rows[start:] if len(row) == len(header)}
    everyone = [case["image_id"] for case in list_cases(result)]
    assert list(rows) == everyone
    assert set(everyone) == {image_id for found in lists.values() for image_id in found}
    for image_id, row in rows.items():
        assert row[-1] == ", ".join(words[name] for name in lists if image_id in lists[name])
    first = result["suspects"][0]
    assert rows[first["image_id"]][6] == f"{first['error_in_half_widths']:.1f}"
    # Cases of the gallery are left out.
    assert [case["image_id"] for case in list_cases(result, everyone[:3])] == everyone[3:]


def test_the_page_shows_what_failures_have_in_common_and_the_comparison(
    parsed: Page, result: dict[str, Any]
) -> None:
    shared, (found,) = result["shared"][0], result["comparison"]
    row = parsed.row(f"{shared['by']}: {shared['group']}")
    assert row[1:3] == [str(shared["n"]), format_figure(shared["failed"], -1)]
    assert row[4] == format_p(shared["p_corrected"])
    row = parsed.row("model 0")
    assert row[1:3] == ["model 1", "300"]
    assert row[4] == format_figure(found["mae_difference_months"], 2)
    assert row[6] == format_p(found["mcnemar_p"])


def test_the_summary_holds_five_figures(page: Path, result: dict[str, Any]) -> None:
    text = page.read_text()
    summary = text[text.index('<section id="summary">') : text.index('<section id="cases">')]
    accuracy = result["accuracy"]
    assert re.findall(r"<strong>([^< ]+)", summary) == [
        "300",
        f"{accuracy['mae_months']['value']:.1f}",
        f"{accuracy['bias_months']['value']:.1f}",
        f"{100 * accuracy['accuracy']['value']:.1f}%",
        f"{100 * accuracy['coverage']['value']:.1f}%",
    ]
    assert "This model was audited on 300 cases with a reference age." in summary


def test_the_page_and_the_json_tell_when_from_what_and_by_which_command_they_were_made(
    page: Path, result: dict[str, Any]
) -> None:
    created = datetime.fromisoformat(result["created"])
    assert created.tzinfo is not None
    assert datetime.now(UTC) - created < timedelta(hours=1)
    assert result["command"] == "boneage audit 'model 0.csv' --by site"
    tables = [page.parents[1] / f"model {i}.csv" for i in range(2)]
    assert result["inputs"] == [
        {"file": table.name, "sha256": hashlib.sha256(table.read_bytes()).hexdigest()}
        for table in tables
    ]
    text = html.unescape(page.read_text())
    assert result["command"] in text
    assert f"{created:%Y-%m-%d %H:%M:%S} UTC" in text
    for found in result["inputs"]:
        assert f"{found['file']} <code>{found['sha256']}</code>" in text


def test_a_result_without_a_run_has_a_page(tmp_path: Path) -> None:
    read = read_tables(tmp_path, make_biased(60))
    text = make_page(audit(read, resamples=0), read[0].table)
    assert "SHA-256" not in text


def test_what_was_not_asked_for_is_named_and_not_shown(tmp_path: Path) -> None:
    table = make_full_table(1)[["image_id", "sex", "reference_months", "predicted_months"]]
    text = save(tmp_path, table).read_text()
    parsed = Page(text)
    assert "Not assessable: the table has no chronological age." in text
    assert "One table was given; pass a second one to compare with it." in text
    assert len(parsed.every("img")) == 1  # one case has no agreement, and its groups no spread
    assert "Agreement needs at least two cases." in text
    topics = {row[1]: row[2] for row in parsed.rows if row[0].startswith(("CLAIM", "TRIPOD"))}
    assert topics["calibration of probabilities"] == "not covered"
    assert topics["calibration of intervals"] == "not covered"
    assert topics["what an error means for a patient"] == "not covered"
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
    assert "13 cases with a prediction and a reference; 4 more have no prediction" in text
    assert "; 3 have a prediction but no reference" in text
    assert "no row without" not in text


def test_the_caption_of_the_groups_says_what_the_picture_shows(parsed: Page) -> None:
    (caption,) = (
        picture["alt"] or "" for picture in parsed.every("img")
        if "by group" in (picture["alt"] or "").lower()
    )  # fmt: skip
    for words in ("mean absolute error", "signed error", "coverage", "95% interval", "all cases",
                  "under 50 cases"):  # fmt: skip
        assert words in caption
