"""Editing methods of one's own: named by module and function, registered in a notebook, or offered by a package."""

import importlib
import sys
from dataclasses import dataclass

import pytest
import tiny
import torch
from test_rome import moment
from test_sequence import CONTEXTS, FACTS, PARAMS

from editscale import dependencies
from editscale.columns import method_label
from editscale.editing import editors, modules, rome
from editscale.plots import style
from editscale.sequences import sequence
from editscale.workflow.parameters import read_grid

SOURCE = """
from dataclasses import replace

import scales_of_mine
from editscale.editing import rome


def half_rome(lm, facts, params: rome.RomeParams, contexts, factors):
    edits = rome.edit_each(lm, facts, params, contexts, factors)
    return [replace(e, updates=tuple(replace(u, left=scales_of_mine.HALF * u.left) for u in e.updates)) for e in edits]


def not_a_method(a, b):
    return a
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a module of methods, from which what is run imports."""
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "scales_of_mine.py").write_text("HALF = 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("mine", "scales_of_mine"):
        sys.modules.pop(name, None)


def editing(name):
    factors = {1: torch.linalg.cholesky(moment(tiny.tiny_model("gpt2").d_key))}
    return editors.Editing(name, PARAMS["rome"], CONTEXTS["rome"], factors)


def test_a_function_in_a_file_of_ones_own_edits_under_its_name(mine):
    lm = tiny.tiny_model("gpt2")
    (half,) = editors.edit_each(editing("mine:half_rome"), lm, FACTS[:1])
    (whole,) = editors.edit_each(editing("rome"), lm, FACTS[:1])
    torch.testing.assert_close(half.updates[0].matrix(), whole.updates[0].matrix() / 2)
    assert method_label("mine:half_rome") == "half-rome"


def test_code_of_ones_own_is_in_the_fingerprint_and_voids_its_own_runs_only(mine):
    lm = tiny.tiny_model("gpt2")

    def code(name):
        return sequence.fingerprint(lm, editing(name))["code_sha256"]

    before = {name: code(name) for name in ("mine:half_rome", "rome", "memit")}
    (mine / "mine.py").write_text(SOURCE + "\n# a comment\n")
    assert code("mine:half_rome") == before["mine:half_rome"]
    for file, text in (("mine.py", SOURCE.replace("0.5", "0.25") + "\nX = 1\n"), ("scales_of_mine.py", "HALF = 0.1\n")):
        (mine / file).write_text(text)
        now = {name: code(name) for name in before}
        assert [name for name in before if now[name] != before[name]] == ["mine:half_rome"]
        before = now


def test_code_that_changed_after_it_was_loaded_is_refused_until_it_is_loaded_again(mine):
    for name in ("mine:half_rome", "rome", "mine:half_rome"):
        editors.check_loaded(name)
    (mine / "mine.py").write_text(SOURCE + "\n# a comment\n")
    editors.check_loaded("mine:half_rome")
    (mine / "scales_of_mine.py").write_text("HALF = 0.25\n")
    with pytest.raises(ValueError, match="mine.py, or what it imports, changed after it was loaded; restart the"):
        editors.check_loaded("mine:half_rome")
    del sys.modules["mine"]
    editors.check_loaded("mine:half_rome")


def test_a_function_of_a_notebook_edits_once_it_is_registered(monkeypatch):
    monkeypatch.setattr(modules, "REGISTERED", {})

    def as_rome(lm, facts, params: rome.RomeParams, contexts, factors):
        return rome.edit_each(lm, facts, params, contexts, factors)

    editors.register("as-rome", as_rome)
    (made,) = editors.edit_each(editing("as-rome"), tiny.tiny_model("gpt2"), FACTS[:1])
    (rome_s,) = editors.edit_each(editing("rome"), tiny.tiny_model("gpt2"), FACTS[:1])
    assert torch.equal(made.updates[0].left, rome_s.updates[0].left)
    assert "import editscale.editing.rome" in modules.code_of("as-rome")
    assert "def as_rome" in modules.code_of("as-rome")


def test_what_a_registered_function_calls_counts_among_its_code(monkeypatch):
    monkeypatch.setattr(modules, "REGISTERED", {})
    code = {}
    for factor in (1, 2):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        editors.register("scaled", scaled)
        code[factor] = modules.code_of("scaled")
    assert "def helper" in code[1] and code[1] != code[2]


def scaled(lm, facts, params: rome.RomeParams, contexts, factors):
    return helper(rome.edit_each(lm, facts, params, contexts, factors))


def helper(edits):
    return edits * FACTOR


FACTOR = 1


def test_an_entry_point_names_a_method(mine, monkeypatch):
    offered = importlib.metadata.EntryPoint("half-rome", "mine:half_rome", "editscale.methods")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group, name="half-rome": [offered] if (group, name) == ("editscale.methods", "half-rome") else [],
    )
    assert editors.method("half-rome").params is rome.RomeParams
    assert modules.used_by({"method": "half-rome"}) == ["mine"]
    with pytest.raises(ValueError, match="unknown method 'third-rome'"):
        editors.method("third-rome")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine:nothing", "mine.py has no nothing"),
        ("mine:not_a_method", "is no editing method: a Method, or a function of"),
        ("nowhere:half_rome", "there is no module nowhere; put nowhere.py into the folder where this runs"),
        ("mine:rome", "would be called rome, which is a method of editscale"),
        ("mine:", "no name of a method"),
    ],
)
def test_what_is_no_method_is_named(mine, name, said):
    with pytest.raises(ValueError, match=said):
        editors.method(name)


def test_a_package_without_init_counts_as_code_of_ones_own(mine):
    (mine / "mine_too").mkdir()
    (mine / "mine_too/methods.py").write_text("import scales_of_mine\n")
    importlib.invalidate_caches()
    before = dependencies.of_modules("mine_too.methods")
    found = dependencies.closure("import mine_too.methods\n")
    assert [path.name for path in found] == ["methods.py", "scales_of_mine.py"]
    (mine / "scales_of_mine.py").write_text("HALF = 0.1\n")
    assert dependencies.of_modules("mine_too.methods") != before
    assert dependencies.closure("import json, torch, pytest\n") == []


def test_a_function_without_source_is_not_registered(monkeypatch):
    monkeypatch.setattr(modules, "REGISTERED", {})
    names = {"rome": rome}
    exec("def f(lm, facts, params: rome.RomeParams, contexts, factors):\n    return []", names)
    with pytest.raises(ValueError, match="the code of unseen is not to be found"):
        editors.register("unseen", names["f"])
    assert modules.REGISTERED == {}


def test_what_no_text_can_tell_is_refused_and_hyper_parameters_of_a_notebook_are_told_by_their_fields(monkeypatch):
    monkeypatch.setattr(modules, "REGISTERED", {})
    monkeypatch.setitem(globals(), "FACTOR", torch.ones(2))
    with pytest.raises(ValueError, match="helper uses FACTOR, a Tensor, and nothing would tell when it changes"):
        editors.register("scaled", scaled)
    assert modules.REGISTERED == {}
    editors.register("clipped", clipped)
    code = modules.code_of("clipped")
    assert "Clip = [('layer', " in code and "return (self.layer,)" in code and "import dataclasses" not in code


@dataclass(frozen=True)
class Clip:
    layer: int

    @property
    def layers(self):
        return (self.layer,)


def clipped(lm, facts, params: Clip, contexts, factors):
    return [contexts for FACTS in facts]  # local names, of which two are those of globals elsewhere


contexts = torch.ones(2)


def test_names_that_are_taken_cannot_be_registered():
    for name in ("rome", "Rome", "mine:rome"):
        with pytest.raises(ValueError, match="cannot name a method|no name of a method"):
            editors.register(name, rome.edit_each)


def test_a_grid_names_runs_of_a_method_of_ones_own_by_its_label(tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text("runs:\n- {method: mine:half_rome, hparams: a.yaml, order: 1, reverse: false}\n")
    assert list(read_grid(grid)) == [("half-rome", "order-1")]


def test_methods_of_ones_own_have_looks_that_stay_and_that_no_other_has():
    names = [f"mine-{i}" for i in range(30)]
    looks = [style.method_style(name) for name in names]
    assert looks == [style.method_style(name) for name in names]
    assert not {look["color"] for look in looks} & {look["color"] for look in style.METHOD_STYLE.values()}
