import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from boneage.training.fold_norm import FoldedNorm, fold_norm


def make_backbone(name: str) -> Any:
    """A backbone with statistics and shifts as a trained one has them."""
    torch.manual_seed(0)
    library = timm if name.startswith("t") else torchvision.models
    backbone = library.create_model(name) if library is timm else library.get_model(name)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return backbone.eval()


@pytest.mark.parametrize(("name", "n"), [("tf_efficientnet_lite0", 49), ("resnet18", 20)])
def test_a_folded_network_gives_the_same_and_its_weights_load_into_the_original(
    name: str, n: int
) -> None:
    original = make_backbone(name)
    folded = copy.deepcopy(original)
    assert fold_norm(folded) == n
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = original(images)
        torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-3)
        original.load_state_dict(folded.state_dict())
        torch.testing.assert_close(original(images), expected, rtol=1e-3, atol=1e-3)


def test_a_folded_network_learns_its_shifts_and_not_its_scales() -> None:
    folded = make_backbone("resnet18")
    fold_norm(folded)
    folded.train()(torch.rand(2, 3, 64, 64)).sum().backward()
    for module in folded.modules():
        if isinstance(module, FoldedNorm):
            assert module.bias.grad is not None
            assert not module.weight.requires_grad


def test_a_norm_without_a_convolution_before_it_stays() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    assert fold_norm(network) == 0
