"""What was understood of a file of facts, in words, and those of its facts that can be used, as a file of their own."""

import json
from pathlib import Path

from editscale.data.facts import Fact, FactSet
from editscale.files import write_whole


def described(found: FactSet) -> str:
    """What was understood of a file, in lines: how many facts with what, what was not read, and the first fact."""
    facts, first = found.facts, found.facts[0]
    has = {
        "a true answer": [fact.target_true for fact in facts],
        "paraphrases": [fact.paraphrase_prompts for fact in facts],
        "neighborhood prompts": [fact.neighborhood_prompts for fact in facts],
        "own answers to them": [fact.neighborhood_answers for fact in facts],
        "portability prompts": [fact.portability_prompts for fact in facts],
        "a relation": [fact.relation_id for fact in facts],
    }
    lines = [f"{found.source}: {len(facts):,} facts, {found.format} format, {found.form}"]
    for what, values in has.items():
        n, prompts = sum(map(bool, values)), sum(len(value) for value in values if isinstance(value, tuple))
        lines.append(f"  with {what + ':':23}{n:>9,}" + (f"  ({prompts:,} in all)" if prompts else ""))
    lines.append(f"  unique subjects:{len({fact.subject.lower() for fact in facts}):>21,}")
    lines += [f"note: {note}" for note in found.notes]
    instead = f" instead of {first.target_true!r}" if first.target_true else ""
    lines.append(
        f"first fact, case {first.case_id}: {first.rewrite_prompt!r} shall go on with {first.target_new!r}{instead}"
    )
    asked = {
        "paraphrase": ([first.target_new] * len(first.paraphrase_prompts), first.paraphrase_prompts),
        "neighborhood": (
            first.neighborhood_answers or [first.target_true] * len(first.neighborhood_prompts),
            first.neighborhood_prompts,
        ),
        "portability": (first.portability_answers, first.portability_prompts),
    }
    for kind, (answers, prompts) in asked.items():
        for answer, prompt in list(zip(answers, prompts, strict=True))[:1]:
            lines.append(f"  {kind}: {prompt!r}, where {answer!r} is right" if answer else f"  {kind}: {prompt!r}")
    return "\n".join(lines)


def as_record(fact: Fact) -> dict:
    """A fact as a record of CounterFact's form, without what it does not have; `facts.parse` gives it back."""
    rewrite = {"prompt": fact.prompt, "subject": fact.subject, "relation_id": fact.relation_id}
    for name in ("target_new", "target_true"):
        rewrite[name] = {"str": getattr(fact, name), "id": getattr(fact, f"{name}_id")}
    lists = {name: list(value) for name, value in vars(fact).items() if isinstance(value, tuple) and value}
    return {"case_id": fact.case_id, "requested_rewrite": rewrite, **lists}


def write_facts(facts: list[Fact], path) -> None:
    """Write facts as JSON lines to a new file. Raises ValueError if there is one."""
    if Path(path).exists():
        raise ValueError(f"{path} is there already; choose another name for the facts that are kept")
    lines = [json.dumps(as_record(fact), ensure_ascii=False) + "\n" for fact in facts]
    write_whole(path, "".join(lines).encode())
