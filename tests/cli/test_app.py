import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from boneage.audit.perturbations import PERTURBATIONS
from boneage.cli.app import app, main, option_names
from boneage.cli.use_commands import EXAMPLE, EXAMPLE_YEARS
from boneage.config import Paths
from boneage.data.labels import find_labels
from boneage.inference.contract import CONTRACT_KEY, Contract
from boneage.inference.prediction import COLUMNS, columns_of_run
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import draw_image
from builders import ROOT, draw_hand, make_calibration, save_dicom

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


@pytest.mark.performance
def test_help_loads_nothing_heavy_and_appears_at_once() -> None:
    code = "import sys, boneage.cli.app; boneage.cli.app.main(['--help']); print(*sys.modules)"
    loaded = python("-c", code).stdout.split()
    for heavy in ("torch", "pandas", "numpy", "matplotlib", "sklearn", "PIL"):
        assert heavy not in loaded

    def seconds(*arguments: str) -> float:
        started = time.perf_counter()
        assert python(*arguments).returncode == 0
        return time.perf_counter() - started

    # How fast this machine is, one of those imports tells.
    heavy_import = min(seconds("-c", "import pandas") for _ in range(5))
    assert min(seconds("-m", "boneage", "--help") for _ in range(5)) < heavy_import


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


def test_an_error_of_the_disk_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["phantom", str(tmp_path / "file" / "raw"), "--n", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("boneage: ")
    assert "Not a directory" in error


def test_an_install_without_the_training_extra_names_it(
    paths: Paths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boneage.training.workflows", None)
    assert main(["train", *options(paths)]) == 1
    assert "pip install '.[train]'" in capsys.readouterr().err


def test_one_name_of_an_option_means_one_thing() -> None:
    types: dict[str, set[str]] = {}
    commands = [name for name in app if not name.startswith("-")]
    assert len(commands) == 10
    for command in commands:
        for argument in app[command].assemble_argument_collection():
            if argument.names[0].startswith("--"):
                types.setdefault(argument.names[0], set()).add(str(argument.hint | None))
    assert {name: hints for name, hints in types.items() if len(hints) > 1} == {}
    assert "n" in option_names()


@pytest.mark.slow
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
    from boneage.training.checkpoint import load_checkpoint

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_report_s_command_lines_run_verbatim(raw: Path, tmp_path: Path) -> None:
    """In a folder that holds nothing but the scripts and data/raw, with the defaults."""
    for name in ("main.py", "preprocess.py", "gradcam_demo.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(raw, tmp_path / "data" / "raw")
    radiographs = sorted((tmp_path / "data/raw/boneage-training-dataset").rglob("*.png"))
    for image in radiographs[40:]:
        image.unlink()  # fewer images, since the defaults are the report's 256 px and 10 epochs
    (tmp_path / "run.toml").write_text('epochs = 1\ninit = "none"\nimage_size = 64\n')

    def run(line: str, *extra: str) -> str:
        script, *arguments = line.removeprefix("python ").split()
        result = python(script, *arguments, *extra, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    assert "40 images: 40 reduced to 256 px" in run("python preprocess.py")
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
    data, processed = tmp_path / "raw", tmp_path / "processed"
    shutil.copytree(raw, data)
    radiographs = sorted((data / "boneage-training-dataset").rglob("*.png"))
    radiographs[0].write_bytes(b"no image")
    arguments = ["preprocess", "--data", str(data), "--processed", str(processed), "--workers", "1"]
    assert main([*arguments, "--image-size", "32"]) == 0
    out = capsys.readouterr().out
    assert "80 images: 79 reduced to 32 px, 0 up to date, 1 broken" in out
    assert f"broken: {radiographs[0].stem}: {radiographs[0]} is not an image" in out
    assert main([*arguments, "--image-size", "32", "--invert", "always"]) == 0
    assert f"inverted because bones were dark: {radiographs[1].stem}" in capsys.readouterr().out


def test_phantom_draws_the_rsna_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "raw"
    assert main(["phantom", str(out), "--n", "3", "--height", "96", "--workers", "1"]) == 0
    assert "not patient data" in capsys.readouterr().out
    labels = pd.read_csv(out / "boneage-training-dataset.csv")
    assert list(labels.columns) == ["id", "boneage", "male"]
    assert len(list((out / "boneage-training-dataset/boneage-training-dataset").iterdir())) == 3


@pytest.mark.slow
def test_an_interrupted_training_says_how_to_continue(raw: Path, tmp_path: Path) -> None:
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


@pytest.fixture
def radiographs(raw: Path, tmp_path: Path) -> Path:
    """A folder of three images."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name, image in zip(
        ("1.png", "2.png", "below/3.png"), sorted(raw.rglob("*.png")), strict=False
    ):
        shutil.copy(image, folder / name)
    return folder


def predict(exported: Path, *arguments: object) -> int:
    return main(["predict", *map(str, arguments), "--model", str(exported), "--workers", "1"])


def test_one_image_is_described_in_full(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_calibration(Predictor(exported).contract.graph_sha256).save(tmp_path / "site.toml")
    site = ("--calibration", tmp_path / "site.toml")
    assert predict(exported, radiographs / "1.png", "--sex", "F", *site) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(radiographs / "1.png")
    assert [line.split()[0] for line in lines[1:5]] == ["bone", "interval", "stage", "sex"]
    assert re.search(r"\d+ years? \d+ months? to \d+ years? \d+ months? \(90%", lines[2])
    assert lines[4].endswith("female")
    assert lines[-1].strip() == "Research use only, not a medical device."


def test_the_example_is_predicted_in_full_without_any_image_at_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--example"]) == 0
    out, note = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:6]] == [
        "bone", "interval", "stage", "sex", "reference",
    ]  # fmt: skip
    assert "  sex        male\n  reference  11 years 0 months, Child\n" in out
    assert "computer drawing" in note
    assert not list(tmp_path.iterdir())


def test_the_prediction_of_the_example_agrees_with_its_age_and_its_map_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--example", "--json", "--heatmap", str(tmp_path / "maps")]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["status"], row["reference_years"]) == ("ok", EXAMPLE_YEARS)
    assert row["predicted_low_years"] < EXAMPLE_YEARS < row["predicted_high_years"]
    assert (tmp_path / "maps" / EXAMPLE.name).stat().st_size > 10_000


@pytest.mark.parametrize(("word", "sex"), [("girl", "F"), ("unknown", None)])
def test_the_sex_of_the_example_can_be_changed(
    capsys: pytest.CaptureFixture[str], word: str, sex: str | None
) -> None:
    assert main(["predict", "--example", "--sex", word, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["sex"] == sex


def test_the_example_is_the_drawing_that_its_notice_describes() -> None:
    notice = (EXAMPLE.parent / "SYNTHETIC.txt").read_text()
    assert "NOT patient data" in notice
    assert 'draw_image(132, "M", numpy.random.default_rng(3), height=512)' in notice
    drawn = draw_image(132, "M", np.random.default_rng(3), height=512).image
    shown = np.asarray(Image.open(EXAMPLE))
    assert shown.shape == drawn.shape
    assert np.abs(shown.astype(int) - drawn.astype(int)).max() <= 2  # rounding of other machines


def test_several_images_are_a_line_each_and_a_count(
    exported: Path, radiographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (radiographs / "notes.txt").write_text("text")
    assert predict(exported, radiographs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        str(radiographs / name) for name in ("1.png", "2.png", "below/3.png")
    ]
    assert lines[3].startswith("3 images: 3 ok; 1 other file left out. Research use only")
    (radiographs.parent / "table.csv").write_text("id,sex\n1,M\n")
    assert predict(exported, radiographs, "--table", radiographs.parent / "table.csv") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("3 images: 3 ok; 2 not in the table; 1 other file left out.")


def test_an_unreadable_image_is_named_the_run_goes_on_and_the_status_is_1(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (radiographs / "2.png").write_text("no image")
    out = tmp_path / "out.csv"
    assert predict(exported, radiographs, "--out", out) == 1
    assert "3 images: 2 ok, 1 error" in capsys.readouterr().out.splitlines()[-1]
    table = pd.read_csv(out)
    assert table["status"].tolist() == ["ok", "error", "ok"]
    assert "2.png is not an image" in table["reasons"][1]
    assert predict(exported, radiographs / "2.png") == 1
    assert capsys.readouterr().out.startswith(f"error: {radiographs / '2.png'} is not an image")
    assert predict(exported, radiographs / "gone.png") == 1
    assert capsys.readouterr().out.endswith("gone.png does not exist.\n")


def test_json_is_an_array_of_rows_and_nothing_else_on_stdout(
    exported: Path, radiographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(exported, radiographs, "--json", "--sex", "M") == 0
    out, error = capsys.readouterr()
    rows = json.loads(out)
    assert [row["image_id"] for row in rows] == ["1", "2", "3"]
    assert all(tuple(row) == columns_of_run(with_reference=False) for row in rows)
    assert rows[0]["predicted_low_years"] is None
    assert rows[0]["sex"] == "M"
    assert "3 images: 3 ok" in error
    (radiographs / "1.png").write_text("no image")
    assert predict(exported, radiographs / "1.png", "--json") == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["status"], row["predicted_years"]) == ("error", None)


def test_out_holds_one_row_per_image_and_an_interrupted_run_continues_it(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    assert predict(exported, radiographs, "--out", out) == 0
    assert f"3 images: 3 ok; in {out}." in capsys.readouterr().out
    whole = out.read_text()
    assert whole.splitlines()[0] == ",".join(columns_of_run(with_reference=False))
    out.write_text(whole[:-30])
    assert predict(exported, radiographs, "--out", out) == 0
    assert "1 image: 1 ok; 2 predicted before;" in capsys.readouterr().out
    assert out.read_text() == whole
    assert predict(exported, radiographs, "--out", out) == 0
    assert "0 images: none left to predict; 3 predicted before" in capsys.readouterr().out
    assert predict(exported, radiographs, "--json", "--out", out) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_rejected_image_is_predicted_on_demand(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_dicom(tmp_path / "ct.dcm", draw_hand(), Modality="CT")
    assert predict(exported, path, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["status"], row["predicted_years"]) == ("reject", None)
    assert predict(exported, path, "--json", "--force") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["status"], row["reason_codes"][:2]) == ("warn", ["not_a_radiograph", "forced"])
    assert row["predicted_years"] is not None


def test_predictions_of_another_model_are_not_mixed_in(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, site = tmp_path / "out.csv", tmp_path / "site.toml"
    assert predict(exported, radiographs, "--out", out) == 0
    before = out.read_text()
    make_calibration(Predictor(exported).contract.graph_sha256).save(site)
    assert predict(exported, radiographs, "--out", out, "--calibration", site) == 1
    assert "holds predictions of calibration_sha256 none, this run has" in capsys.readouterr().err
    assert out.read_text() == before


@pytest.mark.parametrize(
    ("text", "sexes", "years"),
    [
        ("id,boneage,male\n1,120,True\n2,216,False\n", ["M", "F", None], [10.0, 18.0, None]),
        ("Case ID,Sex\n1.png,F\n3,M\n", ["F", None, "M"], None),
        ("id,bone_age,sex\n3,60,\n", [None, None, None], [None, None, 5.0]),
        ("Image ID,male,Bone Age (months)\n1,1,120\n", ["M", None, None], [10.0, None, None]),
    ],
)
def test_a_table_gives_the_sex_and_the_age_where_it_has_them(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    text: str, sexes: list[str | None], years: list[float | None] | None,
) -> None:  # fmt: skip
    (tmp_path / "table.csv").write_text(text)
    assert predict(exported, radiographs, "--table", tmp_path / "table.csv", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["sex"] for row in rows] == sexes
    if years is None:
        assert tuple(rows[0]) == columns_of_run(with_reference=False)
    else:
        assert tuple(rows[0]) == COLUMNS
        assert [row["reference_years"] for row in rows] == years


def test_the_table_overrides_the_sex_option_and_both_override_the_file(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.asarray(Image.open(radiographs / "1.png").convert("L"))
    save_dicom(radiographs / "4.dcm", pixels, PatientSex="M")
    (tmp_path / "table.csv").write_text("id,sex\n1,F\n2,U\n")

    def sexes(*arguments: object) -> list[str | None]:
        assert predict(exported, radiographs, "--json", *arguments) == 0
        return [row["sex"] for row in json.loads(capsys.readouterr().out)]

    table = ("--table", tmp_path / "table.csv")
    assert sexes() == [None, None, "M", None]
    assert sexes("--sex", "unknown") == [None, None, None, None]
    assert sexes(*table, "--sex", "F") == ["F", None, "F", "F"]
    assert sexes(*table) == ["F", None, "M", None]


def test_a_table_of_other_images_or_none_is_one_line(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").write_text("id,sex\n77,F\n")
    assert predict(exported, radiographs, "--table", tmp_path / "table.csv") == 1
    assert "none of the 3 images is in the table" in capsys.readouterr().err
    assert predict(exported, radiographs, "--table", tmp_path / "gone.csv") == 1
    assert "gone.csv does not exist" in capsys.readouterr().err


def test_heat_maps_are_written_on_request(
    exported: Path, radiographs: Path, tmp_path: Path
) -> None:
    assert predict(exported, radiographs, "--heatmap", tmp_path / "maps") == 0
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["1.png", "2.png", "3.png"]


def test_predictions_are_printed_above_the_progress_bar(exported: Path, radiographs: Path) -> None:
    command = [
        sys.executable,
        "-u",
        "-m",
        "boneage",
        "predict",
        str(radiographs),
        "--model",
        str(exported),
    ]
    seen = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, text=True, bufsize=1
    ).stdout
    assert "image/s" in seen
    for name in ("1.png", "2.png", "3.png"):
        assert re.search(rf"^\S*{name}: .* sex unknown", seen, re.MULTILINE)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes there say nothing of their reader")
def test_a_closed_pipe_is_not_reported_as_an_error(exported: Path, radiographs: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "boneage",
        "predict",
        str(radiographs),
        "--model",
        str(exported),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        said = running.stderr.read()
    assert "image/s" in said
    assert "roken" not in said
    assert "Exception" not in said


def test_a_model_without_a_map_is_refused_for_heat_maps(
    tmp_path: Path, exported: Path, radiographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = Path(shutil.copy(exported, tmp_path / "mute.onnx"))
    model = onnx.load(mute)
    (place,) = (i for i, output in enumerate(model.graph.output) if output.name == "age_map")
    del model.graph.output[place]
    (entry,) = (entry for entry in model.metadata_props if entry.key == CONTRACT_KEY)
    contract = Contract.from_json(entry.value)
    outputs = tuple(name for name in contract.outputs if name != "age_map")
    entry.value = replace(contract, outputs=outputs).to_json()
    onnx.save(model, mute)
    assert predict(mute, radiographs, "--heatmap", tmp_path / "maps") == 1
    assert f"{mute} gives no map of the age. Leave --heatmap out." in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


def test_an_error_before_the_prediction_is_one_line(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, status, message in (
        ((), 1, "there is nothing to predict; pass images or folders, or --example."),
        (("--example", radiographs), 1, "--example brings its own image."),
        (("--example", "--table", "table.csv"), 1, "--example brings its own image."),
        (
            (radiographs / "below", "--out", radiographs),
            1,
            f"{radiographs} is no ordinary file, so it cannot be taken up.",
        ),
        ((radiographs, "--sex", "feminine"), 2, "feminine"),
        ((radiographs, "--calibration", tmp_path / "gone.toml"), 1, "gone.toml does not exist"),
    ):
        assert predict(exported, *arguments) == status
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.glob(".*.part"))
    assert main(["predict", str(radiographs), "--model", str(tmp_path / "gone.onnx")]) == 1
    assert "gone.onnx does not exist; expected a file of" in capsys.readouterr().err


def test_an_invalid_file_name_and_a_damaged_dicom_image_print_one_line_each(
    exported: Path, radiographs: Path
) -> None:
    if sys.platform == "linux":
        shutil.copy(radiographs / "1.png", radiographs / os.fsdecode(b"caf\xe9.png"))
    whole = save_dicom(radiographs / "4.dcm", np.eye(90, dtype=np.uint8), compress=RLELossless)
    whole.write_bytes(whole.read_bytes()[:-9])
    result = python("-m", "boneage", "predict", str(radiographs), "--model", str(exported))
    assert result.returncode == 1
    assert "4.dcm cannot be read as DICOM: it is cut short." in result.stdout
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    assert "4.dcm" not in result.stderr


def test_a_model_is_calibrated_on_labelled_images(
    exported: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, site = find_labels(raw), tmp_path / "site.toml"
    labels = pd.read_csv(table)
    labels.head(36).to_csv(tmp_path / "few.csv", index=False)
    images = tmp_path / "images"
    images.mkdir()
    for image_id in labels["id"].head(34):
        shutil.copy(next(raw.rglob(f"{image_id}.png")), images)
    (images / f"{labels['id'][0]}.png").write_text("no image")
    command = ["calibrate", str(tmp_path / "few.csv"), "--model", str(exported), "--out", str(site)]
    assert main([*command, "--images", str(images), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("33 images\n  bias, male")
    assert re.search(r"^left out: \S+ is not an image", out, re.MULTILINE)
    assert f"left out: 2 labelled ids without an image in {images}\n" in out
    assert f"boneage predict --calibration {site}" in out
    assert predict(exported, images / f"{labels['id'][1]}.png", "--calibration", site) == 0
    assert "90% prediction interval" in capsys.readouterr().out


def test_a_calibration_without_its_images_or_ages_is_one_line(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    command = ["calibrate", str(table), "--model", str(exported), "--images"]
    for text, folder, message in (
        (
            "id,sex\n1,F\n",
            radiographs,
            f"none of the 3 images in {radiographs} has an age in {table}. Pass",
        ),
        ("id,sex\n9,F\n", radiographs, "none of the 3 images is in the table"),
        (
            "id,sex,boneage\n1,F,90\n",
            radiographs / "gone",
            "gone is not a folder; expected the images of",
        ),
        ("id,sex,boneage\n1,F,90\n", radiographs, "1 labelled images are too few"),
    ):
        table.write_text(text)
        assert main([*command, str(folder), "--out", str(tmp_path / "site.toml")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "site.toml").exists()
    assert main([*command, str(radiographs), "--out", str(table)]) == 1
    assert f"--out is {table}, the table itself" in capsys.readouterr().err
    assert table.read_text().startswith("id,sex")


TABLE = "image_id,sex,site,reference_months,predicted_years\n" + "".join(
    f"{i},{'MF'[i % 2]},{'ab'[i % 3 == 0]},{60 + 2 * i},{(61 + 2 * i + i % 5) / 12:.4f}\n"
    for i in range(70)
)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[str, str]:
    """Two tables of one name."""
    paths = [tmp_path / folder / "table.csv" for folder in ("ours", "theirs")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(TABLE)
    return str(paths[0]), str(paths[1])


def test_predictions_are_audited_into_a_page_and_its_figures(
    tables: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    command = ["audit", tables[0], "--by", "site", tables[1], "--out", str(out)]
    command += ["--resamples", "50"]
    assert main(command) == 0
    printed, error = capsys.readouterr()
    assert printed.startswith("ours/table.csv, n = 70\n  MAE   3.00 [")
    assert printed.endswith(f"report in {out / 'report.html'}\n")
    assert error == ""
    result = json.loads((out / "audit.json").read_text())
    assert result["n"] == 70
    assert result["accuracy"]["bias_months"]["value"] == pytest.approx(3.0, abs=0.01)
    assert {"a", "b"} < {group["group"] for group in result["groups"]}
    (row,) = result["comparison"]
    assert (row["first"], row["second"]) == ("ours/table.csv", "theirs/table.csv")


def test_one_case_is_audited_without_an_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "one.csv"
    table.write_text("".join(TABLE.splitlines(keepends=True)[:2]))
    assert main(["audit", str(table), "--out", str(tmp_path / "out")]) == 0
    assert "  MAE   1.00 months\n" in capsys.readouterr().out


def test_images_are_predicted_and_audited_in_one_command(
    exported: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, images, out = find_labels(raw), tmp_path / "images", tmp_path / "out"
    known = pd.read_csv(labels)
    images.mkdir()
    for image_id in known["id"].head(6):
        shutil.copy(next(raw.rglob(f"{image_id}.png")), images)
    shutil.copy(images / f"{known['id'][0]}.png", images / "stranger.png")
    (images / f"{known['id'][1]}.png").write_text("no image")
    site = tmp_path / "site.toml"
    make_calibration(Predictor(exported).contract.graph_sha256).save(site)
    command = ["audit", "--images", str(images), "--labels", str(labels), "--out", str(out),
               "--model", str(exported), "--calibration", str(site), "--resamples", "20",
               "--workers", "1"]  # fmt: skip
    assert main(command) == 0
    assert f"report in {out / 'report.html'}" in capsys.readouterr().out
    result = json.loads((out / "audit.json").read_text())
    rows = pd.read_csv(out / "predictions.csv").dropna(subset=["reference_years"])
    rows = rows[rows["status"].isin(["ok", "warn"])]
    assert (result["n"], result["n_unanswered"], result["n_without_reference"]) == (5, 1, 1)
    error = 12 * (rows["predicted_years"] - rows["reference_years"]).abs()
    assert result["accuracy"]["mae_months"]["value"] == pytest.approx(error.mean())
    assert result["calibration"] is not None
    assert result["accuracy"]["coverage"]["value"] is not None


@pytest.mark.slow
def test_images_are_stressed_and_their_regions_measured_in_one_command(
    exported: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, images, out = find_labels(raw), tmp_path / "images", tmp_path / "out"
    images.mkdir()
    ids = pd.read_csv(labels)["id"].head(2).tolist()
    for image_id in ids:
        shutil.copy(next(raw.rglob(f"{image_id}.png")), images)
    boxes, site = tmp_path / "boxes.csv", tmp_path / "site.toml"
    boxes.write_text(
        "id,width,height,region,xmin,ymin,xmax,ymax\n"
        + "".join(f"{image_id},100,100,wrist,30,60,70,95\n" for image_id in ids)
    )
    make_calibration(Predictor(exported).contract.graph_sha256).save(site)
    command = ["audit", "--images", str(images), "--labels", str(labels), "--out", str(out),
               "--model", str(exported), "--calibration", str(site), "--resamples", "20",
               "--workers", "1", "--stress", "--regions", str(boxes)]  # fmt: skip
    assert main(command) == 0
    assert f"report in {out / 'report.html'}" in capsys.readouterr().out
    result = json.loads((out / "audit.json").read_text(), parse_constant=pytest.fail)
    assert len(result["robustness"]["stresses"]) == len(PERTURBATIONS)
    assert result["regions"]["groups"][1]["group"] == "wrist"
    assert {"robustness.csv", "regions.csv"} <= {path.name for path in out.iterdir()}


def test_an_audit_without_inputs_or_of_contradicting_inputs_is_one_line(
    tables: tuple[str, str], exported: Path, raw: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "sexes.csv").write_text("id,sex\n1,F\n")
    images, labels = ["--images", str(raw)], ["--labels", str(find_labels(raw))]
    either = "pass either CSV files of predictions, or --images with --labels"
    for arguments, status, message in (
        ([], 1, either),
        (images, 1, either),
        (labels, 1, either),
        ([tables[0], *labels], 1, either),
        ([tables[0], *images, *labels], 1, either),
        ([*images, "--labels", str(tmp_path / "sexes.csv")], 1, "sexes.csv has no bone age"),
        ([tables[0], tables[0]], 1, "table.csv is given twice"),
        ([tables[0], "--by", "race"], 1, "has no column 'race'"),
        ([tables[0], "--stress"], 1, "--stress and --regions need the images; pass --images with"),
        ([tables[0], "--regions", "boxes.csv"], 1, "--stress and --regions need the images"),
        (["--stress"], 1, either),
        ([tables[0], "--resamples", "-1"], 2, "--resamples"),
        ([str(tmp_path / "gone.csv")], 1, "gone.csv does not exist"),
    ):
        assert main(["audit", *arguments, "--out", str(tmp_path / "out")]) == status
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_audit_does_not_overwrite_its_inputs(
    tables: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Path(shutil.copy(tables[0], tmp_path / "groups.csv"))
    before = table.read_bytes()
    for inputs in ([str(table)], [tables[1], str(table)]):
        assert main(["audit", *inputs, "--out", str(tmp_path), "--resamples", "0"]) == 1
        assert "groups.csv lies among the tables to be written" in capsys.readouterr().err
    assert table.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.*")] == ["groups.csv"]


def test_an_audit_without_its_libraries_names_the_extra_that_brings_them(
    tables: tuple[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None; "
        "from boneage.cli.app import main; sys.exit(main())"
    )
    result = python("-c", code, "audit", tables[0], "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert result.stderr == (
        "boneage: jinja2 is not installed; this command needs pip install '.[audit]'.\n"
    )


@pytest.mark.parametrize("word", ["boy", "Male", "1"])
def test_every_word_for_a_sex_is_taken_as_an_option(
    exported: Path, radiographs: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert predict(exported, radiographs / "1.png", "--sex", word, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["sex"] == "M"


def test_an_unknown_word_for_a_sex_is_refused_with_the_accepted_words(
    exported: Path, radiographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(exported, radiographs / "1.png", "--sex", "diverse") == 2
    error = capsys.readouterr().err
    assert "sex is 'diverse'; expected M or F (also male, female, boy, girl," in error
    assert error.count("\n") == 1


def test_images_of_the_same_name_need_ids_with_folders(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("patientA", 1), ("patientB", 2)):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(radiographs / f"{number}.png", tmp_path / "in" / name / "00001.png")
    table = tmp_path / "sexes.csv"
    table.write_text("id;sex\n00001;boy\n")
    assert predict(exported, tmp_path / "in", "--table", table) == 1
    assert "the table's id '00001' fits" in capsys.readouterr().err
    table.write_text("id;sex\npatientA/00001.png;boy\npatientC/00001;girl\n")
    assert predict(exported, tmp_path / "in", "--table", table, "--json") == 0
    printed = capsys.readouterr()
    assert [(row["image_id"], row["sex"]) for row in json.loads(printed.out)] == [
        ("patientA/00001", "M"), ("patientB/00001", None),
    ]  # fmt: skip
    assert "; 1 not in the table; 1 row of the table without an image." in printed.err


def test_a_file_replaced_since_the_last_run_is_predicted_again_and_counted(
    exported: Path, radiographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    assert predict(exported, radiographs, "--out", out) == 0
    shutil.copy(radiographs / "below" / "3.png", radiographs / "1.png")
    capsys.readouterr()
    assert predict(exported, radiographs, "--out", out) == 0
    said = capsys.readouterr().out
    assert "2 predicted before; 1 predicted again, because the file has changed;" in said
    rows = pd.read_csv(out)
    assert len(rows) == 3
    assert rows["image_sha256"].nunique() == rows["predicted_years"].nunique() == 2


def test_two_runs_on_one_file_never_double_a_row(exported: Path, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    command = [sys.executable, "-m", "boneage", "predict", str(raw), "--model", str(exported),
               "--out", str(out)]  # fmt: skip
    runs = [
        subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    errors = [run.communicate()[1] for run in runs]
    ended = sorted(run.returncode for run in runs)
    if ended == [0, 1]:
        assert any("out.csv is being written by another run" in error for error in errors)
    else:  # the one was done before the other began
        assert ended == [0, 0]
    rows = pd.read_csv(out)
    assert len(rows) == 80
    assert not rows["path"].duplicated().any()


@pytest.fixture(scope="module")
def run_and_export(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run on the cohort, whose validation part has 12 images, and its export."""
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", "--data", str(raw), "--output", str(folder / "run"), *TINY]) == 0
    plain = folder / "plain.onnx"
    assert main(["export", "--output", str(folder / "run"), "--out", str(plain)]) == 0
    return folder / "run", plain


def test_a_run_s_own_validation_part_calibrates_it(
    run_and_export: tuple[Path, Path], raw: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, plain = run_and_export
    command = ["calibrate", "--images", str(raw), "--model", str(plain), "--part", "val"]
    site = tmp_path / "site.toml"
    assert main([*command, "--output", str(run), "--out", str(site)]) == 1
    assert "12 labelled images are too few to calibrate on; expected 20" in capsys.readouterr().err
    monkeypatch.setattr("boneage.inference.calibration_fit.MIN_IMAGES", 12)
    assert main([*command, "--output", str(run), "--out", str(site)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("12 images\n")
    assert "without a" not in said
    assert "with 12 images, intervals meant to hold 90% of new references may hold" in said


def test_a_part_of_another_split_is_refused(
    run_and_export: tuple[Path, Path], raw: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, plain = run_and_export
    command = ["calibrate", "--images", str(raw), "--model", str(plain), "--part", "val"]
    assert main([*command, "--output", str(tmp_path / "gone")]) == 1
    assert "split.csv does not exist; expected the split of a training run" in (
        capsys.readouterr().err
    )
    text = (run / "split.csv").read_text()
    (tmp_path / "split.csv").write_text(text.replace(",val", ",x").replace(",test", ",val"))
    assert main([*command, "--output", str(tmp_path)]) == 1
    assert "is not the split that the model was trained with" in capsys.readouterr().err
    assert main(["calibrate", "--part", "val"]) == 1
    assert "pass a table of labels, or --images with a folder" in capsys.readouterr().err


@pytest.mark.slow
def test_export_logs_its_own_steps_and_not_the_exporter_s(
    run_and_export: tuple[Path, Path], tmp_path: Path
) -> None:
    run, _ = run_and_export
    found = python("-m", "boneage", "export", "--output", str(run), "--out", str(tmp_path / "m"))
    assert found.returncode == 0
    lines = [line for line in found.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert "translating the network to ONNX" in lines
    assert all(line.startswith(("translating", "comparing", "phantom", "draw", "compare"))
               for line in lines), lines  # fmt: skip
    assert found.stdout.count("\n") == 1
