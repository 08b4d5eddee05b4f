import json
import pickle
import signal
from pathlib import Path

import pytest
import torch

from boneage.config import Recipe
from boneage.errors import CheckpointError
from boneage.imaging.preprocess import Preprocessing
from boneage.training.checkpoint import describe_software, load_checkpoint, save_checkpoint
from boneage.training.model import BoneAgePredictor

RECIPE = Recipe(image_size=32, sex_input=True, tasks="age", init="none", epochs=3)
PREPROCESSING = Preprocessing(image_size=32, stored_size=64, invert="never")


Saved = tuple[Path, BoneAgePredictor]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    model = BoneAgePredictor.from_recipe(RECIPE).eval()
    path = tmp_path / "models" / "best_model.pt"
    save_checkpoint(path, model, RECIPE, PREPROCESSING, {"epoch": 3, "split_sha256": "ab"})
    return path, model


def test_a_checkpoint_alone_rebuilds_model_recipe_and_preprocessing(saved: Saved) -> None:
    path, model = saved
    assert list(path.parent.iterdir()) == [path]
    loaded = load_checkpoint(path)
    assert loaded.recipe == RECIPE
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.provenance == {"epoch": 3, "split_sha256": "ab"}
    image, sex = torch.rand(2, 3, 32, 32), torch.tensor([1.0, -1.0])
    assert not loaded.model.training
    torch.testing.assert_close(loaded.model(image, sex)[0], model(image, sex)[0], rtol=0, atol=0)


def test_a_failed_save_keeps_the_earlier_checkpoint(saved: Saved) -> None:
    path, model = saved
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save_checkpoint(path, model, RECIPE, PREPROCESSING, {}, {"bad": lambda: None})
    assert path.read_bytes() == before


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code from a checkpoint was run')",))


def test_code_hidden_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"boneage_format": 1, "meta": Malicious()}, path)
    with pytest.raises(CheckpointError, match=r"evil.pt is not a readable checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_what_is_no_checkpoint_of_this_version_is_refused(saved: Saved, tmp_path: Path) -> None:
    path, _ = saved
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "gone.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"not a boneage checkpoint.*--init"):
        load_checkpoint(tmp_path / "weights.pth")
    content = torch.load(path, weights_only=True)
    meta = json.loads(content["meta"])
    meta["recipe"]["dropout"] = 0.5
    torch.save({**content, "meta": json.dumps(meta)}, path)
    with pytest.raises(CheckpointError, match=r"does not fit this version.*dropout"):
        load_checkpoint(path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_the_software_is_described_with_its_versions() -> None:
    software = describe_software()
    assert software["torch"] == torch.__version__
    assert software["boneage"][0].isdigit()
    assert software["commit"] is None or len(software["commit"]) == 40


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer to interrupt with")
def test_an_interrupted_save_is_an_interrupt_and_leaves_a_whole_file(tmp_path: Path) -> None:
    path, model = tmp_path / "model.pt", BoneAgePredictor.from_recipe(RECIPE)
    state = {f"part {i}": torch.zeros(2_000_000) for i in range(12)}
    save_checkpoint(path, model, RECIPE, PREPROCESSING, {"epoch": 3})
    interrupted = 0
    ours = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for tries in range(1, 21):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.004 * tries)
                save_checkpoint(path, model, RECIPE, PREPROCESSING, {"epoch": 3}, state)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
                assert load_checkpoint(path).provenance == {"epoch": 3}
                assert list(tmp_path.iterdir()) == [path]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, ours)
    assert interrupted > 3
