"""The rooms of the package stand in the order a fact travels: none imports one above it; analysis needs no model."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "editscale"
ROOMS = ("data", "kernels", "models", "editing", "metrics", "sequences", "analysis", "plots", "workflow")
GROUND = ("columns", "files", "dependencies")  # modules beside the rooms that every room may import


def imported(path):
    """Modules of the package that a module imports, anywhere in it, without the package's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "editscale" else [f"editscale.{a.name}" for a in node.names]
        yield from (name.removeprefix("editscale.") for name in names if name.startswith("editscale."))


def arrows():
    """(room, module, imported module) of all imports."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        yield from ((module.split(".")[0], module, name) for name in imported(path))


def test_every_module_is_in_a_room_or_on_the_ground():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*GROUND, "__init__", "__main__"}


def test_no_room_imports_one_above_it():
    wrong = []
    for room, module, name in arrows():
        other = name.split(".")[0]
        if room in ROOMS and other in ROOMS and ROOMS.index(other) > ROOMS.index(room):
            wrong.append(f"{module} imports {name}")
        if room in GROUND and other not in GROUND:
            wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_no_two_modules_import_each_other():
    needs = {}
    for _, module, name in arrows():
        needs.setdefault(module, set()).add(name)

    def reach(module, seen):
        for name in needs.get(module, ()):
            if name not in seen:
                seen.add(name)
                reach(name, seen)
        return seen

    assert [module for module in needs if module in reach(module, set())] == []


def test_rooms_say_what_lives_there_and_what_they_may_import():
    for room in ROOMS:
        words = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        assert 2 <= len(words.splitlines()) <= 8 and "mport" in words, room


@pytest.mark.parametrize("room", ["analysis", "plots"])
def test_analysis_and_plots_load_neither_torch_nor_models(room):
    code = f"""import importlib, sys
for name in {[path.stem for path in (PACKAGE / room).glob("*.py")]}:
    importlib.import_module(f"editscale.{room}.{{name}}")
print([name for name in sys.modules if name in ("torch", "transformers") or name.startswith(
    ("editscale.models", "editscale.kernels", "editscale.editing", "editscale.sequences"))])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
