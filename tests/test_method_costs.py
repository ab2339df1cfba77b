"""One edit of every method beside MEMIT's: what is timed and counted, and the table that says if the limit holds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
import torch
from test_bench import FACTS, SIZE
from tools import bench, costs, method_costs, parts

from editscale.editing import editors
from editscale.models import loading
from editscale.workflow import cli

ROOT = Path(__file__).parents[1]
STEM = "tiny-gpt2"
# One of each kind of state and record; stableedit is warmed up with facts of a larger vocabulary.
NAMES = "rome memit ft-c memit-seq encore alphaedit memit-rect ultraedit rome-prune".split()


@pytest.fixture(scope="module")
def case():
    lm = loading.load(ROOT / "tests/golden/tiny_gpt2")
    paths = {name: method_costs.hparams_file(name, STEM) for name in ("rome", "memit")}
    params = {name: replace(editors.read_params(name, path), v_lr=1e-4) for name, path in paths.items()}
    return parts.case("tiny", lm, FACTS, params, SIZE)


@pytest.fixture(scope="module")
def rows(case):
    before = {name: weight.clone() for name, weight in case.lm.model.state_dict().items()}
    found = list(method_costs.rows(case, NAMES, STEM, repeats=1))
    assert all(torch.equal(weight, before[name]) for name, weight in case.lm.model.state_dict().items())
    return found


def test_every_method_has_a_row_and_those_whose_state_grows_have_three(rows):
    assert all(tuple(row) == tuple(costs.METHOD_HEADS) and row["seconds"] > 0 and row["ratio"] > 0 for row in rows)
    earlier = {name: [row["earlier"] for row in rows if row["method"] == name] for name in NAMES}
    growing = {"memit-seq", "encore", "alphaedit", "ultraedit", "rome-prune"}
    assert earlier == {name: [0, 100, 1000] if name in growing else [0] for name in NAMES}


def test_a_state_of_keys_grows_by_a_column_of_each_layer_with_every_edit(rows, case):
    layers, d_key = len(case.params["memit"].layers), case.lm.d_key
    for name in ("memit-seq", "alphaedit", "encore"):
        first, *later = (row["state_bytes"] for row in rows if row["method"] == name)
        assert [n - first for n in later] == [8 * d_key * layers * n for n in method_costs.EARLIER]
    sizes = {row["method"]: row["state_bytes"] for row in rows if row["earlier"] == 0}
    assert sizes["memit-seq"] == sizes["memit"] == 0 < sizes["alphaedit"], "second moments are of no state"


def test_bytes_in_the_ledger_are_those_known_from_shapes_and_a_header(rows, case):
    for row in rows:
        editing = method_costs.editing_of(case, row["method"], STEM)
        if not editors.method(row["method"]).by_token:
            assert 0 < row["ledger_bytes"] - editors.bytes_per_edit(editing, case.lm) < 1500


def test_an_edit_that_stops_early_is_not_measured(case):
    (edited,) = method_costs.begun(case, "memit", STEM)
    params = replace(edited.editing.params, v_weight_decay=-1e9)
    edited = replace(edited, editing=replace(edited.editing, params=params))
    with pytest.raises(ValueError, match="an edit of memit stopped after 2 of .* steps"):
        edited()


def a_row(method, earlier=0, ratio=1.0, state=0):
    of = {"shape": "tiny", "device": "A 1", "precision": "float32", "rounds": 3, "ledger_bytes": 42_000}
    return costs.method_row(method=method, earlier=earlier, seconds=2 * ratio, ratio=ratio, state_bytes=state, **of)


def test_the_page_says_of_which_methods_the_limit_holds():
    rows = [a_row("memit"), a_row("memit-rect", ratio=1.25), a_row("rome", ratio=2.0), a_row("ultraedit", ratio=0.1)]
    rows += [a_row("encore", n, 1 + n / 1e4, 1000 + 8 * n) for n in (0, 100, 1000)]
    page = costs.device_page([], rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    head, _, *found = cells
    found = {row[0]: dict(zip(head, row, strict=True)) for row in found}
    holds = {name: row["≤ 1.2 ×"] for name, row in found.items()}
    assert holds == {"memit": "yes", "memit-rect": "no", "rome": "not asked", "ultraedit": "not asked", "encore": "yes"}
    assert found["encore"]["after 1,000, ×"] == "1.10" and found["memit"]["after 1,000, ×"] == ""
    assert (found["encore"]["state, per edit"], found["encore"]["state, in all"]) == ("8 bytes", "9 kB")
    said = costs._methods_said("a-1", rows)
    assert "1.25 times as long (memit-rect, after 0 edits)" in said.replace("\n", " ")
    assert "more than 1.2 times: memit-rect." in said.replace("\n", " ")


def test_the_command_measures_the_methods_it_is_given(monkeypatch, tmp_path, capsys, case):
    monkeypatch.setitem(parts.SIZES, "cpu", SIZE)
    monkeypatch.setitem(bench.SHAPES, "gpt2-xl", replace(bench.SHAPES["gpt2-xl"], hparams=STEM))
    monkeypatch.setattr(bench, "load", lambda *_: (case.lm, case.params))
    (tmp_path / "facts.json").write_text(json.dumps([synthetic.to_record(fact) for fact in FACTS]))
    command = ["--shapes", "gpt2-xl", "--facts", str(tmp_path / "facts.json"), "--out", str(tmp_path / "cost")]
    command += ["--parts", "methods", "--repeats", "1", "--methods", "memit"]
    assert cli.main(["bench", *command]) == cli.main(["bench", *command, "encore"]) == 0
    (rows,) = costs.read_methods(tmp_path / "cost").values()
    assert [(row["method"], row["earlier"]) for row in rows] == [
        *(("memit", 0), ("encore", 0), ("encore", 100), ("encore", 1000))
    ]
    assert "method encore, model gpt2-xl, device " in capsys.readouterr().out
    (page,) = [path.read_text() for path in (tmp_path / "cost").glob("*.md") if path.name != "README.md"]
    assert "## Methods" in page and "| encore " in page
