"""The hand finder is trained on composed images whose truth is exact."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boneage.imaging.geometry import JOINTS, LANDMARKS, MEAN_HAND, ShapeModel
from boneage.inference.hand_finder import FinderFacts, HandFinder, find_hand
from boneage.phantom.cohort import draw_image
from boneage.training.hand_export import export_finder
from boneage.training.hand_network import SIDE, STRIDE, HandNetwork, draw_spots, finder_loss
from boneage.training.hand_samples import Composer, HandImages, hold_hands
from boneage.training.hand_training import as_function, label_images, train_finder
from boneage.training.other_images import draw_others


@pytest.fixture(scope="module")
def hands() -> HandImages:
    """Four synthetic hands with their landmarks."""
    images = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        drawn = draw_image(120, "M", rng, height=180)
        places = np.array([drawn.landmarks[name] for name in LANDMARKS])
        images.append((Image.fromarray(drawn.image), places))
    return hold_hands(images)


@pytest.fixture(scope="module")
def others(hands: HandImages) -> torch.Tensor:
    return draw_others(24, hands, seed=0)


def make_composer(hands: HandImages, others: torch.Tensor, seed: int = 0) -> Composer:
    return Composer(hands, torch.ones(len(hands)), others, seed)


def test_composed_landmarks_lie_where_the_image_shows_them(others: torch.Tensor) -> None:
    dots = np.zeros((190, 190), np.uint8)
    places = MEAN_HAND * 40.0 + (90.0, 150.0)
    for x, y in places:
        dots[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = 255
    held = HandImages(
        torch.from_numpy(np.pad(dots, ((0, 2), (0, 2))))[None],
        torch.tensor([[190.0, 190.0]]),
        torch.from_numpy(places.astype(np.float32))[None],
    )
    composer = make_composer(held, others)
    layer, inside, placed = composer.place(
        torch.zeros(40, dtype=torch.long), torch.zeros(40, dtype=torch.bool), 0
    )
    seen = 0
    for image, mask, points in zip(layer, inside, placed, strict=True):
        for x, y in points.tolist():
            column, row = int(x), int(y)
            if 2 <= column < SIDE - 2 and 2 <= row < SIDE - 2 and mask[row, column]:
                patch = image[row - 2 : row + 3, column - 2 : column + 3]
                assert patch.max() > 0.15
                seen += 1
    assert seen > 300


def test_a_batch_holds_hands_pairs_and_none(hands: HandImages, others: torch.Tensor) -> None:
    batch = make_composer(hands, others).batch(120)
    assert batch.images.shape == (120, 1, SIDE, SIDE)
    assert 0.0 <= batch.images.min() <= batch.images.max() <= 1.0
    assert set(batch.count.tolist()) == {0, 1, 2}
    inside = batch.points[batch.known]
    assert (inside > 0).all()
    assert (inside < SIDE).all()
    assert 0.1 < batch.is_inverted.float().mean() < 0.6


def test_unknown_landmarks_are_not_learned_from(others: torch.Tensor) -> None:
    drawn = draw_image(120, "M", np.random.default_rng(0), height=180)
    joints = np.array([drawn.landmarks[name] for name in JOINTS])
    held = hold_hands([(Image.fromarray(drawn.image), joints)])
    batch = make_composer(held, others).batch(30)
    with_hand = batch.count > 0
    assert not batch.is_labelled[with_hand][:, len(JOINTS) :].any()
    assert batch.is_labelled[with_hand][:, : len(JOINTS)].all()


def test_a_spot_is_brightest_at_its_landmark() -> None:
    points = torch.full((1, 2, len(LANDMARKS), 2), 37.0)
    points[0, 1] = 81.0
    known = torch.ones(1, 2, len(LANDMARKS), dtype=torch.bool)
    known[0, 1, 3] = False
    maps = draw_spots(points, known)
    assert maps.shape == (1, len(LANDMARKS), SIDE // STRIDE, SIDE // STRIDE)
    assert (maps[0, 0] > 0.8).nonzero().tolist() == [[18, 18], [40, 40]]
    assert (maps[0, 3] > 0.8).nonzero().tolist() == [[18, 18]]


def test_a_training_that_was_interrupted_ends_the_same(
    hands: HandImages, others: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    start = HandNetwork().state_dict()

    def train(name: str, composer: Composer) -> HandNetwork:
        network = HandNetwork()
        network.load_state_dict(start)
        return train_finder(composer, 3, tmp_path / name, start=network, batch_size=4, save_every=1)

    whole = train("whole.ckpt", make_composer(hands, others))
    composer = make_composer(hands, others)
    monkeypatch.setattr(composer, "batch", _stop_after(composer, 2))
    with pytest.raises(KeyboardInterrupt):
        train("parts.ckpt", composer)
    resumed = train("parts.ckpt", make_composer(hands, others, seed=99))
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, resumed.state_dict()[name], atol=1e-6), name


def _stop_after(composer: Composer, n: int):  # type: ignore[no-untyped-def]
    batch = composer.batch
    made: list[int] = []

    def make(size: int):  # type: ignore[no-untyped-def]
        if len(made) == n:
            raise KeyboardInterrupt
        made.append(size)
        return batch(size)

    return make


def test_the_loss_falls(hands: HandImages, others: torch.Tensor) -> None:
    torch.manual_seed(0)
    network, batch = HandNetwork().train(), make_composer(hands, others).batch(8)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    spots = draw_spots(batch.points, batch.known)
    losses = []
    for _ in range(8):
        loss = finder_loss(
            network(batch.images), spots, batch.is_labelled, batch.count, batch.is_inverted
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_exported_network_finds_what_the_network_finds(
    hands: HandImages, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = HandNetwork().eval()
    joints = [points[: len(JOINTS)].numpy().astype(float) for points in hands.points]
    limits = (0.2, 0.1, 0.5, 0.5, 500.0, 0.1, 0.001, 0.3, 0.1, 0.25, 0.7)
    facts = FinderFacts(*limits, ShapeModel.fit(joints * 5), {"steps": [1]})
    export_finder(network, tmp_path / "finder.onnx", facts)
    finder = HandFinder(tmp_path / "finder.onnx", threads=1)
    assert finder.facts.to_json() == facts.to_json()
    image = Image.fromarray(hands.pixels[0].numpy())
    by_torch, by_onnx = find_hand(as_function(network), image), finder.find(image)
    assert by_onnx.landmarks == pytest.approx(by_torch.landmarks, abs=0.05)
    assert by_onnx.score == pytest.approx(by_torch.score, abs=1e-3)
    assert by_onnx.p_hands == pytest.approx(by_torch.p_hands, abs=1e-3)


def test_only_images_of_which_a_network_is_sure_are_labelled(hands: HandImages) -> None:
    network = HandNetwork().eval()
    assert list(label_images(network, [Image.fromarray(hands.pixels[0].numpy())])) == []
