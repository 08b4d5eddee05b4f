"""Saliency maps of the shipped model against annotated regions, for docs/experiments.md.

    python benchmarks/saliency.py DATA LARGER REGIONS

DATA is the folder of the RSNA images at 100x100 px, LARGER that of some of them at up to 640 px,
REGIONS the CSV of boxes that readers have annotated on some of them (docs/experiments.md names the
sources). The same is measured on synthetic images against their growth plates, and all of it again
with shuffled weights: agreement that remains with those does not come from what the model has
learned. On the larger validation and test images it is measured how much of the positive map lies
on the hand, whose outline is found by Otsu's threshold and not by the hand finder.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image
from tqdm import tqdm

from boneage.audit.saliency import find_hand, measure_images, read_regions, summarise_regions
from boneage.data.labels import find_images, find_labels, match_images, read_known, read_labels
from boneage.data.split import split_samples
from boneage.evaluation.bootstrap import mean_estimate
from boneage.evaluation.prediction_table import name_age_band
from boneage.files import save_text
from boneage.imaging.discovery import discover
from boneage.inference.batch import make_records
from boneage.inference.predictor import Predictor
from boneage.inference.registry import find_model
from boneage.phantom.cohort import write_cohort

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "regions.json"
SYNTHETIC_IMAGES, SYNTHETIC_SEED, SYNTHETIC_HEIGHT = 200, 7, 400
RESAMPLES = 2000


def main() -> None:
    """Measure real and synthetic images, with the weights as they are and shuffled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("larger", type=Path)
    parser.add_argument("regions", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"graph_sha256": Predictor().contract.graph_sha256}
    result["on the hand"] = measure_on_hand(arguments.data, arguments.larger)
    print(json.dumps(result["on the hand"], indent=1))
    with TemporaryDirectory() as folder:
        shuffled = Path(folder) / "shuffled.onnx"
        shuffle_weights(find_model(), shuffled)
        cohort = Path(folder) / "synthetic"
        write_cohort(cohort, SYNTHETIC_IMAGES, SYNTHETIC_SEED, SYNTHETIC_HEIGHT, masks=True)
        for what, data, annotations in (
            ("real images", arguments.data, arguments.regions),
            ("synthetic images", cohort, cohort / "masks"),
        ):
            regions = read_regions(annotations)
            large = find_images(arguments.larger) if data == arguments.data else {}
            paths = [
                large.get(path.stem, path)
                for path in discover([data]).images
                if path.stem in regions
            ]
            records = make_records(paths, None, read_known(find_labels(data)))
            for model in (find_model(), shuffled):
                found = measure_images(Predictor(model, threads=1), records, regions)
                name = what if model == find_model() else f"{what}, weights shuffled"
                result[name] = summarise_regions(found, resamples=RESAMPLES)
                print(name, json.dumps(result[name]["groups"][0]))
    save_text(RESULTS, json.dumps(result, indent=1) + "\n")


def measure_on_hand(data: Path, larger: Path) -> list[dict[str, Any]]:
    """Give, by reference age, the proportion of the positive map that lies on the hand."""
    small, images = find_images(data), find_images(larger)
    samples = match_images(read_labels(find_labels(data)), small)
    samples["split"] = split_samples(samples)
    is_measured = samples["image_id"].isin(images) & (samples["split"] != "train")
    predictor = Predictor(threads=1)
    bands: dict[str, list[float | None]] = {}
    for row in tqdm(samples[is_measured].itertuples(), unit="image"):
        radiograph = predictor.read(images[row.image_id])
        saliency = predictor.predict(radiograph, row.sex).saliency
        if saliency is not None:
            found = bands.setdefault(name_age_band(row.age_years), [])
            found.append(measure_inside(saliency, find_hand(radiograph.pixels, [])))
    result = []
    for band, values in sorted(bands.items(), key=lambda item: int(item[0].split()[0])):
        shown = [value for value in values if value is not None]
        result.append({"age": band, "n": len(values), "blank": len(values) - len(shown),
                       "on_hand": mean_estimate(shown, RESAMPLES),
                       "p10": float(np.quantile(shown, 0.1))})  # fmt: skip
    return result


def measure_inside(saliency: Any, hand: Any) -> float | None:
    """Give the proportion of a map's positive part that lies on the hand; None if it has none."""
    positive = Image.fromarray(saliency.astype(np.float32).clip(min=0.0))
    heat = np.asarray(positive.resize(hand.shape[::-1], Image.Resampling.BILINEAR)).clip(min=0.0)
    total = float(heat.sum())
    return float(heat[hand].sum()) / total if total > 0.0 else None


def shuffle_weights(model: Path, out: Path, seed: int = 0) -> None:
    """Copy an exported model with the weights of each convolution shuffled."""
    graph = onnx.load(model)
    rng = np.random.default_rng(seed)
    for tensor in graph.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim == 4:
            mixed = rng.permutation(weights.ravel()).reshape(weights.shape)
            tensor.CopyFrom(numpy_helper.from_array(mixed, tensor.name))
    onnx.save(graph, out)


if __name__ == "__main__":
    main()
