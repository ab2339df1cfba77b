"""Few-shot tasks that show what editing does to other abilities: SST-2, MRPC, CoLA and RTE of GLUE as in the paper.

A prompt is some answered examples (demonstrations), then one without its answer; what the model writes next is searched
for the answer words. Each task has 200 examples, half of them of each label. `rte` keeps the paper's answer words, in
which an entailed hypothesis is "False"; `rte-corrected` has them the right way around. `reviews` and `paraphrases` are
written for this project, in the formats of SST-2 and MRPC, and need no download.

Sources: GLUE, Wang et al. 2019 (arXiv:1804.07461); prompts, examples and answer words of Gupta et al. 2024
(arXiv:2401.07453), scalable-model-editing/gradual-catastrophic-forgetting `glue_eval/`. GLUE's sentences are not part
of this repository: demonstrations are found in GLUE by what identifies them, and the 200 examples are drawn anew.
"""

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import yaml

from editscale.data import words as whole_words
from editscale.data.hub import open_dataset
from editscale.files import bundled

HUB = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # the commit of HUB that is read unless another is named
ORDER = ("sst2", "mrpc", "cola", "rte")  # in which the paper's code draws the examples, with one generator
BUNDLED = {"reviews": bundled("reviews.jsonl"), "paraphrases": bundled("paraphrases.jsonl")}
SEED = 37
N_PER_LABEL = 100
INVALID = -1  # the answer that holds none of the answer words


@dataclass(frozen=True)
class Format:
    """How an example is written.

    Attributes:
        block: template of one example up to where its answer goes; its last line is the final marker.
        words: answer word ↦ label, in the order in which an answer is searched for them.
        labels: what labels 0, 1, … mean.
        own: whether the format comes from a file of one's own (`task_files`), whose answers `first` reads.
    """

    block: str
    words: dict
    labels: tuple
    own: bool = False

    @property
    def fields(self):
        return tuple(re.findall(r"{(\w+)}", self.block))

    @property
    def marker(self):
        return self.block.rsplit("\n")[-1]

    def prompt(self, example):
        """The text of an example up to its answer. Braces that hold no name of a field are text."""
        return re.sub(r"{(\w+)}", lambda field: example[field[1]], self.block)

    def parse(self, text):
        """Label of the first of the answer words that occurs after the last final marker of a text, or INVALID.

        Part of a word counts, and case matters, as in the paper's code: "Nothing" is a "No".
        """
        answer = text.split(self.marker)[-1]
        return next((label for word, label in self.words.items() if word in answer), INVALID)

    def first(self, answer):
        """Label of the answer word that comes first in the first line of an answer, or INVALID.

        Whole words only, and case matters. Of two that begin at one place the longer one counts.
        """
        line = answer.strip().partition("\n")[0]
        places = {word: place for word in self.words if (place := whole_words.place(line, word)) >= 0}
        best = min(places, key=lambda word: (places[word], -len(word)), default=None)
        return INVALID if best is None else self.words[best]


_SENTIMENT = Format("Review : {sentence}\nSentiment :", {"positive": 1, "negative": 0}, ("negative", "positive"))
_PARAPHRASE = Format(
    "Are the sentences paraphrases of each other.\nSentence 1: {sentence1}\nSentence 2: {sentence2}\nAnswer:",
    {"Yes": 1, "No": 0},
    ("not equivalent", "equivalent"),
)
_ENTAILMENT = "{sentence1}\nquestion: {sentence2} True or False?\nanswer:"
FORMATS = {
    "sst2": _SENTIMENT,
    "mrpc": _PARAPHRASE,
    "cola": Format(
        "Is this sentence linguistically acceptable?\nSentence : {sentence}\nAnswer :",
        {"Yes": 1, "No": 0},
        ("unacceptable", "acceptable"),
    ),
    "rte": Format(_ENTAILMENT, {"False": 0, "True": 1}, ("entailment", "not entailment")),
    "rte-corrected": Format(_ENTAILMENT, {"False": 1, "True": 0}, ("entailment", "not entailment")),
    "reviews": _SENTIMENT,
    "paraphrases": _PARAPHRASE,
}

_PAPERS = yaml.safe_load(bundled("glue.yaml").read_text(encoding="utf-8"))
DEMONSTRATIONS = _PAPERS["demonstrations"]  # task ↦ (label, identity, opening words) of each, in order
PUBLISHED = _PAPERS["published"]  # task ↦ sha256 of its examples' idx and of the text of its demonstrations

# Where the paper's MRPC demonstrations differ from GLUE's tokenized text; the examples are left as GLUE has them.
# "$ 8 million" is closed up there and "$ 35.18 million" is not.
_UNTOKENIZED = (
    (r' , "(?= )', '",'),
    (r'^" ', '"'),
    (r" (?=[,.]( |$)|'s )", ""),
    (r"\$ (?=\d+ )", "$"),
)


@dataclass(frozen=True)
class Task:
    """A few-shot task with its examples. Examples and demonstrations are dicts with the format's fields and `label`.

    Attributes:
        source: where the examples come from, in words.
        published: whether demonstrations and the 200 examples are the paper's, to the character and in its order;
            `examples` may be a part of the 200.
        files: of a task of one's own, the files that it was read from.
    """

    name: str
    format: Format
    demonstrations: tuple
    examples: tuple
    source: str
    published: bool
    files: tuple = ()

    @property
    def beginning(self):
        """The answered demonstrations, with which every prompt begins."""
        word = {label: word for word, label in reversed(self.format.words.items())}  # the first of each label
        return "".join(f"{self.format.prompt(d)} {word[d['label']]}\n\n" for d in self.demonstrations)

    @property
    def prompts(self):
        """What the model reads, one text per example; each ends with the final marker."""
        return [self.beginning + self.format.prompt(example) for example in self.examples]

    @property
    def labels(self):
        return [example["label"] for example in self.examples]


def open_task(name, source="", *, n_examples=2 * N_PER_LABEL, shots=-1, revision=""):
    """The `Task` of a name.

    Args:
        name: sst2, mrpc, cola, rte, rte-corrected, or the bundled reviews, paraphrases.
        source: where GLUE is: "nyu-mll/glue" for the hub, or a folder with `<task>_validation.jsonl` of the task and
            of those before it in ORDER, and `<task>_train.jsonl`, which holds the demonstrations (the whole split or
            only these). One JSON object per line: sentence, or sentence1 and sentence2, then label and idx. Bundled
            tasks come with the package and ignore it.
        n_examples: an even number up to 200; of fewer than 200, the first half of that of each label are kept.
        shots: how many of the demonstrations stand in the prompt, the first ones; -1 for all, as in the paper.
        revision: commit of the hub data set, 40 hexadecimal digits; empty for REVISION, and for a folder.

    Raises ValueError for an unknown task, a bad number, examples without labels or too few of one label, and
    demonstrations that are not in the data; FileNotFoundError for data that cannot be read, and offline.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown task {name!r}; the tasks are {', '.join(FORMATS)}, and .yaml files of one's own")
    if isinstance(n_examples, bool) or n_examples not in range(2, 2 * N_PER_LABEL + 1, 2):
        raise ValueError(f"n_examples {n_examples!r} is not an even number from 2 to {2 * N_PER_LABEL}")
    form = FORMATS[name]
    if name in BUNDLED:
        by_split = {}
        for row in _jsonl(BUNDLED[name], form):
            by_split.setdefault(row["split"], []).append(row)
        examples, source = by_split["examples"], "bundled with editscale"
        demonstrations = tuple(by_split["demonstrations"])
    else:
        glue_name = name.removesuffix("-corrected")
        read = _reader(str(source), revision)
        before = ORDER[: ORDER.index(glue_name) + 1]
        examples = balanced_subsets({task: read(task, "validation") for task in before})[glue_name]
        demonstrations = find_demonstrations(glue_name, _labeled_splits(read, glue_name), source)
        source = f"{HUB} {revision or REVISION}" if str(source) == HUB else str(source)
    if isinstance(shots, bool) or shots not in range(-1, len(demonstrations) + 1):
        raise ValueError(f"shots {shots!r} is not a number from 0 to {len(demonstrations)}, or -1 for all, of {name}")
    demonstrations = demonstrations[: len(demonstrations) if shots == -1 else shots]
    task = Task(name, form, demonstrations, tuple(examples), source, published=False)
    return replace(task, examples=first_of_each_label(examples, n_examples // 2), published=_is_published(task))


def open_whole(name, source="", *, shots=-1, revision=""):
    """The `Task` of a name with GLUE's whole validation split in its order, whatever the balance of its labels: 872
    examples of SST-2. Of a bundled task, all examples. Arguments and errors as for `open_task`."""
    task = open_task(name, source, shots=shots, revision=revision)
    if name in BUNDLED:
        return task
    examples = _reader(str(source), revision)(name.removesuffix("-corrected"), "validation")
    return replace(task, examples=tuple(examples), published=False)


def balanced_subsets(splits, n_per_label=N_PER_LABEL, seed=SEED):
    """`{task: examples}`, n_per_label of each label drawn from each of `splits` (task ↦ examples), in random order.

    With the validation splits of ORDER these are the paper's examples: one generator draws for all tasks in turn,
    so an earlier task's split influences a later task's draw.

    Raises ValueError if a split has too few examples of a label.
    """
    generator = random.Random(seed)
    subsets = {}
    for task, examples in splits.items():
        by_label = {}  # in the order in which the labels appear
        for example in examples:
            by_label.setdefault(example["label"], []).append(example)
        for label in range(2):
            _check_enough(task, label, len(by_label.get(label, ())), n_per_label)
        chosen = []
        for of_label in by_label.values():
            generator.shuffle(of_label)
            chosen += of_label[:n_per_label]
        generator.shuffle(chosen)
        subsets[task] = chosen
    return subsets


def first_of_each_label(examples, n_per_label):
    """The first n_per_label examples of each label, in the order they had. Raises ValueError if there are fewer."""
    seen, kept = Counter(), []
    for example in examples:
        seen[example["label"]] += 1
        if seen[example["label"]] <= n_per_label:
            kept.append(example)
    for label in range(2):
        _check_enough("the task", label, seen[label], n_per_label)
    return tuple(kept)


def find_demonstrations(task, examples, source):
    """The paper's demonstrations of a GLUE task, in order, found among `examples` and printed as the paper has them.

    Raises ValueError that names the demonstration of which there is not exactly one.
    """
    form, wanted = FORMATS[task], DEMONSTRATIONS[task]
    found = {identity: {} for _, identity, _ in wanted}
    for example in examples:
        identity = _identity(example, form)
        if identity in found:
            printed = {field: _printed(task, example[field]) for field in form.fields}
            found[identity][(*printed.values(), example["label"])] = printed | {"label": example["label"]}
    for label, identity, opening in wanted:
        if [key[-1] for key in found[identity]] != [label]:
            raise ValueError(
                f"demonstration {opening!r} … of {task} (label {label}) is in {source} {len(found[identity])} times "
                f"with labels {[key[-1] for key in found[identity]]}, expected once; give GLUE's training split "
                f"(in a folder: {task}_train.jsonl)"
            )
    return tuple(next(iter(found[identity].values())) for _, identity, _ in wanted)


def _check_enough(task, label, n, needed):
    if n < needed:
        raise ValueError(f"{task}: only {n} examples have label {label}, {needed} are needed")


def _is_published(task):
    if task.name not in PUBLISHED:
        return False
    texts = (json.dumps([example.get("idx") for example in task.examples]), task.beginning)
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts] == list(PUBLISHED[task.name])


def _identity(example, form):
    """What identifies a demonstration, however its text was tokenized: a sha256 of its letters and digits."""
    letters = re.sub("[^0-9A-Za-z]", "", "".join(example[field] for field in form.fields))
    return hashlib.sha256(letters.encode()).hexdigest()[:16]


def _printed(task, text):
    """A demonstration's text as it stands in the paper's prompts."""
    for pattern, replacement in _UNTOKENIZED if task == "mrpc" else ():
        text = re.sub(pattern, replacement, text)
    return text.strip()


def _labeled_splits(read, task):
    """Examples among which the demonstrations may be; a folder need not have all splits."""
    splits = (
        ("train", "validation", "test") if task == "mrpc" else ("train", "validation")
    )  # only MRPC's test has labels
    return chain.from_iterable(read(task, split, optional=True) for split in splits)


def _reader(source, revision):
    """`read(task, split, optional=False)` that gives the examples of a split of GLUE, from the hub or a folder."""
    if revision and source != HUB:
        raise ValueError(f"revision {revision!r} is given, but {source!r} is not the hub's {HUB}; leave it empty")
    if source == HUB:
        revision = revision or REVISION
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError(f"revision {revision!r} of {HUB} is not the 40 hexadecimal digits of a commit")
        advice = (
            "; load it once where there is a network, give a folder of jsonl files, or take the bundled tasks "
            f"{', '.join(BUNDLED)}"
        )
        return lambda task, split, optional=False: list(open_dataset(HUB, task, split, revision, advice=advice))
    if not Path(source).is_dir() or not source:
        raise FileNotFoundError(
            f"GLUE is neither the hub data set {HUB!r} nor a folder here: {source!r}; give one of the two, or take "
            f"the bundled tasks {', '.join(BUNDLED)}"
        )

    def read(task, split, optional=False):
        path = Path(source) / f"{task}_{split}.jsonl"
        return [] if optional and not path.exists() else _jsonl(path, FORMATS[task])

    return read


def _jsonl(path, form):
    """The examples in a file of one JSON object per line, each with the format's fields and a label 0 or 1."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; a folder of GLUE holds a file <task>_<split>.jsonl per split")
    examples = []
    for i, line in enumerate(path.read_bytes().rstrip().split(b"\n"), start=1):
        try:
            example = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}, line {i} is not a JSON object ({error}); expected one per line") from error
        missing = [field for field in form.fields if not isinstance(example.get(field), str)]
        if missing:
            raise ValueError(f"{path}, line {i} has no text {missing[0]!r}, only {', '.join(example)}")
        if example.get("label") not in (0, 1):
            raise ValueError(
                f"{path}, line {i} has the label {example.get('label')!r}, expected 0 ({form.labels[0]}) or 1 "
                f"({form.labels[1]}); GLUE's test splits have none"
            )
        examples.append(example)
    return examples
