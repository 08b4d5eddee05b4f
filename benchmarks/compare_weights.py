"""Compare the weights in the package with earlier ones on the same images, pair by pair.

    python benchmarks/compare_weights.py EARLIER DATA LARGER [--out docs/results/compared.json]

EARLIER is an exported model, DATA the folder of the RSNA images at 100x100 px, LARGER that of some
of them at up to 640 px. Compared are the test images at 100 px and the larger validation and test
images, with the sex and without it. Only images that both models predict count.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from build_weights import predict

from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.data.split import split_samples
from boneage.evaluation.bootstrap import mean_estimate
from boneage.evaluation.statistics import mcnemar
from boneage.files import save_text
from boneage.inference.predictor import Predictor

RESAMPLES = 2000


def main() -> None:
    """Predict with both, print the figures, write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("earlier", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("larger", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    models = [Predictor(options.earlier, threads=1), Predictor(threads=1)]
    larger = find_images(options.larger)
    samples = match_images(read_labels(find_labels(options.data)), find_images(options.data))
    samples["split"] = split_samples(samples)
    samples["source"] = samples["path"]
    is_larger = samples["image_id"].isin(larger) & (samples["split"] != "train")
    parts = {
        "test": samples[samples["split"] == "test"],
        "larger": samples[is_larger].assign(
            source=lambda table: [larger[i] for i in table["image_id"]]
        ),
    }
    found = {"graph_sha256": [model.contract.graph_sha256 for model in models]} | {
        f"{name}{suffix}": compare(*(predict(model, part, sex) for model in models))
        for name, part in parts.items()
        for suffix, sex in (("", None), ("_unknown_sex", "unknown"))
    }
    print(json.dumps(found, indent=1))
    if options.out:
        save_text(options.out, json.dumps(found, indent=1) + "\n")


def compare(earlier: pd.DataFrame, now: pd.DataFrame) -> dict[str, Any]:
    """Compare two prediction tables; the difference is that of now less earlier, in months."""
    both = earlier.merge(now, on="image_id", suffixes=("_earlier", ""))
    reference = both["reference_years"]
    errors = [12.0 * (both[f"predicted_years{s}"] - reference) for s in ("_earlier", "")]
    right = [
        (both[f"predicted_stage{s}"] == both["reference_stage"]).to_numpy()
        for s in ("_earlier", "")
    ]
    is_covered = [
        reference.between(both[f"predicted_low_years{s}"], both[f"predicted_high_years{s}"])
        for s in ("_earlier", "")
    ]
    return {
        "n": len(both),
        "mae_months": [float(error.abs().mean()) for error in errors],
        "signed_error_months": [float(error.mean()) for error in errors],
        "mae_difference_months": mean_estimate(errors[1].abs() - errors[0].abs(), RESAMPLES),
        "stage_accuracy": [float(np.mean(r)) for r in right],
        "stage": mcnemar(*right),
        "coverage": [float(c.mean()) for c in is_covered],
    }


if __name__ == "__main__":
    main()
