"""The rules between rooms: who may import whom, who may print, what costs what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import boneage

SOURCE = Path(boneage.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text()) for path in SOURCE.glob("*.py")}

FLOW = [
    {"errors", "stages", "metrics", "orientation", "environment"},
    {"files", "sex"},
    {"config", "anatomy", "dicomfile", "calibration", "overlay", "columns", "arrays"},
    {"discovery", "radiograph", "bones", "agreement", "reference"},
    {"labels", "preprocess", "prediction", "skeleton", "tables"},
    {"split", "film", "contract"},
    {"phantom", "download", "predict"},
    {"model", "evaluate", "batch", "describe", "cases"},
    {"dataset", "audit", "regions", "stress", "results_file"},
    {"checkpoint", "summary", "orientation_head", "gallery", "mitigation"},
    {"train", "explain", "plots", "robustness"},
    {"export", "audit_pictures", "audit_films"},
    {"run", "audit_page"},
    {"train_commands", "use_commands"},
    {"cli"},
    {"__main__", "__init__"},
]
WITHOUT_TORCH = ["errors", "environment", "sex", "columns", "arrays", "discovery", "results_file",
                 "files", "stages", "config", "metrics", "labels", "split", "radiograph",
                 "preprocess", "phantom", "evaluate", "summary", "plots", "cli",
                 "download", "contract", "prediction", "predict", "batch", "describe",
                 "calibration", "overlay", "dicomfile", "orientation", "tables", "agreement",
                 "reference", "audit",
                 "audit_page", "audit_pictures", "audit_films", "cases", "gallery", "regions",
                 "stress", "robustness", "use_commands", "train_commands"]  # fmt: skip


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boneage."):
            found.add(str(node.module).split(".")[1])
    return found


def test_every_module_has_its_place_in_the_flow() -> None:
    assert set(MODULES) == set().union(*FLOW)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_a_module_imports_only_from_rooms_before_it(name: str) -> None:
    level = next(i for i, rooms in enumerate(FLOW) if name in rooms)
    before = set().union(*FLOW[:level])
    assert imports(MODULES[name]) <= before


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_a_module_that_serving_needs_imports_without_torch(name: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; "
        f"import boneage.{name}; assert 'boneage.model' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, boneage; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"torch", "numpy", "pandas", "PIL", "matplotlib"} & set(loaded)


def calls(tree: ast.AST) -> set[str]:
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


@pytest.mark.parametrize(
    "name", sorted(set(MODULES) - {"train_commands", "use_commands", "cli", "__main__"})
)
def test_only_the_edge_prints_or_exits(name: str) -> None:
    assert not calls(MODULES[name]) & {"print", "input", "exit", "quit"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_assert_and_no_pickle_in_the_library(name: str) -> None:
    source = ast.dump(MODULES[name])
    assert "Assert(" not in source
    assert "'pickle'" not in source


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(MODULES[name])


def test_every_public_name_can_be_imported() -> None:
    assert sorted(boneage._HOMES) == sorted(boneage.__all__) == dir(boneage)
    for name in boneage.__all__:
        assert getattr(boneage, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        boneage.nonsense  # noqa: B018
