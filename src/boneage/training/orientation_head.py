"""Fit the head that detects rotated and inverted images on the features of a trained network."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from boneage.errors import BoneAgeError
from boneage.imaging.orientation import ORIENTATIONS
from boneage.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD
from boneage.training.model import BoneAgePredictor

IMAGES = 3000
"""Images that it is fitted on, each in all eight orientations."""

_BATCH = 16
_STEPS = 400
_STEP_SIZE = 0.01
_WEIGHT_DECAY = 0.01


def fit_orientation_head(
    model: BoneAgePredictor, images: Dataset[dict[str, Any]], seed: int = 0
) -> float:
    """Fit `model.orientation_head` by logistic regression; nothing else is changed.

    The network was trained on upright images alone, so its features of others are unlike those of
    upright ones: a linear head separates them, and all other predictions stay what they were.

    Args:
        model: Trained, with an orientation head.
        images: Training images as validation shows them, not augmented.
        seed: Which images are taken, where there are more than `IMAGES`.

    Returns:
        Proportion of the fitted images, in all orientations, that it classifies correctly.

    Raises:
        BoneAgeError: If the model has no such head.
    """
    if model.orientation_head is None:
        raise BoneAgeError("this model was built without an orientation head.")
    generator = torch.Generator().manual_seed(seed)
    n = len(images)  # type: ignore[arg-type]
    chosen = torch.randperm(n, generator=generator)[:IMAGES].tolist()
    features, codes = _collect(model, images, chosen, generator)
    mean, spread = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    scaled = (features - mean) / spread
    head = nn.Linear(features.shape[1], len(ORIENTATIONS)).to(features.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_STEP_SIZE, weight_decay=_WEIGHT_DECAY)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(scaled), codes).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (head(scaled).argmax(dim=1) == codes).float().mean().item()
        weight = head.weight / spread
        model.orientation_head.weight.copy_(weight)
        model.orientation_head.bias.copy_(head.bias - weight @ mean)
    return accuracy


@torch.no_grad()
def _collect(
    model: BoneAgePredictor,
    images: Dataset[dict[str, Any]],
    chosen: list[int],
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute features of the chosen images in every orientation, and the orientations' codes.

    Of the views that the network averages, each batch takes a random one: the head is linear in
    their mean, and more images can be used in the same time.
    """
    device = next(model.parameters()).device
    mean, std = (torch.tensor(v)[:, None, None].to(device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    model.eval()
    features, codes = [], []
    for start in tqdm(range(0, len(chosen), _BATCH), desc="orientation", unit="batch"):
        rows = chosen[start : start + _BATCH]
        batch = torch.stack([images[i]["image"] for i in rows]).to(device)
        for orientation in ORIENTATIONS:
            oriented = torch.rot90(batch, orientation.quarter_turns, dims=(2, 3))
            if orientation.is_inverted:
                oriented = (1.0 - (oriented * std + mean) - mean) / std
            views = model.views(oriented)
            view = views[int(torch.randint(len(views), (1,), generator=generator))].image
            features.append(model.backbone(view.contiguous(memory_format=torch.channels_last)))
            codes.append(torch.full((len(rows),), orientation.code, device=device))
    return torch.cat(features), torch.cat(codes)
