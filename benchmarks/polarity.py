"""How well does a score tell images with dark bones? The table of docs/experiments.md, "Polarity".

    python benchmarks/polarity.py FOLDER

FOLDER holds images with bright bones; each is scored as it is and negated.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from boneage.data.labels import find_images
from boneage.imaging.radiograph import INVERTED_BELOW, polarity_score, read_radiograph

Pixels = npt.NDArray[np.float32]


def blob(size: int = 100) -> npt.NDArray[np.float64]:
    """A Gaussian where a hand usually is."""
    y, x = np.mgrid[:size, :size]
    return np.exp(-(((x - 50) / 28) ** 2 + ((y - 55) / 32) ** 2) / 2)


def correlation(pixels: npt.NDArray[np.float64]) -> float:
    """Correlation of an image with the blob."""
    return float(np.corrcoef(pixels.ravel(), blob().ravel())[0, 1])


def scores(pixels: Pixels) -> tuple[float, float, float, float]:
    """The four scores of one image: correlation, the same on ranks, centre − border, skewness."""
    small = np.asarray(Image.fromarray(pixels).resize((100, 100), Image.Resampling.BOX), float)
    ranks = small.ravel().argsort(kind="stable").argsort().reshape(small.shape).astype(float)
    border = np.concatenate([small[:8].ravel(), small[:60, :8].ravel(), small[:60, -8:].ravel()])
    contrast = np.median(small[35:80, 35:65]) - np.median(border)
    return correlation(small), correlation(ranks), float(contrast), polarity_score(pixels)


def main(folder: Path) -> None:
    """Print, for each score and its threshold, good images turned and inverted images found."""
    names = ("correlation", "rank correlation", "centre - border", "local skewness")
    images = [read_radiograph(p, "never").pixels for p in tqdm(find_images(folder).values())]
    good = np.array([scores(image) for image in images])
    inverted = np.array([scores(np.float32(1) - image) for image in images])
    for i, (name, threshold) in enumerate(
        zip(names, (-0.3, -0.3, 0.0, INVERTED_BELOW), strict=True)
    ):
        turned, found = (good[:, i] < threshold).sum(), (inverted[:, i] < threshold).mean()
        print(f"{name:18} below {threshold:5.2f}: {turned} of {len(good)} good images turned, "
              f"{found:.1%} of inverted ones found")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
