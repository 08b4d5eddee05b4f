from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from boneage.errors import BoneAgeError
from boneage.evaluation.evaluate import evaluate_table
from boneage.evaluation.plots import (
    plot_calibration,
    plot_confusion_matrix,
    plot_error_by_age,
    plot_heatmap,
    plot_learning_curves,
    plot_scatter,
    save_report_plots,
)
from boneage.stages import STAGES, stage_from_years


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 18, 60)
    predicted_years = truth + rng.normal(0, 1, 60)
    stages = stage_from_years(predicted_years)
    table = pd.DataFrame(
        {"image_id": [str(i) for i in range(60)], "split": "test", "sex": ["M", "F", None] * 20,
         "reference_years": truth, "predicted_years": predicted_years,
         "reference_stage": named(stage_from_years(truth)), "predicted_stage": named(stages)}
    )  # fmt: skip
    table[["p_child", "p_adolescent", "p_adult"]] = np.eye(3)[stages]
    return table


def named(codes: Iterable[int]) -> list[str]:
    return [STAGES[code] for code in codes]


def texts(figure: Figure) -> str:
    from matplotlib.text import Text

    return "\n".join(item.get_text() for item in figure.findobj(Text))


def test_the_scatter_shows_each_image_at_its_true_and_predicted_age_and_agreement_in_red(
    table: pd.DataFrame,
) -> None:
    figure = plot_scatter(table, evaluate_table(table, resamples=50))
    axes = figure.axes[0]
    shown = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])
    expected = table[["reference_years", "predicted_years"]].to_numpy()
    np.testing.assert_allclose(np.sort(shown, axis=0), np.sort(expected, axis=0))
    assert "sex unknown (n = 20)" in texts(figure)
    assert "research use only" in texts(figure)
    assert axes.get_xlabel() == "reference bone age (years)"
    assert axes.get_ylabel() == "predicted bone age (years)"
    assert axes.get_xlim() == axes.get_ylim()
    (line,) = [line for line in axes.lines if line.get_label() == "y = x"]
    assert line.get_linestyle() == "--"
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    red, green, blue = to_rgb(line.get_color())
    assert red > 3 * max(green, blue)


def test_rows_of_the_confusion_matrix_are_true_stages(table: pd.DataFrame) -> None:
    report = evaluate_table(table, resamples=0)
    report["classification"]["confusion_matrix"] = [[7, 3, 0], [0, 5, 0], [0, 0, 0]]
    figure = plot_confusion_matrix(report)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted stage", "true stage")
    assert cells(figure)[0][1] == "3\n30%"
    assert cells(figure)[1][0] == "0\n0%"
    assert cells(figure)[2][2] == "0"
    assert "(n = 10)" in axes.get_yticklabels()[0].get_text()
    assert "research use only" in texts(figure)


def test_error_by_age_tells_sexes(table: pd.DataFrame) -> None:
    text = texts(plot_error_by_age(table, evaluate_table(table, resamples=0)))
    for words in ("male", "female", "(months)", "predicted − reference", "research use only"):
        assert words in text


def test_learning_curves_mark_the_best_epoch() -> None:
    history = pd.DataFrame({"epoch": [1, 2, 3], "val_mae_years": [3.0, 1.0, 2.0]})
    for split in ("train", "val"):
        for name in ("loss", "age_loss", "stage_loss"):
            history[f"{split}_{name}"] = [3.0, 1.0, 2.0]
    figure = plot_learning_curves(history)
    (best,) = [line for line in figure.axes[0].lines if line.get_label() == "best epoch"]
    assert list(np.unique(best.get_xdata())) == [2]
    assert "validation MAE (months)" in texts(figure)
    assert list(np.asarray(figure.axes[3].lines[0].get_ydata())) == [36.0, 12.0, 24.0]


@pytest.mark.parametrize("predicted", [12.3, np.nan])
def test_a_heat_map_names_truth_and_prediction(predicted: float) -> None:
    case = pd.Series(
        {"image_id": "900001", "sex": None, "reference_years": 11.5, "reference_stage": "Child",
         "predicted_years": predicted, "predicted_stage": "Adolescent"}
    )  # fmt: skip
    radiograph = Image.fromarray(np.zeros((40, 30), np.uint8))
    figure = plot_heatmap(radiograph, np.eye(3, dtype=np.float32), case, evidence_for="Adolescent")
    for words in ("900001, sex unknown", "true 11.5 y, Child", "stage wrong"):
        assert words in texts(figure)
    assert ("12.3" in texts(figure)) == (not np.isnan(predicted))


def test_without_an_age_head_only_the_stage_is_plotted(table: pd.DataFrame, tmp_path: Path) -> None:
    stage_only = table.assign(predicted_years=np.nan)
    save_report_plots(tmp_path, "test", stage_only, evaluate_table(stage_only, resamples=0))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["calibration_test.png", "confusion_matrix_test.png"]


def test_intervals_are_plotted_beside_the_reliability(table: pd.DataFrame) -> None:
    half = pd.Series(np.linspace(0.5, 2.0, len(table)))
    ends = table.assign(
        predicted_low_years=table["predicted_years"] - half,
        predicted_high_years=table["predicted_years"] + half,
    )
    report = evaluate_table(ends, resamples=0)
    reliability, intervals = plot_calibration(ends, report).axes
    assert f"{report['stage_calibration']['ece']:.3f}" in reliability.get_title()
    assert f"coverage {report['intervals']['coverage']:.1%}" in intervals.get_title()
    points = np.concatenate([c.get_offsets() for c in intervals.collections])
    np.testing.assert_allclose(np.sort(points[:, 1]), 12 * half, atol=1e-9)


STAGES_TRUE, STAGES_PREDICTED = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 1]


def cells(figure: Figure) -> list[list[str]]:
    """Texts of the confusion matrix, row by row."""
    found = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    return [[found[column, row] for column in range(3)] for row in range(3)]


@pytest.mark.parametrize(
    "of",
    [list, np.array, pd.Series, torch.tensor, named, lambda codes: np.array(named(codes)),
     lambda codes: pd.Series(named(codes), index=range(6, 0, -1))],
    ids=["list", "array", "series", "tensor", "names", "array of names", "series of names"],
)  # fmt: skip
def test_the_confusion_matrix_is_drawn_from_stages(of: Callable[[list[int]], Any]) -> None:
    figure = plot_confusion_matrix(of(STAGES_TRUE), of(STAGES_PREDICTED))
    assert cells(figure) == [
        ["2\n67%", "1\n33%", "0\n0%"],
        ["0\n0%", "2\n100%", "0\n0%"],
        ["0\n0%", "1\n100%", "0\n0%"],
    ]
    assert figure.axes[0].get_title() == "n = 6: accuracy 0.667"
    assert "research use only" in texts(figure)


def test_the_confusion_matrix_of_stages_is_that_of_their_report(table: pd.DataFrame) -> None:
    of_report = plot_confusion_matrix(evaluate_table(table, resamples=0))
    of_stages = plot_confusion_matrix(table["reference_stage"], table["predicted_stage"])
    assert cells(of_stages) == cells(of_report)
    assert of_report.axes[0].get_title() == f"test split, {of_stages.axes[0].get_title()}"


def test_a_figure_is_saved_where_asked(table: pd.DataFrame, tmp_path: Path) -> None:
    plots = tmp_path / "output" / "plots"
    report = evaluate_table(table, resamples=0)
    plot_confusion_matrix(STAGES_TRUE, STAGES_PREDICTED, plots / "matrix.png")
    plot_confusion_matrix(report, path=plots / "matrix_of_report.png")
    plot_scatter([10.0, 12.0], [11.0, 12.0], str(plots / "scatter.png"))
    plot_scatter(table, report, path=plots / "scatter_of_table.png")
    names = ["matrix.png", "matrix_of_report.png", "scatter.png", "scatter_of_table.png"]
    assert sorted(path.name for path in plots.iterdir()) == names
    for path in plots.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 50


def test_a_file_that_is_not_named_png_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BoneAgeError, match=r"matrix\.pdf .*; expected .*\.png"):
        plot_confusion_matrix(STAGES_TRUE, STAGES_PREDICTED, tmp_path / "matrix.pdf")
    assert not list(tmp_path.iterdir())


def test_a_confusion_matrix_of_ages_or_of_uneven_stages_is_refused() -> None:
    with pytest.raises(BoneAgeError, match=r"position 0 of y_true is 10\.5; expected a stage"):
        plot_confusion_matrix([10.5, 12.5], [0, 1])
    with pytest.raises(BoneAgeError, match="y_true has 2, y_pred has 3 values"):
        plot_confusion_matrix([0, 1], [0, 1, 1])
    with pytest.raises(BoneAgeError, match="y_true, y_pred are empty"):
        plot_confusion_matrix([], [])


@pytest.mark.parametrize("alone", [[0, 1, 2], {"accuracy": 0.9}])
def test_one_argument_that_is_no_report_is_refused(alone: Any) -> None:
    with pytest.raises(BoneAgeError, match=r"plot_confusion_matrix\(y_true, y_pred\)"):
        plot_confusion_matrix(alone)


@pytest.mark.parametrize("of", [list, np.array, pd.Series, torch.tensor])
def test_the_scatter_is_drawn_from_ages(of: Callable[[list[float]], Any]) -> None:
    figure = plot_scatter(of([10.0, 12.0, 14.0]), of([11.0, 12.0, 12.0]))
    (points,) = figure.axes[0].collections
    assert np.asarray(points.get_offsets()).tolist() == [[10, 11], [12, 12], [14, 12]]
    assert figure.axes[0].get_title() == "n = 3: MAE 12.0 months, R² 0.375"
    assert "research use only" in texts(figure)


def test_the_scatter_of_ages_tells_the_sexes_it_is_given_and_of_equal_ages_has_no_r2() -> None:
    figure = plot_scatter([10.0, 12.0, 14.0], [11.0, 12.0, 12.0], genders=["male", 0, None])
    for label in ("male (n = 1)", "female (n = 1)", "sex unknown (n = 1)"):
        assert label in texts(figure).splitlines()
    title = plot_scatter([10.0, 10.0], [11.0, 12.0]).axes[0].get_title()
    assert title == "n = 2: MAE 18.0 months"


def test_a_scatter_of_what_are_no_ages_is_refused() -> None:
    with pytest.raises(BoneAgeError, match="position 1 of y_pred is nan; expected an age"):
        plot_scatter([10.0, 12.0], [11.0, np.nan])
    with pytest.raises(BoneAgeError, match="y_true has 2, y_pred has 1 values"):
        plot_scatter([10.0, 12.0], [11.0])
    with pytest.raises(BoneAgeError, match="position 0 of genders is 'X'; expected M or F"):
        plot_scatter([10.0], [11.0], genders=["X"])


def test_one_case_has_plots_without_intervals() -> None:
    table = pd.DataFrame(
        {"image_id": ["1"], "split": "test", "sex": "M", "reference_years": 5.0,
         "predicted_years": 6.0, "reference_stage": "Child", "predicted_stage": "Child",
         "p_child": 0.8, "p_adolescent": 0.1, "p_adult": 0.1}
    )  # fmt: skip
    report = evaluate_table(table, resamples=20)
    for figure in (plot_scatter(table, report), plot_confusion_matrix(report)):
        assert "95% interval" not in figure.axes[0].get_title()
