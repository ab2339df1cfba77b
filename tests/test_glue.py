"""Few-shot tasks: prompts and answers by hand, the draw of the examples, demonstrations found in data, bad data."""

import hashlib
import json
from pathlib import Path

import pytest

from editscale.data import glue

SHARED = Path(__file__).parents[2] / "shared" / "data"
ONE = {"sentence": "a dull film . ", "label": 0}
TWO = {"sentence1": "It rained.", "sentence2": "It was wet.", "label": 0}


@pytest.mark.parametrize(
    ("task", "example", "prompt"),
    [
        ("sst2", ONE, "Review : a dull film . \nSentiment :"),
        ("reviews", ONE, "Review : a dull film . \nSentiment :"),
        (
            "mrpc",
            TWO,
            "Are the sentences paraphrases of each other.\nSentence 1: It rained.\nSentence 2: It was wet.\nAnswer:",
        ),
        (
            "paraphrases",
            TWO,
            "Are the sentences paraphrases of each other.\nSentence 1: It rained.\nSentence 2: It was wet.\nAnswer:",
        ),
        ("cola", ONE, "Is this sentence linguistically acceptable?\nSentence : a dull film . \nAnswer :"),
        ("rte", TWO, "It rained.\nquestion: It was wet. True or False?\nanswer:"),
        ("rte-corrected", TWO, "It rained.\nquestion: It was wet. True or False?\nanswer:"),
    ],
)
def test_prompts_are_laid_out_as_in_the_paper(task, example, prompt):
    assert glue.FORMATS[task].prompt(example) == prompt


def test_demonstrations_stand_before_the_example_with_their_answers():
    form = glue.FORMATS["reviews"]
    task = glue.Task("reviews", form, ({"sentence": "fun {}", "label": 1}, ONE), (ONE, ONE), "here", False)
    beginning = "Review : fun {}\nSentiment : positive\n\nReview : a dull film . \nSentiment : negative\n\n"
    assert task.beginning == beginning
    assert task.prompts == [beginning + "Review : a dull film . \nSentiment :"] * 2
    assert task.labels == [0, 0]


def test_an_entailed_hypothesis_is_false_in_rte_and_true_where_that_is_corrected():
    entailed = [
        glue.Task(name, glue.FORMATS[name], (TWO,), (), "here", False).beginning for name in ("rte", "rte-corrected")
    ]
    assert [text.split("answer:")[1] for text in entailed] == [" False\n\n", " True\n\n"]


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("sst2", "Sentiment : positive\n\nSentiment : negative", 0),  # the last marker decides
        ("sst2", "Sentiment : negative, then positive", 1),  # "positive" is looked for first
        ("sst2", "Sentiment : Positive", glue.INVALID),
        ("sst2", "Sentiment : positive\nSentiment :", glue.INVALID),
        ("mrpc", "Answer: Nothing", 0),
        ("mrpc", "Answer: No. Yes", 1),
        ("mrpc", "Answer : Yes\nAnswer: maybe", glue.INVALID),  # the marker of another task
        ("cola", "Answer : Yes", 1),
        ("cola", "Answer : no", glue.INVALID),
        ("rte", "answer: True or False", 0),  # "False" is looked for first
        ("rte", "answer: True", 1),
        ("rte-corrected", "answer: True", 0),
        ("rte-corrected", "answer: True or False", 1),
    ],
)
def test_answers_are_parsed_after_the_last_marker_first_word_first(task, text, answer):
    assert glue.FORMATS[task].parse(text) == answer


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("sst2", "negative positive negative positive"),
        ("mrpc", "No Yes No Yes Yes No"),
        ("cola", "No Yes No Yes Yes No"),
        ("rte", "False True False"),
    ],
)
def test_the_papers_demonstrations_have_the_papers_answers(task, words):
    word = {label: word for word, label in glue.FORMATS[task].words.items()}
    assert " ".join(word[label] for label, _, _ in glue.DEMONSTRATIONS[task]) == words


# ------------------------------------------------------------------------------------------------- examples


def split_of(labels):
    return [{"sentence": f"text {i}", "label": label, "idx": i} for i, label in enumerate(labels)]


def test_examples_are_drawn_label_by_label_in_order_of_appearance():
    """Worked out with three bare shuffles by `random.Random(37)`: of 0 2 3 6, of 1 4 5, of the four that are kept."""
    subset = glue.balanced_subsets({"a": split_of([1, 0, 1, 1, 0, 0, 1])}, n_per_label=2)["a"]
    assert [example["idx"] for example in subset] == [6, 2, 1, 4]
    assert sorted(example["label"] for example in subset) == [0, 0, 1, 1]


def test_one_generator_draws_for_all_tasks_in_turn():
    split = split_of([0, 1] * 10)
    alone = glue.balanced_subsets({"b": split}, n_per_label=5)["b"]
    second = glue.balanced_subsets({"a": split, "b": split}, n_per_label=5)
    assert second["a"] == alone and second["b"] != alone
    assert split == split_of([0, 1] * 10)


def test_a_part_of_the_examples_is_the_first_of_each_label():
    kept = glue.first_of_each_label(split_of([1, 1, 1, 0, 1, 0, 0]), 2)
    assert [example["idx"] for example in kept] == [0, 1, 3, 5]


def test_the_papers_examples_are_drawn_from_glue():
    folder = SHARED / "glue"
    if not folder.is_dir():
        pytest.skip("needs GLUE's validation splits as jsonl files beside the repository")
    read = glue._reader(str(folder), "")
    subsets = glue.balanced_subsets({task: read(task, "validation") for task in glue.ORDER})
    for task, subset in subsets.items():
        indices = json.dumps([example["idx"] for example in subset])
        assert hashlib.sha256(indices.encode()).hexdigest() == glue.PUBLISHED[task][0]
        paper = (SHARED / "glue_paper_subset" / f"{task}.jsonl").read_text(encoding="utf-8")
        assert subset == [json.loads(line) for line in paper.splitlines()]


@pytest.mark.parametrize(("name", "shots"), [("reviews", 4), ("paraphrases", 6)])
def test_bundled_tasks_are_complete_and_balanced(name, shots):
    task = glue.open_task(name)
    assert len(task.demonstrations) == shots and len(task.examples) == 200 and sum(task.labels) == 100
    assert not task.published and task.source == "bundled with editscale"
    part = glue.open_task(name, n_examples=10)
    assert len(part.examples) == 10 and sum(part.labels) == 5 and part.beginning == task.beginning


# ------------------------------------------------------------------------------------------- demonstrations

SHOTS = ("The plot moves, always.", "Nobody's idea of fun.")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small invented SST-2, and its two demonstrations known to the module."""
    known = tuple(
        (label, glue._identity({"sentence": text}, glue.FORMATS["sst2"]), text[:6])
        for text, label in zip(SHOTS, (1, 0), strict=True)
    )
    monkeypatch.setitem(glue.DEMONSTRATIONS, "sst2", known)
    write(tmp_path / "sst2_validation.jsonl", split_of([0, 1] * 120))
    train = [{"sentence": "The plot moves", "label": 1}, *demonstrations()]
    write(tmp_path / "sst2_train.jsonl", train)
    return tmp_path


def demonstrations():
    return [{"sentence": "Nobody 's idea of fun . ", "label": 0}, {"sentence": SHOTS[0] + " ", "label": 1}]


def write(path, examples):
    path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")


def test_demonstrations_are_found_by_their_letters_and_put_in_order(folder):
    task = glue.open_task("sst2", folder, n_examples=20)
    assert task.demonstrations == (
        {"sentence": "The plot moves, always.", "label": 1},
        {"sentence": "Nobody 's idea of fun .", "label": 0},
    )
    assert len(task.examples) == 20 and sum(task.labels) == 10 and not task.published


@pytest.mark.parametrize(
    "train",
    [
        demonstrations()[:1],  # the other is missing
        [*demonstrations(), {"sentence": SHOTS[0], "label": 0}],  # with both labels
        [*demonstrations(), {"sentence": SHOTS[0].replace(",", " ,"), "label": 1}],  # two texts
    ],
)
def test_a_demonstration_that_is_not_there_exactly_once_is_named(folder, train):
    write(folder / "sst2_train.jsonl", train)
    with pytest.raises(ValueError, match="demonstration 'The pl' … of sst2"):
        glue.open_task("sst2", folder)


def test_the_same_demonstration_twice_is_one(folder):
    write(folder / "sst2_train.jsonl", 2 * demonstrations())
    assert len(glue.open_task("sst2", folder).demonstrations) == 2


def test_a_task_counts_as_published_only_with_its_examples_and_demonstrations(folder, monkeypatch):
    task = glue.open_task("sst2", folder)
    texts = (json.dumps([example["idx"] for example in task.examples]), task.beginning)
    hashes = tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts)
    monkeypatch.setitem(glue.PUBLISHED, "sst2", hashes)
    assert glue.open_task("sst2", folder, n_examples=20).published
    for other in ((hashes[0], hashes[0]), (hashes[1], hashes[1])):
        monkeypatch.setitem(glue.PUBLISHED, "sst2", other)
        assert not glue.open_task("sst2", folder).published


def test_spaces_of_glues_tokenization_are_taken_out_of_mrpc_demonstrations_as_in_the_paper():
    tokenized = '" The shop \'s sign fell , " she said , for $ 8 million , not $ 3.5 million or 1,200 .'
    printed = '"The shop\'s sign fell", she said, for $8 million, not $ 3.5 million or 1,200.'
    assert glue._printed("mrpc", tokenized) == printed
    assert glue._printed("mrpc", printed) == printed
    assert glue._printed("cola", tokenized) == tokenized


def test_a_whole_split_has_every_example_in_its_order_after_the_same_demonstrations(folder):
    whole, part = glue.open_whole("sst2", folder), glue.open_task("sst2", folder)
    assert [example["label"] for example in whole.examples] == [0, 1] * 120 and len(part.examples) == 200
    assert whole.beginning == part.beginning and not whole.published
    assert glue.open_whole("reviews") == glue.open_task("reviews")


# ------------------------------------------------------------------------------------------------- bad data


@pytest.mark.parametrize("name", ("sst", "SST-2", ""))
def test_an_unknown_task_is_an_error_that_lists_the_tasks(name):
    with pytest.raises(ValueError, match="unknown task.*sst2, mrpc, cola, rte"):
        glue.open_task(name)


@pytest.mark.parametrize("n_examples", (0, 7, 202, -2, True, 10.5))
def test_an_impossible_number_of_examples_is_an_error(folder, n_examples):
    with pytest.raises(ValueError, match="even number from 2 to 200"):
        glue.open_task("sst2", folder, n_examples=n_examples)


def test_fewer_shots_are_the_first_demonstrations():
    texts = [glue.open_task("reviews", shots=shots, n_examples=2).beginning for shots in (0, 1, 4, -1)]
    assert [text.count("Sentiment :") for text in texts] == [0, 1, 4, 4]
    assert texts[3].startswith(texts[1]) and texts[2] == texts[3]


@pytest.mark.parametrize("shots", (5, -2, True))
def test_an_impossible_number_of_shots_is_an_error(shots):
    with pytest.raises(ValueError, match="from 0 to 4, or -1 for all, of reviews"):
        glue.open_task("reviews", shots=shots)


@pytest.mark.parametrize("bad", ({"sentence": "no label"}, {"sentence": "of the test split", "label": -1}))
def test_examples_without_labels_are_an_error_that_names_the_line(folder, bad):
    write(folder / "sst2_validation.jsonl", [*split_of([0, 1]), bad])
    with pytest.raises(ValueError, match="sst2_validation.jsonl, line 3 has the label"):
        glue.open_task("sst2", folder)


def test_examples_of_another_task_are_an_error_that_names_the_field(folder):
    write(folder / "sst2_validation.jsonl", [TWO])
    with pytest.raises(ValueError, match="line 1 has no text 'sentence', only sentence1, sentence2, label"):
        glue.open_task("sst2", folder)


@pytest.mark.parametrize("text", ('{"sentence": "cut o', '["a list"]', "3", ""))
def test_a_file_that_is_not_json_lines_is_an_error(folder, text):
    (folder / "sst2_validation.jsonl").write_text(text)
    with pytest.raises(ValueError, match="line 1 is not a JSON object"):
        glue.open_task("sst2", folder)


def test_too_few_examples_of_a_label_are_an_error(folder):
    write(folder / "sst2_validation.jsonl", split_of([0] * 120 + [1] * 99))
    with pytest.raises(ValueError, match="sst2: only 99 examples have label 1, 100 are needed"):
        glue.open_task("sst2", folder)


def test_a_missing_source_or_split_is_an_error_that_says_what_to_give(folder):
    with pytest.raises(FileNotFoundError, match="nyu-mll/glue.*nor a folder"):
        glue.open_task("sst2")
    with pytest.raises(FileNotFoundError, match="mrpc_validation.jsonl"):
        glue.open_task("mrpc", folder)


def test_the_hub_is_read_at_a_pinned_revision_only(folder, monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options["split"], options["revision"]))
        return demonstrations() if options["split"] == "train" else split_of([0, 1] * 120)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = glue.open_task("sst2", glue.HUB)
    assert task.source == f"nyu-mll/glue {glue.REVISION}" and len(task.demonstrations) == 2
    assert {revision for _, _, revision in asked} == {glue.REVISION} and len(glue.REVISION) == 40
    assert glue.open_task("sst2", glue.HUB, revision="0" * 40).source.endswith("0" * 40)
    with pytest.raises(ValueError, match="40 hexadecimal digits"):
        glue.open_task("sst2", glue.HUB, revision="main")
    with pytest.raises(ValueError, match="leave it empty"):
        glue.open_task("sst2", folder, revision=glue.REVISION)


def test_an_offline_hub_is_an_error_and_nothing_stands_in_for_it(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(FileNotFoundError, match="sst2', split 'validation.*no route to the hub.*folder of jsonl"):
        glue.open_task("sst2", glue.HUB)
