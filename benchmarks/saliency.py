"""Saliency maps of the shipped model against annotated regions, for docs/experiments.md.

    python benchmarks/saliency.py DATA REGIONS

DATA is the raw folder of the images, REGIONS the CSV of boxes that readers have annotated on some
of them (docs/experiments.md names the sources). The same is measured on synthetic images against
their growth plates, and all of it again with shuffled weights: agreement that remains with those
does not come from what the model has learned.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from boneage.audit.saliency import measure_images, read_regions, summarise_regions
from boneage.data.labels import find_labels, read_known
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
    parser.add_argument("regions", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"graph_sha256": Predictor().contract.graph_sha256}
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
            paths = [path for path in discover([data]).images if path.stem in regions]
            records = make_records(paths, None, read_known(find_labels(data)))
            for model in (find_model(), shuffled):
                found = measure_images(Predictor(model, threads=1), records, regions)
                name = what if model == find_model() else f"{what}, weights shuffled"
                result[name] = summarise_regions(found, resamples=RESAMPLES)
                print(name, json.dumps(result[name]["groups"][0]))
    save_text(RESULTS, json.dumps(result, indent=1) + "\n")


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
