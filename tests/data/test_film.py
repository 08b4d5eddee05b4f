from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from boneage.config import Recipe
from boneage.data.dataset import BoneAgeDataset, get_transforms
from boneage.data.film import FilmLook, change_look
from boneage.errors import ConfigError
from builders import draw_radiograph

LOOKS: dict[str, Any] = {
    "crop": "hand", "film_curve": 0.7, "sharpness": 0.7, "resolution": 0.7, "grain": 0.7,
    "cover": 0.7, "background": 0.7,
}  # fmt: skip
EVERYTHING = Recipe(image_size=48, **LOOKS)
NOTHING = Recipe(image_size=48, rotation=0.0, horizontal_flip=False)
N = 10


def draw(recipe: Recipe, n: int = N) -> FilmLook:
    return FilmLook.draw(recipe, [torch.Generator().manual_seed(i) for i in range(n)])


def make_images(n: int = N) -> torch.Tensor:
    """The same radiograph, n times."""
    image = Image.fromarray(draw_radiograph()).resize((48, 48))
    grey = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
    return grey.expand(n, 1, 48, 48).clone()


def pick(look: FilmLook, rows: list[int]) -> FilmLook:
    return replace(look, **{f.name: getattr(look, f.name)[rows] for f in fields(look)})


def make(**values: Any) -> FilmLook:
    """One image's look, nothing of it changed but the values given."""
    still = draw(NOTHING, 1)
    return replace(still, **{name: torch.tensor([value]) for name, value in values.items()})


def test_an_image_gets_the_same_look_alone_and_in_any_batch() -> None:
    images, outlines, look = make_images(), torch.ones(N, 1, 48, 48), draw(EVERYTHING)
    whole = change_look(images, outlines, look)
    for row in range(N):
        alone = change_look(images[[row]], outlines[[row]], pick(look, [row]))
        torch.testing.assert_close(alone, whole[[row]], rtol=0, atol=1e-6)


def test_looks_differ_and_stay_in_range() -> None:
    changed = change_look(make_images(), None, draw(EVERYTHING))
    assert 0.0 <= changed.min() < changed.max() <= 1.0
    differences = [(changed[i] - changed[i + 1]).abs().mean() for i in range(N - 1)]
    assert min(differences) > 0.01


@pytest.mark.parametrize("name", [name for name in LOOKS if name != "crop"])
def test_each_setting_changes_some_images_of_a_run(name: str) -> None:
    recipe = replace(NOTHING, crop="hand", **{name: 0.8})  # type: ignore[arg-type]
    assert draw(recipe, 30).changes
    assert not draw(replace(NOTHING, crop="hand"), 30).changes


def test_only_what_lies_outside_the_hand_is_darkened() -> None:
    images = torch.full((1, 1, 48, 48), 0.6)
    images[..., 24:28], images[..., -4:] = 0.0, 1.0  # so that stretching changes nothing
    outline = torch.zeros(1, 1, 48, 48)
    outline[..., 24:] = 1.0
    changed = change_look(images, outline, make(background=1.0))
    assert changed[..., 30:40].mean() == pytest.approx(0.6, abs=0.02)
    assert changed[..., 6:18].max() == pytest.approx(0.0, abs=0.02)


def test_greys_are_stretched_to_those_of_the_hand() -> None:
    images = 0.2 + 0.2 * make_images(2)
    images[..., :10] = 1.0  # a plate beside the hand
    outline = torch.zeros(2, 1, 48, 48)
    outline[..., 12:] = 1.0
    outline[1] = 0.0  # no hand is known: the whole image counts
    changed = change_look(images, outline, draw(NOTHING, 2))
    assert changed[0, ..., 12:].max() == 1.0
    assert changed[0, ..., 12:].min() == 0.0
    assert changed[1, ..., 12:].max() < 0.7


def test_a_curve_darkens_soft_tissue_more_than_bone() -> None:
    ramp = torch.linspace(0, 1, 48).expand(1, 1, 48, 48)
    curved = change_look(ramp, None, make(steepness=9.0, threshold=0.5))
    assert curved[0, 0, 0, 14] < 0.5 * ramp[0, 0, 0, 14]
    assert curved[0, 0, 0, 40] > 0.9


def test_sharpening_raises_and_blurring_lowers_the_contrast_of_neighbours() -> None:
    images = make_images(1)

    def contrast(x: torch.Tensor) -> float:
        return float((x[..., 1:] - x[..., :-1]).abs().mean())

    plain = contrast(change_look(images, None, draw(NOTHING, 1)))
    assert contrast(change_look(images, None, make(sharpness=2.0))) > 1.2 * plain
    assert contrast(change_look(images, None, make(sharpness=-0.8))) < 0.95 * plain
    assert contrast(change_look(images, None, make(reduction=2.0))) < 0.95 * plain


def test_the_outline_moves_with_the_image() -> None:
    recipe = replace(NOTHING, rotation=20.0, zoom=0.2, shift=0.1)
    transform = get_transforms("train", recipe)
    image = Image.fromarray(np.pad(np.full((24, 24), 255, np.uint8), 12))
    both = image.copy()
    both.putalpha(image)
    torch.manual_seed(1)
    tensor, outline = transform.with_outline(both)  # type: ignore[attr-defined]
    grey = tensor[0] * 0.229 + 0.485
    assert outline.shape == (1, 48, 48)
    torch.testing.assert_close(grey, outline[0], rtol=0, atol=1e-5)


def test_an_item_has_an_outline_wherever_the_hand_may_be(samples: pd.DataFrame) -> None:
    from boneage.imaging.preprocess import Preprocessing

    whole = Preprocessing(48, None, "never")
    item = BoneAgeDataset(samples, get_transforms("val", NOTHING), whole)[0]
    assert item["outline"].shape == (1, 48, 48)
    assert item["outline"].min() == 1.0


@pytest.mark.parametrize("name", ["background", "outline_weight"])
def test_what_needs_the_outline_needs_a_crop(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0.5; expected 0 without --crop"):
        Recipe(**{name: 0.5})  # type: ignore[arg-type]
