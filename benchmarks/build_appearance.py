"""Fit how the training images look, and put it into the weights in the package.

    python benchmarks/build_appearance.py DATA LARGER

DATA is the folder of the RSNA images at 100x100 px, LARGER that of some of them at up to 640 px.
Images are described in the view of the hand that the network is shown. The model is fitted to
training images; its limits are set on validation images, so that 1% of them are unlike the training
images and 1% count as processed. What it finds of processed images is printed for the larger
validation images. build_weights.py does this too.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import onnx
from PIL import Image, ImageFilter
from skimage.exposure import equalize_adapthist
from sklearn.neural_network import MLPClassifier

from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.data.split import split_samples
from boneage.files import replacing
from boneage.imaging.preprocess import Reader
from boneage.imaging.radiograph import read_radiograph
from boneage.inference.appearance import AppearanceModel, describe
from boneage.inference.batch import map_images
from boneage.inference.contract import CONTRACT_KEY
from boneage.inference.hand_view import make_reader
from boneage.inference.predictor import Predictor
from boneage.inference.registry import find_model

QUANTILE = 0.99


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("larger", type=Path)
    options = parser.parse_args()
    small, large = find_images(options.data), find_images(options.larger)
    samples = match_images(read_labels(find_labels(options.data)), small)
    part = dict(zip(samples["image_id"], split_samples(samples), strict=True))
    print(json.dumps(build(small, large, part, find_model()), indent=1))


def build(
    small: Mapping[str, Path], large: Mapping[str, Path], part: Mapping[str, str], model_path: Path
) -> dict[str, Any]:
    """Fit, set the limits, write both into an exported model, and measure.

    Args:
        small: Image at 100 px by id.
        large: Image at up to 640 px by id, of some.
        part: Part of the split by id.
        model_path: The exported model.

    Returns:
        Numbers of images, and how many of the processed ones are found.
    """
    reader = make_reader(Predictor(model_path, threads=1).contract.preprocessing)
    train = [small[i] for i in sorted(small) if part.get(i) == "train"][::8]
    train += [large[i] for i in sorted(large) if part.get(i) == "train"]
    val = [small[i] for i in sorted(small) if part.get(i) == "val" and i not in large][::2]
    val_large = [large[i] for i in sorted(large) if part.get(i) == "val"]
    rng = np.random.default_rng(0)
    plain = _describe_all(reader, train)
    processed = _describe_all(reader, train, processed_times=2)
    model = _fit(plain, processed)
    home = np.concatenate([_describe_all(reader, val), _describe_all(reader, val_large)])
    distances = [model.distance(row) for row in home]
    probabilities = [model.p_processed(row) for row in home]
    model = AppearanceModel(**{
        **vars(model),
        "unlike_above": float(np.quantile(distances, QUANTILE)),
        "processed_above": float(np.quantile(probabilities, QUANTILE)),
    })  # fmt: skip
    found = {"training images": len(train), "validation images": len(home), "found": {}}
    for name in ("clahe", "unsharp", "noise", "blur", "overexposed"):
        rows = [_describe(reader, _process(_read(path), name, rng)) for path in val_large[::2]]
        is_processed = [model.p_processed(row) > model.processed_above for row in rows]
        is_unlike = [model.distance(row) > model.unlike_above for row in rows]
        found["found"][name] = {
            "n": len(rows),
            "processed": round(float(np.mean(is_processed)), 3),
            "unlike": round(float(np.mean(is_unlike)), 3),
        }
    _write(model, model_path)
    return found


def _read(path: Path) -> Image.Image:
    return read_radiograph(path).to_image()


def _describe(reader: Reader, image: Image.Image) -> Any:
    return describe(reader.read(np.asarray(image)).convert("L"))


def _describe_all(reader: Reader, paths: Sequence[Path], processed_times: int = 0) -> Any:
    """Describe images as they are or, if asked, each processed several times."""

    def work(path: Path) -> list[Any]:
        image = _read(path)
        if not processed_times:
            return [_describe(reader, image)]
        rng = np.random.default_rng(crc32(path.name.encode()))
        names = [str(rng.choice(("clahe", "unsharp"))) for _ in range(processed_times)]
        return [_describe(reader, _process(image, name, rng)) for name in names]

    return np.array([row for rows in map_images(work, paths, progress="describe") for row in rows])


def _process(image: Image.Image, name: str, rng: np.random.Generator) -> Image.Image:
    """Process an image as senders do, or worse."""
    grey = np.asarray(image, dtype=np.float64) / 255.0
    if name == "clahe":
        tiles = rng.integers(4, 13)
        kernel = [max(2, side // tiles) for side in grey.shape]
        grey = equalize_adapthist(grey, kernel, clip_limit=rng.uniform(0.006, 0.04))
    elif name == "unsharp":
        radius = image.height / rng.uniform(25, 150)
        mask = ImageFilter.UnsharpMask(radius, int(rng.uniform(80, 300)), 0)
        return image.filter(mask)
    elif name == "noise":
        grey = grey + rng.normal(0, 0.08, grey.shape)
    elif name == "blur":
        return image.filter(ImageFilter.GaussianBlur(image.height / 80))
    else:
        grey = 2.5 * grey
    return Image.fromarray(np.rint(255.0 * grey.clip(0, 1)).astype(np.uint8))


def _fit(plain: Any, processed: Any) -> AppearanceModel:
    mean, scale = plain.mean(axis=0), plain.std(axis=0) + 1e-6
    covariance = np.cov(plain, rowvar=False)
    covariance += 1e-3 * np.diag(np.diag(covariance))
    rows = (np.concatenate([plain, processed]) - mean) / scale
    is_processed = np.repeat([0, 1], [len(plain), len(processed)])
    network = MLPClassifier((32,), alpha=1e-2, max_iter=300, early_stopping=True, random_state=0)
    network.fit(rows, is_processed)
    (hidden, out), (hidden_bias, out_bias) = network.coefs_, network.intercepts_
    return AppearanceModel(
        mean, np.linalg.inv(covariance), np.inf, scale, hidden, hidden_bias, out[:, 0],
        float(out_bias[0]), 1.0,
    )  # fmt: skip


def _write(model: AppearanceModel, path: Path) -> None:
    file = onnx.load(path)
    properties = {item.key: item.value for item in file.metadata_props}
    contract = json.loads(properties[CONTRACT_KEY])
    contract["appearance"] = model.to_values()
    onnx.helper.set_model_props(file, {**properties, CONTRACT_KEY: json.dumps(contract)})
    with replacing(path) as part:
        part.write_bytes(file.SerializeToString())


if __name__ == "__main__":
    main()
