"""Facts to edit: records of a file in, `Fact` values out.

A fact is a subject, a prompt template that holds the subject, the object to write and, where it is known, the true one,
and the prompts that score the edit. Which files are read: `fact_files`; in which formats: `fact_formats`.
"""

import hashlib
import http.client
import urllib.request
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from editscale.data import fact_files, fact_formats
from editscale.files import sha256_json, whole_file

COUNTERFACT_URL = "https://rome.baulab.info/data/dsets/counterfact.json"
COUNTERFACT_BYTES = 45_108_470
COUNTERFACT_SHA256 = "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f"
_LATER = ("neighborhood_answers", "portability_prompts", "portability_answers")  # fields that older facts lack
_SHOWN = 5  # refused records that an error names


@dataclass(frozen=True)
class Fact:
    """One fact to edit.

    `prompt` is a template with exactly one "{}", where the subject goes. All other prompts are complete strings.
    Targets and answers carry no leading space. `target_true` is empty where no true answer is known. The ids name the
    objects in the data set's own scheme (Wikidata items in CounterFact) and stay empty where a file has none.

    `neighborhood_answers` are the true answers to the neighborhood prompts, in their order; none at all where that is
    `target_true` for each. `portability_answers` are what an edited model should answer to the portability prompts,
    which ask for what follows from the fact.
    """

    case_id: int
    subject: str
    prompt: str
    target_new: str
    target_true: str = ""
    relation_id: str = ""
    target_new_id: str = ""
    target_true_id: str = ""
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    neighborhood_answers: tuple[str, ...] = ()
    portability_prompts: tuple[str, ...] = ()
    portability_answers: tuple[str, ...] = ()

    @property
    def rewrite_prompt(self) -> str:
        """The prompt with the subject in its place; braces anywhere else are plain text."""
        before, _, after = self.prompt.partition("{}")
        return before + self.subject + after

    @property
    def identity(self) -> str:
        """sha256 of the fact as ledgers name it: of all fields, those that came later only where they are set."""
        fields = asdict(self)
        return sha256_json({name: value for name, value in fields.items() if value or name not in _LATER})


@dataclass(frozen=True)
class FactSet:
    """The facts of a file, and what was understood of it: format and form in words, and notes on what was not read."""

    source: str
    facts: list[Fact]
    format: str
    form: str
    notes: list[str]


def parse(records: list, source: str) -> list[Fact]:
    """Facts in the order of `records`, each checked.

    The first record determines the format of the whole file (`fact_formats`). Needed are subject, prompt and the new
    object; everything else may be missing, or null. Where no record has a case_id, the facts are numbered from 0.

    Raises:
        ValueError: names `source` (the file), the record and the field at fault.
    """
    return _fact_set(fact_files.Records("JSON", records, []), source).facts


def load(path) -> list[Fact]:
    """Facts of a file; see `fact_files.read` and `parse`. Warns of fields that are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, is not what is read here, or holds a record that is no valid fact.
    """
    found = read(path)
    if found.notes:
        warnings.warn(f"{found.source}: {'; '.join(found.notes)}", stacklevel=2)
    return found.facts


def read(path, refused: list | None = None) -> FactSet:
    """The `FactSet` of a file; raises what `load` raises.

    Args:
        refused: takes what is wrong with each record that is no valid fact, which is left out; None: an error.
    """
    return _fact_set(fact_files.read(path), str(path), refused)


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
        _check_published(path, str(path), "it is left as it is: name another folder, or move it away")
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


def _fact_set(found, source, leave_out=None):
    records = found.records
    if not isinstance(records, list):
        raise ValueError(f"{source} holds a JSON {type(records).__name__}, expected a list of fact records")
    if not records:
        raise ValueError(f"{source} holds no records, expected at least one fact")
    form = fact_formats.known_format(records[0])
    facts, numbered, notes, refused = [], [], Counter(), {}
    for i, record in enumerate(records):
        place = found.places[i] if found.places else f"record {i}"
        try:
            read_facts, said = fact_formats.read(record, form, f"{source}, {place}")
            for where, fields, names in read_facts:
                facts.append(_checked({"case_id": len(facts)} | fields, names, where))
                numbered += [place] if "case_id" in fields else []
        except ValueError as error:
            refused[place] = str(error)
        else:
            notes.update(dict.fromkeys(said, 1))
    if leave_out is not None and facts:
        leave_out += refused.values()
    elif refused:
        first, *others = refused
        more = f"; refused too: {', '.join(others[:_SHOWN])}{' …' if others[_SHOWN:] else ''} ({len(others)} more)"
        raise ValueError(refused[first] + (more if others else ""))
    if form == "MQuAKE" and len(numbered) < len(facts):  # an instance of several rewrites has one number for all
        facts = [replace(fact, case_id=i) for i, fact in enumerate(facts)]
    elif 0 < len(numbered) < len(facts):
        n = len(facts) - len(numbered)
        raise ValueError(
            f"{source}: {numbered[0]} has a case_id and {n} others have none; give every fact one, or none"
        )
    repeated = [case_id for case_id, n in Counter(fact.case_id for fact in facts).items() if n > 1]
    if repeated:
        raise ValueError(f"{source}: case_id {repeated[0]} occurs more than once; every fact needs its own")
    counted = [f"{note} ({n:,} of {len(records):,} records)" for note, n in notes.items()]
    return FactSet(source, facts, form, found.form, counted)


def _checked(fields, names, where: str) -> Fact:
    """The `Fact` of these fields, once they hold what they should; `names` are those of the fields in the file."""
    if type(fields["case_id"]) is not int:
        raise ValueError(f"{where}: case_id is {fields['case_id']!r}, expected an integer")
    where = f"{where} (case_id {fields['case_id']})"
    for field, value in fields.items():
        name = names.get(field, field)
        if isinstance(value, tuple):
            for i, text in enumerate(value):
                _check_text(text, f"{name}[{i}]", where, edges=field.endswith("_answers"))
        elif field != "case_id":
            edges = field in ("subject", "target_new", "target_true")
            _check_text(value, name, where, edges=edges, empty=field.endswith("_id"))
    fact = Fact(**fields)
    if fact.prompt.count("{}") != 1:
        raise ValueError(
            f"{where}: prompt {fact.prompt!r} has {fact.prompt.count('{}')} placeholders, expected exactly "
            "one {} for the subject"
        )
    if fact.target_new == fact.target_true:
        raise ValueError(f"{where}: target_new and target_true are both {fact.target_new!r}")
    return fact


def _check_text(value, name, where, *, edges=False, empty=False):
    """Raise ValueError unless a value is a text, not empty and, with `edges`, without spaces around it."""
    fact_formats.check_text(value, name, where)
    if not empty and not value.strip():
        raise ValueError(f"{where}: {name} is empty ({value!r}); give a text, or leave it out where it may be missing")
    # Prompts and scores put the one space themselves; a second one would change the tokens.
    if edges and value != value.strip():
        raise ValueError(f"{where}: {name} {value!r} starts or ends with a space; take it away")


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
