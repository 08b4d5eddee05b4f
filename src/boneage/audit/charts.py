"""An audit in pictures, each with its text for those who do not see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boneage.audit.figures import SMALL_GROUP
from boneage.evaluation.plots import BLUE, GREEN, GREY, ORANGE, RED, SEX_STYLE, UNKNOWN_STYLE
from boneage.evaluation.statistics import SIGNIFICANT

HARMFUL_MONTHS = 0.5
"""Rise of the mean error that the profile marks."""

_NAMED_GROUPS = 6
"""Most groups that a sentence names."""


@dataclass(frozen=True)
class Measure:
    """What groups are compared in.

    Attributes:
        name: In words.
        figure: Its name among the figures.
        p_value: Name of its corrected p-value.
        label: Of its axis.
        unit: Of a difference.
        scale: From the figure to what is shown: 100 for percent.
    """

    name: str
    figure: str
    p_value: str
    label: str
    unit: str = "months"
    scale: float = 1.0


ABSOLUTE = Measure("absolute error", "mae_months", "p_corrected", "mean absolute error (months)")
SIGNED = Measure("signed error", "bias_months", "bias_p_corrected", "signed error (months)")
COVERAGE = Measure(
    "coverage", "coverage", "coverage_p_corrected", "coverage (%)", "percentage points", 100.0
)

MEASURES = (SIGNED, ABSOLUTE, COVERAGE)
"""In the order of the sentences on them."""


def format_figure(ends: Mapping[str, float | None], digits: int) -> str:
    """Format a figure with its interval, or a dash where it is undefined."""
    texts = [None if ends[end] is None else _number(ends[end], digits)  # type: ignore[arg-type]
             for end in ("value", "low", "high")]  # fmt: skip
    if texts[0] is None:
        return "–"
    return texts[0] if None in texts else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _number(value: float, digits: int) -> str:
    text = f"{100 * value:z.1f}%" if digits < 0 else f"{value:z.{digits}f}"
    return text.replace("-", "−")


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
        f"the noise of single readings ({low} to {high}) and answers that need no image: "
        f"{format_figure(base['sex_median_mae_months'], 1)} for the median of each sex, "
        f"{format_figure(base['constant_median_mae_months'], 1)} for one constant."
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
    base = result["baselines"]
    names = ["one constant", "median of each sex", "this"]
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


def name_differences(group: Mapping[str, Any]) -> list[str]:
    """Name the measures in which a group differs significantly from the other cases."""
    return [measure.name for measure in MEASURES if _differs(group, measure)]


def _differs(group: Mapping[str, Any], measure: Measure) -> bool:
    p_value = group[measure.p_value]
    return p_value is not None and p_value < SIGNIFICANT


def describe_differences(result: Mapping[str, Any]) -> list[str]:
    """Say in sentences how the sexes differ, and which groups differ significantly in what."""
    sexes, groups = result["male_minus_female"], result["groups"]
    sentences = [
        "The sexes cannot be compared: the cases are not known to be of both."
        if sexes is None
        else f"Signed error, male minus female: {format_figure(sexes['bias_months'], 1)} months."
    ]
    why = explain_no_test(result)
    if why is not None:
        return [*sentences, why]
    tested = [m for m in MEASURES if any(group[m.p_value] is not None for group in groups)]
    return sentences + [_describe_measure(measure, groups) for measure in tested]


def explain_no_test(result: Mapping[str, Any]) -> str | None:
    """Say why no group can be found to differ significantly; None if one can."""
    n = sum(group[SIGNED.p_value] is not None for group in result["groups"])
    lowest = n / (result["draws"] + 1)
    if result["draws"] == 0:
        return "No difference was tested: no permutations were asked for (--resamples 0)."
    if n == 0:
        return "No difference was tested: every group holds all the cases."
    if lowest >= SIGNIFICANT:
        return (
            f"No difference can be significant: with {result['draws']} permutations and {n} "
            f"groups the lowest corrected p is {format_p(min(lowest, 1.0))}. Raise --resamples."
        )
    return None


def _describe_measure(measure: Measure, groups: Sequence[Mapping[str, Any]]) -> str:
    """Name the groups that differ in a measure, the largest differences first."""
    found = [group for group in groups if _differs(group, measure)]
    if not found:
        return f"No group's {measure.name} differs significantly from that of the other cases."
    found.sort(key=lambda group: -abs(group["difference"][measure.figure]["value"]))
    texts = []
    for group in found[:_NAMED_GROUPS]:
        apart = _times(group["difference"][measure.figure], measure.scale)
        texts.append(f"{_name_group(group)} ({format_figure(apart, 1)} {measure.unit})")
    more = len(found) - len(texts)
    return (
        f"{measure.name.capitalize()} differs significantly from that of the other cases in "
        f"{len(found)} group{'s' * (len(found) > 1)}: {'; '.join(texts)}"
        f"{f'; and {more} more, marked in the table' if more else ''}."
    )


def describe_groups(result: Mapping[str, Any]) -> str:
    """Say in words what the picture of the groups shows."""
    groups = result["groups"]
    has_coverage = "coverage" in result["accuracy"]
    text = "By group: mean absolute error"
    text += ", " if has_coverage else " and "
    text += "signed error (prediction − reference; dotted line: zero)"
    text += ", and coverage of the prediction intervals" if has_coverage else ""
    text += ", with 95% intervals" if result["draws"] else ""
    text += ". Grey line: all cases."
    if any(group["is_small"] for group in groups):
        text += f" Orange: groups under {SMALL_GROUP} cases."
    if any(name_differences(group) for group in groups):
        text += " Diamonds: the difference from the other cases is significant."
    return f"{text} The table below holds the same figures."


def plot_groups(result: Mapping[str, Any]) -> Figure:
    """Forest plot by group: absolute error, signed error and coverage, beside all cases."""
    groups: Sequence[Mapping[str, Any]] = result["groups"]
    panels = [
        measure for measure in (ABSOLUTE, SIGNED, COVERAGE) if measure.figure in result["accuracy"]
    ]
    size = (2.8 + 2.3 * len(panels), 1.1 + 0.25 * len(groups))
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True)
    for axes, measure in zip(every, panels, strict=True):
        _plot_measure(axes, measure, result)
    labels = [f"{_name_group(g)} (n = {g['n']}{', small' * g['is_small']})" for g in groups]
    _name_rows(every[0], labels)
    return figure


def _plot_measure(axes: Axes, measure: Measure, result: Mapping[str, Any]) -> None:
    """Draw one measure of every group, a row each."""
    groups: Sequence[Mapping[str, Any]] = result["groups"]
    kinds = list(dict.fromkeys(group["by"] for group in groups))
    overall = _times(result["accuracy"][measure.figure], measure.scale)
    axes.axvline(overall["value"], color=GREY, lw=1)
    if overall["low"] is not None:
        axes.axvspan(overall["low"], overall["high"], color=GREY, alpha=0.2, linewidth=0)
    if measure is SIGNED:
        axes.axvline(0.0, color="black", lw=1, ls=":")
    for i, group in enumerate(groups):
        if kinds.index(group["by"]) % 2:  # to follow a row from panel to panel
            axes.axhspan(i - 0.5, i + 0.5, color=GREY, alpha=0.08, linewidth=0)
        ends = _times(group["figures"][measure.figure], measure.scale)
        if ends["value"] is not None:
            arms = None if ends["low"] is None else _arms(ends)
            axes.errorbar(ends["value"], i, xerr=arms, ms=5 if _differs(group, measure) else 4,
                          fmt="D" if _differs(group, measure) else "o",
                          color=ORANGE if group["is_small"] else BLUE, capsize=2)  # fmt: skip
    axes.set_xlabel(measure.label)
    axes.tick_params(axis="y", length=0)


def _times(ends: Mapping[str, float | None], scale: float) -> dict[str, Any]:
    return {end: None if value is None else scale * value for end, value in ends.items()}


def _name_group(group: Mapping[str, Any]) -> str:
    speaks = group["by"] in ("sex", "age", "sex and age", "region")  # others need their kind
    return str(group["group"]) if speaks else f"{group['by']}: {group['group']}"


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def plot_reliability(result: Mapping[str, Any]) -> Figure:
    """Right answers against the probability they were given."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    bins = pd.DataFrame(result["calibration"]["bins"])
    axes.plot([0, 1], [0, 1], "--", color=RED, lw=1.2)
    shares = bins["accuracy"].tolist()
    arms = np.concatenate([_arms(ends) for ends in shares], axis=1)
    axes.errorbar(bins["confidence"], [ends["value"] for ends in shares], yerr=arms, color=BLUE,
                  marker="o", capsize=3)  # fmt: skip
    axes.set(xlim=(0.3, 1.02), ylim=(0, 1.02), xlabel="probability of the stage answered",
             ylabel="share of right answers")  # fmt: skip
    return figure


def _arms(ends: Mapping[str, Any]) -> list[list[float]]:
    arms = np.array([[ends["value"] - ends["low"]], [ends["high"] - ends["value"]]])
    return arms.clip(min=0.0).tolist()


def describe_robustness(robustness: Mapping[str, Any]) -> str:
    """Say in words what the robustness profile shows."""
    stresses = robustness["stresses"]
    worst = max(stresses, key=_get_change)
    harmful = sum(_get_change(row) > HARMFUL_MONTHS for row in stresses)
    return (
        f"How the mean absolute error of {robustness['n']} images changes under {len(stresses)} "
        f"changes of the image: {harmful} raise it by more than {HARMFUL_MONTHS:g} months. The "
        f"worst is {name_stress(worst)}: {format_figure(worst['mae_change_months'], 1)} months. "
        "On the right, the share of images whose stage becomes another."
    )


def _get_change(row: Mapping[str, Any]) -> float:
    return float(row["mae_change_months"]["value"] or 0.0)


def name_stress(row: Mapping[str, Any]) -> str:
    """Name a stress: "rotation +20°"."""
    return f"{row['family']} {row['level']}".strip()


def plot_robustness(robustness: Mapping[str, Any]) -> Figure:
    """The whole profile: each change of the image, what it adds to the error, and to the stage."""
    stresses: Sequence[Mapping[str, Any]] = robustness["stresses"]
    figure = Figure(figsize=(7.6, 0.9 + 0.2 * len(stresses)), layout="constrained")
    errors, stages = figure.subplots(1, 2, sharey=True, width_ratios=(2.4, 1))
    errors.axvline(0.0, color=GREY, lw=1)
    errors.axvspan(-HARMFUL_MONTHS, HARMFUL_MONTHS, color=GREEN, alpha=0.18, linewidth=0)
    # Linear where most lie, logarithmic beyond: the worst are fifty times the usual ones.
    errors.set_xscale("symlog", linthresh=2.0, linscale=1.5)
    families = list(dict.fromkeys(row["family"] for row in stresses))
    for i, row in enumerate(stresses):
        if families.index(row["family"]) % 2:
            for axes in (errors, stages):
                axes.axhspan(i - 0.5, i + 0.5, color=GREY, alpha=0.1, linewidth=0)
        ends = row["mae_change_months"]
        colour = RED if _get_change(row) > HARMFUL_MONTHS else BLUE
        if ends["value"] is not None:
            arms = None if ends["low"] is None else _arms(ends)
            errors.errorbar(ends["value"], i, xerr=arms, fmt="o", ms=4, color=colour, capsize=2)
        stages.barh(i, 100.0 * (row["stage_changed"]["value"] or 0.0), color=colour, height=0.6)
    _name_rows(errors, [name_stress(row) for row in stresses])
    ticks = [-20, -5, -1, 0, 1, 2, 5, 10, 20, 50]
    errors.set_xticks(ticks, [f"{tick:+d}".replace("-", "−") if tick else "0" for tick in ticks])
    errors.minorticks_off()
    changes = [_get_change(row) for row in stresses]
    errors.set_xlim(min(-1.5, 1.6 * min(changes)), max(3.0, 1.6 * max(changes)))
    errors.set_xlabel("change of the mean absolute error (months)")
    stages.set_xlabel("stage changed (%)")
    return figure


def describe_regions(regions: Mapping[str, Any]) -> str:
    """Say in words what the picture of the regions shows."""
    whole = regions["groups"][0]
    return (
        f"On {regions['n']} images, {format_figure(whole['energy'], -1)} of the map lies in the "
        f"regions, and {format_figure(whole['energy_shifted'], -1)} in the same regions at random "
        f"places in the hand; its peak lies in one in {format_figure(whole['hit'], -1)} of images, "
        f"and {format_figure(whole['hit_shifted'], -1)} at random."
    )


def plot_regions(regions: Mapping[str, Any]) -> Figure:
    """Share of the map in each group of regions, beside chance."""
    groups: Sequence[Mapping[str, Any]] = regions["groups"]
    figure = Figure(figsize=(7.6, 1.0 + 0.27 * len(groups)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = {"energy": "share of the map in the regions (%)", "hit": "peak in the regions (%)"}
    for panel, (kind, label) in zip(axes, labels.items(), strict=True):
        for name, colour, marker in ((f"{kind}_shifted", GREY, "s"), (kind, BLUE, "o")):
            for i, group in enumerate(groups):
                ends = _times(group[name], 100.0)
                arms = None if ends["low"] is None else _arms(ends)
                text = ("at random places" if name != kind else "where drawn") if i == 0 else None
                panel.errorbar(ends["value"], i, xerr=arms, fmt=marker, ms=4, color=colour,
                               capsize=2, label=text)  # fmt: skip
        panel.set_xlabel(label)
        panel.set_xlim(left=0.0)
    names = [f"{_name_group(g)} (n = {g['n']})" for g in groups]
    _name_rows(axes[0], names)
    axes[0].legend(fontsize=8)
    return figure
