"""Download the RSNA 2017 training images from Kaggle with Kaggle's official client."""

import os
import shutil
from pathlib import Path

from boneage.data.labels import KAGGLE_NAME
from boneage.errors import BoneAgeError
from boneage.files import replacing

DATASET = "kmader/rsna-bone-age"

TERMS = f"""\
RSNA Pediatric Bone Age Challenge 2017: 12,611 training radiographs, about 10 GB.
Source: https://www.kaggle.com/datasets/{DATASET}
Terms: provided by the Radiological Society of North America for research and education; cite
Halabi et al., Radiology 2019, doi 10.1148/radiol.2018180736. Read the terms on that page; do
not redistribute the images or try to identify anyone in them."""

_LOGIN_HELP = (
    f"Log in to kaggle.com, make an API token under Settings and save it as ~/.kaggle/kaggle.json "
    f"(or set KAGGLE_API_TOKEN). Without a login, download the archive of {DATASET} in a browser "
    f"and unpack it so that {KAGGLE_NAME}.csv is in the --data folder; or make a synthetic cohort "
    "with `boneage phantom`."
)


def download_rsna(out: Path) -> Path:
    """Download and unpack the data set to `out`, in the Kaggle layout.

    An interrupted download continues where it stopped.

    Raises:
        BoneAgeError: If the client is not installed, there is no access, or `out` holds other
            labels already.
    """
    try:
        import kagglehub
    except ImportError:
        raise BoneAgeError(
            "the Kaggle client is not installed. Run pip install '.[train]', or pip install "
            "kagglehub."
        ) from None
    if (out / f"{KAGGLE_NAME}.csv").exists():
        raise BoneAgeError(f"{out} holds {KAGGLE_NAME}.csv already. Choose another folder.")
    try:
        fetched = Path(kagglehub.dataset_download(DATASET))
    except Exception as error:  # the client raises its own, requests' and the system's errors
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise BoneAgeError(f"Kaggle did not give {DATASET} ({reason}). {_LOGIN_HELP}") from None
    # The labels last: where they are, all images are there as well.
    files = sorted((p for p in fetched.rglob("*") if p.is_file()), key=lambda p: p.suffix == ".csv")
    for file in files:
        _link_or_copy(file, out / file.relative_to(fetched))
    return out


def _link_or_copy(source: Path, target: Path) -> None:
    """Link a cached file under a second name, or copy it if it is on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as part:
            shutil.copy2(source, part)
