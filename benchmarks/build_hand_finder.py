"""Train the hand finder in the package from annotated radiographs and synthetic ones.

    python benchmarks/build_hand_finder.py DATA LARGER --boxes CSV --split SPLIT --work FOLDER
        [--leave-out CSV]

DATA is the folder of the RSNA images at 100x100 px, LARGER that of the same images at up to 640 px,
`--boxes` the annotated boxes of joints (razorx89/rsna-boneage-ossification-roi-detection, MIT),
`--split` the split of the weights, of which only training images are used, and `--leave-out` a CSV
of further ids that nothing is learned from. An interrupted build continues where it stopped.

The first round learns from the annotated images and the synthetic ones; the second also from
images that the first network labels, where it is sure.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.data.landmarks import AnnotatedHand, read_landmarks
from boneage.data.split import read_split
from boneage.files import clean_id, replacing
from boneage.imaging.geometry import JOINTS, LANDMARKS, Points, ShapeModel
from boneage.inference.hand_finder import FINDER, FinderFacts, find_hand
from boneage.phantom.cohort import draw_image, sample_labels
from boneage.tables.columns import read_csv
from boneage.training.hand_export import export_finder
from boneage.training.hand_network import HandNetwork
from boneage.training.hand_samples import STORED, Composer, HandImages, hold_hands
from boneage.training.hand_training import as_function, label_images, train_finder
from boneage.training.other_images import draw_others

FIRST_STEPS, SECOND_STEPS = 2200, 1500
SYNTHETIC_IMAGES, SYNTHETIC_SEED, SYNTHETIC_HEIGHT = 1200, 77, 220
LOW_RESOLUTION_IMAGES = 2200
"""Images at 100 px that the first network tries to label."""

YOUNG_YEARS = 4.0
"""Age below which it tries all of them: small hands of few bones are rare."""

LIMITS = {
    "least_score": 0.25,
    "least_sure_score": 0.15,
    "most_none": 0.5,
    "most_several": 0.33,
    "most_unlike": 1000.0,
    "least_confidence": 0.05,
    "least_doubt": 0.0005,
    "sure_aspect": 0.3,
    "sure_aspect_of_square": 0.1,
}
"""What counts as one hand; set on validation images and on half of the kinds of other images."""


def main() -> None:
    """Train both rounds as far as that is not done, fit the shape of hands, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("larger", type=Path)
    parser.add_argument("--boxes", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--leave-out", type=Path)
    parser.add_argument("--out", type=Path, default=FINDER)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    small, large = find_images(options.data), find_images(options.larger)
    samples = match_images(read_labels(find_labels(options.data)), small)
    training = set(samples["image_id"][read_split(options.split, samples) == "train"])
    if options.leave_out:
        training -= set(read_csv(options.leave_out)["id"].map(clean_id))
    boxes = read_landmarks(options.boxes)

    def keep(name: str, make: Callable[[], HandImages]) -> HandImages:
        return _keep(options.work / name, make)

    annotated = keep("annotated.pt", lambda: hold_hands(_read_annotated(boxes, small, large)))
    synthetic = keep("synthetic.pt", lambda: hold_hands(_draw_synthetic()))
    first = _train(
        options.work / "first", [(0.7, annotated), (0.3, synthetic)], FIRST_STEPS, seed=1
    )
    chosen = [large[i] for i in sorted(large) if i in training]
    low = [i for i in sorted(small) if i in training and i not in large]
    order = np.random.default_rng(0).permutation(len(low))[:LOW_RESOLUTION_IMAGES]
    young = set(samples["image_id"][samples["age_years"] < YOUNG_YEARS])
    taken = {low[i] for i in order} | (young & set(low))
    chosen += [small[i] for i in sorted(taken)]
    found = keep(
        "found.pt",
        lambda: hold_hands(label_images(first, (Image.open(p).convert("L") for p in chosen))),
    )
    logging.info("the first network labelled %d of %d images", len(found), len(chosen))
    second = _train(
        options.work / "second", [(0.4, annotated), (0.2, synthetic), (0.4, found)], SECOND_STEPS,
        seed=2, start=first, learning_rate=1.5e-3,
    )  # fmt: skip
    shapes = [hand.joints for hand in boxes.values()]
    shapes += list(_find_shapes(second, [large[i] for i in sorted(large) if i in training]))
    shape = ShapeModel.fit(shapes)
    sizes = {i: Image.open(large[i]).size for i in large if i in training}
    sizes |= {i: (hand.width, hand.height) for i, hand in boxes.items() if i in training}
    usual, gain = _fit_aspect(second, shape, {small[i]: sizes[i] for i in sorted(sizes)})
    provenance = {
        "annotated": len(annotated), "synthetic": len(synthetic), "labelled": len(found),
        "steps": [FIRST_STEPS, SECOND_STEPS],
    }  # fmt: skip
    facts = FinderFacts(
        **LIMITS, usual_aspect_of_square=usual, aspect_gain=gain, shape=shape, provenance=provenance
    )
    export_finder(second, options.out, facts)
    logging.info("%s: %d bytes", options.out, options.out.stat().st_size)


def _keep(path: Path, make: Callable[[], HandImages]) -> HandImages:
    """Read what an earlier build made, or make it."""
    if not path.is_file():
        made = make()
        with replacing(path) as part:
            torch.save((made.pixels, made.sizes, made.points), part)
    return HandImages(*torch.load(path, weights_only=True))


def _read_annotated(
    boxes: Mapping[str, AnnotatedHand], small: Mapping[str, Path], large: Mapping[str, Path]
) -> Iterator[tuple[Image.Image, Points]]:
    for image_id, hand in boxes.items():
        if image_id in large:
            image = Image.open(large[image_id]).convert("L")
        else:  # the small copies are squeezed to a square
            scale = STORED / max(hand.width, hand.height)
            size = round(hand.width * scale), round(hand.height * scale)
            image = Image.open(small[image_id]).convert("L").resize(size, Image.Resampling.BICUBIC)
        yield image, hand.scaled_to(*image.size)


def _draw_synthetic() -> Iterator[tuple[Image.Image, Points]]:
    for i, label in enumerate(sample_labels(SYNTHETIC_IMAGES, SYNTHETIC_SEED)):
        rng = np.random.default_rng([SYNTHETIC_SEED, i])
        drawn = draw_image(label.boneage, label.sex, rng, height=SYNTHETIC_HEIGHT)
        places = np.array([drawn.landmarks[name] for name in LANDMARKS])
        yield Image.fromarray(drawn.image), places


def _train(
    name: Path,
    parts: Sequence[tuple[float, HandImages]],
    steps: int,
    seed: int,
    **settings: Any,
) -> HandNetwork:
    """Train a round on sets that are each taken in a proportion."""
    hands = HandImages.join(part for _, part in parts)
    weights = torch.cat([torch.full((len(part),), p / len(part)) for p, part in parts])
    others = draw_others(4000, hands, seed)
    composer = Composer(hands, weights, others, seed)
    return train_finder(composer, steps, name.with_suffix(".ckpt"), **settings)


def _find_shapes(network: HandNetwork, paths: list[Path]) -> Iterator[Points]:
    """Give the joints of images with true proportions on which all joints are seen."""
    run = as_function(network)
    for path in paths:
        found = find_hand(run, Image.open(path).convert("L"))
        if found.score > 0.5 and found.confidence[: len(JOINTS)].min() > 0.2:
            yield found.landmarks[: len(JOINTS)]


def _fit_aspect(
    network: HandNetwork, shape: ShapeModel, sizes: Mapping[Path, tuple[int, int]]
) -> tuple[float, float]:
    """Fit what `FinderFacts` says of images stretched to a square, from their true sizes."""
    run = as_function(network)
    true, seen = [], []
    for path, (width, height) in sizes.items():
        found = find_hand(run, Image.open(path).convert("L"))
        true.append(np.log(height / width))
        seen.append(np.log(shape.find_aspect(found.landmarks[: len(JOINTS)])[0]))
    usual = float(np.mean(true))
    off = np.array(seen) - usual
    return usual, float(off @ (np.array(true) - usual) / (off @ off))


if __name__ == "__main__":
    main()
