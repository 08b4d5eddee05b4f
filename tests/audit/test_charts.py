from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from boneage.audit.charts import (
    describe_agreement,
    describe_differences,
    describe_groups,
    describe_regions,
    describe_robustness,
    describe_skill,
    explain_no_test,
    format_figure,
    format_months,
    format_p,
    name_differences,
    name_stress,
    plot_agreement,
    plot_groups,
    plot_regions,
    plot_reliability,
    plot_robustness,
    plot_skill,
)
from boneage.audit.figures import audit
from boneage.evaluation.plots import BLUE, ORANGE, RED
from boneage.evaluation.prediction_table import read_predictions
from builders import EVIL, make_biased, make_full_table


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("audit") / "table.csv"
    make_full_table().to_csv(path, index=False)
    return audit([read_predictions(path, ["site"])], resamples=100)


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


def test_the_first_picture_shows_the_error_beside_what_needs_no_image(
    result: dict[str, Any],
) -> None:
    widths = [bar.get_width() for bar in axes_of(plot_skill(result)).containers[0]]
    base, mae = result["baselines"], result["accuracy"]["mae_months"]["value"]
    assert widths == [
        base["constant_median_mae_months"]["value"], base["sex_median_mae_months"]["value"], mae
    ]  # fmt: skip
    assert f"Mean absolute error {mae:.2f} [" in describe_skill(result)


def test_the_second_picture_shows_every_case_and_the_limits(result: dict[str, Any]) -> None:
    table = make_full_table()
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
    assert f"site: {EVIL} (n = 30, small)" in labels
    assert any(label.startswith("female (n = ") for label in labels)


def panels_of(figure: Figure) -> dict[str, Any]:
    return {axes.get_xlabel(): axes for axes in figure.axes}


def test_the_third_picture_shows_absolute_error_signed_error_and_coverage(
    result: dict[str, Any],
) -> None:
    panels = panels_of(plot_groups(result))
    names = {"mean absolute error (months)": ("mae_months", 1),
             "signed error (months)": ("bias_months", 1),
             "coverage (%)": ("coverage", 100)}  # fmt: skip
    assert list(panels) == list(names)
    for label, (name, scale) in names.items():
        places, rows, _ = zip(*points(panels[label]), strict=True)
        expected = [scale * group["figures"][name]["value"] for group in result["groups"]]
        assert places == pytest.approx(expected)
        assert list(rows) == [*range(len(result["groups"]))]
        lines = [line.get_xdata() for line in panels[label].lines]
        whole = scale * result["accuracy"][name]["value"]
        assert any(list(xs) == pytest.approx([whole, whole]) for xs in lines if len(xs) == 2)
    lines = panels["signed error (months)"].lines
    assert sum(list(line.get_xdata()) == [0, 0] for line in lines) == 1


def test_small_groups_have_a_colour_and_groups_that_differ_a_marker(
    result: dict[str, Any],
) -> None:
    groups = [dict(group) for group in result["groups"]]
    for group in groups:
        group |= {"bias_p_corrected": 0.5, "p_corrected": 0.5, "coverage_p_corrected": None}
    groups[0] |= {"bias_p_corrected": 0.049}
    panels = panels_of(plot_groups({**result, "groups": groups}))
    assert any(group["is_small"] for group in groups)
    for label, axes in panels.items():
        colours = [colour for _, _, colour in points(axes)]
        assert colours == [to_hex(ORANGE if g["is_small"] else BLUE) for g in groups]
        markers = [container.lines[0].get_marker() for container in axes.containers]
        marked = [0] if label.startswith("signed") else []
        assert [i for i, marker in enumerate(markers) if marker == "D"] == marked


def test_a_table_without_intervals_has_no_panel_of_coverage(tmp_path: Path) -> None:
    make_biased().to_csv(tmp_path / "table.csv", index=False)
    result = audit([read_predictions(tmp_path / "table.csv")], resamples=0)
    assert len(plot_groups(result).axes) == 2
    text = describe_groups(result)
    assert "coverage" not in text
    assert "interval" not in text
    assert "mean absolute error and signed error" in text


def make_group(name: str, **p_values: float | None) -> dict[str, Any]:
    found = {"bias_p_corrected": 0.9, "p_corrected": 0.9, "coverage_p_corrected": None}
    apart = {"bias_months": make_ends(float(len(name)), 0.5), "mae_months": make_ends(-1.0, 0.5),
             "coverage": make_ends(-0.08, 0.03)}  # fmt: skip
    return {"by": "site", "group": name, "difference": apart, **found, **p_values}


def test_differences_are_said_in_words_the_largest_first_and_not_without_end() -> None:
    groups = [make_group("x" * k, bias_p_corrected=0.01) for k in range(1, 10)]
    groups.append(make_group("north", coverage_p_corrected=0.0499, p_corrected=0.05))
    result = {"draws": 999, "groups": groups, "male_minus_female": None}
    sexes, signed, absolute, coverage = describe_differences(result)
    assert sexes.startswith("The sexes cannot be compared")
    assert signed.startswith(
        "Signed error differs significantly from that of the other cases in 9 groups: site: "
        "xxxxxxxxx (9.0 [8.5, 9.5] months); site: xxxxxxxx (8.0"
    )
    assert signed.endswith("and 3 more, marked in the table.")
    assert absolute == (
        "No group's absolute error differs significantly from that of the other cases."
    )
    assert coverage.endswith("in 1 group: site: north (−8.0 [−11.0, −5.0] percentage points).")
    assert "site: xxx (" not in signed
    assert [name_differences(group) for group in groups[-2:]] == [["signed error"], ["coverage"]]
    result["male_minus_female"] = {"bias_months": make_ends(-19.2, 0.9)}
    assert describe_differences(result)[0] == (
        "Signed error, male minus female: −19.2 [−20.1, −18.3] months."
    )


@pytest.mark.parametrize(("draws", "n", "why"), [
    (0, 3, "No difference was tested: no permutations"),
    (99, 0, "No difference was tested: every group holds all the cases."),
    (99, 5, "99 permutations and 5 groups the lowest corrected p is 0.050. Raise --resamples."),
    (9, 50, "the lowest corrected p is 1.000. Raise --resamples."),
    (100, 5, None),
])  # fmt: skip
def test_tests_that_can_find_nothing_are_not_taken_for_a_finding(
    resamples: int, n: int, why: str | None
) -> None:
    untested = {"bias_p_corrected": None, "p_corrected": None}
    groups = [make_group("all", **untested), *(make_group(f"{i}") for i in range(n))]
    result = {"draws": resamples, "groups": groups, "male_minus_female": None}
    found = explain_no_test(result)
    sentences = describe_differences(result)
    if why is None:
        assert found is None
        assert sum("No group's" in sentence for sentence in sentences) == 2
    else:
        assert why in str(found)
        assert sentences[1:] == [found]


def test_the_picture_of_the_calibration_shows_each_bin(result: dict[str, Any]) -> None:
    bins = result["calibration"]["bins"]
    (found, _, (arms,)) = axes_of(plot_reliability(result)).containers[0]
    assert found.get_xdata().tolist() == pytest.approx([b["confidence"] for b in bins])
    assert found.get_ydata().tolist() == pytest.approx([b["accuracy"]["value"] for b in bins])
    ends = [segment[:, 1].tolist() for segment in arms.get_segments()]
    assert np.concatenate(ends) == pytest.approx(
        np.concatenate([[b["accuracy"]["low"], b["accuracy"]["high"]] for b in bins])
    )


def make_ends(value: float | None, arm: float | None = None) -> dict[str, float | None]:
    if value is None or arm is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": value - arm, "high": value + arm}


def make_robustness(*changes: float | None) -> dict[str, Any]:
    """A profile of stresses that change the error by so much, and the stage of a tenth each."""
    families = ["rotation", "rotation", "inversion", "blur", "sex"]
    return {
        "n": 30,
        "stresses": [
            {"family": families[i], "level": f"{i}%" if i != 2 else "",
             "mae_change_months": make_ends(change, 0.3 if i else None),
             "stage_changed": make_ends(None if change is None else 0.1 * i)}
            for i, change in enumerate(changes)
        ],
    }  # fmt: skip


def points(axes: Any) -> list[tuple[float, float, str]]:
    """Where the dots with arms are, and their colours."""
    lines = [container.lines[0] for container in axes.containers]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0]), to_hex(line.get_color()))
            for line in lines]  # fmt: skip


def test_the_profile_shows_each_stress_in_order_and_marks_the_harmful() -> None:
    axes: list[Any] = plot_robustness(make_robustness(0.0, 0.6, 30.0, 0.5, -0.4)).axes
    errors, stages = axes
    assert points(errors) == [
        (0.0, 0.0, to_hex(BLUE)), (0.6, 1.0, to_hex(RED)), (30.0, 2.0, to_hex(RED)),
        (0.5, 3.0, to_hex(BLUE)), (-0.4, 4.0, to_hex(BLUE)),
    ]  # fmt: skip
    labels = [label.get_text() for label in errors.get_yticklabels()]
    assert labels == ["rotation 0%", "rotation 1%", "inversion", "blur 3%", "sex 4%"]
    top, bottom = errors.get_ylim()[::-1]
    assert top < bottom  # the first is above
    widths = [bar.get_width() for bar in stages.patches if bar.get_height() < 0.9]
    assert widths == pytest.approx([0, 10, 20, 30, 40])


@pytest.mark.parametrize("changes", [(0.1, 0.2), (-9.0, 60.0), (-0.3, -30.0), (500.0, 0.0)])
def test_every_change_of_the_error_is_in_view(changes: tuple[float, ...]) -> None:
    axes = plot_robustness(make_robustness(*changes)).axes[0]
    low, high = axes.get_xlim()
    assert all(low < change < high for change in changes)


def test_a_stress_that_nothing_was_answered_under_is_named_without_a_dot() -> None:
    robustness = make_robustness(0.2, None, 3.0)
    axes = plot_robustness(robustness).axes[0]
    assert [place for _, place, _ in points(axes)] == [0.0, 2.0]
    assert len(axes.get_yticklabels()) == 3
    assert "1 raise it by more than 0.5 months" in describe_robustness(robustness)


def test_the_profile_is_said_in_words() -> None:
    text = describe_robustness(make_robustness(0.0, 0.6, 30.0, 0.5, -0.4))
    assert "of 30 images changes under 5 changes of the image: 2 raise it by more than 0.5" in text
    assert "The worst is inversion: 30.0 [29.7, 30.3] months." in text
    assert name_stress({"family": "rotation", "level": "+20°"}) == "rotation +20°"


REGIONS = {
    "n": 12,
    "groups": [
        {"by": by, "group": group, "n": n,
         "energy": make_ends(0.3, 0.05), "energy_shifted": make_ends(0.1, 0.01),
         "hit": make_ends(hit, 0.1), "hit_shifted": make_ends(0.2)}
        for by, group, n, hit in (("region", "all regions", 12, 0.5), ("error", EVIL, 5, 0.0))
    ],
}  # fmt: skip


def test_the_picture_of_the_regions_shows_the_map_beside_chance_in_percent() -> None:
    axes: list[Any] = plot_regions(REGIONS).axes
    energy, hit = axes
    assert [place for place, _, _ in points(energy)] == pytest.approx([10, 10, 30, 30])
    assert [place for place, _, _ in points(hit)] == pytest.approx([20, 20, 50, 0])
    labels = [label.get_text() for label in energy.get_yticklabels()]
    assert labels == ["all regions (n = 12)", f"error: {EVIL} (n = 5)"]
    legend = [text.get_text() for text in energy.get_legend().get_texts()]
    assert legend == ["at random places", "where drawn"]
    assert energy.get_xlim()[0] == 0.0


def test_the_regions_are_said_in_words() -> None:
    assert describe_regions(REGIONS) == (
        "On 12 images, 30.0% [25.0%, 35.0%] of the map lies in the regions, and 10.0% [9.0%, "
        "11.0%] in the same regions at random places in the hand; its peak lies in one in 50.0% "
        "[40.0%, 60.0%] of images, and 20.0% at random."
    )
