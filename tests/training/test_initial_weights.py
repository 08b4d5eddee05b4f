"""A run may start from any model in the package; here a second, tiny one stands for those."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from boneage.config import Paths, Recipe, Runtime
from boneage.errors import ConfigError
from boneage.inference.registry import MODELS
from boneage.training.checkpoint import Checkpoint, load_checkpoint
from boneage.training.export import export_onnx
from boneage.training.initial_weights import TAKEN_OVER, build_model, take_over
from boneage.training.workflows import train_model
from builders import make_checkpoint


@pytest.fixture(scope="module")
def exported_tiny(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    checkpoint = make_checkpoint(
        backbone="timm:test_resnet", sex_input=True, sex_weight=0.1, tta_mirror=True
    )
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():  # equal ones are exported only once
            parameter.add_(0.01 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    export_onnx(checkpoint, path, [min(raw.rglob("*.png"))], facts={"data": "forty hands"})
    return checkpoint, path


@pytest.fixture
def tiny(exported_tiny: tuple[Checkpoint, Path], monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """The checkpoint of the model that the package has under the name tiny."""
    checkpoint, path = exported_tiny
    monkeypatch.setitem(MODELS, "tiny", path)
    return checkpoint


def test_backbone_input_and_heads_follow_from_the_model_and_nothing_else(
    tiny: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Recipe(init="tiny", epochs=3, rotation=20.0)
    with caplog.at_level(logging.INFO):
        recipe = take_over(asked)
    assert {name: getattr(recipe, name) for name in TAKEN_OVER} == {
        name: getattr(tiny.recipe, name) for name in TAKEN_OVER
    }
    assert (recipe.backbone, recipe.image_size) == ("timm:test_resnet", 48)
    unchanged = {name: getattr(Recipe(), name) for name in TAKEN_OVER}
    assert replace(recipe, **unchanged) == asked
    assert "init tiny: backbone timm:test_resnet, " in caplog.text
    assert "trained on are too good; those are: forty hands" in caplog.text


def test_a_setting_that_the_model_does_not_have_is_refused(tiny: Checkpoint) -> None:
    assert take_over(Recipe(init="tiny", image_size=48)).image_size == 48
    with pytest.raises(ConfigError) as refused:
        take_over(Recipe(init="tiny", image_size=64))
    assert str(refused.value) == (
        "image_size is 64, but init tiny has 48. Leave image_size out, or start from other weights."
    )


@pytest.mark.parametrize("init", ["none", "auto", "weights.pth"])
def test_other_initial_weights_leave_the_recipe_as_it_is(init: str) -> None:
    recipe = Recipe(init=init, image_size=64)
    assert take_over(recipe) == recipe


def test_the_network_starts_with_the_model_s_own_weights(tiny: Checkpoint) -> None:
    recipe = take_over(Recipe(init="tiny", seed=7))
    model = build_model(recipe, recipe.init, mean_age_years=99.0)
    images, sex = torch.rand(3, 3, recipe.image_size, recipe.image_size), torch.tensor([1.0, -1, 0])
    for found, expected in zip(
        model.eval()(images, sex), tiny.model.eval()(images, sex), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert model.init_used == "tiny"


def test_the_age_head_of_a_new_network_starts_at_the_mean_age_only_if_asked() -> None:
    recipe = Recipe(init="none", image_size=48, backbone="timm:test_resnet")
    for age_bias, expected in (("zero", False), ("mean", True)):
        model = build_model(replace(recipe, age_bias=age_bias), "none", mean_age_years=10.5)  # type: ignore[arg-type]
        assert model.age_head is not None
        assert (model.age_head.bias.item() == 10.5) is expected


def test_a_run_is_trained_from_the_model_and_its_checkpoint_says_so(
    tiny: Checkpoint, raw: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boneage.training import workflows

    for name in ("save_report_plots", "save_worst_cases", "save_learning_curves"):
        monkeypatch.setattr(workflows, name, lambda *arguments: None)
    recipe = Recipe(init="tiny", epochs=1, batch_size=16, learning_rate=1e-9)
    train_model(Paths(data=raw, output=tmp_path), recipe, runtime)
    trained = load_checkpoint(tmp_path / "models/best_model.pt")
    assert trained.provenance["init_used"] == "tiny"
    assert trained.recipe.backbone == "timm:test_resnet"
    weight = tiny.model.age_head.weight  # type: ignore[union-attr]
    torch.testing.assert_close(trained.model.age_head.weight, weight, rtol=0, atol=1e-5)  # type: ignore[union-attr]
