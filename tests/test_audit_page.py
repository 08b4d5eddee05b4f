import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from boneage.audit import audit
from boneage.audit_page import FIGURES, save_audit
from boneage.audit_pictures import format_figure, format_p
from boneage.tables import read_all

EMPTY = {"meta", "link", "img", "br", "hr", "input"}
EVIL = '<script>alert("x")</script> $\\bad{$'


class Page(HTMLParser):
    """Tags in their order, the text of cells by row, and whether all that opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.stack[-2:]):  # a link in a cell is the cell's text
            self.rows[-1][-1] += data

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first)


def make_table(n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    reference = rng.uniform(20.0, 220.0, n).round(1)
    chance = rng.uniform(0.5, 1.0, n).round(3)
    stage = np.where(reference < 144, 0, np.where(reference <= 216, 1, 2))
    chances = np.where(stage[:, None] == np.arange(3), chance[:, None], (1 - chance[:, None]) / 2)
    predicted = (reference + rng.normal(2.0, 9.0, n)).round(1)
    return pd.DataFrame(
        {"image_id": np.arange(n), "sex": rng.choice(["M", "F", ""], n),
         "reference_months": reference, "predicted_months": predicted,
         "predicted_low_months": predicted - 15, "predicted_high_months": predicted + 15,
         "p_child": chances[:, 0], "p_adolescent": chances[:, 1], "p_adult": chances[:, 2],
         "chronological_age_months": reference, "site": np.where(np.arange(n) < 30, EVIL, "b")}
    )  # fmt: skip


def save(folder: Path, *tables: pd.DataFrame, by: tuple[str, ...] = (), draws: int = 100) -> Path:
    paths = [folder / f"model {i}.csv" for i in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        table.to_csv(path, index=False)
    read = read_all(paths, by)
    return save_audit(folder / "out", audit(read, draws=draws), read[0].table)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section filled."""
    table = make_table()
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
        assert row[1] == f"{group['n']}" + " (small)" * group["is_small"]
        assert row[2] == format_figure(group["figures"]["mae_months"], 1)
        assert row[6] == format_figure(group["difference"]["mae_months"], 1)
        assert row[7:] == [format_p(group["p"]), format_p(group["p_corrected"])]
    assert sum(row.get("class") == "small" for row in parsed.every("tr")) == len(small)
    assert "Not assessable with these columns: race or ethnicity, diagnosis" in page.read_text()


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
    table = make_table(1)[["image_id", "sex", "reference_months", "predicted_months"]]
    text = save(tmp_path, table).read_text()
    parsed = Page(text)
    assert "Not assessable: the table has no chronological age." in text
    assert "One table was given; pass a second one to compare with it." in text
    assert len(parsed.every("img")) == 3
    topics = {row[1]: row[2] for row in parsed.rows if row[0].startswith(("CLAIM", "TRIPOD"))}
    assert topics["calibration of probabilities and intervals"] == "not answered"
    assert topics["what an error means for a patient"] == "not answered"
    assert topics["analysis of failures"] == "difficult"
    assert parsed.row("intraclass correlation ICC(2,1)")[1] == "–"
    assert "[" not in parsed.row("mean absolute error, months")[1]
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"base64,[^\"]+", "", text))


def test_cases_left_out_are_counted(tmp_path: Path) -> None:
    table = make_table(20).assign(status=["ok"] * 16 + ["reject"] * 4)
    table.loc[:2, "reference_months"] = None
    text = save(tmp_path, table.drop(columns="chronological_age_months")).read_text()
    assert "13 cases with a prediction and a reference; 4 more had no answer" in text
    assert "; 3 were answered but have no reference" in text
