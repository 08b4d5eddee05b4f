import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from boneage.errors import CheckpointError, ConfigError
from boneage.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD, TestTimeAugmentation
from boneage.training.model import BoneAgePredictor, SexConditionedLinear, load_backbone


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Refuse every connection at once: a closed port of this machine is the proxy."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


class TestEveryModel:
    """What holds for each backbone and each choice of heads."""

    @pytest.fixture(
        params=["resnet18", "squeezenet1_1", "googlenet", "vit_b_16", "timm:test_resnet"],
        scope="class",
    )
    @classmethod
    def model(cls, request: pytest.FixtureRequest) -> BoneAgePredictor:
        return BoneAgePredictor(request.param, image_size=64)

    def test_gives_one_age_and_three_logits_an_image(self, model: BoneAgePredictor) -> None:
        age, logits = model.eval()(torch.rand(2, 3, 64, 64))
        assert age is not None
        assert logits is not None
        assert age.shape == (2,)
        assert logits.shape == (2, 3)

    def test_both_heads_learn_through_the_backbone(self, model: BoneAgePredictor) -> None:
        age, logits = model.train()(torch.rand(2, 3, 64, 64))
        assert age is not None
        assert logits is not None
        (age.sum() + logits.sum()).backward()
        first = next(p for p in model.backbone.parameters() if p.requires_grad)
        assert first.grad is not None
        assert first.grad.abs().sum() > 0

    def test_has_no_classification_layer_of_its_own(self, model: BoneAgePredictor) -> None:
        sizes = [p.shape[0] for p in model.parameters() if p.ndim == 2]
        assert 1000 not in sizes

    def test_predicts_each_image_alone_in_evaluation(self, model: BoneAgePredictor) -> None:
        model.eval()
        images = torch.rand(3, 3, 64, 64)
        together, alone = model(images)[0], model(images[1:2])[0]
        torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_the_report_s_model_is_a_resnet_with_two_linear_heads() -> None:
    model = BoneAgePredictor()
    assert isinstance(model.backbone.fc, nn.Identity)
    assert type(model.age_head) is nn.Linear
    assert type(model.stage_head) is nn.Linear
    assert (model.age_head.in_features, model.age_head.out_features) == (512, 1)
    assert (model.stage_head.in_features, model.stage_head.out_features) == (512, 3)


@pytest.mark.parametrize(("tasks", "missing"), [("age", 1), ("stage", 0)])
def test_a_task_left_out_has_no_head_and_no_output(tasks: str, missing: int) -> None:
    outputs = BoneAgePredictor(tasks=tasks, image_size=32).eval()(torch.rand(1, 3, 32, 32))
    assert outputs[missing] is None
    assert outputs[1 - missing] is not None


def test_sex_changes_the_prediction_only_of_a_model_built_for_it_which_needs_it() -> None:
    image, male, female = torch.rand(1, 3, 32, 32), torch.ones(1), -torch.ones(1)
    plain = BoneAgePredictor(image_size=32).eval()
    assert torch.equal(plain(image, male)[0], plain(image, female)[0])
    by_sex = BoneAgePredictor(sex_input=True, image_size=32).eval()
    nn.init.normal_(by_sex.age_head.sex_weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(by_sex(image, male)[0], by_sex(image, female)[0])
    with pytest.raises(ValueError, match="pass sex"):
        by_sex(image)


def test_unknown_sex_is_predicted_half_way_between_the_sexes_and_by_weights_of_its_own() -> None:
    layer = SexConditionedLinear(8, 3)
    nn.init.normal_(layer.sex_weight)
    nn.init.normal_(layer.sex_bias)
    x = torch.rand(4, 8)
    male, unknown, female = (layer(x, torch.full((4,), sex)) for sex in (1.0, 0.0, -1.0))
    torch.testing.assert_close(unknown, (male + female) / 2)
    nn.init.normal_(layer.unknown_weight)
    male, unknown, female = (layer(x, torch.full((4,), sex)) for sex in (1.0, 0.0, -1.0))
    torch.testing.assert_close(unknown, (male + female) / 2 + x @ layer.unknown_weight.T)


def test_a_sex_that_is_not_provided_is_predicted_by_the_sex_head() -> None:
    torch.manual_seed(0)
    model = BoneAgePredictor(sex_input=True, sex_head=True, image_size=32).eval()
    assert model.age_head is not None
    assert model.sex_head is not None
    nn.init.normal_(model.age_head.sex_weight)  # type: ignore[arg-type]
    features = torch.rand(3, 512)
    provided = torch.tensor([1.0, -1.0, 0.0])
    odds = model.sex_head(features).squeeze(1)
    resolved = model.resolve_sex(features, provided)
    assert resolved is not None
    torch.testing.assert_close(resolved, torch.stack([provided[0], provided[1], odds[2].tanh()]))
    # That is the mean of both sexes' ages, weighted by the probabilities at doubled log-odds.
    ages = [model.apply_heads(features, torch.full((3,), s))[0] for s in (1.0, -1.0, 0.0)]
    male, female, unknown = (age for age in ages if age is not None)
    p = (2.0 * odds).sigmoid()
    torch.testing.assert_close(unknown, p * male + (1.0 - p) * female)
    assert not hasattr(model.age_head, "unknown_weight")


def test_an_image_and_its_mirror_image_are_predicted_alike_when_asked() -> None:
    image = torch.rand(2, 3, 64, 64)
    for mirror in (False, True):
        tta = TestTimeAugmentation(mirror=mirror)
        model = BoneAgePredictor("timm:test_resnet", image_size=64, tta=tta).eval()
        age, mirrored = model(image)[0], model(image.flip(3))[0]
        assert torch.allclose(age, mirrored, atol=1e-5) == mirror
        # In training, the mirroring is left to the augmentation.
        model.train()
        torch.testing.assert_close(model.features(image), model.backbone(image), rtol=0, atol=1e-5)


def test_a_reduced_and_a_magnified_image_are_averaged_when_asked() -> None:
    tta = TestTimeAugmentation(zoom=0.1)
    model = BoneAgePredictor("timm:test_resnet", image_size=64, tta=tta).eval()
    image = -torch.ones(1, 3, 64, 64)
    image[:, :, 24:40, 24:40] = 1.0
    (small, _), (large, _) = model.views(image)
    areas = [(view[0, 0] > 0).sum().item() for view in (small, image, large)]
    assert areas[0] < areas[1] < areas[2]
    black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(small[0, :, 0, 0], black, atol=1e-4, rtol=0)
    expected = (model.backbone(small) + model.backbone(large)) / 2
    torch.testing.assert_close(model.features(image), expected)
    assert not [name for name in model.state_dict() if "zoom" in name]


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        ("resnet81", 256, r"'resnet81'.*resnet18"),
        ("timm:resnet81", 256, r"'resnet81'.*timm"),
        ("inception_v3", 16, "inception_v3 cannot take 16-px images"),
        ("maxvit_t", 50, "maxvit_t cannot take 50-px images"),
    ],
)
def test_a_backbone_that_is_unknown_or_cannot_take_the_image_size_is_refused(
    name: str, image_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        BoneAgePredictor(name, image_size=image_size)


@pytest.mark.usefixtures("no_network")
def test_imagenet_weights_that_cannot_be_had_are_an_error_or_auto_starts_from_random_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be downloaded.*--init FILE"):
        load_backbone("resnet18", 64, "imagenet")
    with caplog.at_level(logging.WARNING):
        _, used = load_backbone("resnet18", 64, "auto")
    assert used == "none"
    assert "Starting from random weights" in caplog.text


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "first"), [("resnet18", "conv1.weight"), ("googlenet", "conv1.conv.weight")]
)
def test_downloaded_weights_are_used_by_auto(tmp_path: Path, name: str, first: str) -> None:
    # The weights file where torch keeps its downloads, as after one with a network. Its name holds
    # the hash that torch checks.
    weights = torchvision.models.get_model_weights(name).DEFAULT
    options = {} if name == "resnet18" else {"aux_logits": True, "init_weights": False}
    state = torchvision.models.get_model(name, weights=None, **options).state_dict()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, cache / weights.url.rsplit("/", 1)[1])
    backbone, used = load_backbone(name, 64, "auto")
    assert used == "imagenet"
    torch.testing.assert_close(backbone.state_dict()[first], state[first])
    assert backbone.train()(torch.rand(2, 3, 64, 64)).shape[0] == 2


def test_timm_weights_that_do_not_exist_are_an_error() -> None:
    with pytest.raises(CheckpointError, match="no weights to download for resnet50t"):
        load_backbone("timm:resnet50t", 64, "imagenet")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_weights_file_fills_the_whole_backbone(tmp_path: Path, suffix: str) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    path = tmp_path / f"resnet18{suffix}"
    torch.save(state, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    backbone, used = load_backbone("resnet18", 64, str(path))
    assert used == path.name
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_a_missing_or_damaged_weights_file_or_one_of_another_architecture_is_an_error(
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckpointError, match="init is 'imagenett'; expected auto"):
        load_backbone("resnet18", 64, "imagenett")
    path = tmp_path / "cut.pth"
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError, match=r"cut.pth does not hold weights"):
        load_backbone("resnet18", 64, str(path))
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match="does not hold weights of resnet18"):
        load_backbone("resnet18", 64, str(path))
