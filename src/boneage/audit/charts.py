"""The charts of an audit; their captions are in `wording`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boneage.audit.wording import (
    ABSOLUTE,
    COVERAGE,
    HARMFUL_MONTHS,
    SIGNED,
    Measure,
    get_change,
    name_differences,
    name_group,
    name_perturbation,
    times,
)
from boneage.evaluation.cases import MONTHS
from boneage.evaluation.plots import BLUE, GREEN, GREY, ORANGE, RED, SEX_STYLE, UNKNOWN_STYLE

Result = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def plot_skill(result: Result) -> Figure:
    """The error beside those of predictions without an image, and the noise of one reading."""
    figure = Figure(figsize=(7.2, 2.3), layout="constrained")
    axes = figure.subplots()
    base = result["baselines"]
    names = ["one constant", "median of each sex", "this model"]
    values = [base["constant_median_mae_months"], base["sex_median_mae_months"],
              result["accuracy"]["mae_months"]]  # fmt: skip
    axes.barh(names, [ends["value"] for ends in values], color=[GREY, GREY, BLUE], height=0.6)
    for i, ends in enumerate(values):
        if ends["low"] is not None:
            axes.errorbar(ends["value"], i, xerr=_arms(ends), color="black", capsize=4)
    low, high = result["noise_floor_months"]
    axes.axvspan(low, high, color=GREEN, alpha=0.4, label="noise of single readings")
    axes.set_xlabel("mean absolute error (months)")
    axes.legend(loc="upper right", fontsize=8)
    return figure


def _ages_in_months(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return MONTHS * table["reference_years"], MONTHS * table["predicted_years"]


def plot_scatter(table: pd.DataFrame) -> Figure:
    """Predicted against reference age."""
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    reference, predicted = _ages_in_months(table)
    _scatter_by_sex(axes, table["sex"], reference, predicted)
    ends = [min(reference.min(), predicted.min()), max(reference.max(), predicted.max())]
    axes.plot(ends, ends, color=GREY, lw=1.2, ls="--")
    axes.set(xlabel="reference age (months)", ylabel="predicted age (months)")
    axes.legend(fontsize=8, loc="upper left")
    return figure


def plot_agreement(table: pd.DataFrame, result: Result) -> Figure:
    """Bland-Altman: error against the mean of reference and prediction."""
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    reference, predicted = _ages_in_months(table)
    _scatter_by_sex(axes, table["sex"], (predicted + reference) / 2, predicted - reference)
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


def _scatter_by_sex(axes: Axes, sexes: pd.Series, x: pd.Series, y: pd.Series) -> None:
    for sex, (name, colour, marker) in (SEX_STYLE | {None: UNKNOWN_STYLE}).items():
        rows = sexes == sex if sex else sexes.isna()
        if rows.any():
            axes.scatter(x[rows], y[rows], s=12, alpha=0.5, c=colour, marker=marker,
                         linewidths=0, label=f"{name} (n = {rows.sum()})")  # fmt: skip


def plot_reliability(result: Result) -> Figure | None:
    """Proportion of correct stages against their probability; None if every bin has one case."""
    bins = pd.DataFrame(result["calibration"]["bins"]).query("n > 1")
    if bins.empty:
        return None
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color=GREY, lw=1.2)
    proportions = bins["accuracy"].tolist()
    arms = np.concatenate([_arms(ends) for ends in proportions], axis=1)
    axes.errorbar(bins["confidence"], [ends["value"] for ends in proportions], yerr=arms,
                  color=BLUE, marker="o", capsize=3)  # fmt: skip
    axes.set(xlim=(0.3, 1.02), ylim=(0, 1.02), xlabel="probability of the predicted stage",
             ylabel="proportion of correct stages")  # fmt: skip
    return figure


def plot_groups(result: Result) -> Figure | None:
    """Forest plot of absolute error, signed error and coverage; None if no group has two cases."""
    groups = _keep_several(result["groups"])
    if not groups:
        return None
    panels = [m for m in (ABSOLUTE, SIGNED, COVERAGE) if m.figure in result["accuracy"]]
    figure = Figure(
        figsize=(2.8 + 2.3 * len(panels), 1.1 + 0.25 * len(groups)), layout="constrained"
    )
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, measure in zip(every, panels, strict=True):
        _plot_measure(axes, measure, groups, result["accuracy"][measure.figure])
    labels = [f"{name_group(g)} (n = {g['n']}{', small' * g['is_small']})" for g in groups]
    _label_rows(every[0], labels)
    return figure


def _plot_measure(axes: Axes, measure: Measure, groups: Rows, all_cases: Mapping[str, Any]) -> None:
    """Draw one measure of every group, a row each."""
    overall = times(all_cases, measure.scale)
    axes.axvline(overall["value"], color=GREY, lw=1)
    if overall["low"] is not None:
        axes.axvspan(overall["low"], overall["high"], color=GREY, alpha=0.2, linewidth=0)
    if measure is SIGNED:
        axes.axvline(0.0, color="black", lw=1, ls=":")
    _shade_rows(axes, [group["by"] for group in groups])
    for i, group in enumerate(groups):
        differs = measure.name in name_differences(group)
        _plot_point(axes, i, times(group["figures"][measure.figure], measure.scale),
                    color=ORANGE if group["is_small"] else BLUE, fmt="D" if differs else "o",
                    ms=5 if differs else 4)  # fmt: skip
    axes.set_xlabel(measure.label)
    axes.tick_params(axis="y", length=0)


def plot_robustness(robustness: Mapping[str, Any]) -> Figure | None:
    """What each perturbation adds to the error and does to the stage; None for one image."""
    if robustness["n"] < 2:
        return None
    rows: Rows = robustness["stresses"]
    figure = Figure(figsize=(7.6, 0.9 + 0.2 * len(rows)), layout="constrained")
    errors, stages = figure.subplots(1, 2, sharey=True, width_ratios=(2.4, 1))
    errors.axvline(0.0, color=GREY, lw=1)
    errors.axvspan(-HARMFUL_MONTHS, HARMFUL_MONTHS, color=GREEN, alpha=0.18, linewidth=0)
    for axes in (errors, stages):
        _shade_rows(axes, [row["family"] for row in rows])
    for i, row in enumerate(rows):
        colour = RED if get_change(row) > HARMFUL_MONTHS else BLUE
        _plot_point(errors, i, row["mae_change_months"], color=colour, fmt="o", ms=4)
        stages.barh(i, 100.0 * (row["stage_changed"]["value"] or 0.0), color=colour, height=0.6)
    _label_rows(errors, [name_perturbation(row) for row in rows])
    errors.set_xlabel("change of the mean absolute error (months)")
    stages.set_xlabel("stage changed (%)")
    return figure


def plot_regions(regions: Mapping[str, Any]) -> Figure | None:
    """How much of the saliency map lies in the regions; None if no group has two images."""
    groups = _keep_several(regions["groups"])
    if not groups:
        return None
    figure = Figure(figsize=(7.6, 1.0 + 0.27 * len(groups)), layout="constrained")
    every = figure.subplots(1, 2, sharey=True)
    labels = {"energy": "map in the regions (%)", "hit": "peak in a region (% of images)"}
    styles = (("_shifted", "at random places", GREY, "s"), ("", "as annotated", BLUE, "o"))
    for axes, (kind, label) in zip(every, labels.items(), strict=True):
        for suffix, where, colour, marker in styles:
            for i, group in enumerate(groups):
                _plot_point(axes, i, times(group[f"{kind}{suffix}"], 100.0), color=colour,
                            fmt=marker, ms=4, label=where if i == 0 else None)  # fmt: skip
        axes.set_xlabel(label)
        axes.set_xlim(left=0.0)
    _label_rows(every[0], [f"{name_group(g)} (n = {g['n']})" for g in groups])
    every[0].legend(fontsize=8)
    return figure


def _keep_several(groups: Rows) -> Rows:
    """Leave out the groups of one case, which show nothing of a group."""
    return [group for group in groups if group["n"] > 1]


def _plot_point(axes: Axes, row: int, ends: Mapping[str, Any], **style: Any) -> None:
    """Draw a figure with its interval, if it is defined."""
    if ends["value"] is not None:
        arms = None if ends["low"] is None else _arms(ends)
        axes.errorbar(ends["value"], row, xerr=arms, capsize=2, clip_on=False, **style)


def _arms(ends: Mapping[str, Any]) -> list[list[float]]:
    arms = np.array([[ends["value"] - ends["low"]], [ends["high"] - ends["value"]]])
    return arms.clip(min=0.0).tolist()


def _shade_rows(axes: Axes, kinds: Sequence[str]) -> None:
    """Shade every other kind of row, so that the eye follows it from panel to panel."""
    order = list(dict.fromkeys(kinds))
    for i, kind in enumerate(kinds):
        if order.index(kind) % 2:
            axes.axhspan(i - 0.5, i + 0.5, color=GREY, alpha=0.1, linewidth=0)


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
