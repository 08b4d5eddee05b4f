"""Train the hand finder's network on composed images."""

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from boneage.files import replacing
from boneage.imaging.geometry import JOINTS, Points
from boneage.inference.hand_finder import Array, FoundHand, Network, find_hand
from boneage.training.hand_network import HandNetwork, draw_spots, finder_loss
from boneage.training.hand_samples import Composer

logger = logging.getLogger(__name__)

_WEIGHT_DECAY = 1e-4
_WARM_UP = 100
_SAME = 0.03
"""Proportion of the hand's length by which a landmark may move when the image is mirrored."""

_CLEAR = 0.35
"""How clearly each joint is seen, at least, on an image that a network may label."""


def train_finder(
    composer: Composer,
    steps: int,
    checkpoint: Path,
    *,
    start: HandNetwork | None = None,
    learning_rate: float = 2e-3,
    batch_size: int = 32,
    save_every: int = 100,
) -> HandNetwork:
    """Train for a number of steps, and continue where an interrupted training stopped.

    Args:
        composer: Where batches come from.
        steps: Number of batches.
        checkpoint: File that keeps weights and optimizer.
        start: Network to train on from; by default a new one.
        learning_rate: Of AdamW at its height; one cycle.
        batch_size: Images in a batch.
        save_every: Steps from one writing of the checkpoint to the next.
    """
    network = start or HandNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=min(0.3, _WARM_UP / steps)
    )
    done = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        composer.generator.set_state(state["generator"])
        done = state["done"]
        logger.info("continuing after %d of %d steps", done, steps)
    network.train()
    total, n, began = 0.0, 0, time.monotonic()
    for step in range(done + 1, steps + 1):
        batch = composer.batch(batch_size)
        loss = finder_loss(
            network(batch.images),
            draw_spots(batch.points, batch.known),
            batch.is_labelled,
            batch.count,
            batch.is_inverted,
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total, n = total + loss.item(), n + 1
        if step % save_every == 0 or step == steps:
            rate = (step - done) * batch_size / (time.monotonic() - began)
            logger.info("step %d of %d: loss %.4f, %.0f images/s", step, steps, total / n, rate)
            total, n = 0.0, 0
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": composer.generator.get_state(),
                "done": step,
            }
            with replacing(checkpoint) as part:
                torch.save(state, part)
    return network.eval()


def as_function(network: HandNetwork) -> Network:
    """Give a network in the form in which `find_hand` takes it."""

    def run(images: Array) -> tuple[Array, Array, Array]:
        with torch.inference_mode():
            maps, counts, polarity = network(torch.from_numpy(np.ascontiguousarray(images)))
        return maps.numpy(), counts.softmax(dim=1).numpy(), polarity.sigmoid().numpy()

    return run


def label_images(
    network: HandNetwork, images: Iterable[Image.Image]
) -> Iterator[tuple[Image.Image, Points]]:
    """Give the images on which a network is sure of all joints, with the landmarks it finds.

    An image and its mirror image must give the same landmarks; their mean is taken.
    """
    run = as_function(network)
    for image in images:
        found, mirrored = find_hand(run, image), find_hand(run, ImageOps.mirror(image))
        back = np.array([image.width, 0.0]) + mirrored.landmarks * (-1.0, 1.0)
        away = np.hypot(*(found.landmarks - back).T) / found.length
        is_same = found.is_mirrored != mirrored.is_mirrored and away.max() < _SAME
        if is_same and _is_sure(found) and _is_sure(mirrored):
            yield image, (found.landmarks + back) / 2


def _is_sure(found: FoundHand) -> bool:
    return bool(found.p_hands[1] > 0.9 and found.confidence[: len(JOINTS)].min() > _CLEAR)
