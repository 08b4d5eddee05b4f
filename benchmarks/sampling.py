"""Measure how reducing a full-size image changes its prediction. Writes docs/results/sampling.json.

    python benchmarks/sampling.py DATA ORIGINALS [ENHANCED]

DATA holds the reduced images, ORIGINALS some of them at full size under the same ids, ENHANCED
others with their background removed. Sex and age come from the labels in DATA. As these are few,
synthetic images are added at full size. An image of DATA is the middle sample of its original; all
are compared with their own middle sample as well.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from boneage.data.labels import find_images, find_labels, read_labels
from boneage.files import save_text
from boneage.imaging.preprocess import sampling_phases
from boneage.imaging.radiograph import Radiograph, read_radiograph
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import write_cohort

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "sampling.json"
SYNTHETIC_IMAGES, SYNTHETIC_SEED, SYNTHETIC_HEIGHT = 100, 9, 1500
PHASES = sampling_phases(8)
OTHER_PHASES = tuple((right, down) for down, right in PHASES)
"""Eight samples that share no row and column with `PHASES` at the same time."""


def months(predictor: Predictor, radiograph: Radiograph, sex: Any, phases: Any = PHASES) -> float:
    """Prediction of the network in months, averaged over samples of the image; not calibrated."""
    preprocessing = predictor.contract.preprocessing
    image = radiograph.to_image()
    inputs = [preprocessing.to_array(preprocessing.reduce(image, phase)) for phase in phases]
    return 12.0 * float(np.mean([predictor.run(i[None], [sex])["age_years"][0] for i in inputs]))


def reduced(radiograph: Radiograph, size: int, method: Image.Resampling) -> Radiograph:
    """An image reduced by an ordinary resize."""
    image = radiograph.to_image().resize((size, size), method)
    return replace(radiograph, pixels=np.asarray(image, dtype=np.float32) / 255.0)


def main(data: Path, originals: Path, enhanced: Path | None = None) -> None:
    """Predict every image in every way."""
    predictor = Predictor(threads=1)
    folders = {"original": originals} | ({} if enhanced is None else {"enhanced": enhanced})
    rows = []
    for kind, folder in folders.items():
        rows += predict_folder(predictor, folder, data, kind)
    with TemporaryDirectory() as synthetic:
        write_cohort(
            Path(synthetic), n=SYNTHETIC_IMAGES, seed=SYNTHETIC_SEED, height=SYNTHETIC_HEIGHT
        )
        rows += predict_folder(predictor, Path(synthetic), Path(synthetic), "synthetic")
    result: dict[str, Any] = {"graph_sha256": predictor.contract.graph_sha256}
    for kind in (*folders, "synthetic"):
        result[kind] = summarise([row for row in rows if row["kind"] == kind])
    result["both"] = summarise([row for row in rows if row["kind"] != "synthetic"])
    save_text(RESULTS, json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def predict_folder(
    predictor: Predictor, folder: Path, data: Path, kind: str
) -> list[dict[str, Any]]:
    """Predict the images of a folder in every way, and their reduced versions in `data`."""
    size = predictor.contract.preprocessing.sampled_size or 100
    labels = read_labels(find_labels(data)).set_index("image_id")
    low_resolution_images = find_images(data)
    rows = []
    for image_id, path in tqdm(find_images(folder).items(), desc=kind):
        sex = labels.at[image_id, "sex"]
        radiograph, low_resolution = (
            read_radiograph(path),
            read_radiograph(low_resolution_images[image_id]),
        )
        row = {
            "kind": kind,
            "image_id": image_id,
            "low_resolution": months(predictor, low_resolution, sex, ((0.0, 0.0),)),
            "middle": months(predictor, radiograph, sex, ((0.0, 0.0),)),
            "phases": months(predictor, radiograph, sex),
            "other_phases": months(predictor, radiograph, sex, OTHER_PHASES),
        }
        for i, phase in enumerate(PHASES):
            row[f"phase_{i}"] = months(predictor, radiograph, sex, (phase,))
        for method in (
            Image.Resampling.BOX,
            Image.Resampling.BILINEAR,
            Image.Resampling.LANCZOS,
        ):
            row[method.name.lower()] = months(predictor, reduced(radiograph, size, method), sex)
        row["error"] = row["phases"] - float(labels.at[image_id, "months"])
        row["low_resolution_error"] = row["low_resolution"] - float(labels.at[image_id, "months"])
        rows.append(row)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean differences in months; no single image."""

    def column(name: str) -> Any:
        return np.array([row[name] for row in rows])

    phases, low_resolution = column("phases"), column("low_resolution")
    single = np.stack([column(f"phase_{i}") for i in range(len(PHASES))])
    return {
        "n": len(rows),
        "two_disjoint_sets_apart": float(np.abs(phases - column("other_phases")).mean()),
        "two_single_phases_apart": float(np.abs(single[0] - single[1]).mean()),
        "minus_middle": float((phases - column("middle")).mean()),
        # The middle is one sample; how far it strays by chance, the samples of its image tell.
        "minus_middle_se": float(np.sqrt(single.var(axis=0, ddof=1).sum()) / len(rows)),
        "apart_from_low_resolution": float(np.abs(phases - low_resolution).mean()),
        **{
            f"{name}_apart_from_phases": float(np.abs(column(name) - phases).mean())
            for name in ("box", "bilinear", "lanczos")
        },
        "mae": float(np.abs(column("error")).mean()),
        "low_resolution_mae": float(np.abs(column("low_resolution_error")).mean()),
    }


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
