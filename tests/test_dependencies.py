"""What a result rests on: found through imports and data files. Words count for nothing, code for what imports it."""

import shutil
from pathlib import Path

import pytest

from editscale import dependencies
from editscale.editing import modules

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"


@pytest.fixture
def package(tmp_path):
    """A copy of the package that may be changed."""
    return shutil.copytree(ROOT / "editscale", tmp_path / "editscale", ignore=shutil.ignore_patterns("__pycache__"))


def ledger_code(method, package):
    """What the fingerprint of a ledger of this method says of the code in a copy of the package."""
    return dependencies.identity("import editscale.sequences.sequence\n" + modules.code_of(method), package)


def notebook_code(name, package):
    shutil.copytree(NOTEBOOKS, package.parent / "notebooks", dirs_exist_ok=True)
    return dependencies.of_notebook(package.parent / "notebooks" / f"{name}.ipynb")


def change(package, name, text="CHANGED = 1"):
    path = package / name
    path.write_text(path.read_text() + f"\n{text}\n")


def test_a_closure_follows_imports_and_names_data_files(tmp_path):
    package = tmp_path / "editscale"
    for folder in ("", "data", "editing"):
        (package / folder).mkdir(exist_ok=True)
        (package / folder / "__init__.py").touch()
    (package / "editing/rome.py").write_text(
        "from editscale.editing import values\nfrom editscale.editing.updates import U\n"
    )
    (package / "editing/values.py").write_text(
        "def f():\n    from editscale import tokens\n    return bundled('a.txt')\n"
    )
    (package / "tokens.py").write_text("import editscale.editing.rome\nimport json\n")
    for name in ("editing/updates.py", "figures.py", "data/a.txt"):
        (package / name).touch()
    found = dependencies.closure("from editscale.editing import rome\n", package)
    names = ["__init__.py", "data/a.txt", "editing/__init__.py", "editing/rome.py", "editing/updates.py"]
    assert [path.relative_to(package).as_posix() for path in found] == [*names, "editing/values.py", "tokens.py"]


def test_a_data_file_must_be_named_by_a_string(package):
    (package / "columns.py").write_text("from editscale.files import bundled\nbundled(name)\n")
    with pytest.raises(ValueError, match=r"columns.py, line 2: bundled\(…\) must name its file by one string"):
        dependencies.closure("import editscale.columns\n", package)


def test_a_relative_import_is_refused_and_not_overlooked(package):
    (package / "columns.py").write_text("\nfrom . import files\n")
    with pytest.raises(ValueError, match=r"columns.py, line 2: a relative import; name the module in full"):
        dependencies.closure("import editscale.columns\n", package)


def test_words_are_left_out_and_every_other_byte_stays():
    code = (
        '"""Words é."""\nx = "é # no comment"  # é\n\n\ndef f():\n    """W\n\n    W"""\n    return """a\n\n  # b\n"""\n'
    )
    assert dependencies.without_words(code) == 'x = "é # no comment"  \ndef f():\n    return """a\n\n  # b\n"""'
    assert dependencies.without_words(code.replace("# b", "# c")) != dependencies.without_words(code)


TWO_KEYS = "rome-multi-two-keys"
FAMILY = ("memit-seq", "encore", "alphaedit", "emmet")
HOOKED = ("rome-rect", "memit-rect", "rome-nas", "memit-nas", "memit-seq-nas", "alphaedit-nas")
SCREENED = "rome-screened"  # which may hand facts to all these
PRUNED = ("rome-prune", "memit-prune")


@pytest.mark.parametrize(
    ("module", "text", "voided"),
    [
        ("editing/rome.py", '"""Other words."""\n# and a comment', []),
        ("kernels/tensor_cores.py", "# a comment", []),
        ("editing/memit.py", "CHANGED = 1", ["memit", "rome-multi", *FAMILY, *HOOKED, TWO_KEYS, SCREENED, *PRUNED]),
        ("editing/rome.py", "CHANGED = 1", ["rome", "r-rome", "p-rome", *HOOKED, SCREENED, *PRUNED]),
        (
            "editing/history.py",
            "CHANGED = 1",
            [*FAMILY, "rome-nas", "memit-nas", "memit-seq-nas", "alphaedit-nas", SCREENED],
        ),
        ("editing/lifelong.py", "CHANGED = 1", ["ultraedit", "stableedit"]),
        ("editing/finetune.py", "CHANGED = 1", ["ft-c", SCREENED]),
        ("editing/rome_multi.py", "CHANGED = 1", ["rome-multi", TWO_KEYS, SCREENED]),
        ("editing/moments.py", "CHANGED = 1", list(modules.MODULES)),
        ("kernels/matmul.py", "CHANGED = 1", list(modules.MODULES)),
        ("analysis/forgetting.py", "CHANGED = 1", []),
        ("data/sentences.txt", "A sentence.", []),
        ("data/columns.yaml", "# a word", []),
    ],
)
def test_a_ledger_is_voided_by_the_code_of_its_own_method_and_by_no_words(package, module, text, voided):
    before = {method: ledger_code(method, package) for method in modules.MODULES}
    change(package, module, text)
    assert [method for method, code in before.items() if ledger_code(method, package) != code] == voided


@pytest.mark.parametrize(
    ("file", "text", "readers"),
    [
        ("data/acceptance.yaml", "# a word", {"06b_acceptance"}),
        ("data/minimal_pairs.jsonl", "", {"04a_glue_eval"}),
        ("data/reviews.jsonl", "", {"04a_glue_eval", "06a_acceptance_measures", "08_extend"}),
        ("kernels/tensor_cores.py", "# a comment", set()),
    ],
)
def test_a_data_file_counts_where_it_is_read(package, file, text, readers):
    names = [path.stem for path in NOTEBOOKS.glob("*.ipynb")]
    before = {name: notebook_code(name, package) for name in names}
    change(package, file, text)
    assert {name for name, code in before.items() if notebook_code(name, package) != code} == readers


def test_a_line_for_a_new_method_voids_no_ledger_and_a_changed_one_its_own(package):
    before = {method: ledger_code(method, package) for method in modules.MODULES}
    change(package, "data/methods.yaml", "mine: editscale.editing.mine")
    assert {method: ledger_code(method, package) for method in modules.MODULES} == before


def test_a_notebook_that_edits_rests_on_the_modules_of_its_methods(package):
    def code(**parameters):
        path = package.parent / "notebooks/02a_sequential_editing.ipynb"
        return dependencies.of_notebook(path, modules.used_by(parameters))

    shutil.copytree(NOTEBOOKS, package.parent / "notebooks")
    rome, memit, every = code(method="rome"), code(method="memit"), code(methods=[])
    change(package, "editing/rome.py")
    assert code(method="rome") != rome and code(method="memit") == memit and code(methods=[]) != every
    assert modules.used_by({}) == [] and modules.used_by({"methods": {"memit": "a.yaml"}}) == [
        "editscale.editing.memit"
    ]


def test_a_kernel_draws_no_figure(package):
    names = ("02b_editing_proficiency", "03b_forgetting_analysis", "04b_downstream_performance", "05_drift_analysis")
    names += ("05b_disabling_edits", "06b_acceptance", "07_findings")
    before = {name: notebook_code(name, package) for name in names}
    for kernel in (package / "kernels").glob("*.py"):
        change(package, f"kernels/{kernel.name}")
    assert {name: notebook_code(name, package) for name in names} == before
