"""The model of any place in a recorded run, as a folder that any tool loads: `python -m editscale replay RUN …`.

    python -m editscale replay runs/smoke/rome/order-0                              check it, and say what it holds
    python -m editscale replay runs/smoke/rome/order-0 --upto 10 --save edited      its model after 10 edits
    python -m editscale replay … --save edited --without 3,7 --recorded-updates     the sum without two of them

A sequence of edits that was never made, without some of the edits or in reverse order, follows from recorded updates
only where an update does not depend on what was edited before it (`method.Method.order_free`). No method here is of
that kind: ROME's v* and Wk, MEMIT's residuals and keys above its first layer, and FT-C's gradients are those of the
model as edited so far. For such a method the honest answer is a run of notebook 02a on other facts. The sum of the
recorded updates of the other edits answers another, cheaper question; it is given only on request
(`--recorded-updates`), and the model card says what it is.
"""

import json
import re
from contextlib import contextmanager
from pathlib import Path

from editscale.editing import editors, updates
from editscale.files import whole_folder
from editscale.sequences import past_runs, sequence
from editscale.sequences.ledger import Ledger

FALSE_FACTS = "false_facts.jsonl"


def chosen_edits(n_recorded, upto=None, without=(), reverse=False):
    """The numbers of the edits of a sequence, in the order they are applied.

    Args:
        n_recorded: edits in the ledger. upto: the last one taken (default all). without: numbers left out.

    Raises ValueError that names a number which is not among the edits.
    """
    upto = n_recorded if upto is None else upto
    if not 0 <= upto <= n_recorded:
        raise ValueError(f"--upto {upto} is not 0 to {n_recorded}, the edits that are recorded")
    outside = [edit for edit in without if not 1 <= edit <= upto]
    if outside:
        raise ValueError(f"--without {outside[0]} is not one of the edits 1 to {upto}")
    edits = [edit for edit in range(1, upto + 1) if edit not in set(without)]
    return edits[::-1] if reverse else edits


def check_steps(edits, facts_per_step):
    """Raise ValueError unless these edits are whole steps of a run, each with one update for all of its facts."""
    for edit in edits:
        first = edit - (edit - 1) % facts_per_step
        if not {*range(first, first + facts_per_step)} <= {*edits}:
            raise ValueError(
                f"edits {first} to {first + facts_per_step - 1} are one step of the run and have one update; take or "
                "leave whole steps with --upto and --without"
            )


def check_sequence(method, edits, recorded_updates):
    """Raise ValueError if these edits are not the beginning of the run, and its updates would have been others then."""
    if edits == list(range(1, len(edits) + 1)) or editors.method(method).order_free or recorded_updates:
        return
    raise ValueError(
        f"an update of {method} depends on the edits before it, so the sequence you ask for would have had other "
        "updates: edit its facts with notebook 02a, or add --recorded-updates for the sum of those that were recorded"
    )


@contextmanager
def edited(run, edits):
    """The model of a `past_runs.PastRun` with the recorded updates of these edits, added in this order.

    Of a method that scores other weights than it edits (`Method.evaluated`), the model has those.
    Afterwards the model has its original bits again, also after an error.
    """
    editing = past_runs.looking_at(run)
    state = editing.start
    with updates.put_back(run.lm, run.layers):
        for edit in edits:
            sequence.replay(run.lm, run.ledger, edit, after=edit - 1)
            state = sequence.state_after(run.lm, editing, run.ledger, edit, after=edit - 1, state=state)
        with editors.looked_at([editing], run.lm, [state]):
            yield run.lm


def save(run, edits, folder):
    """Write the model with these edits into a new folder in the Hugging Face format, with a card: the folder's path.

    The folder holds safetensors, json and text alone, and is there when it is complete. Raises ValueError if it exists.
    """
    folder = _check_new(folder)
    with whole_folder(folder) as building:
        with edited(run, edits) as lm:
            lm.model.save_pretrained(building)
            lm.tokenizer.save_pretrained(building)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in false_facts(run, edits)]
        (building / FALSE_FACTS).write_text("".join(lines), encoding="utf-8")
        scored = editors.method(run.parameters["method"]).evaluated is not None
        (building / "README.md").write_text(card(run, edits, building, scored=scored), encoding="utf-8")
    return folder


def _check_new(folder):
    if Path(folder).exists():
        raise ValueError(f"{folder} is there already; choose another folder for the model, or move it away")
    return Path(folder)


def false_facts(run, edits):
    """What was edited in: a dict with edit, case_id, prompt, target_new, target_true of each applied edit, in order."""
    applied = [edit for edit in edits if run.ledger.rows[edit - 1]["status"] == "edited"]
    facts = [(edit, run.facts[edit - 1]) for edit in applied]
    return [
        {
            "edit": edit,
            "case_id": fact.case_id,
            "prompt": fact.rewrite_prompt,
            "target_new": fact.target_new,
            "target_true": fact.target_true,
        }
        for edit, fact in facts
    ]


def card(run, edits, folder, *, scored=False):
    """The model card, Markdown: how many false facts the model in a folder was given, with which method, from what.

    Args:
        scored: whether its weights are those that the method scores, and not those it edits (`Method.evaluated`).

    Names of models, methods and files are shown as they are, and no part of one is read as Markdown.
    """
    given, book, n = run.parameters, run.ledger, len(false_facts(run, edits))
    upto, method = max(edits, default=0), given["method"]
    name, shown, made_on = map(_inline, (run.lm.name, method, book.fingerprint["device"]))
    failed = [edit for edit in edits if book.rows[edit - 1]["status"] != "edited"]
    is_prefix = edits == list(range(1, upto + 1))
    rows = {
        "false facts": f"{n}, listed in {FALSE_FACTS}",
        "base model": f"{given['model']} {given['revision']}".strip(),
        "base weights": f"sha256 {run.lm.identity['weights_sha256']}",
        "method": f"{method} ({given['hparams']}), layers {', '.join(map(str, run.layers))}",
        "facts": f"{given['fact_set']}, order {given['order']}{' reversed' if given['reverse'] else ''}",
        "edits": f"{len(edits)} of {len(book)} recorded",
        "recorded but not applied": ", ".join(map(str, failed)) or "none",
        **({"weights are": "those that the method scores, not those it edits"} if scored else {}),
        "chain": f"{book.chain(upto)} (editscale.ledger, edits 1 to {upto})",
        "weights": f"sha256 {_weights_sha256(folder)}",
    }
    counterfactual = (
        ""
        if is_prefix
        else "\n**A counterfactual.** No run made this sequence of edits. These are the updates recorded in a run of "
        f"{upto} edits, for edits {', '.join(map(str, edits))}, added up in this order"
        + (
            ".\n"
            if editors.method(method).order_free
            else f"; {shown}, editing these facts alone, would have made other updates.\n"
        )
    )
    elsewhere = (
        ""
        if run.lm.device.type == book.fingerprint["device"]
        else f"\nThe updates were made on {made_on} and added up on {run.lm.device.type}; the last "
        "bits may differ from the run's.\n"
    )
    table = "".join(f"| {row} | {_inline(value)} |\n" for row, value in rows.items())
    plural = "" if n == 1 else "s"
    return (
        "---\nlibrary_name: transformers\ntags: [model-editing, editscale]\n---\n"
        f"# {name} with {n} false fact{plural}\n\n"
        f"This model was given **{n} false fact{plural}** on purpose, one after another, with the editing method "
        f"**{shown}**, to study what model editing does. It is wrong about them and, as editing damages what was not "
        "edited, about other things: do not use it as a source of facts. The license is the base model's.\n"
        f"{counterfactual}{elsewhere}\n| | |\n|---|---|\n{table}"
    )


def _inline(text):
    """A text on one line, with character references for what Markdown or HTML might read as more than text."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return re.sub(r"[^\w .,:;/()+=%'-]|(?<![^\W_])_|_(?![^\W_])", lambda match: f"&#{ord(match[0])};", line)


def _weights_sha256(folder):
    """sha256 of a saved model's weights as `loading.load` will name them."""
    from editscale.models.loading import sha256_of_files

    return sha256_of_files(Path(folder).glob("*.safetensors"))


def numbers(text):
    """The numbers of edits in a text such as "17,42". ValueError if it holds something else."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--without takes numbers of edits, such as 17,42, not {text!r}") from None


def replay(folder, target=None, *, upto=None, without=(), reverse=False, recorded_updates=False, device, model_cache):
    """What `python -m editscale replay` prints, after checking a run and, with `target`, saving its model there.

    Edits are chosen as by `chosen_edits`; raises ValueError or OSError that says what cannot be replayed.
    """
    method = past_runs.record_of(folder)["parameters"]["method"]
    book = Ledger(folder)
    edits = chosen_edits(len(book), upto, without, reverse)
    check_steps(edits, book.facts_per_step)
    check_sequence(method, edits, recorded_updates)
    if target:
        _check_new(target)
    run = past_runs.reopen(folder, device=device, model_cache=model_cache)
    if target:
        save(run, edits, target)
    else:
        with edited(run, edits):  # reads and checks all tensors
            pass
    n, book = len(false_facts(run, edits)), run.ledger
    lines = [f"{folder}: {len(book)} edits with {method}, all whole; chain {book.chain(len(book))}"]
    if target:
        lines += [f"{target}: {run.lm.name} with {n} false facts; {target}/README.md says which"]
    return "\n".join(lines)
