"""Measure the hand finder and the validity check on folders of images.

    python benchmarks/hands.py --hands NAME=FOLDER ... --others NAME=FOLDER ...
        [--keypoints CSV] [--sizes CSV] [--images FOLDER] [--out docs/results/hands.json]

`--hands` are folders of single hands, of which each should be found and none rejected; pairs of
them are composed as well. `--others` are folders of anything else, of which each should be
rejected. `--keypoints` is a CSV with `id, width, height, side` and x and y of each finger's joints
(`forefinger1_x` for the index finger's MCP joint, ...), for the images in `--images`. `--sizes` is
a CSV with `id, width, height` of the originals of images in `--images` that were stretched to a
square: how well are their proportions restored?
"""

import argparse
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy.stats import binomtest
from tqdm import tqdm

from boneage.errors import ImageError
from boneage.files import save_text
from boneage.imaging.geometry import JOINTS, LANDMARKS
from boneage.imaging.radiograph import read_radiograph
from boneage.inference.hand_finder import FoundHand, HandFinder
from boneage.inference.hand_view import find_aspect
from boneage.inference.predictor import Predictor
from boneage.inference.quality import ReasonCode, Severity

_FINGERS = {1: "thumb", 2: "forefinger", 3: "middle_finger", 4: "ring_finger", 5: "pinky_finger"}
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")
_QUALITY = (ReasonCode.HEAVILY_PROCESSED, ReasonCode.OVEREXPOSED, ReasonCode.TOO_DARK)
_SEED = 0


def main() -> None:
    """Print the tables, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hands", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--others", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--keypoints", type=Path)
    parser.add_argument("--sizes", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--most", type=int, default=2000, help="images of a folder, at most")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    predictor, finder = Predictor(threads=1), HandFinder(threads=1)
    tables: dict[str, Any] = {"hands": {}, "others": {}}
    for name, paths in _read_folders(options.hands, options.most):
        tables["hands"][name] = _measure_hands(predictor, paths)
        tables["hands"][name]["pairs"] = _measure_pairs(predictor, paths)
        print(name, json.dumps(tables["hands"][name], indent=1))
    for name, paths in _read_folders(options.others, options.most):
        tables["others"][name] = _measure_others(predictor, paths)
        print(name, json.dumps(tables["others"][name]))
    if options.keypoints:
        tables["keypoints"] = _measure_keypoints(finder, options.keypoints, options.images)
        print(json.dumps(tables["keypoints"], indent=1))
    if options.sizes:
        tables["proportions"] = _measure_proportions(finder, options.sizes, options.images)
        print(json.dumps(tables["proportions"], indent=1))
    if options.out:
        save_text(options.out, json.dumps(tables, indent=1) + "\n")


def _read_folders(named: Sequence[str], most: int) -> Iterable[tuple[str, list[Path]]]:
    for item in named:
        name, _, folder = item.partition("=")
        paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in _IMAGES)
        step = max(1, len(paths) // most)
        yield name, paths[::step][:most]


def _proportion(count: int, n: int) -> dict[str, float]:
    low, high = binomtest(count, n).proportion_ci(method="wilson")
    return {"n": n, "count": count, "proportion": round(count / n, 4),
            "low": round(low, 4), "high": round(high, 4)}  # fmt: skip


def _find_reasons(predictor: Predictor, source: Any) -> list[Any]:
    try:
        radiograph = predictor.read(source)
    except ImageError:
        return []
    return list(predictor.predict(radiograph, force=True).reasons)


def _measure_hands(predictor: Predictor, paths: Sequence[Path]) -> dict[str, Any]:
    rejected = warned = found = 0
    codes: Counter[str] = Counter()
    for path in tqdm(paths, unit="image"):
        prediction = predictor.predict(path)
        own = {reason.code for reason in prediction.reasons}
        codes.update(code.value for code in own)
        rejected += any(reason.severity is Severity.REJECT for reason in prediction.reasons)
        found += ReasonCode.NO_HAND not in own
        warned += any(code in own for code in _QUALITY)
    n = len(paths)
    return {
        "found": _proportion(found, n),
        "rejected": _proportion(rejected, n),
        "warned for image quality": _proportion(warned, n),
        "reasons": dict(codes.most_common()),
    }


def _measure_others(predictor: Predictor, paths: Sequence[Path]) -> dict[str, Any]:
    codes: Counter[str] = Counter()
    passed = []
    for path in tqdm(paths, unit="image"):
        try:
            prediction = predictor.predict(path)
        except ImageError:
            codes["unreadable"] += 1
            continue
        rejections = [r.code.value for r in prediction.reasons if r.severity is Severity.REJECT]
        codes.update(rejections[:1])
        if not rejections:
            passed.append(path.name)
    n = len(paths)
    return {**_proportion(n - len(passed), n), "reasons": dict(codes), "passed": passed[:20]}


def _measure_pairs(predictor: Predictor, paths: Sequence[Path], n: int = 200) -> dict[str, float]:
    """Lay images beside others, not always as large; count the pairs that are rejected as such."""
    rng = np.random.default_rng(_SEED)
    chosen = [paths[i] for i in rng.permutation(len(paths))[: 2 * n]]
    counted = 0
    pairs = list(zip(chosen[::2], chosen[1::2], strict=False))
    for pair in pairs:
        images = [read_radiograph(path).to_image() for path in pair]
        height = max(image.height for image in images)
        heights = [round(height * factor) for factor in (1.0, rng.uniform(0.6, 1.0))]
        images = [
            image.resize((round(image.width * h / image.height), h))
            for image, h in zip(images, heights, strict=True)
        ]
        if rng.random() < 0.5:
            images[1] = ImageOps.mirror(images[1])
        both = Image.new("L", (images[0].width + images[1].width, height))
        both.paste(images[0], (0, 0))
        both.paste(images[1], (images[0].width, int(rng.integers(height - heights[1] + 1))))
        reasons = predictor.predict(np.asarray(both)).reasons
        counted += any(reason.code is ReasonCode.SEVERAL_HANDS for reason in reasons)
    return _proportion(counted, len(pairs)) if pairs else {}


def _measure_keypoints(finder: HandFinder, path: Path, folder: Path) -> dict[str, Any]:
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if (folder / f"{row['id']}.png").is_file()]
    rng = np.random.default_rng(_SEED)
    changes: dict[str, Callable[[Image.Image, Any], tuple[Image.Image, Any]]] = {
        "as it is": lambda image, points: (image, points),
        "mirrored": _mirror,
        "rotated at random": lambda image, points: _rotate(image, points, rng.uniform(0, 360)),
    }
    return {
        name: _measure_joints(finder, rows, folder, change, name == "mirrored")
        for name, change in changes.items()
    }


def _mirror(image: Image.Image, points: Any) -> tuple[Image.Image, Any]:
    return ImageOps.mirror(image), np.array([image.width, 0.0]) + points * (-1.0, 1.0)


def _rotate(image: Image.Image, points: Any, degrees: float) -> tuple[Image.Image, Any]:
    side = int(np.hypot(*image.size)) + 2
    offset = np.array([(side - image.width) // 2, (side - image.height) // 2])
    canvas = Image.new("L", (side, side))
    canvas.paste(image, (int(offset[0]), int(offset[1])))
    angle = np.radians(-degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = (points + offset - side / 2) @ turn.T + side / 2
    return canvas.rotate(degrees, Image.Resampling.BILINEAR), moved


def _measure_joints(
    finder: HandFinder, rows: Sequence[dict[str, str]], folder: Path,
    change: Callable[[Image.Image, Any], tuple[Image.Image, Any]], is_mirrored: bool,
) -> dict[str, Any]:  # fmt: skip
    """Compare found joints with annotated ones, in percent of the length of the hand."""
    errors, right = [], 0
    for row in tqdm(rows, unit="image"):
        points, length = _read_points(row)
        image = Image.open(folder / f"{row['id']}.png").convert("L")
        true = (float(row["width"]), float(row["height"]))
        scale = 500 / max(true)
        size = (round(true[0] * scale), round(true[1] * scale))
        image = image.resize(size, Image.Resampling.BILINEAR)
        ratio = np.array(size) / true
        image, places = change(image, np.array(list(points.values())) * ratio)
        found: FoundHand = finder.find(image)
        indices = [LANDMARKS.index(name) for name in points]
        away = np.hypot(*(found.landmarks[indices] - places).T)
        errors += (100.0 * away / (length * scale)).tolist()
        is_right = row["side"] == "right"
        right += found.is_mirrored == (is_right != is_mirrored)
    return {
        "images": len(rows),
        "median": round(float(np.median(errors)), 2),
        "p90": round(float(np.quantile(errors, 0.9)), 2),
        "side": _proportion(right, len(rows)),
    }


def _measure_proportions(finder: HandFinder, path: Path, folder: Path) -> dict[str, Any]:
    """Compare restored proportions with the true ones, in logarithms of width over true width."""
    seen, left, changed = [], [], 0
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if (folder / f"{row['id']}.png").is_file()]
    for row in tqdm(rows, unit="image"):
        squeezed = read_radiograph(folder / f"{row['id']}.png")
        image = squeezed.to_image()
        ratio = float(row["width"]) / float(row["height"])
        hand = finder.find(image)
        aspect = finder.facts.shape.find_aspect(hand.landmarks[: len(JOINTS)])[0]
        seen.append(np.log(aspect * ratio))
        left.append(np.log(find_aspect(squeezed, hand, finder) * ratio))
        true = image.resize((round(image.height * ratio), image.height), Image.Resampling.BILINEAR)
        whole = read_radiograph(np.asarray(true), "never")
        changed += find_aspect(whole, finder.find(true), finder) != 1.0

    def describe(errors: Sequence[float]) -> dict[str, float]:
        size = np.abs(errors)
        return {
            "mean": round(float(size.mean()), 3),
            "p90": round(float(np.quantile(size, 0.9)), 3),
        }

    return {
        "images": len(rows),
        "error of the joints' estimate": describe(seen),
        "error after correction": describe(left),
        "true proportions changed": _proportion(changed, len(rows)),
    }


def _read_points(row: dict[str, str]) -> tuple[dict[str, Any], float]:
    """Give the finger joints of a row by landmark, and the hand's length, in pixels."""
    points = {}
    for digit, finger in _FINGERS.items():
        names = ("MCP", "PIP") if digit == 1 else ("MCP", "PIP", "DIP")
        first = 2 if digit == 1 else 1
        for i, name in enumerate(names):
            at = f"{finger}{first + i}"
            points[f"{name}{digit}"] = (float(row[f"{at}_x"]), float(row[f"{at}_y"]))
    tip = np.array([float(row["middle_finger4_x"]), float(row["middle_finger4_y"])])
    wrist = np.array([float(row["wrist_x"]), float(row["wrist_y"])])
    return points, float(np.hypot(*(tip - wrist)))


if __name__ == "__main__":
    main()
