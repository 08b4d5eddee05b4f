"""What the commands send and where they write, as the system sees it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from boneage.data.labels import find_images, find_labels


def _can_trace() -> bool:
    strace = shutil.which("strace")
    return (
        strace is not None
        and subprocess.run(
            [strace, "--follow-forks", "--seccomp-bpf", "true"], capture_output=True, check=False
        ).returncode
        == 0
    )


needs_strace = pytest.mark.skipif(
    not _can_trace(), reason="strace is missing or may not trace: the system's view is not seen"
)

# ONNX Runtime sends what it has noted some ten seconds after it was loaded.
SECONDS_AFTERWARDS = 12

# Continuous integration is spared the telemetry, so a test must not look like it.
CI_WORDS = ("CI", "GITHUB", "TF_BUILD", "GITLAB", "JENKINS", "BUILDKITE", "TRAVIS", "CIRCLE",
            "APPVEYOR", "TEAMCITY", "CODEBUILD", "DRONE", "BITBUCKET", "BUILD_")  # fmt: skip

PREDICT = "predict images --sex M --out out/predictions.csv --heatmap out/maps"
OTHERS = (
    "train --init none --data images --output out/run --epochs 1 --image-size 48 --workers 0",
    "evaluate --data images --output out/run",
    "export --output out/run --out out/model.onnx",
    "audit --images images --labels images/boneage-training-dataset.csv --resamples 20 "
    "--out out/audit",
)
CODE = """
import sys, time
{before}
from boneage.cli.app import main
status = [main(command.split()) for command in {commands}]
time.sleep({seconds})
sys.exit(any(status))
"""


def _run(folder: Path, *commands: str, before: str = "") -> tuple[list[str], list[str]]:
    """Run the commands and give the connections that they tried and the files that they wrote.

    Whatever they try to connect to is refused by the tracer, so that nothing leaves this machine
    even where the package lets it.
    """
    trace, home = folder / "trace.txt", folder / "home"
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(CI_WORDS)
        and name not in ("ORT_DISABLE_TELEMETRY", "MPLCONFIGDIR", "OMP_WAIT_POLICY")
    }
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        environment.pop(name, None)
    code = CODE.format(before=before, commands=commands, seconds=SECONDS_AFTERWARDS)
    subprocess.run(
        [
            "strace", "--follow-forks", "--seccomp-bpf", "--quiet=all", "--signal=none",
            "--trace=connect,sendto,sendmsg,sendmmsg,openat,open,creat,mkdir,mkdirat",
            "--inject=connect,sendto,sendmsg,sendmmsg:error=ENETUNREACH",
            f"--output={trace}", sys.executable, "-c", code,
        ],
        cwd=folder, env=environment, check=True, capture_output=True, timeout=500,
    )  # fmt: skip
    calls = trace.read_text(errors="replace").splitlines()
    connections = [
        call for call in calls
        if re.search(r" (connect|send\w+)\(", call) and re.search("AF_INET|sin_port|sin6", call)
    ]  # fmt: skip
    written = set()
    opening = r' (?:open|creat|mkdir)(?:at)?\((?:[^",]+, )?"([^"]+)"(.*)'
    for call in calls:
        found = re.search(opening, call)
        is_writing = found and ("O_WRONLY" in found[2] or "O_RDWR" in found[2] or "mkdir" in call)
        if found and is_writing and "= -1" not in found[2]:
            written.add(str((folder / found[1]).resolve()))
    return connections, sorted(written)


def _is_output(folder: Path, path: str) -> bool:
    ours = [str(folder / name) for name in ("out", "tmp")]
    return path in ours or path.startswith((*(f"{name}/" for name in ours), "/dev/", "/proc/"))


@pytest.fixture
def folder(raw: Path, tmp_path: Path) -> Path:
    """A folder with the labels and the first 24 images of the cohort."""
    (tmp_path / "images").mkdir()
    shutil.copy(find_labels(raw), tmp_path / "images")
    for path in list(find_images(raw).values())[:24]:
        shutil.copy(path, tmp_path / "images")
    return tmp_path


@pytest.mark.slow
@needs_strace
def test_no_command_connects_anywhere_or_writes_anything_but_its_outputs(folder: Path) -> None:
    connections, written = _run(folder, PREDICT, *OTHERS)
    assert connections == []
    assert [path for path in written if not _is_output(folder, path)] == []
    assert list((folder / "home").iterdir()) == []
    assert list((folder / "tmp").iterdir()) == []  # caches are gone with the process
    assert any(path.endswith("audit/report.html") or "/out/audit/" in path for path in written)


@pytest.mark.slow
@needs_strace
def test_what_the_package_switches_off_would_be_seen(folder: Path) -> None:
    # The runtime is loaded before the package can tell it to keep quiet.
    connections, written = _run(folder, PREDICT, before="import onnxruntime")
    assert connections != []
    strays = [path for path in written if not _is_output(folder, path)]
    assert any(path.startswith(str(folder / "home")) for path in strays)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "PASSIVE True 1"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE False 1"),
     ({"ORT_DISABLE_TELEMETRY": "0"}, "PASSIVE True 1")],
)  # fmt: skip
def test_a_choice_about_threads_in_the_environment_stands_and_telemetry_is_off_whatever_it_says(
    chosen: dict[str, str], expected: str
) -> None:
    code = (
        "import os, boneage; print(os.environ['OMP_WAIT_POLICY'], 'GOMP_SPINCOUNT' in os.environ, "
        "os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "GOMP"))}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | chosen, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.split() == expected.split()
