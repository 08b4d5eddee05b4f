import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from boneage.training.checkpoint import BEST, load_checkpoint, save_checkpoint
from boneage.training.initial_weights import build_model
from builders import load_script, make_checkpoint, make_small, write_sizes


@pytest.fixture
def script() -> Any:
    return load_script("benchmarks/train_weights.py")


def test_larger_images_are_in_every_epoch_and_others_in_turn(script: Any) -> None:
    is_large = [True, False] * 10
    generator = torch.Generator().manual_seed(0)
    sampler = script.LargerFirst(is_large, 4, generator)
    epochs = [list(sampler) for _ in range(3)]
    for rows in epochs:
        assert len(rows) == len(set(rows)) == len(sampler) == 14
        assert set(range(0, 20, 2)) <= set(rows)
    assert len({tuple(sorted(rows)) for rows in epochs}) > 1


def test_a_recipe_names_known_settings_and_can_be_changed(script: Any) -> None:
    for name in ("boneage-pretraining", "boneage"):
        recipe = script.read_recipe(name, grain=0.9)
        assert (recipe.crop, recipe.grain, recipe.init) == ("hand", 0.9, "none")


@pytest.mark.parametrize("skips_first", [False, True])
def test_both_stages_are_trained_and_a_second_call_trains_nothing_again(
    script: Any,
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    skips_first: bool,
) -> None:
    monkeypatch.setattr(script, "read_recipe", make_small(script.read_recipe))
    monkeypatch.setattr(script, "OTHERS", 10)
    small, larger = write_sizes(raw, tmp_path)
    init, work = tmp_path / "init.pt", tmp_path / "work"
    earlier = make_checkpoint(backbone="timm:test_resnet", sex_input=True, sex_weight=0.5)
    save_checkpoint(
        init, earlier.model, earlier.recipe, earlier.preprocessing, {"init_used": "none"}
    )
    arguments = [str(small), str(larger), "--init", str(init), "--work", str(work),
                 *(["--skip-pretraining"] if skips_first else [])]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train_weights.py", *arguments])
    script.main()
    figures = json.loads(capsys.readouterr().out)
    assert {name: value["n"] > 0 for name, value in figures.items()} == {
        "larger": True, "others": True,
    }  # fmt: skip
    assert (work / "first").exists() is not skips_first
    trained = load_checkpoint(work / "second" / BEST)
    assert trained.preprocessing.crop == "hand"
    history = (work / "second" / "history.csv").read_text()
    script.main()
    assert (work / "second" / "history.csv").read_text() == history
    assert len(pd.read_csv(work / "second" / "history.csv")) == 1


def test_the_constant_term_moves_into_the_weights(script: Any, samples: pd.DataFrame) -> None:
    recipe = replace(script.read_recipe("boneage"), image_size=64, backbone="timm:test_resnet",
                     output_stride=32, age_bias="mean")  # fmt: skip
    model = build_model(recipe, "none", 10.0)
    script._drop_constant(model, recipe, pd.concat([samples] * 2))
    assert model.age_head is not None
    assert not model.age_head.bias.any()
    data = script.BoneAgeDataset(samples, script.get_transforms("val", recipe))
    ages = model(torch.stack([data[i]["image"] for i in range(8)]), torch.zeros(8))[0]
    assert ages.mean().item() == pytest.approx(10.0, abs=0.7)
