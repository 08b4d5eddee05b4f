"""What narrows the gap between the sexes, and what it costs: docs/experiments.md, "Mitigation".

    python benchmarks/mitigation.py DATA --output RUN

DATA is the raw folder of the images, RUN the folder of a finished training. Its heads are fitted
further on the training images' features, the correction by sex on the half of the validation images
that the package's calibration uses; all figures are of the other half. No test image is touched.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boneage.config import Paths
from boneage.data.dataset import BoneAgeDataset, get_transforms
from boneage.evaluation.statistics import paired_mean
from boneage.files import save_text
from boneage.training.checkpoint import load_checkpoint
from boneage.training.mitigation import (
    METHODS,
    answer,
    correct_by_sex,
    extract_features,
    fit_heads,
)
from boneage.training.train import BEST
from boneage.training.workflows import load_trained

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "mitigation.json"
SEEDS = 5
RESAMPLES = 2000


def main() -> None:
    """Fit every way with every seed, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("output/boneage"))
    arguments = parser.parse_args()
    paths = Paths(data=arguments.data, output=arguments.output)
    trained, samples = load_trained(paths, None)
    recipe = trained.recipe
    val = samples[samples["split"] == "val"]
    parts = [
        samples[(samples["split"] == "train") & ~samples["image_id"].isin(recipe.hold_out)],
        val.iloc[1::2],
        val.iloc[::2],
    ]
    transform = get_transforms("val", recipe)
    model = load_checkpoint(paths.output / BEST).model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, fitted, judged = (
        extract_features(model, BoneAgeDataset(part, transform, trained.preprocessing))
        for part in parts
    )
    truth, sex = judged.years.numpy() * 12.0, judged.sex.numpy()
    stage = judged.stage.numpy()
    errors: dict[str, list[Any]] = {method: [] for method in METHODS}
    hits: dict[str, list[Any]] = {method: [] for method in METHODS}
    for seed in range(SEEDS):
        for method in METHODS:
            heads = fit_heads(model, train, method, seed)
            years, stages = answer(heads, judged)
            if method == "correction by sex":
                lines = correct_by_sex(
                    fitted.years.numpy(), answer(heads, fitted)[0], fitted.sex.numpy()
                )
                slopes, intercepts = np.array([lines[int(s)] for s in sex]).T
                years = slopes * years + intercepts
            errors[method].append(12.0 * years - truth)
            hits[method].append(stages == stage)
        print(f"seed {seed} done", flush=True)
    result = {
        "n": len(truth), "n_train": len(train.years), "seeds": SEEDS,
        "methods": [compare(m, errors, hits, sex) for m in METHODS],
    }  # fmt: skip
    save_text(RESULTS, json.dumps(result, indent=1) + "\n")
    for row in result["methods"]:
        print(row)


def compare(
    method: str, errors: dict[str, list[Any]], hits: dict[str, list[Any]], sex: Any
) -> dict[str, Any]:
    """Figures of one way, means over the seeds, and what it changes, paired image by image."""
    error, before = np.array(errors[method]), np.array(errors[METHODS[0]])  # (seeds, images)
    size, base = np.abs(error), np.abs(before)
    male = sex > 0

    def gap(sizes: Any) -> Any:
        return sizes[..., ~male].mean(axis=-1) - sizes[..., male].mean(axis=-1)

    # An image's contribution to the gap, so that the gap is a mean over images as well.
    share = np.where(male, -len(sex) / male.sum(), len(sex) / (~male).sum())
    return {
        "method": method,
        "mae_months": float(size.mean()),
        "mae_sd_over_seeds": float(size.mean(axis=1).std(ddof=1)),
        "gap_months": float(gap(size).mean()),
        "gap_sd_over_seeds": float(gap(size).std(ddof=1)),
        "bias_male_months": float(error[:, male].mean()),
        "bias_female_months": float(error[:, ~male].mean()),
        "stage_accuracy": float(np.mean(hits[method])),
        "mae_change_months": paired_mean((size - base).mean(axis=0), RESAMPLES),
        "gap_change_months": paired_mean((share * (size - base)).mean(axis=0), RESAMPLES),
        "accuracy_change": paired_mean(
            np.mean(hits[method], axis=0) - np.mean(hits[METHODS[0]], axis=0), RESAMPLES
        ),
    }


if __name__ == "__main__":
    main()
