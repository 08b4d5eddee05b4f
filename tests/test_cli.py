import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from boneage.cli import app, main, option_names
from boneage.config import Paths

ROOT = Path(__file__).parents[1]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
TINY = ["--image-size", "48", "--init", "none", "--epochs", "1", "--batch-size", "16",
        "--workers", "0", "--device", "cpu"]  # fmt: skip


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=ENV, capture_output=True, text=True, check=False
    )


def options(paths: Paths) -> list[str]:
    return ["--data", str(paths.data), "--processed", str(paths.processed),
            "--output", str(paths.output)]  # fmt: skip


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_loads_nothing_heavy_and_answers_at_once() -> None:
    code = "import sys, boneage.cli; boneage.cli.main(['--help']); print(*sys.modules)"
    loaded = python("-c", code).stdout.split()
    for heavy in ("torch", "pandas", "numpy", "matplotlib", "sklearn", "PIL"):
        assert heavy not in loaded

    def seconds(*arguments: str) -> float:
        started = time.perf_counter()
        assert python(*arguments).returncode == 0
        return time.perf_counter() - started

    bare = min(seconds("-c", "pass") for _ in range(5))
    assert min(seconds("-m", "boneage", "--help") for _ in range(5)) - bare < 0.2


def test_help_says_that_this_is_no_medical_device(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Research use only, not a medical device" in text


def test_wrong_usage_exits_with_2_and_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--epohcs", "3"]) == 2
    assert "--epochs" in capsys.readouterr().err
    assert main(["trian"]) == 2
    assert '"train"' in capsys.readouterr().err
    assert main(["train", "--epochs", "many"]) == 2
    assert "many" in capsys.readouterr().err


def test_a_user_s_error_is_one_line_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("boneage: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert main(["train", "--epochs", "0"]) in (1, 2)
    assert "epochs is 0; expected 1 or more" in capsys.readouterr().err


def test_a_fault_of_the_disk_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["phantom", str(tmp_path / "file" / "raw"), "--n", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("boneage: ")
    assert "Not a directory" in error


def test_an_install_without_the_training_extra_is_told_what_it_lacks(
    paths: Paths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boneage.run", None)
    assert main(["train", *options(paths)]) == 1
    assert "pip install '.[train]'" in capsys.readouterr().err


def test_one_name_of_an_option_means_one_thing() -> None:
    types: dict[str, set[str]] = {}
    for command in ("phantom", "preprocess", "train", "evaluate", "explain", "export", "download"):
        for argument in app[command].assemble_argument_collection():
            if argument.names[0].startswith("--"):
                types.setdefault(argument.names[0], set()).add(str(argument.hint))
    assert {name: hints for name, hints in types.items() if len(hints) > 1} == {}
    assert "n" in option_names()


def test_settings_come_from_defaults_then_file_then_flags(
    paths: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f'data = "{paths.data}"\nprocessed = "{paths.processed}"\nuse-processed = true\n'
        'image_size = 48\ninit = "none"\nepochs = 7\nbatch_size = 16\nworkers = 0\n'
        'device = "cpu"\n'
    )
    arguments = ["train", "--config", str(file), "--output", str(paths.output), "--epochs=1"]
    assert main(arguments) == 0, capsys.readouterr().err
    from boneage.checkpoint import load_checkpoint

    recipe = load_checkpoint(paths.output / "models/best_model.pt").recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (1, 16, 1e-4)
    assert main(["evaluate", f"--config={file}", "--output", str(paths.output)]) == 0


def test_a_bad_config_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text("epohcs = 3\n")
    assert main(["train", "--config", str(file)]) == 1
    assert "did you mean 'epochs'" in capsys.readouterr().err
    file.write_text('epochs = "many"\n')
    assert main(["train", "--config", str(file)]) == 2
    assert "many" in capsys.readouterr().err
    assert main(["train", "--config"]) == 1
    assert "--config expects" in capsys.readouterr().err


def test_training_prints_figures_by_sex_and_both_approaches(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *options(paths), "--use_processed", *TINY]) == 0
    out = capsys.readouterr().out
    for word in ("val split, n = 12", "test split, n = 12", "MAE", "QWK", "by the stage head",
                 "by thresholds on the age", "male", "female", "baseline"):  # fmt: skip
        assert word in out
    model = paths.output / "model.onnx"
    assert main(["export", "--output", str(paths.output), "--out", str(model)]) == 0
    assert "differs from its checkpoint by at most" in capsys.readouterr().out
    assert model.is_file()
    metrics = json.loads((paths.output / "metrics_test.json").read_text())
    assert f"{metrics['regression']['mae_months']:.2f}" in out


def test_the_report_s_command_lines_run_verbatim(raw: Path, tmp_path: Path) -> None:
    """In a folder that holds nothing but the scripts and data/raw, with the defaults."""
    import shutil

    for name in ("main.py", "preprocess.py", "gradcam_demo.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(raw, tmp_path / "data" / "raw")
    films = sorted((tmp_path / "data/raw/boneage-training-dataset").rglob("*.png"))
    for film in films[40:]:
        film.unlink()  # fewer films, since the defaults are the report's 256 px and 10 epochs
    (tmp_path / "run.toml").write_text('epochs = 1\ninit = "none"\nimage_size = 64\n')

    def run(line: str, *extra: str) -> str:
        script, *arguments = line.removeprefix("python ").split()
        result = python(script, *arguments, *extra, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    assert "40 films: 40 resized to 256 px" in run("python preprocess.py")
    run("python main.py --mode train --use_processed", "--config", "run.toml")
    figures = run("python main.py --mode evaluate --use_processed")
    assert "test split, n = 6" in figures
    pictures = run("python gradcam_demo.py").split()
    assert "output/plots/gradcam_example_1.png" in pictures
    for name in ("scatter_pred_vs_true_test.png", "confusion_matrix_test.png"):
        assert (tmp_path / "output/plots" / name).stat().st_size > 10_000


def test_main_py_explains_its_mode() -> None:
    bare = python("main.py")
    assert bare.returncode == 2
    assert "usage: python main.py --mode" in bare.stderr
    assert python("main.py", "--help").returncode == 0
    wrong = python("main.py", "--mode=predict")
    assert wrong.returncode == 2
    assert "--mode is 'predict'; expected train or evaluate" in wrong.stderr
    assert python("main.py", "--mode", "train", "--nonsense").returncode == 2


def test_preprocess_reports_what_it_did(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    data, processed = tmp_path / "raw", tmp_path / "processed"
    shutil.copytree(raw, data)
    films = sorted((data / "boneage-training-dataset").rglob("*.png"))
    films[0].write_bytes(b"no image")
    arguments = ["preprocess", "--data", str(data), "--processed", str(processed), "--workers", "1"]
    assert main([*arguments, "--image-size", "32"]) == 0
    out = capsys.readouterr().out
    assert "80 films: 79 resized to 32 px, 0 up to date, 1 broken" in out
    assert f"broken: {films[0].stem}: {films[0]} is not an image" in out
    assert main([*arguments, "--image-size", "32", "--invert", "always"]) == 0
    assert f"turned because bones were dark: {films[1].stem}" in capsys.readouterr().out


def test_phantom_draws_the_rsna_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "raw"
    assert main(["phantom", str(out), "--n", "3", "--height", "96", "--workers", "1"]) == 0
    assert "not patient data" in capsys.readouterr().out
    labels = pd.read_csv(out / "boneage-training-dataset.csv")
    assert list(labels.columns) == ["id", "boneage", "male"]
    assert len(list((out / "boneage-training-dataset/boneage-training-dataset").iterdir())) == 3


def test_an_interrupted_training_says_how_to_go_on(raw: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "boneage", "train", "--data", str(raw), "--output",
               str(tmp_path / "output"), *TINY]  # fmt: skip
    command[command.index("--epochs") + 1] = "500"
    # A background job of a shell ignores SIGINT, and so would its children: undo that here.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        history = tmp_path / "output/history.csv"
        deadline = time.monotonic() + 120
        while not history.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume continues" in error
    assert "Traceback" not in error
    assert (tmp_path / "output/models/last.pt").is_file()
