"""An audit in words: numbers as text, the summary, which groups differ, captions of the charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boneage.audit.figures import SMALL_GROUP
from boneage.evaluation.statistics import SIGNIFICANT

Result = Mapping[str, Any]
Ends = Mapping[str, Any]

HARMFUL_MONTHS = 0.5
"""Rise of the mean absolute error under a perturbation that the report marks."""

_MOST_NAMED_GROUPS = 6


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
    """Format a figure with its interval, or a dash where it is undefined.

    Args:
        ends: `value`, `low` and `high`.
        digits: Decimals; -1 shows a proportion in percent.
    """
    value, low, high = (
        None if ends[end] is None else _format_number(ends[end], digits)  # type: ignore[arg-type]
        for end in ("value", "low", "high")
    )
    if value is None:
        return "–"
    return value if low is None or high is None else f"{value} [{low}, {high}]"


def _format_number(value: float, digits: int) -> str:
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


def times(ends: Ends, scale: float) -> dict[str, Any]:
    """Multiply a figure and its interval."""
    return {end: None if value is None else scale * value for end, value in ends.items()}


def name_group(group: Mapping[str, Any]) -> str:
    """Name a group, with the column that it comes from unless the name alone is clear."""
    is_clear = group["by"] in ("sex", "age", "sex and age", "region")
    return str(group["group"]) if is_clear else f"{group['by']}: {group['group']}"


def name_perturbation(row: Mapping[str, Any]) -> str:
    """Name a perturbation: "rotation +20°"."""
    return f"{row['family']} {row['level']}".strip()


def summarise(result: Result) -> str:
    """Say in a paragraph how good the predictions are."""
    accuracy = result["accuracy"]
    bias = format_months(accuracy["bias_months"]["value"])
    direction = (
        "neither too high nor too low"
        if bias == "0.0"
        else f"{bias.removeprefix('−')} months too {'low' if bias.startswith('−') else 'high'}"
    )
    coverage = (
        "The prediction intervals contain the reference age in "
        f"{format_figure(accuracy['coverage'], -1)} of cases."
        if "coverage" in accuracy
        else "There are no prediction intervals, so coverage cannot be assessed."
    )
    return (
        f"This model was audited on {result['n']} case{'s' * (result['n'] != 1)} with a reference "
        f"age. Its mean absolute error is {format_figure(accuracy['mae_months'], 1)} months; on "
        f"average, its predictions are {direction}. The predicted stage is that of the reference "
        f"in {format_figure(accuracy['accuracy'], -1)} of cases. {coverage} "
        f"{explain_no_test(result) or _count_differences(result)}"
    )


def _count_differences(result: Result) -> str:
    """Say in how many groups each measure differs significantly."""
    groups = result["groups"]
    counts = {
        measure.name: sum(_differs(group, measure) for group in groups)
        for measure in _find_tested(groups)
    }
    found = [f"{name} in {n}" for name, n in counts.items() if n]
    if not found:
        return "No group of cases differs significantly from the other cases."
    return (
        f"Of {len(groups)} groups of cases, some differ significantly from the other cases: "
        f"{', '.join(found)}."
    )


def name_differences(group: Mapping[str, Any]) -> list[str]:
    """Name the measures in which a group differs significantly from the other cases."""
    return [measure.name for measure in MEASURES if _differs(group, measure)]


def _differs(group: Mapping[str, Any], measure: Measure) -> bool:
    p_value = group[measure.p_value]
    return p_value is not None and p_value < SIGNIFICANT


def _find_tested(groups: Sequence[Mapping[str, Any]]) -> list[Measure]:
    return [m for m in MEASURES if any(group[m.p_value] is not None for group in groups)]


def describe_differences(result: Result) -> list[str]:
    """Say in sentences how the sexes differ, and which groups differ significantly in what."""
    sexes, groups = result["male_minus_female"], result["groups"]
    sentences = [
        "The sexes cannot be compared: there are no cases of both sexes."
        if sexes is None
        else f"Signed error, male minus female: {format_figure(sexes['bias_months'], 1)} months."
    ]
    why = explain_no_test(result)
    if why is not None:
        return [*sentences, why]
    return sentences + [_describe_measure(measure, groups) for measure in _find_tested(groups)]


def explain_no_test(result: Result) -> str | None:
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
    for group in found[:_MOST_NAMED_GROUPS]:
        difference = times(group["difference"][measure.figure], measure.scale)
        texts.append(f"{name_group(group)} ({format_figure(difference, 1)} {measure.unit})")
    more = len(found) - len(texts)
    return (
        f"{measure.name.capitalize()} differs significantly from that of the other cases in "
        f"{len(found)} group{'s' * (len(found) > 1)}: {'; '.join(texts)}"
        f"{f'; and {more} more, marked in the table' if more else ''}."
    )


def describe_skill(result: Result) -> str:
    """Caption of the error beside its baselines."""
    base = result["baselines"]
    low, high = result["noise_floor_months"]
    return (
        f"Mean absolute error of this model: {format_figure(result['accuracy']['mae_months'], 2)} "
        f"months. Without any image, the median of each sex has an error of "
        f"{format_figure(base['sex_median_mae_months'], 1)} months, and one constant for all "
        f"{format_figure(base['constant_median_mae_months'], 1)}. The noise of single readings is "
        f"{low} to {high} months."
    )


def describe_scatter(result: Result) -> str:
    """Caption of the scatter plot."""
    return (
        f"Predicted against reference age of {result['n']} cases. On the diagonal they are equal. "
        f"R² {format_figure(result['accuracy']['r2'], 3)}."
    )


def describe_agreement(result: Result) -> str:
    """Caption of the Bland-Altman plot."""
    accuracy = result["accuracy"]
    return (
        f"Bland-Altman plot: mean signed error {format_figure(accuracy['bias_months'], 1)} months "
        f"(solid line), limits of agreement {format_figure(accuracy['loa_low_months'], 1)} to "
        f"{format_figure(accuracy['loa_high_months'], 1)} months (dashed lines)."
    )


def describe_calibration(result: Result) -> str:
    """Caption of the reliability diagram."""
    ece = format_figure(result["calibration"]["ece"], 3)
    return (
        "Proportion of correct stages against their predicted probability. On the diagonal they "
        f"are equal. Expected calibration error {ece}."
    )


def describe_groups(result: Result) -> str:
    """Caption of the forest plot of the groups."""
    groups = result["groups"]
    has_coverage = "coverage" in result["accuracy"]
    text = "By group: mean absolute error"
    text += ", " if has_coverage else " and "
    text += "signed error (prediction − reference; dotted line: zero)"
    text += ", and coverage of the prediction intervals" if has_coverage else ""
    text += ", with 95% intervals" if result["draws"] else ""
    text += ". Grey line: all cases."
    if any(group["n"] > 1 and group["is_small"] for group in groups):
        text += f" Orange: groups under {SMALL_GROUP} cases."
    if any(name_differences(group) for group in groups):
        text += " Diamonds: the difference from the other cases is significant."
    if any(group["n"] == 1 for group in groups):
        text += " Groups of one case are in the table only."
    return f"{text} The table below holds the same figures."


def describe_robustness(robustness: Mapping[str, Any]) -> str:
    """Caption of the robustness profile."""
    rows = robustness["stresses"]
    worst = max(rows, key=get_change)
    n_harmful = sum(get_change(row) > HARMFUL_MONTHS for row in rows)
    return (
        f"Left: change of the mean absolute error of {robustness['n']} images under each of "
        f"{len(rows)} perturbations. In red those that raise it by more than {HARMFUL_MONTHS:g} "
        f"months: {n_harmful}. The largest rise is under {name_perturbation(worst)}: "
        f"{format_figure(worst['mae_change_months'], 1)} months. Right: proportion of images whose "
        "predicted stage changes."
    )


def get_change(row: Mapping[str, Any]) -> float:
    """Give the change of the mean absolute error in months, 0 where there is no prediction."""
    return float(row["mae_change_months"]["value"] or 0.0)


def describe_regions(regions: Mapping[str, Any]) -> str:
    """Caption of the chart of the saliency maps."""
    whole = regions["groups"][0]
    return (
        f"On {regions['n']} image{'s' * (regions['n'] != 1)}, {format_figure(whole['energy'], -1)} "
        f"of the saliency map lies in the annotated regions, against "
        f"{format_figure(whole['energy_shifted'], -1)} in the same regions at random places in the "
        f"hand. The map's peak lies in a region in {format_figure(whole['hit'], -1)} of images, "
        f"against {format_figure(whole['hit_shifted'], -1)} at random places."
    )
