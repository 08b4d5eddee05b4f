from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from boneage.audit.charts import (
    plot_agreement,
    plot_groups,
    plot_regions,
    plot_reliability,
    plot_robustness,
    plot_scatter,
    plot_skill,
)
from boneage.audit.figures import audit
from boneage.evaluation.plots import BLUE, ORANGE, RED
from boneage.evaluation.prediction_table import read_predictions
from builders import EVIL, make_biased, make_ends, make_full_table


def axes_of(figure: Figure | None) -> Any:
    assert figure is not None
    return figure.axes[0]


def test_the_error_is_shown_beside_those_of_predictions_without_an_image(
    result: dict[str, Any],
) -> None:
    widths = [bar.get_width() for bar in axes_of(plot_skill(result)).containers[0]]
    base, mae = result["baselines"], result["accuracy"]["mae_months"]["value"]
    assert widths == [
        base["constant_median_mae_months"]["value"], base["sex_median_mae_months"]["value"], mae
    ]  # fmt: skip


def as_read(table: pd.DataFrame) -> pd.DataFrame:
    """Give a table's ages in years, as the reader does."""
    years = {f"{name}_years": table[f"{name}_months"] / 12 for name in ("reference", "predicted")}
    return table.assign(sex=table["sex"].replace("", None), **years)


def test_the_bland_altman_plot_shows_every_case_and_the_limits(result: dict[str, Any]) -> None:
    table = make_full_table()
    axes = axes_of(plot_agreement(as_read(table), result))
    clouds = [dots.get_offsets() for dots in axes.collections]
    points = np.concatenate([cloud for cloud in clouds if len(cloud) > 1])
    reference, predicted = table["reference_months"], table["predicted_months"]
    expected = np.stack([(predicted + reference) / 2, predicted - reference], axis=1)
    assert sorted(map(tuple, points.round(6))) == sorted(map(tuple, expected.round(6)))
    lines = [line.get_ydata()[0] for line in axes.lines]
    names = ("bias_months", "loa_low_months", "loa_high_months")
    assert lines == [result["accuracy"][name]["value"] for name in names]


def test_the_scatter_plot_shows_every_case_and_the_diagonal() -> None:
    table = make_full_table()
    axes = axes_of(plot_scatter(as_read(table)))
    points = np.concatenate([dots.get_offsets() for dots in axes.collections])
    expected = table[["reference_months", "predicted_months"]].to_numpy()
    assert sorted(map(tuple, points.round(6))) == sorted(map(tuple, expected.round(6)))
    (diagonal,) = axes.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())


def test_the_forest_plot_names_each_group_with_its_n(result: dict[str, Any]) -> None:
    labels = [label.get_text() for label in axes_of(plot_groups(result)).get_yticklabels()]
    assert len(labels) == len(result["groups"])
    assert f"site: {EVIL} (n = 30, small)" in labels
    assert any(label.startswith("female (n = ") for label in labels)


def panels_of(figure: Figure | None) -> dict[str, Any]:
    assert figure is not None
    return {axes.get_xlabel(): axes for axes in figure.axes}


def test_the_forest_plot_shows_absolute_error_signed_error_and_coverage(
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


def test_small_groups_have_a_colour_and_groups_that_differ_a_marker(result: dict[str, Any]) -> None:
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
    assert len(plot_groups(result).axes) == 2  # type: ignore[union-attr]


def test_groups_of_one_case_are_not_charted(result: dict[str, Any]) -> None:
    groups = [dict(group) for group in result["groups"]]
    groups[1] |= {"n": 1}
    labels = [label.get_text() for label in axes_of(plot_groups({**result, "groups": groups}))
              .get_yticklabels()]  # fmt: skip
    assert len(labels) == len(groups) - 1
    assert plot_groups({**result, "groups": groups[1:2]}) is None
    alone = [{**group, "n": 1} for group in REGIONS["groups"]]
    assert plot_regions({"n": 1, "groups": alone}) is None
    several = plot_regions({"n": 12, "groups": [REGIONS["groups"][0], alone[1]]})
    assert len(axes_of(several).get_yticklabels()) == 1
    assert plot_robustness({**make_robustness(0.1, 0.2), "n": 1}) is None
    bins = [{**row, "n": 1} for row in result["calibration"]["bins"]]
    assert plot_reliability({"calibration": {"bins": bins}}) is None


def test_the_reliability_diagram_shows_each_bin(result: dict[str, Any]) -> None:
    bins = result["calibration"]["bins"]
    (found, _, (arms,)) = axes_of(plot_reliability(result)).containers[0]
    assert found.get_xdata().tolist() == pytest.approx([b["confidence"] for b in bins])
    assert found.get_ydata().tolist() == pytest.approx([b["accuracy"]["value"] for b in bins])
    ends = [segment[:, 1].tolist() for segment in arms.get_segments()]
    assert np.concatenate(ends) == pytest.approx(
        np.concatenate([[b["accuracy"]["low"], b["accuracy"]["high"]] for b in bins])
    )


def make_robustness(*changes: float | None) -> dict[str, Any]:
    """Perturbations that change the error by so much, and the stage of a tenth each."""
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


def test_the_profile_shows_each_perturbation_in_order_and_marks_the_harmful() -> None:
    figure = plot_robustness(make_robustness(0.0, 0.6, 30.0, 0.5, -0.4))
    assert figure is not None
    axes: list[Any] = figure.axes
    errors, stages = axes
    assert errors.get_xscale() == stages.get_xscale() == "linear"
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
    low, high = axes_of(plot_robustness(make_robustness(*changes))).get_xlim()
    assert all(low < change < high for change in changes)


def test_a_perturbation_without_predictions_is_named_without_a_dot() -> None:
    robustness = make_robustness(0.2, None, 3.0)
    axes = axes_of(plot_robustness(robustness))
    assert [place for _, place, _ in points(axes)] == [0.0, 2.0]
    assert len(axes.get_yticklabels()) == 3


REGIONS: dict[str, Any] = {
    "n": 12,
    "groups": [
        {"by": by, "group": group, "n": n,
         "energy": make_ends(0.3, 0.05), "energy_shifted": make_ends(0.1, 0.01),
         "hit": make_ends(hit, 0.1), "hit_shifted": make_ends(0.2)}
        for by, group, n, hit in (("region", "all regions", 12, 0.5), ("error", EVIL, 5, 0.0))
    ],
}  # fmt: skip


def test_the_chart_of_the_saliency_maps_shows_them_beside_chance_in_percent() -> None:
    figure = plot_regions(REGIONS)
    assert figure is not None
    axes: list[Any] = figure.axes
    energy, hit = axes
    assert [place for place, _, _ in points(energy)] == pytest.approx([10, 10, 30, 30])
    assert [place for place, _, _ in points(hit)] == pytest.approx([20, 20, 50, 0])
    labels = [label.get_text() for label in energy.get_yticklabels()]
    assert labels == ["all regions (n = 12)", f"error: {EVIL} (n = 5)"]
    legend = [text.get_text() for text in energy.get_legend().get_texts()]
    assert legend == ["at random places", "as annotated"]
    assert energy.get_xlim()[0] == 0.0
