"""Facts to edit: CounterFact records in, `Fact` values out.

A fact is a subject, a prompt template that holds the subject, the object to write and the true one, and
the prompts that score the edit. Two file formats are read: CounterFact's own, and EasyEdit's, which
keeps one paraphrase and one neighborhood prompt per fact.

Sources: CounterFact, Meng et al. 2022 (arXiv:2202.05262, section 3.3), data file of rome.baulab.info;
EasyEdit, Wang et al. 2023 (arXiv:2308.07269).
"""

import hashlib
import http.client
import json
import re
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from editscale.files import whole_file

COUNTERFACT_URL = "https://rome.baulab.info/data/dsets/counterfact.json"
COUNTERFACT_BYTES = 45_108_470
COUNTERFACT_SHA256 = "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f"
_PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
_EASYEDIT_TEXTS = (
    "prompt", "subject", "target_new", "ground_truth", "rephrase_prompt", "locality_prompt",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One fact to edit, as in CounterFact.

    `prompt` is a template with exactly one "{}", where the subject goes. All other prompts are complete
    strings. The targets carry no leading space. The ids name the objects in the data set's own scheme
    (Wikidata items in CounterFact) and stay empty where a file has none.
    """

    case_id: int
    subject: str
    prompt: str
    target_new: str
    target_true: str
    relation_id: str = ""
    target_new_id: str = ""
    target_true_id: str = ""
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()

    @property
    def rewrite_prompt(self) -> str:
        """The prompt with the subject in its place; braces anywhere else are plain text."""
        before, _, after = self.prompt.partition("{}")
        return before + self.subject + after


def parse(records: list, source: str) -> list[Fact]:
    """Facts in the order of `records`, each checked.

    The first record determines the format of the whole file. Needed in CounterFact's format:
    `case_id`, `requested_rewrite` (`prompt`, `subject`, `target_new.str`, `target_true.str`),
    `paraphrase_prompts`, `neighborhood_prompts`; in EasyEdit's: `case_id`, `prompt`, `subject`,
    `target_new`, `ground_truth`, `rephrase_prompt`, `locality_prompt`. Other fields may be missing.

    Raises:
        ValueError: names `source` (the file), the record and the field at fault.
    """
    if not isinstance(records, list):
        raise ValueError(f"{source} holds a JSON {type(records).__name__}, expected a list of fact records")
    if not records:
        raise ValueError(f"{source} holds no records, expected at least one fact")
    first = records[0]
    easyedit = isinstance(first, dict) and "requested_rewrite" not in first and "ground_truth" in first
    read = _from_easyedit if easyedit else _from_counterfact
    facts = [read(record, f"{source}, record {i}") for i, record in enumerate(records)]
    for i, fact in enumerate(facts):
        _check(fact, f"{source}, record {i}")
    repeated = [case_id for case_id, n in Counter(fact.case_id for fact in facts).items() if n > 1]
    if repeated:
        raise ValueError(f"{source}: case_id {repeated[0]} occurs more than once; every fact needs its own")
    return facts


def load(path) -> list[Fact]:
    """Facts of a JSON file in CounterFact's or EasyEdit's format; see `parse`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, is not JSON, or holds a record that is no valid fact.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no facts file {path}; CounterFact: python -m editscale counterfact FOLDER")
    text = path.read_bytes()
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not complete JSON ({len(text):,} bytes; {error}); it was probably cut off while it "
            f"was fetched or copied: delete it and fetch it anew (CounterFact, {COUNTERFACT_BYTES:,} bytes: "
            "python -m editscale counterfact FOLDER)"
        ) from error
    return parse(records, str(path))


def download_counterfact(folder) -> Path:
    """Path of `counterfact.json` in `folder`: the published 21,919 records, size and sha256 checked.

    A right file that is already there is returned without a download; the name is given only to
    a file that passed the checks.

    Raises:
        ValueError: the file there, or the one downloaded, is not the published one.
        ConnectionError: the host cannot be reached.
    """
    path = Path(folder) / "counterfact.json"
    if path.exists():
        _check_published(path, str(path), "move it away or delete it, then try again")
        return path
    with whole_file(path) as part:
        try:
            with urllib.request.urlopen(COUNTERFACT_URL, timeout=60) as response, open(part, "wb") as file:
                file.write(response.read(COUNTERFACT_BYTES + 1))  # not more, whatever is sent
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"cannot fetch {COUNTERFACT_URL} ({error}); without network, put a copy of it at {path}"
            ) from error
        _check_published(part, f"the download of {COUNTERFACT_URL}", "try again")
    return path


def _from_counterfact(record, where: str) -> Fact:
    _require(record, ("case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"), where)
    rewrite = record["requested_rewrite"]
    _require(rewrite, ("prompt", "subject", "target_new", "target_true"), f"{where}, requested_rewrite")
    new, true = rewrite["target_new"], rewrite["target_true"]
    _require(new, ("str",), f"{where}, requested_rewrite.target_new")
    _require(true, ("str",), f"{where}, requested_rewrite.target_true")
    lists = {name: record.get(name, []) for name in _PROMPT_LISTS}
    for name, prompts in lists.items():
        if not isinstance(prompts, list):
            raise ValueError(f"{where}: {name} is {prompts!r}, expected a list of strings")
    return Fact(
        case_id=record["case_id"],
        subject=rewrite["subject"],
        prompt=rewrite["prompt"],
        target_new=new["str"],
        target_true=true["str"],
        relation_id=rewrite.get("relation_id", ""),
        target_new_id=new.get("id", ""),
        target_true_id=true.get("id", ""),
        **{name: tuple(prompts) for name, prompts in lists.items()},
    )


def _from_easyedit(record, where: str) -> Fact:
    _require(record, ("case_id", *_EASYEDIT_TEXTS), where)
    for name in _EASYEDIT_TEXTS:
        _check_string(record[name], name, where)
    subject, prompt = record["subject"], record["prompt"]
    if not subject.strip():
        raise ValueError(f"{where}: subject is empty")
    start, n_places = prompt.find(subject), prompt.count(subject)
    if n_places > 1:  # as whole words it may occur once: Ana in "In Anatolia Ana plays"
        places = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)]
        start, n_places = (places[0], 1) if len(places) == 1 else (start, n_places)
    if n_places != 1:  # of two places, either may be meant: a guess could edit another statement
        raise ValueError(
            f"{where}: prompt {prompt!r} holds the subject {subject!r} {n_places} times, expected once; "
            "give this fact in CounterFact's format, with {} in place of the subject"
        )
    return Fact(
        case_id=record["case_id"],
        subject=subject,
        prompt=prompt[:start] + "{}" + prompt[start + len(subject) :],
        target_new=record["target_new"],
        target_true=record["ground_truth"],
        paraphrase_prompts=(record["rephrase_prompt"],),
        neighborhood_prompts=(record["locality_prompt"],),
    )


def _require(record, fields: tuple[str, ...], where: str) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a JSON {type(record).__name__}, expected an object")
    missing = [name for name in fields if name not in record]
    if missing:
        raise ValueError(
            f"{where}: missing {', '.join(missing)} (fields there: {', '.join(record)}); expected the format "
            "of CounterFact, or that of EasyEdit with ground_truth"
        )


def _check_string(value, name: str, where: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {value!r}, expected a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: {name} {value!r} holds half of a surrogate pair, which is no text")


def _check(fact: Fact, where: str) -> None:
    if type(fact.case_id) is not int:
        raise ValueError(f"{where}: case_id is {fact.case_id!r}, expected an integer")
    where = f"{where} (case_id {fact.case_id})"
    for name, value in vars(fact).items():
        if name in _PROMPT_LISTS:
            for i, prompt in enumerate(value):
                _check_string(prompt, f"{name}[{i}]", where)
        elif name != "case_id":
            _check_string(value, name, where)
    for name in ("subject", "target_new", "target_true"):
        value = getattr(fact, name)
        if not value.strip():
            raise ValueError(f"{where}: {name} is empty")
        # Prompts and scores put the one space themselves; a second one would change the tokens.
        if value != value.strip():
            raise ValueError(f"{where}: {name} {value!r} starts or ends with a space; take it away")
    if fact.prompt.count("{}") != 1:
        raise ValueError(
            f"{where}: prompt {fact.prompt!r} has {fact.prompt.count('{}')} placeholders, expected exactly "
            "one {} for the subject"
        )
    if fact.target_new == fact.target_true:
        raise ValueError(f"{where}: target_new and target_true are both {fact.target_new!r}")


def _check_published(path, what: str, remedy: str) -> None:
    """Error unless `path` has the size and sha256 of the published CounterFact file."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if (size, digest) != (COUNTERFACT_BYTES, COUNTERFACT_SHA256):
        raise ValueError(
            f"{what} has {size:,} bytes and sha256 {digest}, not CounterFact's {COUNTERFACT_BYTES:,} bytes "
            f"and {COUNTERFACT_SHA256}; {remedy}"
        )
