from dataclasses import replace

import pytest
import torch

from boneage.config import Recipe
from boneage.errors import ConfigError
from boneage.training.age_map import OutlineLoss
from boneage.training.initial_weights import build_model
from boneage.training.model import BoneAgePredictor

RECIPE = Recipe(
    image_size=64, init="none", backbone="timm:test_resnet", sex_input=True, age_bias="none"
)


def make_batch(outline: torch.Tensor) -> dict[str, torch.Tensor]:
    n = len(outline)
    images = torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return {"image": images, "sex": torch.ones(n), "outline": outline}


@pytest.fixture
def model() -> BoneAgePredictor:
    return build_model(RECIPE, "none", 10.0).train()


@pytest.mark.parametrize(("inside", "expected"), [(1.0, 0.0), (0.0, 1.0)])
def test_the_loss_is_the_proportion_of_the_map_outside_the_hand(
    model: BoneAgePredictor, inside: float, expected: float
) -> None:
    measure = OutlineLoss(model, 64)
    batch = make_batch(torch.full((4, 1, 64, 64), inside))
    model.features(batch["image"])
    assert measure(batch).item() == pytest.approx(expected, abs=1e-5)


def test_training_on_the_loss_empties_the_map_outside(model: BoneAgePredictor) -> None:
    measure = OutlineLoss(model, 64)
    outline = torch.zeros(8, 1, 64, 64)
    outline[:, :, :, :32] = 1.0
    batch = make_batch(outline)
    batch["image"][:, :, :, 32:] = 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 3e-3)
    losses = []
    for _ in range(40):
        model.features(batch["image"])
        loss = measure(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_looking_for_the_map_changes_nothing_of_the_network(model: BoneAgePredictor) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    OutlineLoss(model, 64)
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_map_that_no_batch_made_is_not_measured(model: BoneAgePredictor) -> None:
    measure = OutlineLoss(model, 64)
    model.eval().features(torch.rand(2, 3, 64, 64))
    with pytest.raises(RuntimeError, match="no batch"):
        measure(make_batch(torch.ones(2, 1, 64, 64)))


@pytest.mark.parametrize("changes", [{"tasks": "stage"}, {"backbone": "vgg11"}])
def test_a_network_without_an_age_map_is_refused(changes: dict[str, str]) -> None:
    recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
    model = build_model(recipe, "none", 10.0)
    with pytest.raises(ConfigError, match="outline_weight needs a network whose age is a mean"):
        OutlineLoss(model, 64)


def test_without_a_constant_term_the_map_alone_is_the_age(model: BoneAgePredictor) -> None:
    cells: list[torch.Tensor] = []
    layer = OutlineLoss(model, 64)
    batch = make_batch(torch.ones(3, 1, 64, 64))
    with torch.no_grad():
        features = model.features(batch["image"])
        age, _ = model.apply_heads(features, batch["sex"])
        assert layer._cells is not None
        cells.append(layer._cells)
        age_map = model.map_age(cells[0], batch["sex"])
    assert age is not None
    torch.testing.assert_close(age_map.mean(dim=(1, 2)), age, rtol=1e-4, atol=1e-4)
    constants = [p for name, p in model.age_head.named_parameters() if name.endswith("bias")]  # type: ignore[union-attr]
    assert not any(p.requires_grad or p.any() for p in constants)


@pytest.mark.parametrize(("stride", "cells"), [(32, 2), (16, 4)])
def test_the_output_stride_sets_the_cells_of_the_map(stride: int, cells: int) -> None:
    recipe = replace(RECIPE, output_stride=stride, backbone="timm:tf_efficientnet_lite0")
    model = build_model(recipe, "none", 10.0).train()
    measure = OutlineLoss(model, 64)
    model.features(torch.rand(2, 3, 64, 64))
    assert measure._cells is not None
    assert measure._cells.shape[2:] == (cells, cells)


def test_an_output_stride_that_a_backbone_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="output_stride is 16; expected 32 for resnet18"):
        build_model(replace(RECIPE, backbone="resnet18", output_stride=16), "none", 10.0)
