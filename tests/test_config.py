import dataclasses
import itertools
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from boneage.config import ImageSettings, Paths, Recipe, Runtime, load_config
from boneage.errors import ConfigError

NAN = float("nan")
KNOWN = [f.name for group in (Paths, Runtime, Recipe) for f in fields(group)]


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def test_defaults_are_the_seed_reports() -> None:
    expected = {
        "image_size": 256, "backbone": "resnet18", "epochs": 10, "batch_size": 32,
        "learning_rate": 1e-4, "weight_decay": 1e-5, "clip_norm": 5.0, "rotation": 10.0,
        "horizontal_flip": True, "seed": 0, "tasks": "age,stage", "sex_input": False,
        "schedule": "constant", "init": "auto", "age_bias": "zero", "invert": "auto",
        "drop_unknown_sex": False, "group_column": None, "split_sha256": None,
    }  # fmt: skip
    recipe, images = Recipe(), ImageSettings()
    assert {name: getattr(recipe, name) for name in expected} == expected
    assert (recipe.image_size, recipe.invert) == (images.image_size, images.invert)
    assert Runtime() == Runtime(device="auto", precision="auto", workers=None)
    assert Paths() == Paths(
        data=Path("data/raw"), labels=None, processed=Path("data/processed"), use_processed=False,
        output=Path("output"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("group", "names", "values", "expected"),
    [
        (Recipe, ["image_size", "epochs", "batch_size"], [0, -1], "1 or more"),
        (Recipe, ["learning_rate", "clip_norm"], [0.0, -1e-4, NAN], "a number above 0"),
        (Recipe, ["rotation", "weight_decay", "seed"], [-1, NAN], "0 or more"),
        (ImageSettings, ["image_size"], [0], "1 or more"),
        (Runtime, ["workers"], [-1], "0 or more"),
    ],
)
def test_impossible_settings_are_refused(
    group: Any, names: list[str], values: list[float], expected: str
) -> None:
    for name, value in itertools.product(names, values):
        with pytest.raises(ConfigError, match=rf"^{name} is {value}; expected {expected}\.$"):
            group(**{name: value})


def test_the_smallest_allowed_settings_are_accepted() -> None:
    Recipe(image_size=1, epochs=1, batch_size=1, rotation=0.0, weight_decay=0.0, seed=0)
    for workers in (None, 0, 3):
        assert Runtime(workers=workers).workers == workers


@pytest.mark.parametrize(
    ("tasks", "has_age", "has_stage"),
    [("age,stage", True, True), ("age", True, False), ("stage", False, True)],
)
def test_tasks_decide_the_heads(tasks: Any, has_age: bool, has_stage: bool) -> None:
    recipe = Recipe(tasks=tasks)
    assert (recipe.has_age, recipe.has_stage) == (has_age, has_stage)


@pytest.mark.parametrize("group", [Paths(), Runtime(), Recipe()])
def test_settings_cannot_change_after_they_were_checked(group: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(group, fields(group)[0].name, None)


def test_no_two_groups_have_a_setting_in_common_since_a_file_is_flat() -> None:
    assert len(KNOWN) == len(set(KNOWN))


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("image-size = 512\nuse-processed = true\n", {"image_size": 512, "use_processed": True}),
        ('epochs = 3\nlearning_rate = 2e-4\nbackbone = "resnet50"\n',
         {"epochs": 3, "learning_rate": 2e-4, "backbone": "resnet50"}),
    ],
)  # fmt: skip
def test_a_config_file_is_flat_toml_and_may_spell_names_with_dashes_as_the_options_do(
    toml: Path, text: str, settings: dict[str, object]
) -> None:
    toml.write_text(text)
    assert load_config(toml, KNOWN) == settings


def test_a_config_file_may_name_every_option_that_is_known(toml: Path) -> None:
    toml.write_text("".join(f"{name} = 1\n" for name in KNOWN))
    assert load_config(toml, iter(KNOWN)) == dict.fromkeys(KNOWN, 1)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("epoch", "epochs"), ("lerning_rate", "learning_rate"), ("image-sise", "image_size"),
     ("worker", "workers"), ("ouput", "output")],
)  # fmt: skip
def test_an_unknown_setting_suggests_the_nearest(toml: Path, key: str, nearest: str) -> None:
    toml.write_text(f"seed = 1\n{key} = 3\n")
    spelled = key.replace("-", "_")
    message = rf"run\.toml: unknown setting '{spelled}'; did you mean '{nearest}'\?$"
    with pytest.raises(ConfigError, match=message):
        load_config(toml, KNOWN)


def test_a_missing_config_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml does not exist; --config expects a TOML"):
        load_config(tmp_path / "gone.toml", KNOWN)
    with pytest.raises(ConfigError, match="expects a TOML file"):
        load_config(tmp_path, KNOWN)


@pytest.mark.parametrize(
    ("content", "why"), [(b"seed = 1\nepochs = ten\n", "line 2"), (b"epochs = 3 # \xe9\n", "utf-8")]
)
def test_a_config_file_that_is_no_toml_is_refused_with_the_reason(
    toml: Path, content: bytes, why: str
) -> None:
    toml.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"run\.toml is not valid TOML: .*{why}"):
        load_config(toml, KNOWN)


def test_paths_may_be_given_as_text() -> None:
    paths = Paths(data="images", labels="a.csv", output="out")  # type: ignore[arg-type]
    assert paths == Paths(data=Path("images"), labels=Path("a.csv"), output=Path("out"))
