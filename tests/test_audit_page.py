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
from matplotlib.figure import Figure
from PIL import Image

from boneage.audit import audit
from boneage.audit_page import (
    FIGURES,
    describe_agreement,
    describe_skill,
    format_figure,
    format_months,
    format_p,
    plot_agreement,
    plot_groups,
    plot_skill,
    save_audit,
)
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
    assert names == {"report.html", "audit.json", "accuracy.csv", "groups.csv", "difficult.csv"}


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
    difficult = pd.read_csv(page.with_name("difficult.csv"))
    assert difficult["error_months"].tolist() == pytest.approx(
        [case["error_months"] for case in result["difficult"]]
    )


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


@pytest.mark.parametrize(
    ("ends", "digits", "text"),
    [
        ((1.234, 1.0, 2.0), 2, "1.23 [1.00, 2.00]"),
        ((-0.04, -1.0, 0.04), 1, "0.0 [−1.0, 0.0]"),
        ((0.5, 0.25, 1.0), -1, "50.0% [25.0%, 100.0%]"),
        ((1.0, None, None), 1, "1.0"),
        ((None, None, None), 1, "–"),
    ],
)
def test_a_figure_is_shown_with_what_it_has(
    ends: tuple[float | None, ...], digits: int, text: str
) -> None:
    assert format_figure(dict(zip(("value", "low", "high"), ends, strict=True)), digits) == text


def test_p_values_and_months_are_short() -> None:
    assert [format_p(p) for p in (None, 0.0005, 0.0123, 1.0)] == ["–", "< 0.001", "0.012", "1.000"]
    assert [format_months(m) for m in (12.34, -0.01)] == ["12.3", "0.0"]
    assert [format_months(m, True) for m in (12.34, -3.0)] == ["+12.3", "−3.0"]


def axes_of(figure: Figure) -> Any:
    return figure.axes[0]


def test_the_first_picture_shows_the_error_beside_what_needs_no_film(
    result: dict[str, Any],
) -> None:
    widths = [bar.get_width() for bar in axes_of(plot_skill(result)).containers[0]]
    base, mae = result["baselines"], result["accuracy"]["mae_months"]["value"]
    assert widths == [
        base["constant_median_mae_months"], base["sex_median_mae_months"], mae
    ]  # fmt: skip
    assert f"Mean absolute error {mae:.2f} [" in describe_skill(result)


def test_the_second_picture_shows_every_case_and_the_limits(result: dict[str, Any]) -> None:
    table = make_table()
    table["sex"] = table["sex"].replace("", None)
    axes = axes_of(plot_agreement(table, result))
    clouds = [dots.get_offsets() for dots in axes.collections]
    points = np.concatenate([cloud for cloud in clouds if len(cloud) > 1])
    reference, predicted = table["reference_months"], table["predicted_months"]
    expected = np.stack([(predicted + reference) / 2, predicted - reference], axis=1)
    assert sorted(map(tuple, points.round(6))) == sorted(map(tuple, expected.round(6)))
    lines = [line.get_ydata()[0] for line in axes.lines]
    names = ("bias_months", "loa_low_months", "loa_high_months")
    assert lines == [result["accuracy"][name]["value"] for name in names]
    assert format_figure(result["accuracy"]["bias_months"], 1) in describe_agreement(result)


def test_the_third_picture_names_each_group_with_its_n(result: dict[str, Any]) -> None:
    labels = [label.get_text() for label in axes_of(plot_groups(result)).get_yticklabels()]
    assert len(labels) == len(result["groups"])
    assert f"{EVIL} (n = 30, small)" in labels
