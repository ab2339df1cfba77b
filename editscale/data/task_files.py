"""A few-shot task from a file of one's own: any number of labels, in any balance, with any number of examples.

    # params/mine/origins.yaml, a whole task
    block: |                        # one example up to its answer, fields in braces
      Dish: {dish}
      Country:
    words: [Italy, Japan, Peru]     # the answers; or {answer word: label, …} where labels have other names
    demonstrations: 2               # so many examples, the first ones, stand solved before each of the others
    examples:                       # or the name of a .jsonl, .csv or .tsv file beside this one
      - {dish: Risotto, label: Italy}
      - {dish: Sushi, label: Japan}
      - {dish: Ceviche, label: Peru}
      - {dish: Polenta, label: Italy}

Wherever a notebook takes the name of a task it takes such a file too; in tables and figures the task has the file's
name. All values are text as it is written: `Yes`, `no` and `007` need no quotes. An answer is the first line that the
model writes, and of the answer words in it the first decides, whole words only (`glue.Format.first`).
"""

import csv
import difflib
import io
import json
import re
from collections import Counter
from operator import itemgetter
from pathlib import Path

import yaml

from editscale.data import glue

SUFFIXES = (".yaml", ".yml")
TABLES = (".jsonl", ".csv", ".tsv")  # files of examples
KEYS = ("block", "words", "demonstrations", "examples")


def open_task(name, source="", *, n_examples=2 * glue.N_PER_LABEL, shots=-1, revision=""):
    """The `glue.Task` of a known name, or of a file.

    Args:
        name: what `glue.open_task` knows, or the path of a YAML file as the module shows it.
        n_examples: of a file at most so many, in the shares that its labels have; all if it has fewer.
        shots: of a file how many of its demonstrations stand in the prompt, the first ones; -1 for all.

    Raises, beside what `glue.open_task` raises, FileNotFoundError for a file that is not there, and ValueError that
    names the file, the example and what to do for one that is no task.
    """
    if not _is_file(name):
        return glue.open_task(name, source, n_examples=n_examples, shots=shots, revision=revision)
    if isinstance(n_examples, bool) or not isinstance(n_examples, int) or n_examples < 1:
        raise ValueError(f"n_examples {n_examples!r} is not a number from 1, to be asked of {name}")
    return _read(Path(name), n_examples, shots)


def open_whole(name, source="", *, shots=-1, revision=""):
    """The `glue.Task` of a name or a file with all its examples; see `glue.open_whole`."""
    if not _is_file(name):
        return glue.open_whole(name, source, shots=shots, revision=revision)
    return _read(Path(name), None, shots)


def open_tasks(names, source="", **given):
    """`open_task` of each of some names: a list. Raises ValueError if there are none, or two of one name."""
    tasks = [open_task(name, source, **given) for name in names]
    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice or not tasks:
        wrong = f"name {twice[0]} twice: tables could not tell them apart" if twice else "are empty"
        raise ValueError(f"tasks {wrong}; give one or more, each with a name of its own")
    return tasks


def proportional(examples, n, label_of=itemgetter("label")):
    """n of the examples, or all if there are fewer, in the order they had: the first of each label, the labels in the
    shares that they have among all."""
    n_of, seen, order = Counter(map(label_of, examples)), Counter(), []
    for i, example in enumerate(examples):
        label = label_of(example)
        order.append(((seen[label] + 0.5) / n_of[label], i))
        seen[label] += 1
    return tuple(examples[i] for i in sorted(i for _, i in sorted(order)[:n]))


def _is_file(name):
    return Path(str(name)).suffix.lower() in (*SUFFIXES, ".json", *TABLES)


def _read(path, n_examples, shots):
    content = _content(path)
    block, words = content["block"].rstrip(), content["words"]
    labels = tuple(dict.fromkeys(words.values()))
    form = glue.Format(block, {word: labels.index(label) for word, label in words.items()}, labels, own=True)
    beside, listed = content["examples"], isinstance(content["examples"], list)
    files = (path,) if listed else (path, path.parent / beside)
    examples = []
    for where, example in _numbered(path, beside) if listed else table(files[1], path):
        examples.append(_checked(example, form, where))
    n_shown = content["demonstrations"]
    if n_shown >= len(examples):
        raise ValueError(
            f"{path}: {len(examples)} examples, {n_shown} of them demonstrations, leave none to ask; add examples, or "
            "lower demonstrations"
        )
    if isinstance(shots, bool) or shots not in range(-1, n_shown + 1):
        raise ValueError(f"shots {shots!r} is not a number from 0 to {n_shown}, the demonstrations of {path}, or -1")
    asked = proportional(examples[n_shown:], n_examples or len(examples))
    shown = tuple(examples[: n_shown if shots == -1 else shots])
    return glue.Task(_name(path), form, shown, asked, str(path), published=False, files=files)


def _name(path):
    """The task's name: the file's, without its suffix."""
    if not re.fullmatch(r"[^\W\d_][\w.-]{0,39}", path.stem):
        raise ValueError(
            f"{path}: {path.stem!r} is to name the task in tables and figures; rename the file, to up to 40 letters, "
            "digits and . _ - that begin with a letter"
        )
    if path.stem in glue.FORMATS:
        raise ValueError(f"{path}: {path.stem} is the name of a task that comes with editscale; rename the file")
    return path.stem


class _Texts(yaml.BaseLoader):
    """Reads every value as text, and takes no key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [str(key.value) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _content(path):
    """The four KEYS of a task's file, checked: block a text, words a dict of texts, demonstrations a number, examples
    a list or the name of a file."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path} does not describe a task: a .yaml file does, with {', '.join(KEYS)}, of which examples may be the "
            f"name of a {', '.join(TABLES)} file beside it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no task file {path}; tasks are such files, or {', '.join(glue.FORMATS)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Texts)  # noqa: S506, makes texts only
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no task; it must hold {', '.join(KEYS)}, see editscale/data/task_files.py")
    for key in content:
        if key not in KEYS:
            (close,) = difflib.get_close_matches(key, KEYS, n=1) or [None]
            hint = f"did you mean {close}?" if close else f"a task has {', '.join(KEYS)}"
            raise ValueError(f"{path}: unknown key {key!r}; {hint}")
    for key in ("block", "words", "examples"):
        if not content.get(key):
            raise ValueError(f"{path} lacks {key!r}; a task has {', '.join(KEYS)}")
    block, shown = content["block"], content.get("demonstrations", "0")
    fields = re.findall(r"{(\w+)}", block) if isinstance(block, str) else []
    if not fields or "label" in fields:
        raise ValueError(
            f"{path}: block must be the text of an example up to its answer, with a field in braces such as "
            f"{{sentence}}, and without {{label}}, the answer itself; it is {block!r}"
        )
    if not isinstance(shown, str) or not re.fullmatch(r"[0-9]{1,6}", shown):
        raise ValueError(f"{path}: demonstrations is how many of the examples are shown solved, not {shown!r}")
    if not isinstance(content["examples"], (list, str)):
        raise ValueError(f"{path}: examples must be a list, or the name of a {', '.join(TABLES)} file beside it")
    return content | {"words": _words(path, content["words"]), "demonstrations": int(shown)}


def _words(path, words):
    """answer word ↦ label, as a task's file has them."""
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        twice = [word for word, count in Counter(words).items() if count > 1]
        if twice:
            raise ValueError(f"{path}: words has {twice[0]!r} twice; give each answer once")
        words = {word: word for word in words}
    if not isinstance(words, dict) or not all(isinstance(label, str) for label in words.values()):
        raise ValueError(f"{path}: words must be a list of answers, or answer words with the label of each: {words!r}")
    for word, label in words.items():
        if not word or not label or word != " ".join(word.split()):
            raise ValueError(
                f"{path}: the answer word {word!r} of label {label!r}: neither is empty, and a word has no white space "
                "around it"
            )
    if len(set(words.values())) < 2:
        raise ValueError(f"{path}: words gives one label only ({', '.join(words)}); a task asks between two or more")
    return words


def _numbered(path, examples):
    for i, example in enumerate(examples, start=1):
        if not isinstance(example, dict):
            raise ValueError(f"{path}, example {i} is not a set of fields such as {{sentence: …, label: …}}")
        yield f"{path}, example {i}", example


def table(path, named_by):
    """(where, example) of each line of a file of examples."""
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"{named_by}: examples is a list, or names a {', '.join(TABLES)} file, not {path.name!r}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which {named_by} names as its examples; put it there")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); save it as such") from error
    yield from (_json_lines if path.suffix.lower() == ".jsonl" else _separated)(path, text)


def _json_lines(path, text):
    for i, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {i} is not JSON ({error}); expected one object per line") from error
        if not isinstance(example, dict):
            raise ValueError(f"{path}, line {i} is not a JSON object; expected one per line")
        yield f"{path}, line {i}", example


def _separated(path, text):
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise ValueError(f"{path}, line 1 names a column twice: {', '.join(names)}")
        for example in reader:
            if None in example or None in example.values():
                raise ValueError(
                    f"{path}, line {reader.line_num} has not one value for each of {', '.join(names)}; put a value "
                    f"that holds {delimiter!r} in double quotes"
                )
            yield f"{path}, line {reader.line_num}", example
    except csv.Error as error:
        raise ValueError(
            f"{path}, what follows line {reader.line_num} is not readable as a table ({error}); close its quotes, and "
            "double those within a quoted value"
        ) from error


def _checked(example, form, where):
    """An example with the format's fields as texts and its label as a number."""
    for field in form.fields:
        value = example.get(field)
        if not isinstance(value, str) or not value.strip():
            found = f"it is {value!r}" if field in example else f"it has {', '.join(map(str, example))}"
            raise ValueError(f"{where} has no text {field!r}, which the block asks for; {found}")
    label = example.get("label")
    if type(label) is int:  # JSON's 1; in YAML and tables it is text already
        label = str(label)
    if label not in form.labels:
        found = f"the label {label!r}, which no answer word gives" if "label" in example else "no 'label'"
        raise ValueError(f"{where} has {found}; labels are {', '.join(form.labels)}")
    return {field: example[field] for field in form.fields} | {"label": form.labels.index(label)}
