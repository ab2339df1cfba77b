"""Records of published sets of facts, as the fields of a `facts.Fact`.

| format | how it is known | what it holds |
|---|---|---|
| CounterFact | requested_rewrite, an object | Meng et al. 2022 (arXiv:2202.05262, section 3.3) |
| MQuAKE | requested_rewrite, a list | Zhong et al. 2023 (arXiv:2305.14795): each single rewrite is one fact |
| zsRE | src | question-answer pairs as published with MEND, Mitchell et al. 2022 (arXiv:2110.11309) |
| EasyEdit | subject, prompt and target_new | Wang et al. 2023 (arXiv:2308.07269) |
| KnowEdit | the same, with locality or portability | Zhang et al. 2024 (arXiv:2401.01286) |
| plain | the same, without fields of EasyEdit's | a table or list of one's own |

All but the first two are read alike: `NAMES` lists the names that a field may have. Where a format has aliases of an
answer, the first is taken. `alt` of zsRE is the new object and the first of `answers` the true one; a record without
`alt` is read as kmeng01/memit `dsets/zsre.py` does: its answer is what is edited in, and there is no true one.

MQuAKE: the question of a rewrite is its paraphrase. The questions of an instance with one rewrite are portability
prompts, with the new answer; those of an instance with several ask for all of them at once, and are left out.
"""

import difflib
import math
import re

_FIELDS = {  # field of a fact ↦ the names it may have in a record
    "case_id": "case_id",
    "subject": "subject",
    "prompt": "prompt src",
    "target_new": "target_new alt",
    "target_true": "target_true ground_truth answers",
    "relation_id": "relation_id relation",
    "target_new_id": "target_new_id",
    "target_true_id": "target_true_id",
    "paraphrase_prompts": "paraphrase_prompts paraphrase_prompt paraphrases paraphrase "
    "rephrase_prompts rephrase_prompt rephrase",
    "neighborhood_prompts": "neighborhood_prompts neighborhood_prompt neighborhood neighbors neighbor locality_prompts "
    "locality_prompt loc_prompt loc",
    "neighborhood_answers": "neighborhood_answers neighborhood_answer neighbor_answers neighbor_answer "
    "locality_ground_truth locality_answer loc_ans",
    "attribute_prompts": "attribute_prompts",
    "generation_prompts": "generation_prompts generation_prompt",
    "portability_prompts": "portability_prompts portability_prompt",
    "portability_answers": "portability_answers portability_answer portability_ground_truth",
    "locality": "locality locality_inputs",
    "portability": "portability portability_inputs",
}
NAMES = {name: field for field, names in _FIELDS.items() for name in names.split()}
LISTS = tuple(field for field in _FIELDS if field.endswith(("_prompts", "_answers")))
_UNREAD = {"pararel_idx", "cond", "pred"}  # known, and of no use here
_MQUAKE = {  # the others are whole chains of facts, and aliases
    "case_id", "questions", "answer", "answer_alias", "new_answer", "new_answer_alias", "single_hops",
    "new_single_hops", "orig",
}  # fmt: skip
_AROUND = ("case_id", "locality", "portability", *LISTS)  # fields of CounterFact outside requested_rewrite
_ANSWER_NAMES = ("ground_truth", "target", "answer")
_NO_ANSWER = "<|endoftext|>"  # stands for no true answer in kmeng01/memit


def plain_name(name):
    """A field's name as `NAMES` has it, however a table writes it: "Target New", or with British spelling."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower()).replace("bour", "bor")


def known_format(record):
    """The name of a record's format, "unknown" if it is none of the table above."""
    names = {plain_name(name) for name in record} if isinstance(record, dict) else set()
    if "requested_rewrite" in names:
        return "MQuAKE" if isinstance(record.get("requested_rewrite"), list) else "CounterFact"
    if not (names & {"src"} or len(names & {"subject", "prompt", "target_new"}) > 1):
        return "unknown"
    if "src" in names:
        return "zsRE"
    if isinstance(record.get("portability"), dict) or isinstance(record.get("locality"), dict):
        return "KnowEdit"
    return "EasyEdit" if names & {"ground_truth", "rephrase_prompt", "locality_prompt"} else "plain"


def read(record, form, where):
    """The facts of a record, and notes on what was not read of it.

    A fact is (where it is, dict of the fields of a `facts.Fact`, field ↦ its name in the file where that is another).
    A field that may be missing and is null, or NaN, counts as missing.

    Raises:
        ValueError: names `where` and the field at fault.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a JSON {type(record).__name__}, expected an object")
    if form in ("CounterFact", "MQuAKE"):
        return _rewrites(record, form, where)
    present = _present(record)
    if form == "unknown":
        absent = [name for name in ("subject", "prompt", "target_new") if name not in map(plain_name, present)]
        raise ValueError(
            f"{where}: missing requested_rewrite (CounterFact), or else {', '.join(absent)} (fields there: "
            f"{', '.join(map(str, record))}); python -m editscale facts --help says what is read"
        )
    notes = [_not_read(name) for name in present if plain_name(name) not in (NAMES.keys() | _UNREAD)]
    fields, names = _named(present, where, notes)
    _require(fields, ("subject", "prompt", "target_new"), record, where)
    return [(where, _texts(fields | _template(fields, where), names, where), names)], notes


def _rewrites(record, form, where):
    """`read` of a record that holds one rewrite (CounterFact) or a list of them (MQuAKE)."""
    outer = _present(record)
    _require(outer, ("requested_rewrite",), record, where, also=("paraphrase_prompts", "neighborhood_prompts"))
    given = outer.pop("requested_rewrite")
    rewrites = [given] if form == "CounterFact" else given
    if not isinstance(rewrites, list) or not rewrites:
        raise ValueError(f"{where}: requested_rewrite is {_shown(given)}, expected a list of rewrites")
    known, inner = (_AROUND, ()) if form == "CounterFact" else (_MQUAKE, ("question",))
    notes = [_not_read(name) for name in outer if name not in (*known, *_UNREAD)]
    if len(rewrites) > 1:
        notes.append(
            "several rewrites at once: each is a fact, numbered anew, and questions to all of them are not read"
        )
    facts = []
    for i, rewrite in enumerate(rewrites):
        place = where if len(rewrites) == 1 else f"{where}, requested_rewrite[{i}]"
        around = outer if form == "CounterFact" else _of_mquake(outer, rewrite, len(rewrites))
        facts.append((place, _counterfact(around, rewrite, place, notes), {}))
        known = ("prompt", "subject", "relation_id", "target_new", "target_true", *inner)
        notes += [_not_read(f"requested_rewrite.{name}") for name in rewrite if name not in known]
    return facts, notes


def _not_read(name):
    meant = difflib.get_close_matches(plain_name(name), NAMES, 1)
    return f"field {name} is not read" + (f" (did you mean {meant[0]}?)" if meant else "")


def _present(record):
    return {name: value for name, value in record.items() if not _missing(value)}


def _missing(value):
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value):
    text = "null" if value is None else repr(value)
    return text if len(text) <= 200 else text[:200] + " …"


def _require(fields, needed, record, where, also=()):
    absent = [name for name in needed if name not in fields]
    if absent:
        absent = [f"{name} (it is null)" if name in record else name for name in absent]
        absent += [name for name in also if name not in fields]
        raise ValueError(
            f"{where}: missing {', '.join(absent)} (fields there: {', '.join(map(str, record))}); a fact needs "
            "subject, prompt and target_new, or CounterFact's requested_rewrite with prompt, subject and target_new"
        )


def _named(record, where, notes):
    """The fields of a fact in a record, by the names of `_FIELDS`, and field ↦ name in the record."""
    fields, came = {}, {}
    for name, value in record.items():
        field = NAMES.get(plain_name(name))
        if field is None:
            continue
        if field in fields:
            raise ValueError(f"{where}: {came[field]} and {name} both give {field}; keep one of them")
        fields[field], came[field] = value, name
    if fields.get("target_new") in (None, "") and {"src", "answers"} <= set(came.values()):
        fields["target_new"] = _first(fields.pop("target_true"), "answers", where)
        notes.append("no alt: the first of answers is edited in, and there is no true answer")
    return fields, came


def _template(fields, where):
    """The subject, and the prompt with {} in its place: as it is there already, or sought in the prompt."""
    subject, prompt = fields["subject"], fields["prompt"]
    check_text(subject, "subject", where)
    check_text(prompt, "prompt", where)
    if not subject.strip():
        raise ValueError(f"{where}: subject is empty")
    words = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)]
    if prompt.count("{}") == 1 and not words:
        return {}
    start, n_places = prompt.find(subject), prompt.count(subject)
    if n_places > 1 and len(words) == 1:  # as whole words it may occur once: Ana in "In Anatolia Ana plays"
        start, n_places = words[0], 1
    if n_places != 1:  # of two places, either may be meant: a guess could edit another statement
        raise ValueError(
            f"{where}: prompt {prompt!r} holds the subject {subject!r} {n_places} times, expected once; write {{}} in "
            "the prompt in place of the subject"
        )
    return {"prompt": prompt[:start] + "{}" + prompt[start + len(subject) :]}


def _counterfact(outer, rewrite, where, notes):
    """A rewrite and what stands around it as the fields of a fact."""
    inside = f"{where}, requested_rewrite"
    if not isinstance(rewrite, dict):
        raise ValueError(f"{inside} is a JSON {type(rewrite).__name__}, expected an object")
    rewrite = _present(rewrite)
    _require(rewrite, ("prompt", "subject", "target_new"), rewrite, inside)
    fields = {name: value for name, value in outer.items() if name in _AROUND}
    for name in LISTS:
        if not isinstance(fields.get(name, []), list):
            raise ValueError(f"{where}: {name} is {_shown(fields[name])}, expected a list of strings")
    fields |= {name: rewrite[name] for name in ("prompt", "subject", "relation_id") if name in rewrite}
    for name in ("target_new", "target_true"):
        if name in rewrite:
            given = rewrite[name]
            if not isinstance(given, dict):
                raise ValueError(f"{inside}.{name} is a JSON {type(given).__name__}, expected an object")
            if name == "target_new" or "str" not in given:
                _require(_present(given) if name == "target_new" else given, ("str",), given, f"{inside}.{name}")
            given = _present(given)
            fields |= {name + end: given[key] for key, end in (("str", ""), ("id", "_id")) if key in given}
    if fields.get("target_true") == _NO_ANSWER:
        del fields["target_true"]
        notes.append(f"target_true {_NO_ANSWER} counts as no true answer")
    return _texts(fields, {}, where)


def _of_mquake(outer, rewrite, n_rewrites):
    """What stands around one rewrite of an MQuAKE instance, in CounterFact's names."""
    question = rewrite.get("question") if isinstance(rewrite, dict) else None
    around = {"paraphrase_prompts": [] if _missing(question) else [question]}
    if n_rewrites > 1:
        return around
    if "case_id" in outer:
        around["case_id"] = outer["case_id"]
    if "questions" in outer and "new_answer" in outer:
        questions = outer["questions"]
        around["portability_prompts"] = questions
        around["portability_answers"] = [outer["new_answer"]] * (len(questions) if isinstance(questions, list) else 1)
    return around


# ----------------------------------------------------------------------------------------------- prompts and answers


def _texts(fields, names, where):
    """The fields with lists as tuples, nested prompts and answers (`locality`, `portability`) among them."""
    where = f"{where} (case_id {fields['case_id']})" if type(fields.get("case_id")) is int else where
    if fields.get("target_true") == "":
        del fields["target_true"]
    if isinstance(fields.get("target_true"), list):
        fields["target_true"] = _first(fields["target_true"], names.get("target_true", "target_true"), where)
    for kind, nested in (("neighborhood", "locality"), ("portability", "portability")):
        prompts, answers = f"{kind}_prompts", f"{kind}_answers"
        name = names.get(prompts, prompts)
        pairs = _pairs(fields.pop(prompts, []), fields.pop(answers, None), name, where)
        inside = _nested(fields.pop(nested, []), nested, where)
        if inside and any(answer is None for _, answer in pairs):
            raise ValueError(f"{where}: {nested} has answers and {name} has none; give {answers} too")
        pairs += inside
        if kind == "portability" and any(answer is None for _, answer in pairs):
            raise ValueError(f"{where}: {name} without {answers}; give each prompt its answer")
        fields[prompts] = tuple(prompt for prompt, _ in pairs)
        fields[answers] = tuple(answer for _, answer in pairs if answer is not None)
    for name in ("paraphrase_prompts", "attribute_prompts", "generation_prompts"):
        fields[name] = tuple(_list(fields.get(name, []), names.get(name, name), where))
    own = fields["neighborhood_answers"]
    if own and all(answer == fields.get("target_true") for answer in own):
        fields["neighborhood_answers"] = ()
    return fields


def _list(value, name, where):
    if not isinstance(value, str | list):
        raise ValueError(f"{where}: {name} is {_shown(value)}, expected a string or a list of strings")
    return [value] if isinstance(value, str) else value


def _pairs(prompts, answers, name, where):
    """[(prompt, its answer or None)] of prompts and what answers them: a text for one prompt, a list for a list.

    An entry of a list of prompts may be an object that holds its answer.
    """
    if isinstance(prompts, list) and any(isinstance(entry, dict) for entry in prompts):
        if answers is not None:
            raise ValueError(f"{where}: {name} holds answers, and there are others beside it; keep one kind")
        return _nested(prompts, name, where)
    listed = _list(prompts, name, where)
    if answers is None:
        return [(prompt, None) for prompt in listed]
    if isinstance(prompts, str) or not isinstance(answers, list):
        answers = [answers]
    if len(answers) != len(listed):
        raise ValueError(
            f"{where}: {len(listed)} prompts in {name} and {len(answers)} answers to them; give each prompt one"
        )
    return [
        (prompt, _first(answer, f"answer {i} of {name}", where))
        for i, (prompt, answer) in enumerate(zip(listed, answers, strict=True))
    ]


def _nested(value, name, where, depth=0):
    """[(prompt, answer)] of objects with both, of lists of such, and of objects that hold such under names."""
    if depth > 3 or not isinstance(value, dict | list):
        raise ValueError(f"{where}: {name} is {_shown(value)}, expected objects with prompt and ground_truth")
    if isinstance(value, list):
        return [pair for i, part in enumerate(value) for pair in _nested(part, f"{name}[{i}]", where, depth + 1)]
    value = _present(value)
    if "New Question" in value:  # portability of EasyEdit's CounterFact and zsRE
        value = {"prompt": value["New Question"], "ground_truth": value.get("New Answer")}
    if "prompt" in value:
        for prompt in _list(value["prompt"], f"{name}.prompt", where):
            if isinstance(prompt, str) and not prompt.strip():
                raise ValueError(f"{where}: {name}.prompt is empty ({prompt!r}); give a text, or leave the prompt out")
        answer = next((value[key] for key in _ANSWER_NAMES if not _missing(value.get(key))), None)
        if answer is None:
            raise ValueError(f"{where}: {name} has a prompt without ground_truth; give it its answer")
        return _pairs(value["prompt"], answer, f"{name}.prompt", where)
    return [pair for key, part in value.items() for pair in _nested(part, f"{name}.{key}", where, depth + 1)]


def _first(answer, name, where):
    """An answer, or the first of its aliases."""
    given = answer
    while isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{where}: {name} is {_shown(given)}, expected a text or a list of its aliases")
    return answer


def check_text(value, name, where):
    """Raise ValueError unless a value is a string of whole characters."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {_shown(value)}, expected a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: {name} {value!r} holds half of a surrogate pair, which is no text")
