import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import make_checkpoint
from PIL import Image

from boneage.errors import BoneAgeError, CheckpointError, ImageError
from boneage.export import export_onnx
from boneage.predict import Predictor


@pytest.fixture(scope="module")
def film(raw: Path) -> Path:
    return sorted(raw.rglob("*.png"))[0]


@pytest.fixture(scope="module")
def model(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export_onnx(make_checkpoint(sex_input=True), path, [film])
    return path


def test_a_film_is_answered_without_torch(model: Path, film: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from boneage import Predictor; "
        "from pathlib import Path; "
        f"print(Predictor(Path({str(model)!r})).predict({str(film)!r}, 'F').predicted_years)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert float(printed) == pytest.approx(Predictor(model).predict(film, "F").predicted_years)


def test_the_sex_counts_and_unknown_is_between(model: Path, film: Path) -> None:
    predictor = Predictor(model)
    years = [predictor.predict(film, sex).predicted_years for sex in ("M", None, "F")]
    assert years[0] != years[2]
    assert years[1] == pytest.approx(np.mean([years[0], years[2]]), abs=1e-4)
    assert predictor.predict(film).sex is None


def test_a_film_has_the_same_answer_alone_and_in_a_batch(
    model: Path, samples: pd.DataFrame
) -> None:
    predictor = Predictor(model)
    rng = np.random.default_rng(0)
    images = rng.random((5, 48, 48), dtype=np.float32)
    sexes = ["M", "F", None, "F", "M"]
    together = predictor.run(images, sexes)
    for i, sex in enumerate(sexes):
        alone = predictor.run(images[i : i + 1], [sex])
        for name in predictor.contract.outputs:
            np.testing.assert_allclose(alone[name][0], together[name][i], atol=1e-4 / 12)


def test_the_answer_keeps_its_promises(model: Path, film: Path) -> None:
    answer = Predictor(model).predict(str(film), "M")
    assert answer.image_id == film.stem
    assert answer.predicted_months == pytest.approx(12 * answer.predicted_years)  # type: ignore[operator]
    chances = {"Child": answer.p_child, "Adolescent": answer.p_adolescent, "Adult": answer.p_adult}
    assert sum(chances.values()) == pytest.approx(1.0)  # type: ignore[arg-type]
    assert answer.predicted_stage == max(chances, key=lambda stage: chances[stage] or 0)


def test_a_model_of_one_task_answers_that_alone(film: Path, tmp_path: Path) -> None:
    for tasks in ("age", "stage"):
        export_onnx(make_checkpoint(tasks=tasks), tmp_path / tasks, [film])
    by_age = Predictor(tmp_path / "age").predict(film)
    assert by_age.p_child is None
    assert by_age.predicted_stage in ("Child", "Adolescent", "Adult")
    by_stage = Predictor(tmp_path / "stage").predict(film)
    assert by_stage.predicted_years is None
    assert by_stage.predicted_months is None


def test_the_contract_travels_with_the_file(model: Path) -> None:
    contract = Predictor(model).contract
    assert contract.sex_input
    assert contract.preprocessing.stored_size == 64
    assert contract.provenance == {"epoch": 3, "graph_sha256": contract.graph_sha256}


def test_an_unreadable_sex_or_film_is_an_error(model: Path, tmp_path: Path) -> None:
    predictor = Predictor(model)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no film")
    with pytest.raises(ImageError, match=r"broken\.png is not an image"):
        predictor.predict(broken, "F")
    film = tmp_path / "film.png"
    Image.fromarray(np.eye(64, dtype=np.uint8) * 9).save(film)
    with pytest.raises(BoneAgeError, match="sex is 'female'; expected M, F"):
        predictor.predict(film, "female")  # type: ignore[arg-type]


def test_a_file_that_is_no_export_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Predictor(tmp_path / "none.onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match="not a readable ONNX model"):
        Predictor(path)
    stranger = onnx.load(model)
    del stranger.metadata_props[:]
    onnx.save(stranger, path)
    with pytest.raises(CheckpointError, match="has no contract"):
        Predictor(path)


def test_a_contract_that_does_not_fit_its_graph_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    changed = onnx.load(model)
    (entry,) = changed.metadata_props
    contract = json.loads(entry.value)
    entry.value = json.dumps({**contract, "sex_input": False})
    onnx.save(changed, path)
    with pytest.raises(CheckpointError, match=r"takes image, sex and gives .* contract says image"):
        Predictor(path)
    entry.value = json.dumps({**contract, "colour": True})
    onnx.save(changed, path)
    with pytest.raises(CheckpointError, match=r"does not fit this version.*colour"):
        Predictor(path)
