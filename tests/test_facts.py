"""Facts: both file formats, every refusal of a bad record, and the published orders to the byte."""

import hashlib
import json
import random
import sys
from pathlib import Path

import pytest
from synthetic import to_record

from editscale.data import facts
from editscale.data.facts import Fact, parse
from editscale.data.orders import in_order, orders_json, published_orders, unique_subjects, write_orders
from editscale.workflow import cli

SHARED = Path(__file__).parents[2] / "shared"
DROPPED = Path(__file__).parent / "data_facts" / "dropped_positions.json"
ORDERS_SHA256 = "16c4b85938afdf15b54ad6f163d17013e9dc2043518c8e4169068dc64f8cffdc"
SELECTED_SHA256 = "209f2fb705d834dc03fc9b9b4fe9a4a5dda457f0a087cec4d24556674b4c4225"
ORDER_0_STARTS = [14434, 2473, 4093, 16617, 12675, 19240, 16509, 17912]
ORDER_9_STARTS = [2714, 822, 8529, 12749, 4194, 467, 7954, 1163]

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="CounterFact itself is not at hand")


def record(case_id=0, **changes):
    """A valid record in CounterFact's format but for `changes`, in requested_rewrite or outside it."""
    rewrite = {
        "prompt": "{} plays the",
        "relation_id": "P1303",
        "target_new": {"str": "harp", "id": "Q1"},
        "target_true": {"str": "cello", "id": "Q2"},
        "subject": "Ada Example",
    }
    whole = {
        "case_id": case_id,
        "pararel_idx": 7,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": ["The shop closed. Ada Example is good at the"],
        "neighborhood_prompts": ["Bo Sample plays the"],
        "attribute_prompts": ["Cy Other plays the"],
        "generation_prompts": ["Ada Example is known for the", "Ada Example is known for the"],
    }
    for name, value in changes.items():
        target = {"new": "target_new", "true": "target_true"}.get(name)
        if target:
            rewrite[target] = {"str": value, "id": "Q3"}
        elif name in rewrite:
            rewrite[name] = value
        else:
            whole[name] = value
    return whole


def easyedit(**changes):
    fields = {
        "case_id": 0,
        "prompt": "Ada Example plays the",
        "target_new": "harp",
        "subject": "Ada Example",
        "ground_truth": "cello",
        "rephrase_prompt": "Ada Example is good at the",
        "locality_prompt": "Bo Sample plays the",
        "locality_ground_truth": "cello",
    }
    return {**fields, **changes}


def made_up(subjects):
    return parse([record(i, subject=subject) for i, subject in enumerate(subjects)], "made up")


def test_counterfact_record_becomes_fact_and_back():
    (fact,) = parse([record(case_id=5)], "f.json")
    assert fact == Fact(
        5, "Ada Example", "{} plays the", "harp", "cello", "P1303", "Q1", "Q2",
        ("The shop closed. Ada Example is good at the",),
        ("Bo Sample plays the",),
        ("Cy Other plays the",),
        ("Ada Example is known for the", "Ada Example is known for the"),
    )  # fmt: skip
    back = to_record(fact)
    assert back == {name: value for name, value in record(case_id=5).items() if name != "pararel_idx"}
    assert parse([back], "again") == [fact]


def test_easyedit_record_keeps_its_one_paraphrase_and_one_neighborhood_prompt():
    (fact,) = parse([easyedit(prompt="The harp of Ada Example is a")], "f.json")
    assert fact == Fact(
        0, "Ada Example", "The harp of {} is a", "harp", "cello",
        paraphrase_prompts=("Ada Example is good at the",), neighborhood_prompts=("Bo Sample plays the",),
    )  # fmt: skip


def test_both_formats_of_one_fact_fill_the_same_prompt():
    (original,), (other,) = parse([record()], "a"), parse([easyedit()], "b")
    assert original.rewrite_prompt == other.rewrite_prompt == "Ada Example plays the"
    assert original.prompt == other.prompt


def test_braces_in_subject_and_prompt_are_plain_text():
    (fact,) = parse([record(subject="{0} and {}", prompt="In {set} {}, or {x")], "f")
    assert fact.rewrite_prompt == "In {set} {0} and {}, or {x"


def test_easyedit_subject_is_sought_as_whole_words_first():
    (fact,) = parse([easyedit(subject="Ana", prompt="In Anatolia Ana plays the")], "f")
    assert fact.prompt == "In Anatolia {} plays the"
    (fact,) = parse([easyedit(subject="東京", prompt="東京は日本の")], "f")
    assert fact.prompt == "{}は日本の"


@pytest.mark.parametrize("prompt", ["Bo plays the", "Ada Example, that is Ada Example, plays the"])
def test_easyedit_prompt_must_hold_the_subject_once(prompt):
    with pytest.raises(ValueError, match=r"f, record 0: prompt .* holds the subject .* [02] times"):
        parse([easyedit(prompt=prompt)], "f")


def without(*path):
    changed = record()
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return changed


BAD = {
    "no placeholder": (record(prompt="Ada plays the"), "prompt 'Ada plays the' has 0 placeholders"),
    "two placeholders": (record(prompt="{} and {}"), "has 2 placeholders, expected exactly one {}"),
    "empty subject": (record(subject=" "), "subject is empty"),
    "empty new target": (record(new=""), "target_new is empty"),
    "empty true target": (record(true="  "), "target_true is empty"),
    "equal targets": (record(new="cello"), "target_new and target_true are both 'cello'"),
    "target with a space": (record(new=" harp"), "target_new ' harp' starts or ends with a space"),
    "subject with a space": (record(subject="Ada "), "subject 'Ada ' starts or ends with a space"),
    "number as subject": (record(subject=7), "subject is 7, expected a string"),
    "text as case_id": (record(case_id="0"), "case_id is '0', expected an integer"),
    "text as prompt list": (record(neighborhood_prompts="Bo"), "neighborhood_prompts is 'Bo', expected"),
    "number in prompt list": (record(paraphrase_prompts=["a", 3]), "paraphrase_prompts\\[1\\] is 3"),
    "fields missing": ({"case_id": 0, "text": "x"}, "missing requested_rewrite, paraphrase_prompts, neigh"),
    "rewrite field missing": (without("requested_rewrite", "subject"), "requested_rewrite: missing subject"),
    "target without str": (without("requested_rewrite", "target_new", "str"), "target_new: missing str"),
    "text as record": ("Ada plays", " is a JSON str, expected an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_record_is_refused_with_file_record_and_field(name):
    bad, message = BAD[name]
    with pytest.raises(ValueError, match=r"some/file\.json, record 1.*" + message):
        parse([record(case_id=1), bad], "some/file.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_new": ""}, "target_new is empty"),
        ({"subject": ""}, "subject is empty"),
        ({"ground_truth": "harp"}, "are both 'harp'"),
        ({"prompt": "{} and Ada Example"}, "2 placeholders"),
        ({"subject": None}, "missing subject \\(it is null\\)"),
        ({"rephrase_prompt": 3}, "rephrase_prompt is 3, expected a string"),
    ],
)
def test_bad_easyedit_record_is_refused(changes, message):
    with pytest.raises(ValueError, match=r"f\.json, record 0.*" + message):
        parse([easyedit(**changes)], "f.json")


def test_easyedit_record_in_counterfact_file_is_refused():
    with pytest.raises(ValueError, match="record 1: missing requested_rewrite"):
        parse([record(), easyedit(case_id=1)], "f")


def test_repeated_case_id_is_refused():
    with pytest.raises(ValueError, match="f: case_id 4 occurs more than once"):
        parse([record(case_id=4), record(case_id=4, subject="Bo")], "f")


@pytest.mark.parametrize(("content", "message"), [({"a": 1}, "holds a JSON dict"), ([], "holds no records")])
def test_file_must_hold_a_list_of_records(tmp_path, content, message):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"facts\.json {message}"):
        facts.load(path)


def test_truncated_file_says_so_and_how_to_fetch_anew(tmp_path):
    path = tmp_path / "facts.json"
    whole = json.dumps([record()])
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not complete JSON .* cut off .* fetch it anew .*editscale counterfact"):
        facts.load(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no facts file .*nowhere.json"):
        facts.load(tmp_path / "nowhere.json")


def test_load_reads_what_parse_reads(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record(subject="Zoë")], ensure_ascii=False), encoding="utf-8")
    assert facts.load(path) == parse([record(subject="Zoë")], "x")


def test_first_record_of_a_subject_is_kept_whatever_the_case_of_letters():
    assert unique_subjects(made_up(["Ada", "Bo", "ADA", "Cy", "bo", "Bo B"])) == [0, 1, 3, 5]


def test_orders_are_cumulative_shuffles_from_one_seed():
    n = 50
    few = made_up([f"subject {i}" for i in range(n)])
    random.seed(37)
    positions, expected = list(range(n)), []
    for _ in range(10):
        random.shuffle(positions)
        expected.append(positions.copy())
    assert published_orders(few) == expected
    assert published_orders(few, 3) == expected[:3]


def test_orders_do_not_touch_the_global_generator():
    few = made_up(["a", "b", "c"])
    random.seed(1)
    before = random.getstate()
    published_orders(few)
    assert random.getstate() == before


def counterfact_shaped():
    """21,919 facts whose subjects repeat at the positions where those of CounterFact do."""
    dropped = set(json.loads(DROPPED.read_text()))
    subjects = ["again" if i in dropped else f"subject {i}" for i in range(21_919)]
    subjects[0] = "again"
    return [Fact(i, subject, "{} is", "x", "y") for i, subject in enumerate(subjects)]


def test_orders_of_counterfact_have_the_published_hash():
    orders = published_orders(counterfact_shaped())
    assert orders[0][:8] == ORDER_0_STARTS and orders[9][:8] == ORDER_9_STARTS
    assert hashlib.sha256(orders_json(orders).encode()).hexdigest() == ORDERS_SHA256


def test_unique_subjects_of_counterfact_have_the_published_hash():
    selected = unique_subjects(counterfact_shaped())
    assert len(selected) == 20_391
    assert hashlib.sha256(json.dumps(selected).encode()).hexdigest() == SELECTED_SHA256


@needs_shared
def test_real_counterfact_subjects_give_the_published_orders(tmp_path):
    source = SHARED / "data" / "counterfact_easyedit_sample.json"
    out = write_orders(source, tmp_path / "orders.json")
    assert hashlib.sha256(out.read_bytes()).hexdigest() == ORDERS_SHA256
    whole = facts.load(source)
    assert len(whole) == 21_919 and [fact.case_id for fact in whole] == list(range(21_919))


@needs_shared
@pytest.mark.parametrize("name", ("counterfact_sample.json", "counterfact_easyedit_sample.json"))
def test_published_files_are_read_whole_and_need_no_answers_of_their_own(name):
    found = facts.read(SHARED / "data" / name)
    assert found.notes == [] and not any(fact.neighborhood_answers for fact in found.facts)


@needs_shared
def test_both_published_formats_agree_on_every_common_record():
    whole = facts.load(SHARED / "data" / "counterfact_easyedit_sample.json")
    original = facts.load(SHARED / "data" / "counterfact_sample.json")
    assert len(original) == 1_599
    for fact in original:
        other = whole[fact.case_id]
        assert (fact.subject, fact.prompt, fact.target_new, fact.target_true) == (
            other.subject, other.prompt, other.target_new, other.target_true
        )  # fmt: skip


def test_in_order_takes_the_first_facts_of_that_order():
    few = made_up(["a", "b", "A", "c", "d", "e"])
    for order in (0, 4, 9):
        expected = [few[i] for i in published_orders(few)[order]]
        assert in_order(few, order, 5) == expected
        assert in_order(few, order, 3) == expected[:3]


def test_reverse_is_the_same_facts_backwards():
    few = made_up([f"subject {i}" for i in range(20)])
    assert in_order(few, 2, 7, reverse=True) == in_order(few, 2, 7)[::-1]


@pytest.mark.parametrize("order", [-1, 10])
def test_order_out_of_range_is_refused(order):
    with pytest.raises(ValueError, match=rf"order {order} is not one of the ten orders 0–9"):
        in_order(made_up(["a", "b"]), order, 1)


@pytest.mark.parametrize("n_edits", [0, -3, 3])
def test_more_or_fewer_edits_than_there_are_subjects_is_refused(n_edits):
    with pytest.raises(ValueError, match=rf"n_edits is {n_edits}, expected 1 to 2"):
        in_order(made_up(["a", "b", "A"]), 0, n_edits)


def test_orders_text_has_the_published_layout(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record(0), record(1, subject="Bo")]))
    text = write_orders(path, tmp_path / "new" / "orders.json").read_text()
    orders = published_orders(facts.load(path))
    first, second = orders[0]
    assert text.startswith(f'{{\n    "0": [\n        {first},\n        {second}\n    ],\n    "1": [')
    assert text.endswith("    ]\n}")
    assert json.loads(text) == {str(n): order for n, order in enumerate(orders)}
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["orders.json"]


def test_orders_command_prints_the_hash_or_one_error(tmp_path, capsys):
    path, out = tmp_path / "facts.json", tmp_path / "orders.json"
    path.write_text(json.dumps([record()]))
    assert cli.main(["orders", str(path), str(out)]) == 0
    assert hashlib.sha256(out.read_bytes()).hexdigest() in capsys.readouterr().out
    assert cli.main(["orders", str(tmp_path / "no.json"), str(out)]) == 2
    assert "no facts file" in capsys.readouterr().err


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small file that stands for the published one, at a file:// address."""
    content = json.dumps([record()]).encode()
    (tmp_path / "host").mkdir()
    hosted = tmp_path / "host" / "counterfact.json"
    hosted.write_bytes(content)
    monkeypatch.setattr(facts, "COUNTERFACT_URL", hosted.as_uri())
    monkeypatch.setattr(facts, "COUNTERFACT_BYTES", len(content))
    monkeypatch.setattr(facts, "COUNTERFACT_SHA256", hashlib.sha256(content).hexdigest())
    return hosted


def test_download_is_checked_and_then_kept(tmp_path, published):
    folder = tmp_path / "data"
    path = facts.download_counterfact(folder)
    assert path == folder / "counterfact.json" and path.read_bytes() == published.read_bytes()
    published.unlink()
    assert facts.download_counterfact(folder) == path
    assert list(folder.iterdir()) == [path]


def test_wrong_download_leaves_no_file(tmp_path, published):
    published.write_bytes(b"x" * published.stat().st_size)
    with pytest.raises(ValueError, match="the download of file:.* not CounterFact's"):
        facts.download_counterfact(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_wrong_file_in_place_is_refused_and_left_alone(tmp_path, published):
    (tmp_path / "counterfact.json").write_text("[]")
    with pytest.raises(ValueError, match="has 2 bytes .* it is left as it is: name another folder, or move it away"):
        facts.download_counterfact(tmp_path)
    assert (tmp_path / "counterfact.json").read_text() == "[]"


def test_unreachable_host_is_one_clear_error(tmp_path, published):
    published.unlink()
    with pytest.raises(ConnectionError, match="cannot fetch file:.*; without network, put a copy of it at"):
        facts.download_counterfact(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_facts_module_does_not_load_torch():
    assert not any(hasattr(facts, name) for name in ("torch", "transformers"))
    assert facts.__name__ in sys.modules
