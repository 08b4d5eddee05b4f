"""The public audit of the shipped model: docs/audit_boneage.html, without any patient's image.

    python benchmarks/public_audit.py DATA LARGER --regions REGIONS

DATA is the folder of the RSNA images at 100x100 px, LARGER that of some of them at up to 640 px.
The test images are audited, at 100 px. Perturbations and regions are tested on the larger
validation and test images, since users have larger ones. The page leaves single cases out and shows
synthetic images in their place. An interrupted run is taken up.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from boneage.audit.report import describe_run, make_page
from boneage.audit.workflow import PREDICTIONS, audit_images
from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.data.split import split_samples
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
    parser.add_argument("larger", type=Path)
    parser.add_argument("--regions", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=Path("output/audit"))
    arguments = parser.parse_args()
    small, larger = find_images(arguments.data), find_images(arguments.larger)
    labels = find_labels(arguments.data)
    samples = match_images(read_labels(labels), small)
    part = dict(zip(samples["image_id"], split_samples(samples), strict=True))
    test = {i: path for i, path in small.items() if part.get(i) == "test"}
    held_out = {i: path for i, path in larger.items() if part.get(i) in ("val", "test")}
    folder, out = arguments.output / "images", arguments.output
    result, table, _ = audit_images(link(test, folder / "RSNA test images, 100 px"), labels, out)
    stressed, _, _ = audit_images(
        link(held_out, folder / "RSNA validation and test images, up to 640 px"), labels,
        out / "larger", stress=True, regions=arguments.regions,
    )  # fmt: skip
    result |= {name: stressed[name] for name in ("robustness", "regions") if name in stressed}
    # The page and the JSON are published; rows of the data must not be.
    result |= {"difficult": [], "uncertain": [], "suspects": []}
    command = ["python", "benchmarks/public_audit.py", "DATA", "LARGER"]  # without real paths
    result |= describe_run(command, [arguments.output / PREDICTIONS])
    result["graph_sha256"] = Predictor().contract.graph_sha256
    cohort = arguments.output / "synthetic"
    write_cohort(cohort, SYNTHETIC_IMAGES, SYNTHETIC_SEED)
    _, _, gallery = audit_images(
        cohort, find_labels(cohort), arguments.output / "synthetic_audit", resamples=0
    )
    save_text(DOCS / "audit_boneage.html", make_page(result, table, gallery, NOTE))
    save_text(DOCS / "results" / "audit.json", json.dumps(result, indent=1) + "\n")


def link(images: Mapping[str, Path], folder: Path) -> Path:
    """Fill a folder with links to images."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in images.values():
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    return folder


if __name__ == "__main__":
    main()
