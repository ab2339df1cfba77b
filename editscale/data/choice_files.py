"""Choices between texts, without generation: an item has a context and continuations, of which exactly one is right.

    {"context": "The ice on the lake is", "continuations": ["cold.", "loud."], "right": 0}

is an item, one a line of a `.jsonl` file. It may name its `phenomenon`, by which scores are told apart. Without a
context the continuations are whole sentences, as in minimal pairs. Lines of published sets are read as they are:

| set | known by | context | continuations | right |
|---|---|---|---|---|
| BLiMP | sentence_good, sentence_bad | none | both | the first |
| PIQA | goal, sol1, sol2, label | "Question: <goal>", then "Answer:" | sol1, sol2 | label |
| HellaSwag | activity_label, ctx_a, ctx_b, endings, label | "<activity_label>: <ctx_a> <Ctx_b>" | endings | label |

with `linguistics_term` as BLiMP's phenomenon, and contexts as EleutherAI/lm-evaluation-harness writes them, which takes
HellaSwag's "[title]" and other brackets out. `minimal_pairs` comes with the package: pairs in BLiMP's manner, written
for this project; none is left out for the score that a model has on it.

Sources: BLiMP, Warstadt et al. 2020 (arXiv:1912.00582); PIQA, Bisk et al. 2020 (arXiv:1911.11641); HellaSwag, Zellers
et al. 2019 (arXiv:1905.07830).
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from editscale.data import task_files
from editscale.data.hub import open_dataset
from editscale.files import bundled

BUNDLED = {"minimal_pairs": bundled("minimal_pairs.jsonl")}
ALL = "all"  # in tables, the phenomenon of a row that is of all items
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?/(?P<split>[\w.-]+)@(?P<revision>[0-9a-f]{40})")
_FORM = '{"context": …, "continuations": [two or more], "right": 0}, or lines of BLiMP, PIQA or HellaSwag'


@dataclass(frozen=True)
class Item:
    """A context, "" for none, continuations of it, the number of the right one, and the phenomenon or ""."""

    context: str
    continuations: tuple
    right: int
    phenomenon: str = ""


@dataclass(frozen=True)
class Choices:
    """A set of items with its name in tables, where it comes from in words, and the files that it was read from."""

    name: str
    items: tuple
    source: str
    files: tuple = ()


def open_choices(name, n_items=0):
    """The `Choices` of a name, a file or a data set of the hub.

    Args:
        name: minimal_pairs; the path of a `.jsonl` file; or owner/name/split@revision, owner/name/config/split@revision
            of a data set of the hub, the revision being a commit of 40 hexadecimal digits.
        n_items: at most so many, in the shares that the phenomena have; 0 for all.

    Raises ValueError that names the item and what to do for one that is none, and for what is no such name or number;
    FileNotFoundError for a file that is not there, or a data set that cannot be read, as when offline.
    """
    if isinstance(n_items, bool) or not isinstance(n_items, int) or n_items < 0:
        raise ValueError(f"n_items {n_items!r} is not a number of items, to be asked of {name}; 0 is all of them")
    files, of_hub = (), _HUB.fullmatch(str(name))
    if name in BUNDLED:
        called, source, rows = name, "bundled with editscale", task_files.table(BUNDLED[name], "editscale")
    elif of_hub:
        found = of_hub.groupdict()
        called, source = found["config"] or found["id"].split("/")[1], str(name)
        advice = "; load it once where there is a network, or give a .jsonl file"
        read = open_dataset(found["id"], found["config"] or "", found["split"], found["revision"], advice=advice)
        rows = ((f"{name}, row {i}", row) for i, row in enumerate(read, start=1))
    elif Path(str(name)).suffix.lower() == ".jsonl":
        files, source = (Path(name),), str(name)
        called, rows = files[0].stem, task_files.table(files[0], "the parameter choices")
    else:
        raise ValueError(
            f"unknown choices {name!r}; give {', '.join(BUNDLED)}, a .jsonl file, or a data set of the hub as "
            "owner/name/split@revision or owner/name/config/split@revision, the revision of 40 hexadecimal digits"
        )
    items = [_item(row, where) for where, row in rows]
    if not items:
        raise ValueError(f"{name} holds no item; each is one like {_FORM}")
    asked = task_files.proportional(items, n_items or len(items), lambda item: item.phenomenon)
    return Choices(called, asked, source, files)


def open_all(names, n_items=0):
    """`open_choices` of each of some names: a list. Raises ValueError if there are none, or two of one name."""
    opened = [open_choices(name, n_items) for name in names]
    twice = [name for name, count in Counter(of.name for of in opened).items() if count > 1]
    if twice or not opened:
        wrong = f"name {twice[0]} twice: tables could not tell them apart" if twice else "are empty"
        raise ValueError(f"choices {wrong}; give one or more, each with a name of its own")
    return opened


def _item(row, where):
    """The `Item` of a line, checked."""
    context, continuations, right, phenomenon = _fields(row, where)
    listed = continuations if isinstance(continuations, (list, tuple)) and len(continuations) else [None]
    if wrong := [text for text in (context, phenomenon, *listed) if not isinstance(text, str)]:
        raise ValueError(f"{where} has {wrong[0]!r} where a text, or a list of texts, belongs; an item is {_FORM}")
    if len(continuations) < 2 or not all(map(str.strip, continuations)):
        raise ValueError(f"{where}: continuations are two or more, and none is empty, not {continuations!r}")
    if str(right) not in map(str, range(len(continuations))):
        raise ValueError(
            f"{where}: the number of the right continuation is {right!r}, expected 0 to {len(continuations) - 1}; test "
            "splits may have none"
        )
    if continuations.count(continuations[int(right)]) > 1:
        raise ValueError(f"{where}: the right continuation is among the wrong ones too: {continuations[int(right)]!r}")
    if context != context.rstrip():
        raise ValueError(f"{where}: the context ends in white space; leave it out, a space is put there")
    return Item(context, tuple(continuations), int(right), phenomenon)


def _fields(row, where):
    """Context, continuations, right and phenomenon of a line, as they are there. ValueError if it has other fields."""
    phenomenon = row.get("phenomenon") or row.get("linguistics_term") or ""
    if {"continuations", "right"} <= row.keys():
        return row.get("context", ""), row["continuations"], row["right"], phenomenon
    if {"sentence_good", "sentence_bad"} <= row.keys():
        return "", [row["sentence_good"], row["sentence_bad"]], 0, phenomenon
    for name in ("goal", "activity_label", "ctx_a", "ctx_b"):
        if not isinstance(row.get(name, ""), str):
            raise ValueError(f"{where} has {row[name]!r} where a text belongs, {name}")
    if {"goal", "sol1", "sol2", "label"} <= row.keys():
        return f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"], phenomenon
    if {"activity_label", "ctx_a", "ctx_b", "endings", "label"} <= row.keys():
        context = _plain(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        endings = [_plain(ending) if isinstance(ending, str) else ending for ending in row["endings"] or ()]
        return context, endings, row["label"], phenomenon
    raise ValueError(f"{where} has the fields {', '.join(map(str, row))}; an item is {_FORM}")


def _plain(text):
    """A text of HellaSwag without the marks of the pages that it is from."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()
