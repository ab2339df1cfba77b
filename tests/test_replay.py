"""A recorded run gives its model back at any place, as a folder that loads and says how false it is."""

import importlib
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import mistune
import pytest
import torch
from bs4 import BeautifulSoup
from safetensors import safe_open
from tools.crashtest import Sequence

from editscale.__main__ import main
from editscale.editing import editors, modules
from editscale.models import loading
from editscale.sequences import past_runs, replay, sequence
from editscale.sequences.ledger import Ledger
from editscale.workflow import provenance

TINY = "tests/golden/tiny_gpt2"
FACTS = "params/smoke/invented_facts.json"


@pytest.fixture(scope="module", params=("rome", "memit", "ft-c"))
def folder(request, tmp_path_factory):
    """A run of four edits as notebook 02a leaves it."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    of = Sequence(loading.load(TINY), request.param, 4)
    of.run(out)
    parameters = {"method": request.param, "hparams": f"params/{request.param}/tiny-gpt2.yaml", "model": TINY}
    parameters |= {"revision": "", "dtype": "float32", "fact_set": FACTS, "order": 0, "n_edits": 4, "reverse": False}
    parameters["tf32"] = False
    provenance.finish(out, Ledger(out).files, provenance.made_with(parameters, "0" * 64))
    return out


@pytest.fixture
def run(folder):
    return past_runs.reopen(folder)


def weights_of(lm, layers):
    return [lm.weight(layer).clone() for layer in layers]


def summed(run, edits):
    """The weights with the updates of these edits, by the definition."""
    found = weights_of(run.lm, run.layers)
    for edit in edits:
        for update in run.ledger.updates(edit):
            found[run.layers.index(update.layer)] += update.matrix()
    return found


@pytest.mark.parametrize("upto", (0, 2, 4))
def test_the_saved_model_has_the_bits_of_the_run_at_that_edit(run, folder, tmp_path, upto):
    expected, original = summed(run, range(1, upto + 1)), weights_of(run.lm, run.layers)
    assert main(["replay", str(folder), "--upto", str(upto), "--save", str(tmp_path / "edited")]) == 0
    loaded = loading.load(str(tmp_path / "edited"))
    assert all(torch.equal(loaded.weight(layer), w) for layer, w in zip(run.layers, expected, strict=True))
    ids = torch.tensor([[5, 6, 7]])
    with replay.edited(run, list(range(1, upto + 1))) as lm:
        assert torch.equal(loaded.model(ids).logits, lm.model(ids).logits)
    assert all(torch.equal(run.lm.weight(layer), w) for layer, w in zip(run.layers, original, strict=True))
    assert torch.equal(expected[0], original[0]) == (upto == 0)


def test_the_saved_folder_holds_safetensors_and_text_alone(run, tmp_path):
    saved = replay.save(run, [1, 2], tmp_path / "edited")
    assert {path.suffix for path in saved.iterdir()} <= {".safetensors", ".json", ".jsonl", ".md", ".txt", ".jinja"}
    for path in saved.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert len(list(file.keys())) > 10
    assert list(tmp_path.iterdir()) == [saved]


def test_the_card_counts_the_false_facts_and_names_method_base_and_chain(run, tmp_path):
    saved = replay.save(run, [1, 2, 3], tmp_path / "edited")
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "was given **3 false facts** on purpose" in card
    method = run.parameters["method"]
    for said in (f"**{method}**", f"params/{method}/tiny-gpt2.yaml", run.ledger.chain(3), "3 of 4 recorded", TINY):
        assert said in card
    weights = loading.load(str(saved)).identity["weights_sha256"]
    assert f"| base weights | sha256 {run.lm.identity['weights_sha256']} |" in card
    assert f"| weights | sha256 {weights} |" in card and "counterfactual" not in card.lower()
    rows = [json.loads(line) for line in (saved / "false_facts.jsonl").read_text().splitlines()]
    assert [row["case_id"] for row in rows] == [fact.case_id for fact in run.facts[:3]]
    assert all(row["target_new"] != row["target_true"] and row["prompt"] for row in rows)


def test_edits_that_were_not_applied_are_no_false_facts(run, tmp_path):
    run.ledger.rows[1]["status"] = "non-finite"
    card = (replay.save(run, [1, 2], tmp_path / "edited") / "README.md").read_text()
    assert "with 1 false fact\n" in card and "| recorded but not applied | 2 |" in card


HOSTILE = (
    "a|b", "a\n| weights | sha256 0 |", "a\r\n\r\n---\nlicense: mit\n---\n", "`a` **b** *c* _d_ __e__ ~~f~~ $g$",
    "<script>alert(1)</script>", "<b onclick=x>", "[x](https://example.org)", "![x](y.png)", "&lt;&#124;", "a\\|b\\",
    "# a #", "a\u2028b\x00\u202ec\udc80",
)  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_name_from_outside_is_shown_in_the_card_and_changes_nothing_else_of_it(tmp_path, monkeypatch, hostile):
    monkeypatch.setattr(editors, "method", lambda name: SimpleNamespace(order_free=False))

    def card(text):
        parameters = dict.fromkeys(("method", "model", "revision", "hparams", "fact_set"), text)
        row, fact = {"status": "edited"}, SimpleNamespace(case_id=0, rewrite_prompt="", target_new="", target_true="")
        book = MagicMock(rows=[row] * 3, fingerprint={"device": text}, chain=lambda upto: "0" * 64)
        book.__len__.return_value = 3
        lm = SimpleNamespace(name=text, identity={"weights_sha256": text}, device=torch.device("cpu"))
        run = SimpleNamespace(
            parameters=parameters | {"order": 0, "reverse": False}, ledger=book, lm=lm, layers=[1], facts=[fact] * 3
        )
        made = replay.card(run, [1, 3], tmp_path)
        made.encode()
        _, front, body = made.split("---\n", 2)
        return front, BeautifulSoup(mistune.create_markdown(escape=False, plugins=["table"])(body), "html.parser")

    (front, page), (expected_front, expected) = card(hostile), card("NAME")
    shown = "".join(c if c.isprintable() else "\ufffd" for c in "".join(hostile.split()))
    assert front == expected_front and [tag.name for tag in page()] == [tag.name for tag in expected()]
    assert [tag.attrs for tag in page()] == [tag.attrs for tag in expected()]
    assert "".join(page.get_text().split()) == "".join(expected.get_text().split()).replace("NAME", shown)


@pytest.mark.parametrize(
    ("option", "value", "edits"), [("--without", "2", [1, 3, 4]), ("--order", "reversed", [4, 3, 2, 1])]
)
def test_a_sequence_that_was_never_made_is_refused_with_the_reason_unless_asked_for_as_a_sum(
    run, folder, tmp_path, capsys, option, value, edits
):
    method, out = run.parameters["method"], tmp_path / "edited"
    arguments = ["replay", str(folder), option, value, "--save", str(out)]
    assert main(arguments) == 2 and not out.exists()
    assert f"an update of {method} depends on the edits before it" in capsys.readouterr().err
    assert main([*arguments, "--recorded-updates"]) == 0
    loaded, expected = loading.load(str(out)), summed(run, edits)
    assert all(torch.equal(loaded.weight(layer), w) for layer, w in zip(run.layers, expected, strict=True))
    card = (out / "README.md").read_text()
    assert "**A counterfactual.** No run made this sequence of edits." in card and ", ".join(map(str, edits)) in card
    assert f"{method}, editing these facts alone, would have made other updates" in card


def test_leaving_out_the_last_edits_is_the_run_itself(run):
    replay.check_sequence(run.parameters["method"], replay.chosen_edits(4, without=[3, 4]), False)


def test_where_updates_do_not_depend_on_the_order_another_sequence_needs_no_asking(run, tmp_path, monkeypatch):
    method = run.parameters["method"]
    methods = importlib.import_module(modules.MODULES[method]).METHODS
    monkeypatch.setitem(methods, method, replace(methods[method], order_free=True))
    replay.check_sequence(method, [1, 3, 4], False)
    card = (replay.save(run, [1, 3, 4], tmp_path / "edited") / "README.md").read_text()
    assert "A counterfactual" in card and "would have made other updates" not in card


def test_no_built_in_method_makes_the_same_update_whatever_was_edited_before(run):
    """`order_free` says what is so: the second edit, made on the unedited model, is another one."""
    assert not any(editors.method(name).order_free for name in modules.MODULES)
    of = Sequence(run.lm, run.parameters["method"], 4)
    (alone,) = editors.edit_each(of.editing, run.lm, [of.facts[1]])
    recorded = run.ledger.updates(2)
    assert any(not torch.equal(a.left, b.left) for a, b in zip(alone.updates, recorded, strict=True))


def test_a_run_is_checked_without_saving(folder, capsys):
    assert main(["replay", str(folder)]) == 0
    assert re.search(r": 4 edits with (rome|memit|ft-c), all whole; chain [0-9a-f]{64}\n$", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--upto", "5"], "--upto 5 is not 0 to 4, the edits that are recorded"),
        (["--upto", "-1"], "--upto -1 is not 0 to 4"),
        (["--upto", "2", "--without", "3"], "--without 3 is not one of the edits 1 to 2"),
        (["--without", "0"], "--without 0 is not one of the edits 1 to 4"),
        (["--save", "tests"], "tests is there already; choose another folder"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(folder, options, message, capsys):
    assert main(["replay", str(folder), *options]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


@pytest.mark.parametrize("given", ("a", "1,b", "1;2"))
def test_edits_to_leave_out_are_numbers(folder, given, capsys):
    assert main(["replay", str(folder), "--without", given]) == 2
    assert "--without takes numbers of edits, such as 17,42" in capsys.readouterr().err


def test_a_run_whose_ledger_changed_since_is_refused(folder, tmp_path, capsys):
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    log = copy / "edits.log"
    log.write_bytes(log.read_bytes()[:-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["replay", str(copy)]) == 2
    assert "edits.log has lost edits: " in capsys.readouterr().err


@pytest.mark.parametrize("sealed", (True, False))
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("method", "p-rome", "method: ledger '"),
        ("dtype", "bfloat16", "dtype: ledger 'float32', now 'bfloat16'"),
        ("tf32", True, "tf32_steps: ledger False, now True"),
        ("dtype", None, "parameter dtype is missing, not a str"),
        ("method", None, "parameter method is missing, not a str"),
        ("n_edits", "5", "parameter n_edits is '5', not a int"),
        ("n_edits", 3, "has 4 edits, and done.json there asks for 3 facts"),
        ("order", 1, "edit 1 of "),
    ],
)
def test_a_record_that_says_otherwise_than_its_ledger_is_refused(folder, capsys, name, value, says, sealed):
    path = folder / "done.json"
    before = path.read_bytes()
    record = json.loads(before)
    record["parameters"].update({name: value})
    if value is None:
        del record["parameters"][name]
    if not sealed:  # as an earlier version wrote it
        del record["sha256"]
    try:
        path.write_text(json.dumps(record))
        assert main(["replay", str(folder)]) == 2
    finally:
        path.write_bytes(before)
    assert (f"{path} does not hold what was written into it" if sealed else says) in capsys.readouterr().err


def test_a_failure_on_the_way_leaves_no_folder_and_the_original_weights(run, tmp_path, monkeypatch):
    original = weights_of(run.lm, run.layers)

    def fails(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(replay, "card", fails)
    with pytest.raises(OSError, match="No space left"):
        replay.save(run, [1, 2], tmp_path / "edited")
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(run.lm.weight(layer), w) for layer, w in zip(run.layers, original, strict=True))
    sequence.replay(run.lm, run.ledger)
    assert not torch.equal(run.lm.weight(run.layers[0]), original[0])
