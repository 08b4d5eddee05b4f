"""Write docs/model_card.md from docs/results/boneage.json, so that no figure in it can drift."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CARD = FOLDER / "model_card.md"
MONTHS = 12.0
HARMFUL_MONTHS, SIGNIFICANT = 0.5, 0.05
LEAST_COVERAGE = 0.85


def make_card() -> str:
    """Give the card's text."""
    results = json.loads((FOLDER / "results" / "boneage.json").read_text(encoding="utf-8"))
    audit = json.loads((FOLDER / "results" / "audit.json").read_text(encoding="utf-8"))
    test, larger = results["test"], results["larger"]
    calibration, ages = results["calibration"], results["training_years"]
    widths = test["intervals"]
    warned = results["warned_sex"]
    counts = results["n_by_split"]
    recipe = results["recipe"]
    n_train = results["n_training"]
    return TEMPLATE.format(
        data=results["data"],
        terms=results["terms"],
        parity=f"{results['parity']['months']:.2g}",
        parity_n=results["parity"]["n"],
        sha=results["provenance"]["graph_sha256"],
        split_sha=results["provenance"]["split_sha256"],
        backbone=recipe["backbone"].removeprefix("timm:"),
        parameters=results["parameters"] / 1e6,
        size=recipe["image_size"],
        epochs=recipe["epochs"],
        n_synthetic=recipe["synthetic_images"],
        n_train=n_train,
        n_held_out=len(recipe["hold_out"]),
        n_not_trained=counts["train"] - n_train,
        n_val=counts["val"],
        n_test=counts["test"],
        n_calibrated=calibration["images"],
        n_larger=results["n_larger"],
        n_not_larger=sum(counts.values()) - sum(results["n_larger"].values()),
        youngest=MONTHS * ages["min"],
        oldest=MONTHS * ages["max"],
        p1=ages["p1"],
        p99=ages["p99"],
        headline=headline(results),
        raw_threshold=percent(
            *figure(results["test_not_calibrated"], "threshold_accuracy", "approaches")
        ),
        differ=results["age_and_stage_differ"],
        by_sex=by_sex(test),
        by_age=by_age(test),
        by_predicted_age=by_predicted_age(results),
        intervals=intervals(test),
        coverage=percent(widths["coverage"], widths["coverage_ci"]),
        width=number(widths["mean_width_months"], widths["mean_width_months_ci"]),
        naive=f"{results['naive_width_months']:.1f}",
        narrowest=f"{widths['narrowest_tenth_months']:.1f}",
        widest=f"{widths['widest_tenth_months']:.1f}",
        ece=f"{test['stage_calibration']['ece']:.3f}",
        without_sex=without_sex(results),
        wrong_mae=f"{results['test_wrong_sex']['regression']['mae_months']:.1f}",
        warned_right=f"{warned['test']:.1%}",
        warned_wrong=f"{warned['test_wrong_sex']:.1%}",
        adults=adults(test),
        beyond=beyond(test),
        synthetic_mae=f"{results['synthetic']['regression']['mae_months']:.1f}",
        synthetic_n=results["synthetic"]["n"],
        sizes_n=results["sizes"]["n"],
        sizes_apart=ends(results["sizes"]["difference_months"], signed),
        sizes_distance=ends(results["sizes"]["absolute_difference_months"], number),
        unlike=f"{results['warned_unlike']['test']:.1%}",
        unlike_larger=f"{results['warned_unlike']['larger']:.1%}",
        larger_n=larger["n"],
        larger_mae=number(*figure(larger, "mae_months")),
        harmful=HARMFUL_MONTHS,
        significant=SIGNIFICANT,
        n_changes=len(audit["robustness"]["stresses"]),
        corrected=corrected(audit),
        changes=changes(audit),
        worse_groups=worse_groups(audit),
        least_coverage=LEAST_COVERAGE,
        biased_groups=biased_groups(audit),
        uncovered=uncovered(audit),
    )


def figure(
    report: dict[str, Any], name: str, part: str = "regression"
) -> tuple[float, list[float]]:
    """A figure and its interval."""
    return report[part][name], report[part][f"{name}_ci"]


def number(value: float, interval: list[float | None], digits: int = 2, sign: str = "") -> str:
    """Format a figure with its interval; without one where all resamples are the same."""
    if None in interval:
        return f"{value:{sign}.{digits}f}".replace("-", "−")
    low, high = (f"{end:{sign}.{digits}f}" for end in interval)
    return f"{value:{sign}.{digits}f} [{low}, {high}]".replace("-", "−")


def percent(value: float, interval: list[float | None]) -> str:
    """Format a proportion with its interval, where it has one."""
    if None in interval:
        return f"{value:.1%}"
    return f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"


def headline(results: dict[str, Any]) -> str:
    """The table of figures: test, the larger images, and the half that recipes were chosen on."""
    columns = (
        ("test", "test, 100 px"),
        ("larger", "validation and test, up to 640 px"),
        ("val_chosen_on", "validation half for choices"),
    )
    reports = [results[key] for key, _ in columns]
    titles = [f"{title}, n = {r['n']}" for (_, title), r in zip(columns, reports, strict=True)]
    lines = [f"| figure | {' | '.join(titles)} |", "|---|---|---|---|"]
    rows: list[tuple[str, str, str, bool]] = [
        ("MAE, months", "regression", "mae_months", False),
        ("RMSE, months", "regression", "rmse_months", False),
        ("signed error, months", "regression", "signed_error_months", False),
        ("R²", "regression", "r2", False),
        ("within 6 months", "regression", "within_6_months", True),
        ("within 12 months", "regression", "within_12_months", True),
        ("within 24 months", "regression", "within_24_months", True),
        ("stage accuracy, direct", "approaches", "direct_accuracy", True),
        ("stage accuracy, threshold on the age", "approaches", "threshold_accuracy", True),
        ("precision, weighted", "classification", "precision_weighted", True),
        ("recall, weighted", "classification", "recall_weighted", True),
        ("F1, weighted", "classification", "f1_weighted", True),
        ("quadratic weighted kappa", "classification", "qwk", False),
        ("coverage of the 90% interval", "intervals", "coverage", True),
    ]
    for label, part, name, is_proportion in rows:
        cells = []
        for report in reports:
            value, interval = figure(report, name, part)
            digits = 3 if name in ("r2", "qwk") else 2
            cells.append(
                percent(value, interval) if is_proportion else number(value, interval, digits)
            )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    constants = [f"{report['baseline']['mae_months']:.2f}" for report in reports]
    lines.append(f"| MAE of always predicting the training median | {' | '.join(constants)} |")
    return "\n".join(lines)


def by_sex(test: dict[str, Any]) -> str:
    """Figures by sex."""
    lines = ["| sex | n | MAE | signed error | stage accuracy |", "|---|---|---|---|---|"]
    for sex in ("male", "female"):
        age = test["gender_bias"]["regression"][sex]
        stage = test["gender_bias"]["classification"][sex]
        lines.append(
            f"| {sex} | {age['n']} | {number(age['mae_months'], age['mae_months_ci'])} | "
            f"{number(age['signed_error_months'], age['signed_error_months_ci'], sign='+')} | "
            f"{percent(stage['accuracy'], stage['accuracy_ci'])} |"
        )
    return "\n".join(lines)


def by_age(test: dict[str, Any]) -> str:
    """Figures by reference age, with the error that regression to the mean explains."""
    lines = [
        "| reference age | n | MAE | signed error | explained by regression to the mean |",
        "|---|---|---|---|---|",
    ]
    for row in test["by_age"]:
        explained = f"{row['regression_to_mean_months']:+.1f}".replace("-", "−")
        lines.append(f"{_by_band(row)} {explained} |")
    return "\n".join(lines)


def by_predicted_age(results: dict[str, Any]) -> str:
    """Figures by predicted age, at both sizes."""
    lines = ["| images | predicted age | n | MAE | signed error |", "|---|---|---|---|---|"]
    for key, title in (("test", "test, 100 px"), ("larger", "up to 640 px")):
        lines += [f"| {title} {_by_band(row)}" for row in results[key]["by_predicted_age"]]
    return "\n".join(lines)


def _by_band(row: dict[str, Any]) -> str:
    return (
        f"| {row['group']} | {row['n']} | {number(row['mae_months'], row['mae_months_ci'], 1)} | "
        f"{number(row['signed_error_months'], row['signed_error_months_ci'], 1, '+')} |"
    )


def without_sex(results: dict[str, Any]) -> str:
    """Figures without the sex, at both sizes."""
    lines = ["| images | n | MAE | coverage | mean width, months |", "|---|---|---|---|---|"]
    for key, title in (("test", "test, 100 px"), ("larger", "up to 640 px")):
        report = results[f"{key}_unknown_sex"]
        widths = report["intervals"]
        lines.append(
            f"| {title} | {report['n']} | {number(*figure(report, 'mae_months'))} | "
            f"{percent(widths['coverage'], widths['coverage_ci'])} | "
            f"{widths['mean_width_months']:.1f} |"
        )
    return "\n".join(lines)


def intervals(test: dict[str, Any]) -> str:
    """Coverage by group."""
    lines = ["| group | n | coverage | mean width, months |", "|---|---|---|---|"]
    for row in test["intervals"]["by_sex_and_stage"]:
        sex = {"M": "male", "F": "female"}[row["sex"]]
        lines.append(f"| {sex}, {row['stage']} | {row['n']} | "
                     f"{percent(row['coverage'], row['coverage_ci'])} | "
                     f"{row['mean_width_months']:.1f} |")  # fmt: skip
    for row in test["intervals"]["by_width"]:
        lines.append(f"| {row['group']} by width | {row['n']} | "
                     f"{percent(row['coverage'], row['coverage_ci'])} | "
                     f"{row['mean_width_months']:.1f} |")  # fmt: skip
    return "\n".join(lines)


def adults(test: dict[str, Any]) -> str:
    """How many adults are found."""
    row = test["classification"]["confusion_matrix"][2]
    return f"{row[2]} of {sum(row)}"


def beyond(test: dict[str, Any]) -> str:
    """How many images are more than two years off."""
    n = round(test["n"] * (1.0 - test["regression"]["within_24_months"]))
    return f"{n} of {test['n']}"


def corrected(audit: dict[str, Any]) -> str:
    """How many rotated and inverted images are detected, and how the MAE changes."""
    ways = [
        (f"rotated by {level}", find_stress(audit, "rotation", level))
        for level in ("90°", "180°", "270°")
    ]
    ways.append(("inverted", find_stress(audit, "inversion", "")))
    return ", ".join(
        f"{name} {stress['warned']['value']:.1%} ({change_of(stress)})" for name, stress in ways
    )


def changes(audit: dict[str, Any]) -> str:
    """Every perturbation that raises the MAE by `HARMFUL_MONTHS` or more, the largest first."""
    costly = [
        stress for stress in audit["robustness"]["stresses"]
        if stress["family"] != "sex" and stress["mae_change_months"]["value"] >= HARMFUL_MONTHS
    ]  # fmt: skip
    costly.sort(key=lambda stress: -stress["mae_change_months"]["value"])
    return ", ".join(
        f"{stress['family']} {stress['level']} {change_of(stress)}" for stress in costly
    )


def find_stress(audit: dict[str, Any], family: str, level: str) -> dict[str, Any]:
    """One perturbation of the audit."""
    return next(
        stress for stress in audit["robustness"]["stresses"]
        if (stress["family"], stress["level"]) == (family, level)
    )  # fmt: skip


def change_of(stress: dict[str, Any]) -> str:
    """Format the change of the MAE under a perturbation."""
    return f"{stress['mae_change_months']['value']:+.1f}".replace("-", "−")


def worse_groups(audit: dict[str, Any]) -> str:
    """Groups with a larger MAE than the other cases, after correction for their number."""
    lines = ["| group | n | MAE | difference from the others | coverage |", "|---|---|---|---|---|"]
    for row in audit["groups"]:
        apart, figures = row["difference"]["mae_months"], row["figures"]
        if apart["value"] is None or apart["value"] <= 0 or row["p_corrected"] >= SIGNIFICANT:
            continue
        lines.append(
            f"| {row['by']}: {row['group']} | {row['n']} | {ends(figures['mae_months'], number)} | "
            f"{ends(apart, number)} | {ends(figures['coverage'], percent)} |"
        )
    return "\n".join(lines)


def biased_groups(audit: dict[str, Any]) -> str:
    """Groups whose signed error differs from that of the other cases, the largest first."""
    found = [row for row in audit["groups"] if (row["bias_p_corrected"] or 0.0) < SIGNIFICANT]
    found.sort(key=lambda row: -abs(row["difference"]["bias_months"]["value"]))
    lines = ["| group | n | difference of the signed error |", "|---|---|---|"]
    lines += [
        f"| {row['by']}: {row['group']} | {row['n']} | "
        f"{ends(row['difference']['bias_months'], signed)} |"
        for row in found
    ]
    return "\n".join(lines)


def signed(value: float, interval: list[float]) -> str:
    """Format a difference with its interval and sign."""
    return number(value, interval, 1, "+")


def uncovered(audit: dict[str, Any]) -> str:
    """Groups of enough images whose intervals hold too few of the references."""
    found = [
        f"{row['by']}: {row['group']} {ends(row['figures']['coverage'], percent)} (n = {row['n']})"
        for row in audit["groups"]
        if not row["is_small"] and row["figures"]["coverage"]["value"] < LEAST_COVERAGE
    ]
    return "; ".join(found) or "none"


def ends(figure: dict[str, Any], write: Callable[[float, list[float]], str]) -> str:
    """Format a figure of the audit with its interval."""
    return write(figure["value"], [figure["low"], figure["high"]])


TEMPLATE = """\
# Model card: what are the weights in the package good for, and what not?

**Research use only. Not a medical device, not cleared by any authority, not for decisions about a
child.**

Generated by `make docs` from [results/boneage.json](results/boneage.json) and
[results/audit.json](results/audit.json). Errors in months; error = prediction − reference; 95% bootstrap intervals (2,000 resamples) in brackets. Terms:
[glossary.md](glossary.md).

## Limits

1. **Trained mostly on small images.** {n_not_larger} of the images are there at 100×100 px only, reduced by
   nearest-neighbour sampling without keeping proportions; {n_larger[train]} training images at up to 640 px.
2. **Only what is not a whole hand is rejected.** Images without a hand, with several hands, or with the
   wrist or fingers cut off get no age. Disease, fractures, casts and other views are not recognised.
3. **Predictions regress to the mean.** Young children are predicted some months too old, the oldest too
   young (table [below](#by-sex-and-age)). The model is meant for {p1:.1f} to {p99:.1f} years, where 98% of the
   training images lie.
4. **Adults are not recognised.** {adults} test images of adults are predicted as Adult.
5. **Some groups are predicted worse** than the other test images. These have a larger MAE (p < {significant}
   after Holm's correction for the number of groups):

{worse_groups}

6. **The 90% intervals contain fewer than {least_coverage:.0%} of the references** in these groups: {uncovered}.
7. **A wrong sex is rarely noticed.** The MAE is then {wrong_mae}. {warned_wrong} of such images get a warning,
   and {warned_right} of the images with the right sex.
8. **Large errors occur.** The error of {beyond} test images is more than two years.
9. **Some changes of an image harm.** These raise the MAE by {harmful} or more:
   {changes}
   ([results](results.md#robustness)).

## Use

**Intended**: research on skeletal age, teaching, a first reading to compare others with, a starting
point for training on your own images (`boneage train --init boneage`).

**Out of scope**: clinical decisions; age assessment of unaccompanied minors or of anyone whose
chronological age is in question; hands with dysplasia, fracture, cast or metal; any image that does not
show exactly one hand, palm down.

## The model

| | |
|---|---|
| network | {backbone}, {parameters:.1f} million weights, {size} px |
| heads | linear layers, with weights that depend on the sex |
| input | one view of the hand: upright, drawn as a left hand, at one scale |
| output | age; stage (Child below 12 years, Adolescent from 12 to 18, Adult above) with probabilities; 90% prediction interval; predicted sex; saliency map of years per cell; familiarity |
| weights | moving average of the weights after the last of {epochs} epochs |
| file | ONNX, sha256 of the network `{sha}`; its predictions differ from those of the trained network by at most {parity} month on {parity_n} real images |

## Training data and their faults

{data}

| part | images |
|---|---|
| training | {n_train}, and {n_synthetic} synthetic images |
| validation | {n_val} |
| test | {n_test} |
| left out of training to test full-size images | {n_held_out}, of which {n_not_trained} belong to the training part |

The sha256 of the split is `{split_sha}`.

- One clinical reading per image: even a perfect model would have an MAE of 5.6 to 5.8 months against it.
- Digit preference: about 85% of the labels are exactly a plate age of the Greulich-Pyle atlas.
- The training images have ages from {youngest:.0f} to {oldest:.0f} months. Only 21 of all 12,611 RSNA images are
  above 18 years, all of them male, so the stage Adult cannot be learned or tested.
- No race, patient id, chronological age or diagnosis: bias by race cannot be assessed, and images of one
  child may be in two parts of the split.
- The images come from two hospitals in the United States (Halabi et al., Radiology 2019).

## Accuracy

{headline}

"Validation half for choices": the half of the validation images on which recipes were compared. "Direct":
the stage that the stage head predicts.

The references are single readings. Do not compare with figures on the official RSNA test set, whose
reference is the mean of six readers.

Age and stage are given as each head predicts them. On {differ:.1%} of the test images they contradict
each other, and a reason says so. Without calibration, the stage accuracy by thresholds on the age is
{raw_threshold}.

**Did the test images influence the model?** A little. Earlier networks of the package had been measured on
them, and these results led to changes of their recipes ([experiments](experiments.md)). This network learned
further from the last of them. No choice between recipes or calibrations of this one was made by test images.

**On which images was it calibrated?** On {n_calibrated} images: one half of validation, the larger copy where
there is one. How the width of an interval depends on the image was learned from these in the looks of the
training as well: changed film curves, sharpness, resolution, grain, frames. Recipes were compared on the
other half of validation.

![Predicted against reference age of the test images](images/boneage_scatter.png)
![Confusion matrix of the stages of the test images](images/boneage_confusion.png)

## By sex and age

{by_sex}

{by_age}

Any prediction that explains only a part of the variance lies nearer to the mean age than the reference. The
last column is the error that this alone leads one to expect, (1 − R²) · (mean age − mean age of the group).
So the error by predicted age is the one to look at:

{by_predicted_age}

Groups whose signed error differs from that of the other test images (p < {significant} after Holm's
correction); each value is that difference:

{biased_groups}

More groups: the [audit](audit_boneage.html).

## The interval

For 90 of 100 images like these, the interval contains the age that one clinical reader reports. It is not a
confidence interval of a true skeletal age. It is a conformal interval. Its width depends on the age, the sex,
how uncertain the stage is, how little the image looks like the sex entered, and how far its features are from
those of the training images.

On test the coverage is {coverage} and the mean width {width} months. Intervals of
constant width with the same level would be {naive} months wide. The narrowest tenth of the intervals is
{narrowest} months wide on average, the widest tenth {widest}.

{intervals}

This is not valid for images of another hospital, mix of ages or exposure: refit with `boneage calibrate` on
labelled images of your own. The stage probability differs from the proportion of right predictions by {ece}
on average (expected calibration error).

![Stage probabilities against the proportion of right predictions, and half widths of the intervals by age](images/boneage_calibration.png)

## Without the sex

{without_sex}

## Full-size and other images

- {larger_n} images of validation and test at up to 640 px: MAE {larger_mae}. Prediction for the larger image
  minus that for its copy at 100 px: {sizes_apart} months on {sizes_n} images; they differ by
  {sizes_distance} months on average.
- `familiarity` is the proportion of images like the training images that lie as far from these as the image
  or farther, by the network's features. Below 0.01 there is a warning: in {unlike} of the test images and
  {unlike_larger} of the larger ones.
- Rotated and inverted images are corrected, with a warning. Proportion of the test images that are detected,
  and change of the MAE in months: {corrected}.
- Synthetic images are predicted with an MAE of {synthetic_mae} (n = {synthetic_n}, drawn with another seed than those in
  training). That says nothing about real images.
- All {n_changes} perturbations: the [audit](audit_boneage.html).

## Terms

{terms}

## Train such weights yourself

[From the RSNA originals to weights of your own](retrain.md). [CONTRIBUTING](../CONTRIBUTING.md) says how the
weights in the package are replaced.
"""


if __name__ == "__main__":
    CARD.write_text(make_card(), encoding="utf-8")
