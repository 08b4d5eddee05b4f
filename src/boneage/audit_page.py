"""An audit -> one self-contained HTML page, its JSON and its tables as CSV."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boneage.audit import flatten
from boneage.files import save_text
from boneage.plots import BLUE, GREEN, GREY, ORANGE, RED, SEX_STYLE, UNKNOWN_STYLE

FIGURES = (
    ("mae_months", "mean absolute error, months", 2),
    ("rmse_months", "root mean squared error, months", 2),
    ("median_error_months", "median absolute error, months", 2),
    ("bias_months", "signed bias (predicted − reference), months", 2),
    ("sd_months", "standard deviation of the errors, months", 2),
    ("loa_low_months", "lower limit of agreement (Bland-Altman), months", 1),
    ("loa_high_months", "upper limit of agreement, months", 1),
    ("within_6_months", "errors within 6 months", -1),
    ("within_12_months", "errors within 12 months", -1),
    ("within_18_months", "errors within 18 months", -1),
    ("within_24_months", "errors within 24 months", -1),
    ("r2", "R²", 3),
    ("icc", "intraclass correlation ICC(2,1)", 3),
    ("deming_slope", "Deming slope", 3),
    ("deming_intercept_months", "Deming intercept, months", 1),
    ("coverage", "coverage of the prediction intervals", -1),
    ("interval_width_months", "mean width of the intervals, months", 1),
    ("accuracy", "stage accuracy", -1),
    ("precision_weighted", "stage precision, weighted", -1),
    ("recall_weighted", "stage recall, weighted", -1),
    ("f1_weighted", "stage F1, weighted", -1),
    ("qwk", "quadratic weighted kappa of the stage", 3),
    ("clinical_change", "class changed: delayed, normal, advanced", -1),
)
"""Name, label and decimals of each figure; -1 is a share, shown in percent."""

CHECKLIST = (
    ("TRIPOD+AI, CLAIM", "what the model is for and who would use it", None),
    ("TRIPOD+AI, CLAIM", "where the cases come from, and how they were chosen", None),
    ("TRIPOD+AI", "cases without an answer, and what was done with them", "cases"),
    ("CLAIM", "what the reference standard is, and how good it is", "accuracy"),
    ("TRIPOD+AI", "number of cases, overall and in each group", "groups"),
    ("TRIPOD+AI, CLAIM", "performance with its uncertainty", "accuracy"),
    ("CLAIM", "comparison with answers that need no model", "accuracy"),
    ("TRIPOD+AI", "agreement and calibration of what is predicted", "agreement"),
    ("CLAIM", "calibration of probabilities and intervals", "calibration"),
    ("TRIPOD+AI", "performance and fairness in groups of people", "groups"),
    ("TRIPOD+AI", "groups that the data do not show", "groups"),
    ("CLAIM", "analysis of failures", "difficult"),
    ("CLAIM", "comparison with other models or readers, paired", "comparison"),
    ("CLAIM", "what an error means for a patient", "clinical"),
    ("CLAIM", "robustness to changes of the image", None),
    ("CLAIM", "where on the image the evidence lies", None),
    ("TRIPOD+AI, CLAIM", "how and on what the model was trained", None),
    ("TRIPOD+AI", "model, code and data that others can use", None),
)
"""Topics of the reporting guides in our words, and the section that answers them, if any does.

Source: Collins et al., BMJ 2024 (TRIPOD+AI); Tejani et al., Radiology AI 2024 (CLAIM).
"""


def save_audit(out: Path, result: Mapping[str, Any], table: pd.DataFrame) -> Path:
    """Write `report.html`, `audit.json`, `accuracy.csv`, `groups.csv` and `difficult.csv`.

    Args:
        out: Folder; made if missing.
        result: Of `audit`.
        table: The audited cases, for the pictures.

    Returns:
        The page.
    """
    save_text(out / "audit.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    accuracy = [{"figure": name, **ends} for name, ends in result["accuracy"].items()]
    groups = [
        {"by": g["by"], "group": g["group"], "n": g["n"], "is_small": g["is_small"],
         **flatten(g["figures"]),
         **{f"difference_{k}": v for k, v in flatten(g["difference"]).items()},
         "p": g["p"], "p_corrected": g["p_corrected"]}
        for g in result["groups"]
    ]  # fmt: skip
    for name, rows in (("accuracy", accuracy), ("groups", groups),
                       ("difficult", result["difficult"])):  # fmt: skip
        text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
        save_text(out / f"{name}.csv", text)
    page = out / "report.html"
    save_text(page, make_page(result, table))
    return page


def make_page(result: Mapping[str, Any], table: pd.DataFrame) -> str:
    """Render the page: no script, no network, pictures inside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("boneage", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"figure": format_figure, "p": format_p, "months": format_months}
    pictures = {
        "skill": (plot_skill(result), describe_skill(result)),
        "agreement": (plot_agreement(table, result), describe_agreement(result)),
        "groups": (plot_groups(result), "Mean absolute error of each group with its interval, "
                   "beside that of all cases; the table below holds the same figures."),
    }  # fmt: skip
    if result["calibration"] is not None:
        ece = result["calibration"]["ece"]
        pictures["calibration"] = (
            plot_reliability(result),
            f"Share of right stages by their probability; expected calibration error {ece:.3f}.",
        )
    return environment.get_template("audit.html").render(
        result=result,
        figures=[row for row in FIGURES if row[0] in result["accuracy"]],
        checklist=CHECKLIST,
        pictures={name: {"data": _encode(figure), "alt": alt}
                  for name, (figure, alt) in pictures.items()},
    )  # fmt: skip


def format_figure(ends: Mapping[str, float | None], digits: int) -> str:
    """Format a figure with its interval, or a dash where it is undefined."""
    texts = [None if ends[end] is None else _number(ends[end], digits)  # type: ignore[arg-type]
             for end in ("value", "low", "high")]  # fmt: skip
    if texts[0] is None:
        return "–"
    return texts[0] if None in texts else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _number(value: float, digits: int) -> str:
    if digits < 0:
        return f"{100 * value:.1f}%"
    return f"{value:z.{digits}f}".replace("-", "−")


def format_p(value: float | None) -> str:
    """Format a p-value."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_months(value: float, sign: bool = False) -> str:
    """Format months."""
    return f"{value:{'+' if sign else ''}z.1f}".replace("-", "−")


def describe_skill(result: Mapping[str, Any]) -> str:
    """Say in words what the first picture shows."""
    base = result["baselines"]
    low, high = result["noise_floor_months"]
    return (
        f"Mean absolute error {format_figure(result['accuracy']['mae_months'], 2)} months, beside "
        f"the noise of single readings ({low} to {high}) and answers that need no film: "
        f"{base['sex_median_mae_months']:.1f} for the median of each sex, "
        f"{base['constant_median_mae_months']:.1f} for one constant."
    )


def describe_agreement(result: Mapping[str, Any]) -> str:
    """Say in words what the second picture shows."""
    accuracy = result["accuracy"]
    return (
        f"Bland-Altman plot: bias {format_figure(accuracy['bias_months'], 1)} months, limits of "
        f"agreement {format_figure(accuracy['loa_low_months'], 1)} to "
        f"{format_figure(accuracy['loa_high_months'], 1)} months."
    )


def plot_skill(result: Mapping[str, Any]) -> Figure:
    """The error beside what needs no skill and what no model can beat."""
    figure = Figure(figsize=(7.2, 2.3), layout="constrained")
    axes = figure.subplots()
    base, mae = result["baselines"], result["accuracy"]["mae_months"]
    names = ["one constant", "median of each sex", "this"]
    values = [base["constant_median_mae_months"], base["sex_median_mae_months"], mae["value"]]
    axes.barh(names, values, color=[GREY, GREY, BLUE], height=0.6)
    if mae["low"] is not None:
        axes.errorbar(mae["value"], 2, xerr=_arms(mae), color="black", capsize=4)
    low, high = result["noise_floor_months"]
    axes.axvspan(low, high, color=GREEN, alpha=0.4, label="noise of single readings")
    axes.set_xlabel("mean absolute error (months)")
    axes.legend(loc="upper right", fontsize=8)
    return figure


def plot_agreement(table: pd.DataFrame, result: Mapping[str, Any]) -> Figure:
    """Bland-Altman: error against the mean of reference and prediction."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    error = table["predicted_months"] - table["reference_months"]
    mean = (table["predicted_months"] + table["reference_months"]) / 2
    for sex, (name, colour, marker) in (SEX_STYLE | {None: UNKNOWN_STYLE}).items():
        rows = table["sex"] == sex if sex else table["sex"].isna()
        if rows.any():
            axes.scatter(mean[rows], error[rows], s=10, alpha=0.4, c=colour, marker=marker,
                         linewidths=0, label=f"{name} (n = {rows.sum()})")  # fmt: skip
    for name, style in (("bias_months", "-"), ("loa_low_months", "--"), ("loa_high_months", "--")):
        ends = result["accuracy"][name]
        if ends["value"] is None:
            continue
        axes.axhline(ends["value"], color=RED, ls=style, lw=1.3)
        if ends["low"] is not None:
            axes.axhspan(ends["low"], ends["high"], color=RED, alpha=0.12, linewidth=0)
    axes.set(xlabel="mean of reference and prediction (months)",
             ylabel="prediction − reference (months)")  # fmt: skip
    axes.legend(fontsize=8)
    return figure


def plot_groups(result: Mapping[str, Any]) -> Figure:
    """Forest plot of the error by group."""
    groups: Sequence[Mapping[str, Any]] = result["groups"]
    figure = Figure(figsize=(7.2, 0.8 + 0.27 * len(groups)), layout="constrained")
    axes = figure.subplots()
    overall = result["accuracy"]["mae_months"]
    axes.axvline(overall["value"], color=GREY, lw=1)
    if overall["low"] is not None:
        axes.axvspan(overall["low"], overall["high"], color=GREY, alpha=0.2, linewidth=0)
    for i, group in enumerate(groups):
        ends = group["figures"]["mae_months"]
        if ends["value"] is not None:
            colour = ORANGE if group["is_small"] else BLUE
            arms = None if ends["low"] is None else _arms(ends)
            axes.errorbar(ends["value"], i, xerr=arms, fmt="o", ms=4, color=colour, capsize=2)
    labels = [f"{g['group']} (n = {g['n']}{', small' * g['is_small']})" for g in groups]
    _name_rows(axes, labels)
    axes.set_xlabel("mean absolute error (months)")
    return figure


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def plot_reliability(result: Mapping[str, Any]) -> Figure:
    """Right answers against the probability they were given."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    bins = pd.DataFrame(result["calibration"]["bins"])
    axes.plot([0, 1], [0, 1], "--", color=RED, lw=1.2)
    axes.plot(bins["confidence"], bins["accuracy"], color=BLUE, marker="o")
    axes.set(xlim=(0.3, 1.02), ylim=(0, 1.02), xlabel="probability of the stage answered",
             ylabel="share of right answers")  # fmt: skip
    return figure


def _arms(ends: Mapping[str, Any]) -> list[list[float]]:
    arms = np.array([[ends["value"] - ends["low"]], [ends["high"] - ends["value"]]])
    return arms.clip(min=0.0).tolist()


def _encode(figure: Figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, dpi=140, format="png", facecolor="white")
    return base64.b64encode(data.getvalue()).decode("ascii")
