"""Table or report -> matplotlib figure -> PNG. Colours are Okabe and Ito's, safe for all eyes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from boneage.errors import BoneAgeError
from boneage.evaluation.cases import MONTHS
from boneage.evaluation.evaluate import Report
from boneage.evaluation.metrics import (
    accuracy_score,
    confusion_matrix,
    mean_absolute_error,
    r2_score,
)
from boneage.evaluation.prediction_table import AGE_BANDS_YEARS, name_age_band
from boneage.files import replacing
from boneage.imaging.overlay import stretch_map
from boneage.sex import parse_sex
from boneage.stages import ADOLESCENT_FROM_YEARS, ADULT_ABOVE_YEARS, STAGES, stage_from_years
from boneage.tables.arrays import read_cases, read_stage, read_years

BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "#595959", "#CC0000"
SEX_STYLE = {"M": ("male", BLUE, "o"), "F": ("female", ORANGE, "^")}
UNKNOWN_STYLE = ("sex unknown", GREY, "s")
_NOTE = "research use only, not a medical device"


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, whole or not at all; the folder is made if it is missing.

    Raises:
        BoneAgeError: If the file's name does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise BoneAgeError(f"{path} is no name of a PNG; expected one that ends in .png.")
    with replacing(path) as part:
        figure.savefig(part, dpi=130, bbox_inches="tight", format="png", facecolor="white")


def save_report_plots(folder: Path, split: str, table: pd.DataFrame, report: Report) -> None:
    """Write the scatter, confusion matrix and error plots of one split.

    Plots of the predicted age are left out where no age head was trained.
    """
    save_figure(plot_confusion_matrix(report), folder / f"confusion_matrix_{split}.png")
    if "regression" in report:
        save_figure(plot_scatter(table, report), folder / f"scatter_pred_vs_true_{split}.png")
        save_figure(plot_error_by_age(table, report), folder / f"error_by_age_{split}.png")
    if "stage_calibration" in report:
        save_figure(plot_calibration(table, report), folder / f"calibration_{split}.png")


def plot_scatter(
    y_true: npt.ArrayLike | pd.DataFrame,
    y_pred: npt.ArrayLike | Report,
    path: Path | str | None = None,
    *,
    genders: Iterable[Any] | None = None,
) -> Figure:
    """Predicted against reference age, one point an image, with the line of perfect agreement.

    Args:
        y_true: Reference ages in years (n,), a list, array, Series or tensor; or a prediction
            table, with its report of `evaluate_table` for `y_pred`.
        y_pred: Predicted ages in years (n,).
        path: PNG to write the figure to as well.
        genders: Sexes (n,) to tell apart, as for `gender_bias_regression`.

    Raises:
        BoneAgeError: If lengths differ, there is no case, a value cannot be read, or `path` is
            no PNG.
    """
    if isinstance(y_true, pd.DataFrame) and isinstance(y_pred, Mapping):
        table, report = y_true, y_pred
    else:
        table, report = _from_ages(y_true, y_pred, genders)
    figure = Figure(figsize=(6.4, 6.2))
    axes = figure.subplots()
    for sex, (name, colour, marker) in (SEX_STYLE | {None: UNKNOWN_STYLE}).items():
        part = table[table["sex"] == sex] if sex else table[table["sex"].isna()]
        if part.empty:
            continue
        axes.scatter(
            part["reference_years"], part["predicted_years"], s=14, alpha=0.5, c=colour,
            marker=marker, linewidths=0, label=f"{name} (n = {len(part)})",
        )  # fmt: skip
    top = float(max(table["reference_years"].max(), table["predicted_years"].max(), 19)) + 0.5
    bottom = min(0.0, float(table["predicted_years"].min()) - 0.5)
    axes.plot([bottom, top], [bottom, top], "--", color=RED, lw=1.4, label="y = x")
    for threshold in (ADOLESCENT_FROM_YEARS, ADULT_ABOVE_YEARS):
        axes.axvline(threshold, color=GREY, lw=0.6, ls=":")
        axes.axhline(threshold, color=GREY, lw=0.6, ls=":")
    figures = report["regression"]
    title = f"{_cases(report)}: MAE {figures['mae_months']:.1f} months"
    title += _name_interval(figures, "mae_months", ".1f")
    r2 = figures["r2"]
    axes.set_title(title + ("" if r2 is None else f", R² {r2:.3f}"), fontsize=10)
    axes.set(
        xlim=(bottom, top), ylim=(bottom, top), aspect="equal",
        xlabel="reference bone age (years)", ylabel="predicted bone age (years)",
    )  # fmt: skip
    axes.legend(loc="upper left", fontsize=9)
    _sign(figure)
    if path is not None:
        save_figure(figure, path)
    return figure


def _from_ages(
    y_true: npt.ArrayLike, y_pred: Any, genders: Iterable[Any] | None
) -> tuple[pd.DataFrame, Report]:
    """Give the columns and figures that the scatter shows of a prediction table and report."""
    columns: dict[str, Any] = {"y_true": (y_true, read_years), "y_pred": (y_pred, read_years)}
    if genders is not None:
        columns["genders"] = (genders, parse_sex)
    reference, predicted, *sexes = read_cases(**columns)
    table = pd.DataFrame({"reference_years": reference, "predicted_years": predicted})
    table["sex"] = sexes[0] if sexes else None
    r2 = r2_score(reference, predicted)
    figures = {
        "mae_months": MONTHS * mean_absolute_error(reference, predicted),
        "r2": None if np.isnan(r2) else r2,
    }
    return table, {"n": len(table), "regression": figures}


def _cases(report: Report) -> str:
    """Say which cases and how many a figure shows."""
    split = f"{report['split']} split, " if "split" in report else ""
    return f"{split}n = {report['n']}"


def _name_interval(figures: Report, name: str, style: str) -> str:
    """Name the interval of a figure, if it has one."""
    low, high = figures.get(f"{name}_ci") or (None, None)
    return "" if low is None else f" (95% interval {low:{style}} to {high:{style}})"


def plot_confusion_matrix(
    y_true: npt.ArrayLike | Report,
    y_pred: npt.ArrayLike | None = None,
    path: Path | str | None = None,
) -> Figure:
    """Counts and proportions of each row; rows are the true stages, columns the predicted ones.

    Args:
        y_true: Reference stages (n,), codes or names in a list, array, Series or tensor; or,
            alone, a report of `evaluate_table` or `Trainer.evaluate`.
        y_pred: Predicted stages (n,).
        path: PNG to write the figure to as well.

    Raises:
        BoneAgeError: If lengths differ, there is no case, a value is no stage, or `path` is no
            PNG.

    Example:
        figure = plot_confusion_matrix([0, 1, 1, 2], ["Child", "Child", "Adolescent", "Adult"])
    """
    report = _from_stages(y_true, y_pred)
    counts = np.array(report["classification"]["confusion_matrix"])
    truths = counts.sum(axis=1, keepdims=True)
    proportions = counts / np.maximum(truths, 1)
    figure = Figure(figsize=(5.6, 4.8))
    axes = figure.subplots()
    image = axes.imshow(proportions, cmap="cividis", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        proportion = f"\n{proportions[row, column]:.0%}" if truths[row, 0] else ""
        axes.text(
            column, row, f"{counts[row, column]}{proportion}", ha="center", va="center",
            fontsize=11, color="black" if proportions[row, column] > 0.55 else "white",
        )  # fmt: skip
    names = [f"{s}\n(n = {n})" for s, n in zip(STAGES, truths[:, 0], strict=True)]
    axes.set_xticks(range(len(STAGES)), STAGES)
    axes.set_yticks(range(len(STAGES)), names)
    axes.set(xlabel="predicted stage", ylabel="true stage")
    figures = report["classification"]
    title = f"{_cases(report)}: accuracy {figures['accuracy']:.3f}"
    title += _name_interval(figures, "accuracy", ".3f")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="proportion of the true stage", fraction=0.046)
    _sign(figure)
    if path is not None:
        save_figure(figure, path)
    return figure


def _from_stages(y_true: Any, y_pred: Any) -> Report:
    """Give what the confusion matrix shows of a report, or the report itself."""
    if y_pred is None and isinstance(y_true, Mapping) and "classification" in y_true:
        return dict(y_true)
    if y_pred is None:
        raise BoneAgeError(
            "y_pred is missing; expected plot_confusion_matrix(y_true, y_pred), or a report of "
            "Trainer.evaluate alone."
        )
    reference, predicted = read_cases(y_true=(y_true, read_stage), y_pred=(y_pred, read_stage))
    counts = confusion_matrix(reference, predicted, len(STAGES))
    figures = {"confusion_matrix": counts.astype(int), "accuracy": accuracy_score(counts)}
    return {"n": len(reference), "classification": figures}


def plot_error_by_age(table: pd.DataFrame, report: Report) -> Figure:
    """Mean absolute and mean signed error by reference age, for each sex, with n beside."""
    figure = Figure(figsize=(7.6, 6.4))
    upper, lower = figure.subplots(2, 1, sharex=True)
    error = MONTHS * (table["predicted_years"] - table["reference_years"])
    bands = [name_age_band(years) for years in AGE_BANDS_YEARS[:-1]]
    age = table["reference_years"].map(lambda years: bands.index(name_age_band(years)))
    for offset, (sex, (name, colour, marker)) in zip((-0.12, 0.12), SEX_STYLE.items(), strict=True):
        mine = table["sex"] == sex
        by_age = error[mine].groupby(age[mine])
        n, x = by_age.size(), by_age.size().index + offset
        style = {"color": colour, "marker": marker, "ms": 5, "lw": 1.2, "capsize": 2}
        absolute = error[mine].abs().groupby(age[mine])
        upper.errorbar(x, absolute.mean(), _half_width(absolute), label=name, **style)
        lower.errorbar(x, by_age.mean(), _half_width(by_age), label=name, **style)
        for position, count, value in zip(x, n, absolute.mean(), strict=True):
            upper.annotate(
                str(count), (position, value), (0, 9 if sex == "M" else -14), fontsize=7,
                textcoords="offset points", ha="center", color=GREY,
            )  # fmt: skip
    upper.set_ylim(bottom=-0.12 * upper.get_ylim()[1])  # room for the counts below
    lower.axhline(0, color=GREY, lw=0.8)
    upper.set_ylabel("mean absolute error (months)")
    lower.set_ylabel("mean signed error (months)\npredicted − reference")
    lower.set_xticks(range(len(bands)), [band.removesuffix(" years") for band in bands])
    lower.set_xlabel("reference bone age (years); small numbers are n")
    upper.set_title(
        f"{report['split']} split, n = {report['n']}: error by age and sex; bars are 95% intervals",
        fontsize=10,
    )
    upper.legend(fontsize=9)
    _sign(figure)
    return figure


def _half_width(groups: Any) -> pd.Series:
    """Half of the normal 95% interval of each group's mean; none for a single case."""
    return (1.96 * groups.std() / np.sqrt(groups.size())).fillna(0.0)


def plot_calibration(table: pd.DataFrame, report: Report) -> Figure:
    """Whether stage probabilities, and prediction intervals where there are any, hold."""
    has_intervals = "intervals" in report
    figure = Figure(figsize=(10.0 if has_intervals else 5.0, 4.6), layout="constrained")
    panels = figure.subplots(1, 2 if has_intervals else 1, squeeze=False)[0]
    figures = report["stage_calibration"]
    bins = pd.DataFrame(figures["bins"])
    axes = panels[0]
    axes.plot([0, 1], [0, 1], "--", color=RED, lw=1.2, label="perfect calibration")
    axes.plot(bins["confidence"], bins["accuracy"], color=BLUE, marker="o", label="predicted stage")
    for row in bins.itertuples():
        axes.annotate(f"{row.n}", (row.confidence, row.accuracy), fontsize=8, color=GREY,
                      textcoords="offset points", xytext=(6, -10))  # fmt: skip
    axes.set(
        xlim=(0.3, 1.02), ylim=(0.0, 1.02), xlabel="probability of the predicted stage",
        ylabel="proportion of right predictions",
    )  # fmt: skip
    axes.set_title(f"{report['split']}, n = {report['n']}: expected calibration error "
                   f"{figures['ece']:.3f}", fontsize=10)  # fmt: skip
    axes.legend(loc="upper left", fontsize=9)
    if has_intervals:
        _plot_intervals(panels[1], table, report["intervals"])
    _sign(figure)
    return figure


def _plot_intervals(axes: Axes, table: pd.DataFrame, figures: Report) -> None:
    """Half widths against the predicted age; images whose reference lies outside stand out."""
    half = MONTHS * (table["predicted_high_years"] - table["predicted_low_years"]) / 2
    is_outside = (table["reference_years"] < table["predicted_low_years"]) | (
        table["reference_years"] > table["predicted_high_years"]
    )
    for rows, colour, marker, name in (
        (~is_outside, BLUE, "o", "reference inside"),
        (is_outside, ORANGE, "^", "reference outside"),
    ):
        axes.scatter(table.loc[rows, "predicted_years"], half[rows], s=10, alpha=0.6, c=colour,
                     marker=marker, linewidths=0, label=f"{name} (n = {rows.sum()})")  # fmt: skip
    axes.set(xlabel="predicted bone age (years)", ylabel="half width of the interval (months)")
    axes.set_ylim(bottom=0)
    axes.set_title(f"prediction intervals: coverage {figures['coverage']:.1%}", fontsize=10)
    axes.legend(loc="lower left", fontsize=9)


def plot_learning_curves(history: pd.DataFrame) -> Figure:
    """Losses of training and validation, and validation MAE and accuracy, by epoch."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    titles = {"loss": "total loss", "age_loss": "age loss (L1, years)",
              "stage_loss": "stage loss (cross-entropy)"}  # fmt: skip
    for axes, (name, title) in zip(panels, titles.items(), strict=False):
        axes.plot(history["epoch"], history[f"train_{name}"], color=BLUE, marker=".", label="train")
        axes.plot(history["epoch"], history[f"val_{name}"], "--", color=ORANGE, marker=".",
                  label="validation")  # fmt: skip
        axes.set_title(title, fontsize=9)
        axes.set_ylim(bottom=0, top=_robust_top(history[[f"train_{name}", f"val_{name}"]]))
    best = history["val_loss"].idxmin()
    panels[0].axvline(history.at[best, "epoch"], color=GREY, ls=":", lw=1, label="best epoch")
    panels[0].legend(fontsize=8)
    last = panels[3]
    last.plot(history["epoch"], MONTHS * history["val_mae_years"], color=GREEN, marker=".")
    last.set_title("validation MAE (months)", fontsize=9)
    last.set_ylim(bottom=0, top=_robust_top(MONTHS * history[["val_mae_years"]]))
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _robust_top(values: pd.DataFrame) -> float:
    """Upper limit that a first wild epoch does not decide: at most four times the median."""
    flat = values.to_numpy(float)
    flat = flat[np.isfinite(flat)]
    return float(min(flat.max(), 4 * np.median(flat)) * 1.05) if flat.size and flat.max() else 1.0


def save_learning_curves(path: Path, history: pd.DataFrame) -> None:
    """Draw and write the learning curves."""
    save_figure(plot_learning_curves(history), path)


def plot_radiograph(axes: Axes, image: Image.Image) -> None:
    """Show one image in grey, without axes."""
    axes.imshow(np.asarray(image), cmap="gray")
    axes.set_xticks([])
    axes.set_yticks([])


def save_worst_cases(path: Path, report: Report, data: Any) -> None:
    """Write a gallery of the worst cases by age; none without an age head.

    Args:
        path: PNG to write. It shows images, so it stays with the data's terms.
        report: Of the split.
        data: The split's `BoneAgeDataset`.
    """
    cases = report.get("worst_cases", [])
    if not cases:
        return
    row_of = {image_id: i for i, image_id in enumerate(data.samples["image_id"])}
    columns = min(5, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(2.5 * columns, 3.1 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, case in zip(panels, cases, strict=False):
        axes.set_axis_on()
        plot_radiograph(axes, data.read_image(row_of[case["image_id"]]))
        axes.set_title(
            f"{case['image_id']}, {case['sex'] or 'sex unknown'}\n"
            f"true {case['reference_years']:.1f}, predicted {case['predicted_years']:.1f} y\n"
            f"error {MONTHS * case['error_years']:+.0f} months",
            fontsize=8,
        )
    figure.suptitle(f"{report['split']} split: the {len(cases)} largest errors of {report['n']}")
    _sign(figure)
    save_figure(figure, path)


def plot_heatmap(
    image: Image.Image, heatmap: np.ndarray, case: Any, *, evidence_for: str
) -> Figure:
    """Show an image beside the same image under its saliency map.

    Args:
        image: 8-bit grey image.
        heatmap: (h, w) in [0, 1], stretched over the image.
        case: Row of a prediction table.
        evidence_for: What the map explains, for the title.
    """
    figure = Figure(figsize=(7.4, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        plot_radiograph(axes, image)
    over = right.imshow(stretch_map(heatmap, image.size), cmap="inferno", alpha=0.5, vmin=0, vmax=1)
    figure.colorbar(over, ax=right, fraction=0.046, label="Grad-CAM, relative to its maximum")
    left.set_title(f"{case.image_id}, {case.sex or 'sex unknown'}", fontsize=10)
    rows, columns = heatmap.shape
    right.set_title(f"evidence for {evidence_for}, {rows}×{columns} cells", fontsize=10)
    truth = f"true {case.reference_years:.1f} y, {case.reference_stage}"
    age = "" if pd.isna(case.predicted_years) else f"{case.predicted_years:.1f} y, "
    predicted = f"predicted {age}{case.predicted_stage}"
    is_right = case.reference_stage == case.predicted_stage
    verdict = "stage right" if is_right else "stage wrong"
    if not pd.isna(case.predicted_years):
        by_age = STAGES[stage_from_years([case.predicted_years])[0]]
        verdict += "" if by_age == case.predicted_stage else f", by age {by_age}"
    figure.suptitle(f"{truth}; {predicted} ({verdict})", fontsize=11)
    _sign(figure)
    return figure


def _sign(figure: Figure) -> None:
    figure.text(0.995, -0.005, _NOTE, ha="right", va="top", fontsize=6.5, color=GREY)
