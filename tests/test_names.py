"""Names in docstrings exist, what the package defines is used by more than tests, and every method has a style."""

import ast
import json
import re
from collections import Counter
from pathlib import Path

from editscale.editing.modules import MODULES
from editscale.plots import style

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "editscale"
SUFFIXES = ("py", "parquet", "jsonl", "json", "csv", "yaml", "txt", "log", "md")
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def defined(tree):
    """Names that a module or a class defines, those of its classes' members included, as "Class.member" too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                members = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
                members += [part.target.id for part in node.body if isinstance(part, ast.AnnAssign)]
                members += [
                    part.attr
                    for part in ast.walk(node)
                    if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
                ]
                names |= {f"{node.name}.{member}" for member in members} | set(members)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_what_docstrings_point_to_is_there():
    names = {path.stem: defined(tree) for path, tree in TREES.items() if path.stem != "__init__"}
    missing = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            for module, name in re.findall(
                r"[`(](?:editscale\.)?(?:\w+\.)?(\w+)\.(\w+)[`),]", ast.get_docstring(node) or ""
            ):
                if module in names and name not in names[module] and name not in (*SUFFIXES, *names):
                    missing.append(f"{path.relative_to(ROOT)}: {module}.{name}")
    assert missing == []


def test_what_the_package_defines_is_used_by_more_than_tests():
    used = [*PACKAGE.rglob("*.py"), *(ROOT / "tests/tools").glob("*.py"), ROOT / "notebooks/Snakefile"]
    texts = [path.read_text() for path in used]
    texts += [
        "\n".join(
            "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"
        )
        for path in (ROOT / "notebooks").glob("*.ipynb")
    ]
    counts = Counter(re.findall(r"\w+", "\n".join(texts)))
    unused = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and counts[node.name] == 1 and not node.decorator_list
    ]
    assert unused == []


def test_every_method_has_a_style_and_every_style_a_method():
    assert set(style.METHOD_STYLE) == set(MODULES)
