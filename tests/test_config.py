import dataclasses
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from boneage.config import ImageSettings, Paths, Recipe, Runtime, load_config
from boneage.errors import BoneAgeError, ConfigError

NAN = float("nan")
KNOWN = [f.name for group in (Paths, Runtime, Recipe) for f in fields(group)]


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 256),
        ("backbone", "resnet18"),
        ("epochs", 10),
        ("batch_size", 32),
        ("learning_rate", 1e-4),
        ("weight_decay", 1e-5),
        ("clip_norm", 5.0),
        ("rotation", 10.0),
        ("horizontal_flip", True),
        ("seed", 0),
        ("tasks", "age,stage"),
        ("sex_input", False),
        ("schedule", "constant"),
        ("init", "auto"),
        ("age_bias", "zero"),
        ("invert", "auto"),
    ],
)
def test_defaults_are_the_seed_reports(name: str, value: object) -> None:
    assert getattr(Recipe(), name) == value


def test_a_run_reads_raw_images_and_writes_beside_them_by_default() -> None:
    assert Paths() == Paths(
        data=Path("data/raw"),
        labels=None,
        processed=Path("data/processed"),
        use_processed=False,
        output=Path("output"),
    )


def test_the_machine_decides_how_to_compute_by_default() -> None:
    assert Runtime() == Runtime(device="auto", precision="auto", workers=None)


def test_nothing_is_left_out_or_grouped_unless_asked() -> None:
    recipe = Recipe()
    assert not recipe.drop_unknown_sex
    assert recipe.group_column is None
    assert recipe.split_sha256 is None


@pytest.mark.parametrize("name", ["image_size", "epochs", "batch_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name: str, value: int) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"^{name} is {value}; expected 1 or more\.$"):
        Recipe(**settings)


@pytest.mark.parametrize("name", ["learning_rate", "clip_norm"])
@pytest.mark.parametrize("value", [0.0, -1e-4, NAN])
def test_steps_and_norms_of_zero_or_less_are_refused(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"^{name} is {value}; expected a number above 0\.$"):
        Recipe(**settings)


@pytest.mark.parametrize("name", ["rotation", "weight_decay", "seed"])
@pytest.mark.parametrize("value", [-1, NAN])
def test_negative_settings_are_refused(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"^{name} is {value}; expected 0 or more\.$"):
        Recipe(**settings)


def test_an_impossible_image_size_is_refused_outside_a_recipe_too() -> None:
    with pytest.raises(ConfigError, match=r"^image_size is 0; expected 1 or more\.$"):
        ImageSettings(image_size=0)


def test_a_recipe_makes_images_as_the_preprocessing_does() -> None:
    recipe, images = Recipe(), ImageSettings()
    assert (recipe.image_size, recipe.invert) == (images.image_size, images.invert)


def test_the_smallest_allowed_settings_are_accepted() -> None:
    recipe = Recipe(image_size=1, epochs=1, batch_size=1, rotation=0.0, weight_decay=0.0, seed=0)
    assert recipe.image_size == 1


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^workers is -1; expected 0 or more\.$"):
        Runtime(workers=-1)


@pytest.mark.parametrize("workers", [None, 0, 3])
def test_workers_may_be_none_zero_or_more(workers: int | None) -> None:
    assert Runtime(workers=workers).workers == workers


def test_a_config_error_is_one_that_the_command_line_prints() -> None:
    assert issubclass(ConfigError, BoneAgeError)


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


def test_a_config_file_is_flat_toml(toml: Path) -> None:
    toml.write_text('epochs = 3\nlearning_rate = 2e-4\nbackbone = "resnet50"\nsex_input = true\n')
    assert load_config(toml, KNOWN) == {
        "epochs": 3,
        "learning_rate": 2e-4,
        "backbone": "resnet50",
        "sex_input": True,
    }


def test_a_config_file_may_name_every_option_that_is_known(toml: Path) -> None:
    toml.write_text("".join(f"{name} = 1\n" for name in KNOWN))
    assert load_config(toml, iter(KNOWN)) == dict.fromkeys(KNOWN, 1)


def test_a_config_file_may_spell_names_with_dashes_as_the_options_do(toml: Path) -> None:
    toml.write_text("image-size = 512\nuse-processed = true\n")
    assert load_config(toml, KNOWN) == {"image_size": 512, "use_processed": True}


def test_an_empty_config_file_sets_nothing(toml: Path) -> None:
    toml.write_text("")
    assert load_config(toml, KNOWN) == {}


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("epoch", "epochs"),
        ("lerning_rate", "learning_rate"),
        ("image-sise", "image_size"),
        ("worker", "workers"),
        ("ouput", "output"),
    ],
)
def test_an_unknown_setting_suggests_the_nearest(toml: Path, key: str, nearest: str) -> None:
    toml.write_text(f"seed = 1\n{key} = 3\n")
    spelled = key.replace("-", "_")
    message = rf"run\.toml: unknown setting '{spelled}'; did you mean '{nearest}'\?$"
    with pytest.raises(ConfigError, match=message):
        load_config(toml, KNOWN)


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml does not exist; --config expects a TOML"):
        load_config(tmp_path / "gone.toml", KNOWN)


def test_a_config_file_that_is_no_toml_names_the_line(toml: Path) -> None:
    toml.write_text("seed = 1\nepochs = ten\n")
    with pytest.raises(ConfigError, match=r"run\.toml is not valid TOML: .*line 2"):
        load_config(toml, KNOWN)


def test_a_config_file_that_is_no_text_is_refused(toml: Path) -> None:
    toml.write_bytes(b"epochs = 3 # \xe9\n")
    with pytest.raises(ConfigError, match=r"run\.toml is not valid TOML: .*utf-8"):
        load_config(toml, KNOWN)


def test_a_folder_given_as_config_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expects a TOML file"):
        load_config(tmp_path, KNOWN)


def test_paths_may_be_given_as_text() -> None:
    paths = Paths(data="images", labels="a.csv", output="out")  # type: ignore[arg-type]
    assert paths == Paths(data=Path("images"), labels=Path("a.csv"), output=Path("out"))
