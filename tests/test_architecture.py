"""The rules between packages: who imports torch, who prints, what importing costs.

Which package may import which is a contract of import-linter in `pyproject.toml`.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import boneage

SOURCE = Path(boneage.__file__).parent
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(SOURCE.rglob("*.py"))
}
NEED_TORCH = ("training.", "data.augmentation", "data.dataset", "data.film", "__main__")


def test_all_but_training_and_its_data_set_import_without_torch() -> None:
    names = [
        f"boneage.{name.removesuffix('.__init__')}"
        for name in MODULES
        if name != "__init__" and not name.startswith(NEED_TORCH)
    ]
    code = (
        "import sys, importlib; sys.modules['torch'] = None\n"
        f"for name in {names}: importlib.import_module(name)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


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


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("cli.")])
def test_only_the_command_line_prints_or_exits(name: str) -> None:
    assert not calls(MODULES[name]) & {"print", "input", "exit", "quit"}


@pytest.mark.parametrize("name", MODULES)
def test_no_assert_and_no_pickle_in_the_library(name: str) -> None:
    source = ast.dump(MODULES[name])
    assert "Assert(" not in source
    assert "'pickle'" not in source


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(MODULES[name])


def test_every_public_name_can_be_imported() -> None:
    names = dir(boneage)
    assert "Predictor" in names
    for name in names:
        assert getattr(boneage, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        boneage.nonsense  # type: ignore[attr-defined]  # noqa: B018
