"""The public audit of the shipped model: docs/audit_boneage.html, without any patient's image.

    python benchmarks/public_audit.py DATA --split RUN/split.csv --regions REGIONS

DATA is the raw folder of the images. Those of the test split are audited with every test. The page
leaves single cases out and shows synthetic images in their place. An interrupted run is taken up.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from boneage.audit.report import describe_run, make_page
from boneage.audit.workflow import PREDICTIONS, audit_images
from boneage.data.labels import find_images, find_labels
from boneage.files import save_text
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import write_cohort

DOCS = Path(__file__).parent.parent / "docs"
SYNTHETIC_IMAGES, SYNTHETIC_SEED = 100, 5
NOTE = (
    "The images shown here are synthetic: the patients' images of this audit cannot be published. "
    "The figures above are those of the patients' images."
)


def main() -> None:
    """Audit the test images, and synthetic ones for the gallery."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", type=Path, default=Path("output/boneage/split.csv"))
    parser.add_argument("--regions", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=Path("output/audit"))
    arguments = parser.parse_args()
    split = pd.read_csv(arguments.split, dtype=str)
    images = find_images(arguments.data)
    folder = arguments.output / "images" / "boneage, RSNA test split"
    folder.mkdir(parents=True, exist_ok=True)
    for image_id in split.loc[split["split"] == "test", "image_id"]:
        link = folder / images[image_id].name
        if not link.exists():
            link.symlink_to(images[image_id].resolve())
    labels = find_labels(arguments.data)
    result, table, _ = audit_images(
        folder, labels, arguments.output, stress=True, regions=arguments.regions
    )
    # The page and the JSON are published; rows of the data must not be.
    result |= {"difficult": [], "uncertain": [], "suspects": []}
    command = ["python", "benchmarks/public_audit.py", "DATA"]  # not the paths on this computer
    result |= describe_run(command, [arguments.output / PREDICTIONS])
    result["graph_sha256"] = Predictor().contract.graph_sha256
    cohort = arguments.output / "synthetic"
    write_cohort(cohort, SYNTHETIC_IMAGES, SYNTHETIC_SEED)
    _, _, gallery = audit_images(
        cohort, find_labels(cohort), arguments.output / "synthetic_audit", resamples=0
    )
    save_text(DOCS / "audit_boneage.html", make_page(result, table, gallery, NOTE))
    save_text(DOCS / "results" / "audit.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
