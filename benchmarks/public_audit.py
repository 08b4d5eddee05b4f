"""The public audit of the shipped model: docs/audit_boneage.html, without any patient's image.

    python benchmarks/public_audit.py DATA --split RUN/split.csv --regions REGIONS

DATA is the raw folder of the images; those of the test split are audited with every test. Single
cases are left out of the page, and drawn images stand in for them. An interrupted run goes on.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from boneage.audit.report import make_page
from boneage.audit.workflow import audit_images
from boneage.data.labels import find_images, find_labels
from boneage.files import save_text
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import write_cohort

DOCS = Path(__file__).parent.parent / "docs"
SYNTHETIC_IMAGES, DRAWN_SEED = 100, 5
NOTE = (
    "These are drawings of the synthetic cohort: they stand in for the patients' images of this "
    "audit, which cannot be shown. The figures above are of the patients' images."
)


def main() -> None:
    """Audit the test images, and drawn ones for the gallery."""
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
    # What follows is published: no row of the data is.
    result |= {"difficult": [], "uncertain": [], "suspects": []}
    result["graph_sha256"] = Predictor().contract.graph_sha256
    cohort = arguments.output / "drawn"
    write_cohort(cohort, SYNTHETIC_IMAGES, DRAWN_SEED)
    _, _, gallery = audit_images(
        cohort, find_labels(cohort), arguments.output / "drawn_audit", resamples=0
    )
    save_text(DOCS / "audit_boneage.html", make_page(result, table, gallery, NOTE))
    save_text(DOCS / "results" / "audit.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
