"""Tasks from files of one's own: what is read, drawn, asked and scored, with three labels, and what is refused."""

import itertools
import json
import math
import re
from collections import Counter

import pytest
import tiny
import torch
from test_run import write_notebook

from editscale.data import glue, task_files
from editscale.metrics import downstream
from editscale.workflow.parameters import files_named

HEAD = """block: |
  Dish: {dish}
  Country:
words: [Italy, Japan, Peru]
"""
ORIGINS = (
    HEAD
    + """demonstrations: 2
examples:
  - {dish: Risotto, label: Italy}
  - {dish: Sushi, label: Japan}
  - {dish: Ceviche, label: Peru}
  - {dish: Polenta, label: Italy}
  - {dish: Pizza, label: Italy}
"""
)
DISHES = [("Risotto", "Italy"), ("Sushi", "Japan"), ("Ceviche", "Peru"), ("Polenta", "Italy"), ("Pizza", "Italy")]


@pytest.fixture
def write(tmp_path):
    def written(text, name="origins.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return written


# ---------------------------------------------------------------------------------------------- what is read


def test_a_file_is_a_task_of_three_labels_with_the_files_name(write):
    task = task_files.open_task(path := write(ORIGINS))
    assert task.name == "origins" and task.source == path and [str(file) for file in task.files] == [path]
    assert task.format.labels == ("Italy", "Japan", "Peru") and not task.published
    beginning = "Dish: Risotto\nCountry: Italy\n\nDish: Sushi\nCountry: Japan\n\n"
    assert task.prompts == [f"{beginning}Dish: {dish}\nCountry:" for dish in ("Ceviche", "Polenta", "Pizza")]
    assert task.labels == [2, 0, 0]
    assert task_files.open_task(path, shots=1).beginning == beginning.split("\n\n")[0] + "\n\n"
    assert task_files.open_task(path, shots=0).beginning == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dishes.csv", "dish,label\n" + "".join(f'"{dish}",{label}\n' for dish, label in DISHES)),
        ("dishes.csv", "\ufefflabel,dish,note\r\n" + "".join(f"{label},{dish},x\r\n" for dish, label in DISHES)),
        ("dishes.tsv", "dish\tlabel\n" + "".join(f"{dish}\t{label}\n" for dish, label in DISHES)),
        ("dishes.jsonl", "".join(json.dumps({"dish": d, "label": label}) + "\n\n" for d, label in DISHES)),
    ],
)
def test_examples_beside_the_file_are_read_as_those_within_it(write, name, text):
    within = task_files.open_task(write(ORIGINS))
    write(text, name)
    beside = task_files.open_task(write(f"{HEAD}demonstrations: 2\nexamples: {name}\n"))
    assert beside.prompts == within.prompts and beside.labels == within.labels
    assert [file.name for file in beside.files] == ["origins.yaml", name]


def test_answer_words_may_differ_from_labels_and_every_value_is_text_as_written(write):
    text = """block: "{q} {not a field} {{q}}\\nAnswer:"
words: {Yes: true, No: false, Nope: false, 007: null}
demonstrations: 2
examples:
  - {q: 2024-01-01, label: false}
  - {q: 1.50, label: true}
  - {q: 日本 {x}, label: null}
"""
    task = task_files.open_task(write(text.replace("日本 {x}", '"日本 {x}"')))
    assert task.format.words == {"Yes": 0, "No": 1, "Nope": 1, "007": 2} and task.labels == [2]
    assert task.beginning.startswith("2024-01-01 {not a field} {2024-01-01}\nAnswer: No\n\n1.50 ")
    assert task.prompts[0].endswith("日本 {x} {not a field} {日本 {x}}\nAnswer:")


def test_labels_that_are_numbers_are_the_same_in_json_and_yaml(write):
    write('{"dish": "Sushi", "label": 1}\n{"dish": "Pizza", "label": "0"}\n', "d.jsonl")
    text = HEAD.replace("[Italy, Japan, Peru]", "{Italy: 0, Japan: 1}") + "examples: d.jsonl\n"
    assert task_files.open_task(write(text)).labels == [1, 0]


def test_all_examples_are_asked_or_some_in_the_shares_of_their_labels(write):
    many = (
        HEAD
        + "examples:\n"
        + "".join(f"  - {{dish: d{i}, label: {'Italy' if i < 80 else 'Peru'}}}\n" for i in range(120))
    )
    path = write(many)
    whole, some = task_files.open_whole(path), task_files.open_task(path, n_examples=30)
    assert whole == task_files.open_task(path) and len(whole.examples) == 120
    assert Counter(some.labels) == {0: 20, 2: 10} and some.examples[0]["dish"] == "d0"
    assert len(task_files.open_task(write(ORIGINS), n_examples=1).examples) == 1


def test_shares_of_balanced_examples_are_the_first_of_each_label():
    examples = [{"label": label, "i": i} for i, label in enumerate([1, 1, 0, 1, 0, 0, 1, 0])]
    for n in (2, 4, 6, 8):
        assert task_files.proportional(examples, n) == glue.first_of_each_label(examples, n // 2)
    assert task_files.proportional(examples, 99) == tuple(examples)


def test_names_that_come_with_the_package_are_opened_as_ever(write):
    assert task_files.open_task("reviews", n_examples=4) == glue.open_task("reviews", n_examples=4)
    assert task_files.open_whole("reviews") == glue.open_whole("reviews")
    assert [task.name for task in task_files.open_tasks(["reviews", write(ORIGINS)], n_examples=2)] == [
        "reviews",
        "origins",
    ]
    for names, message in (([], "tasks are empty"), (["reviews"] * 2, "tasks name reviews twice")):
        with pytest.raises(ValueError, match=message):
            task_files.open_tasks(names, n_examples=2)


def test_a_job_of_the_graph_rests_on_the_task_and_on_its_examples(write, tmp_path):
    notebook = write_notebook(tmp_path / "a.ipynb", 'tasks: list = []  # tasks\nabout: str = ""  # words')
    examples, path = write("dish,label\n", "dishes.csv"), write(f"{HEAD}examples: dishes.csv\n")
    values = write(json.dumps({"tasks": ["reviews", path], "about": "word " * 100}), "values.yaml")
    assert files_named(notebook, values) == sorted([path, examples])
    write("examples: [", "origins.yaml")
    assert files_named(notebook, values) == [path]


# --------------------------------------------------------------------------------------- asked and scored

WRITTEN = """block: "The {sentence}\\nA :"
words: [%s]
examples: [%s]
"""


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_answers_are_the_first_word_of_what_generate_writes(write, model_type):
    lm = tiny.tiny_model(model_type, seed=1, dtype=torch.float64, tied=False)
    parts = itertools.product(("town", "Lund", "river", "capital of", "No one"), ("is", "was", "and"))
    prompts = [f"The {subject} {verb}\nA :" for subject, verb in parts]

    def texts(n):
        found = []
        for prompt in prompts:
            ids = lm.tokenizer(prompt, return_tensors="pt")
            out = lm.model.generate(**ids, max_new_tokens=n, do_sample=False)
            found.append(lm.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
        return found

    words = sorted(set(re.findall(r"(?<!\w)[A-Za-z]+(?!\w)", "\n".join(texts(3)))))[:4]  # what such a model writes
    labels = [words[i % 3] for i in range(len(prompts))]
    examples = [{"sentence": text[4:-4], "label": label} for text, label in zip(prompts, labels, strict=True)]
    task = task_files.open_task(write(WRITTEN % (", ".join(words), ", ".join(map(json.dumps, examples)))))
    assert task.prompts == prompts
    expected = [task.format.first(text) for text in texts(downstream.answer_length(lm, task))]
    asks = downstream.TaskPrompts(lm, task)
    assert asks.answers() == expected and len({*expected, glue.INVALID}) >= 3
    row, to_beat = asks.row(), downstream.references(task.labels, 4)
    assert row["f1_chance"] == to_beat["chance"]["f1"] and row["f1_constant"] == to_beat["constant"]["f1"]
    assert row["task"] == "origins" and row["n_examples"] == len(prompts)
    lm.weight(1).fill_(math.nan)
    assert asks.row()["invalid"] == 1


def test_an_answer_has_as_many_tokens_as_its_longest_word_needs(write):
    lm = tiny.tiny_model("gpt2")
    task = task_files.open_task(write(ORIGINS.replace("Japan", "Liechtenstein")))
    size = len(lm.tokenizer(" Liechtenstein")["input_ids"])
    assert size > downstream.N_NEW and downstream.answer_length(lm, task) == size
    assert downstream.answer_length(lm, glue.open_task("reviews", n_examples=2)) == downstream.N_NEW


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (" Japan, not Italy", 1),
        (" Italy\n\nDish: Sushi\nCountry: Japan", 0),
        ("\nPeru", 2),
        (" Peruvian", glue.INVALID),
        (" italy", glue.INVALID),
        ("", glue.INVALID),
        (" New Guinea", 3),
        (" Guinea", 4),
        (" 東京です", 5),
    ],
)
def test_the_first_whole_word_of_the_first_line_decides(answer, label):
    words = ("Italy", "Japan", "Peru", "New Guinea", "Guinea", "東京")
    form = glue.Format("{x}:", {word: i for i, word in enumerate(words)}, words, own=True)
    assert form.first(answer) == label


def test_three_labels_are_scored_as_scikit_learn_defines_it():
    """True 0: answered 0, 0, 1, invalid. True 1: 1, 2. True 2: 2.

    F1 of 0 is 2·2/(4 + 2), of 1 2·1/(2 + 2), of 2 2·1/(1 + 2), weighed 4 : 2 : 1. R_K: s = 7, c = 4,
    Σ p t = 2·4 + 2·2 + 2·1 = 14, Σ p² = 4 + 4 + 4 + 1 with the invalid one, Σ t² = 16 + 4 + 1.
    """
    row = downstream.scores([0, 0, 1, -1, 1, 2, 2], [0, 0, 0, 0, 1, 1, 2])
    assert row["accuracy"] == 4 / 7 and row["invalid"] == 1 / 7
    assert row["f1"] == pytest.approx((4 * 4 / 6 + 2 * 2 / 4 + 1 * 2 / 3) / 7)
    assert row["mcc"] == pytest.approx((4 * 7 - 14) / math.sqrt((49 - 13) * (49 - 21)))


def test_a_coin_of_three_sides_and_the_best_constant_of_unbalanced_labels():
    """Labels 0 0 0 1 1 2 of three. Each label is answered six times by the coin: F1 of 0 is 2·3/(9 + 6)."""
    found = downstream.references([0, 0, 0, 1, 1, 2], 3)
    assert found["constant"] == downstream.scores([0] * 6, [0, 0, 0, 1, 1, 2])
    assert found["constant"]["f1"] == pytest.approx(0.5 * 2 * 3 / (3 + 6))
    chance = found["chance"]
    assert chance["accuracy"] == pytest.approx(1 / 3) and chance["mcc"] == 0 and chance["invalid"] == 0
    parts = [2 * n / (3 * n + 6) for n in (3, 2, 1)]
    assert chance["f1"] == pytest.approx(sum(n / 6 * f1 for n, f1 in zip((3, 2, 1), parts, strict=True)))
    assert downstream.references([1, 1], 3)["constant"]["f1"] == 1  # a label that is never true still has a side
    assert downstream.references([1, 1], 3)["chance"]["accuracy"] == pytest.approx(1 / 3)


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no task; it must hold block, words"),
        ("- a\n", "is no task"),
        ("block: [", "not readable as YAML"),
        (ORIGINS.replace("words:", "word:"), "unknown key 'word'; did you mean words"),
        (ORIGINS + "zzz: 1\n", "unknown key 'zzz'; a task has block, words"),
        (ORIGINS + "words: [a, b]\n", "'words' is given twice"),
        (ORIGINS.replace("[Italy, Japan, Peru]", "{Italy: a, Italy: b}"), "'Italy' is given twice"),
        (ORIGINS.replace("[Italy, Japan, Peru]", "[Italy, Japan, Italy]"), "words has 'Italy' twice"),
        (ORIGINS.replace("[Italy, Japan, Peru]", "[Italy]"), "one label only .Italy."),
        (ORIGINS.replace("[Italy, Japan, Peru]", "Italy"), "words must be a list of answers"),
        (ORIGINS.replace("[Italy, Japan, Peru]", "[Italy, [Japan]]"), "words must be a list of answers"),
        (
            ORIGINS.replace("[Italy, Japan, Peru]", "{Italy: , Japan: a}"),
            "the answer word 'Italy' of label '': neither is",
        ),
        (
            ORIGINS.replace("[Italy, Japan, Peru]", "[Italy, ' Japan']"),
            "answer word ' Japan' of .*no white space around it",
        ),
        (ORIGINS.replace("[Italy, Japan, Peru]", "[Italy, '']"), "answer word '' of label ''"),
        (ORIGINS.replace("{dish}\n", "dish\n"), "block must be .* with a field in braces"),
        (ORIGINS.replace("Country:", "Country: {label}"), "without {label}, the answer itself"),
        ("words: [a, b]\nexamples: [{x: y}]\n", "lacks 'block'"),
        (HEAD, "lacks 'examples'"),
        (HEAD + "examples:\n", "lacks 'examples'"),
        (HEAD + "examples: {dish: x}\n", "examples must be a list, or the name of"),
        (HEAD + "examples: [x]\n", "example 1 is not a set of fields"),
        (HEAD + "examples: dishes.json\n", "names a .jsonl, .csv, .tsv file, not 'dishes.json'"),
        (ORIGINS.replace("label: Peru", "label: Chile"), "example 3 has the label 'Chile', which no answer word gives"),
        (ORIGINS.replace("label: Peru", "lable: Peru"), "example 3 has no 'label'; labels are Italy, Japan, Peru"),
        (ORIGINS.replace("dish: Polenta", "fish: Polenta"), "example 4 has no text 'dish', .*it has fish, label"),
        (ORIGINS.replace("dish: Polenta", "dish: "), "example 4 has no text 'dish', .*it is ''"),
        (ORIGINS.replace("dish: Polenta", "dish: [a]"), r"example 4 has no text 'dish', .*it is \['a'\]"),
        (ORIGINS.replace("demonstrations: 2", "demonstrations: two"), "how many of the examples .*, not 'two'"),
        (ORIGINS.replace("demonstrations: 2", "demonstrations: -1"), "how many of the examples .*, not '-1'"),
        (ORIGINS.replace("demonstrations: 2", "demonstrations: 5"), "5 examples, 5 of them demonstrations, leave none"),
    ],
)
def test_a_file_that_is_no_task_is_an_error_that_names_it_and_what_to_do(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=message) as refused:
        task_files.open_task(path)
    assert "origins.yaml" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.csv", "dish,label\nSushi\n", "d.csv, line 2 has not one value for each of dish, label"),
        ("d.csv", "dish,label\nSushi, raw,Japan\n", "d.csv, line 2 has not one value for each"),
        ("d.csv", "dish,dish\nSushi,Japan\n", "d.csv, line 1 names a column twice"),
        (
            "d.csv",
            'dish,label\n"Sushi,Japan\n',
            "d.csv, what follows line 1 is not readable as a table .*close its quotes",
        ),
        ("d.csv", "dish;label\nSushi;Japan\n", "d.csv, line 2 has no text 'dish', .*it has dish;label"),
        ("d.csv", "dish,label\n,Japan\n", "d.csv, line 2 has no text 'dish'"),
        ("d.csv", "", "0 examples, 0 of them demonstrations"),
        ("d.jsonl", "\n{\n", "d.jsonl, line 2 is not JSON"),
        ("d.jsonl", '["Sushi"]\n', "d.jsonl, line 1 is not a JSON object"),
        ("d.jsonl", '{"dish": null, "label": "Japan"}\n', "d.jsonl, line 1 has no text 'dish', .*it is None"),
        ("d.jsonl", '{"dish": "Sushi", "label": null}\n', "d.jsonl, line 1 has the label None"),
        ("d.jsonl", '{"dish": "Sushi", "label": ["Japan"]}\n', "d.jsonl, line 1 has the label"),
        ("d.jsonl", '{"dish": "Sushi", "label": true}\n', "d.jsonl, line 1 has the label True"),
    ],
)
def test_a_file_of_examples_that_is_damaged_is_an_error_that_names_its_line(write, name, text, message):
    write(text, name)
    with pytest.raises(ValueError, match=message):
        task_files.open_task(write(f"{HEAD}examples: {name}\n"))


def test_files_that_are_missing_in_another_encoding_or_of_another_kind_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="no task file .*none.yaml; tasks are such files, or sst2"):
        task_files.open_task(str(tmp_path / "none.yaml"))
    path = write(f"{HEAD}examples: none.csv\n")
    with pytest.raises(FileNotFoundError, match="none.csv, which .*origins.yaml names as its examples"):
        task_files.open_task(path)
    (tmp_path / "none.csv").write_bytes("dish,label\nSpätzle,Peru\n".encode("latin-1"))
    with pytest.raises(ValueError, match="none.csv is not text in UTF-8"):
        task_files.open_task(path)
    (tmp_path / "origins.yaml").write_bytes(b"block: \xff")
    with pytest.raises(ValueError, match="origins.yaml is not readable as YAML"):
        task_files.open_task(path)
    for name in ("dishes.csv", "task.json"):
        with pytest.raises(ValueError, match=f"{name} does not describe a task: a .yaml file does"):
            task_files.open_task(write("x", name))
    with pytest.raises(ValueError, match="unknown task 'origins'; .*and .yaml files"):
        task_files.open_task("origins")


@pytest.mark.parametrize("name", ("2nd.yaml", "my task.yaml", "$x$.yaml", f"{'a' * 41}.yaml", "sst2.yaml"))
def test_a_file_whose_name_cannot_name_a_task_is_to_be_renamed(write, name):
    with pytest.raises(ValueError, match="rename the file"):
        task_files.open_task(write(ORIGINS, name))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_examples": 0}, "n_examples 0 is not a number from 1"),
        ({"n_examples": True}, "n_examples True"),
        ({"shots": 3}, "shots 3 is not a number from 0 to 2"),
        ({"shots": -2}, "shots -2"),
        ({"shots": False}, "shots False"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(write, given, message):
    with pytest.raises(ValueError, match=message):
        task_files.open_task(write(ORIGINS), **given)
