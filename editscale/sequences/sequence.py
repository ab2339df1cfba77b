"""Edit facts one after another, score each right after its edit, and record everything in a ledger.

The protocol of arXiv:2401.07453 (its code: scalable-model-editing/gradual-catastrophic-forgetting
`experiments/evaluate_glue.py`): weights are never restored, one fact at a time, contexts and second moments of the
unedited model throughout. There, resuming skipped finished edits but started from unedited weights; here a run that
finds edits in its ledger replays them first and continues from the same bits.

Orders that do not depend on each other can be edited together, one batch for the n-th facts of all (`run_together`).

A step of a run is one fact, or `Editing.facts_per_step` of its facts in one call of the method. Edits are counted in
facts all the same: each has a row in the ledger, with scores after its step. The step's updates are recorded with its
last fact, so that a step whose rows are not all there is made again.
"""

import hashlib
import time
from dataclasses import asdict

from editscale import dependencies
from editscale.columns import SOUND
from editscale.editing import editors, modules, updates, values
from editscale.files import sha256_json
from editscale.metrics import scoring
from editscale.models import loading, stacks, tokens
from editscale.sequences import stopping


def fingerprint(lm, editing, together=(), on_collapse="stop"):
    """Everything besides the facts that determines the edits of a run, by content, as JSON values.

    Args:
        editing: see `editors.Editing`.
        together: names of the runs that are edited in one batch, this one among them; rounding depends on them.
        on_collapse: see `run`.

    Raises ValueError for a model that holds edits.
    """
    import tokenizers
    import torch
    import transformers

    if int(lm.identity.get("edits", 0)):
        n = lm.identity["edits"]
        raise ValueError(f"{lm.name} holds {n} edits, and a run begins on an unedited model; load it anew")
    made_of = editors.method(editing.method).made_of
    return {
        "method": editing.method,
        "params": asdict(editing.params),
        "model": lm.name,
        "weights_sha256": lm.identity["weights_sha256"],
        "config_sha256": lm.identity["config_sha256"],
        "start_token": loading.start_token(lm),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "tf32_steps": lm.tf32_steps,
        "device": lm.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "contexts_sha256": sha256_json(editing.contexts),
        "moments_sha256": sha256_json(editing.moments),
        "start_sha256": hashlib.sha256(made_of(editing.start)).hexdigest() if made_of else "",
        "together": list(together),
        "on_collapse": on_collapse,
        "code_sha256": dependencies.identity(f"import {__name__}\n" + modules.code_of(editing.method)),
        **({"after_start_token": True} if lm.after_start_token else {}),  # ledgers of before stay
        **({} if editing.facts_per_step == 1 else {"facts_per_step": editing.facts_per_step}),  # likewise
    }


def weights_record(lm, layers):
    """layer ↦ shape and norm of the projections of the unedited model, for the ledger's head."""
    return {
        str(layer): {"shape": list(lm.weight(layer).shape), "norm": lm.weight(layer).double().norm().item()}
        for layer in layers
    }


def replay(lm, ledger, upto=None, *, after=0, copy=None):
    """Apply the recorded edits after + 1 … upto (default all) to a model, or to one copy of a stack, that has had the
    first `after` of them."""
    for edit in range(after + 1, (len(ledger) if upto is None else upto) + 1):
        _apply(lm, ledger.updates(edit), copy)


def state_after(lm, editing, ledger, upto, *, after=0, state=None):
    """The state of a run after its first `upto` edits, as these are recorded; None for a method without one.

    Args:
        state: that after the first `after` edits, where these are not to be read again.
    """
    state, step = editing.start if state is None else state, editing.facts_per_step
    for edit in range(after + step, upto + 1 if state is not None else 1, step):
        state = editors.after(editing, state, [update.to(lm.device) for update in ledger.updates(edit)])
    return state


def _apply(lm, recorded, copy):
    updates.apply(lm, [update.to(lm.device) for update in recorded], copy)


def check_facts(lm, facts, contexts):
    """Raise ValueError, naming the fact, if one cannot be edited or scored: its subject ends inside a word, it shares
    a token with a target, or a text is longer than the model reads. Takes milliseconds per fact."""
    flat = [c for group in contexts for c in ([group] if isinstance(group, str) else group)]
    for fact in facts:
        try:
            tokens.check(lm, [row.ids + row.targets[-1:] for row in values.target_rows(lm, fact, flat)])
            scoring.check_prompts(lm, [fact])
        except ValueError as error:
            raise ValueError(f"case {fact.case_id}: {error}") from error


def ledger_size(lm, facts, editing):
    """A sentence that says, before the first edit, how many bytes the tensors of these edits take in a ledger.

    That is known of the package's methods from shapes alone, of UltraEdit and StableEdit for each token of a target,
    and not of one's own.
    """
    each, step = editors.bytes_per_edit(editing, lm), editing.facts_per_step
    if each is None:
        return f"How much an edit of {editing.method} takes in the ledger is known after the first one."
    what = f"An edit of {editing.method}" if step == 1 else f"A step of {step} edits of {editing.method}"
    total, per = each * (len(facts) // step), ""
    if editors.method(editing.method).by_token:
        pairs = tokens.with_targets(lm.tokenizer, [f.rewrite_prompt for f in facts], [f.target_new for f in facts])
        total, per = each * sum(len(target) for _, target in pairs), " for each token of a target"
        total += sum(x.nbytes for update in getattr(editing.start, "shift", ()) for x in update.change().values())
    return f"{what} takes {_bytes(each)} in the ledger{per}; all {len(facts)} edits take {_bytes(total)}."


def _bytes(n):
    """A number of bytes in words, with three digits."""
    unit, size = next((u, k) for u, k in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1)) if n >= k or k == 1)
    return f"{n / size:.3g} {unit}"


def refused_facts(lm, facts):
    """case_id ↦ what `check_facts` says, of each fact that cannot be edited or scored after the bare prompt."""
    from tqdm import tqdm

    refused = {}
    for fact in tqdm(facts, desc="check facts", unit="fact"):
        try:
            check_facts(lm, [fact], ["{}"])
        except ValueError as error:
            refused[fact.case_id] = str(error)
    return refused


def run(lm, facts, editing, ledger, *, on_collapse="stop", batch_tokens=scoring.BATCH_TOKENS):
    """Edit `facts` in order on the unedited model `lm`, from where `ledger` ends.

    Args:
        editing: see `editors.prepare`.
        ledger: a `Ledger` opened with this run's fingerprint. Edits it already holds are replayed, not redone.
        on_collapse: what follows an edit that is not finite or whose solve failed (`editors.status`), which is recorded
            and never applied: "stop" ends the sequence there, "skip" continues with the next fact. A fact that a method
            left out on purpose ("screened") ends no sequence.
        batch_tokens: most tokens in one forward over the unedited model, or after a step of several facts, see
            `scoring.score_facts`.

    Raises ValueError, before anything is edited, if a fact cannot be (see `check_facts`), if the ledger holds edits of
    other facts, or as `editors.check_steps`; `stopping.Stopped` or `Interrupted` where memory, disk, device, Ctrl-C or
    SIGTERM ends it early.
    """
    with stopping.says_how_to_go_on([ledger], len(facts)):
        _run(lm, [facts], [editing], [ledger], on_collapse, batch_tokens, stack=False)


def run_together(lm, orders, editings, ledgers, *, on_collapse="stop", batch_tokens=scoring.BATCH_TOKENS):
    """Edit several orders of facts, each on a copy of `lm` of its own, the n-th facts of all in one batch.

    Every order gets the ledger that `run` would give it, up to rounding; `lm` itself stays as it is. An order that has
    ended leaves the batch. Stopped at any place and started again, the ledgers become those of an uninterrupted run.

    Args:
        orders: lists of facts.
        editings: one for each order, of methods and hyper-parameters that are `editors.alike`.
        ledgers: one for each order, opened with a fingerprint that names all of them as `together`.
        Others as for `run`.

    Raises ValueError as `run` does, and if there is not an editing and a ledger for each order, or editings differ in
    what values are optimized.
    """
    if not len(orders) == len(editings) == len(ledgers):
        raise ValueError(
            f"{len(orders)} orders with {len(editings)} editings and {len(ledgers)} ledgers; each needs one of both"
        )
    alike = [(editors.alike(of.method, of.params, of.facts_per_step), of.contexts) for of in editings]
    if any(one != alike[0] for one in alike):
        raise ValueError(editors.no_batch(editing.method for editing in editings))
    with stopping.says_how_to_go_on(ledgers, max(map(len, orders))):
        _run(lm, orders, editings, ledgers, on_collapse, batch_tokens, stack=True)


def _run(lm, orders, editings, ledgers, on_collapse, batch_tokens, *, stack):
    """Edit the n-th steps of all orders in one batch, for each n that is not in all ledgers yet."""
    from tqdm import tqdm

    if on_collapse not in ("stop", "skip"):
        raise ValueError(f"on_collapse is {on_collapse!r}; expected 'stop' or 'skip'")
    for editing, ledger in zip(editings, ledgers, strict=True):
        if ledger.facts_per_step != editing.facts_per_step:
            raise ValueError(
                f"facts_per_step is {editing.facts_per_step}, and {ledger.facts_per_step} in the ledger at "
                f"{ledger.folder}; choose another out folder"
            )
        if (recorded := ledger.fingerprint.get("on_collapse", on_collapse)) != on_collapse:
            raise ValueError(
                f"on_collapse is {on_collapse!r}, and {recorded!r} in the ledger at {ledger.folder}; choose another "
                "out folder"
            )
    for facts, editing in zip(orders, editings, strict=True):
        editors.check_steps(editing.method, len(facts), editing.facts_per_step)
    checked = set()
    identities = [_checked(lm, *order, checked) for order in zip(orders, editings, ledgers, strict=True)]
    if missing := scoring.without_true([fact for facts in orders for fact in facts]):
        tqdm.write(missing)
    for facts, of, ledger in zip(orders, identities, ledgers, strict=True):
        if len(ledger.unedited()) < len(facts):
            _score_unedited(lm, facts, of, ledger, batch_tokens)

    n_facts, first, size = max(map(len, orders)), editings[0], editings[0].facts_per_step
    ends = [_whole(ledger) for ledger in ledgers]
    start = min((n for i, n in enumerate(ends) if i in _going(n, orders, ledgers, on_collapse)), default=n_facts)
    batch = _going(start, orders, ledgers, on_collapse) or list(range(len(ledgers)))
    ahead = [_ahead(of, lm, facts, start, _at_once(batch_tokens)) for of, facts in zip(editings, orders, strict=True)]
    model = stacks.copies(lm, first.layers, len(batch)) if stack else lm
    states = {}
    for row, i in enumerate(batch):
        done = min(start, len(ledgers[i]))
        replay(model, ledgers[i], done, copy=row if stack else None)
        if start < n_facts:
            states[i] = state_after(lm, editings[i], ledgers[i], done)

    title = f"edit with {', '.join(dict.fromkeys(editing.method for editing in editings))}"
    steps, unit = range(start, n_facts, size), "edit" if size == 1 else "step"
    for place in tqdm(steps, desc=title, unit=unit, total=n_facts // size, initial=start // size):
        staying = _going(place, orders, ledgers, on_collapse)
        if not staying:
            break
        if staying != batch:
            model = stacks.subset(model, [batch.index(i) for i in staying])
            batch = staying
        facts = [orders[i][place : place + size] for i in batch]
        found = [ahead[i][place] for i in batch]
        runs = [(editings[i], ledgers[i], states[i]) for i in batch]
        edits, seconds = _step(model, facts, found, runs, place, stack, batch_tokens)
        for (edit, state, scores), of, i in zip(edits, facts, batch, strict=True):
            states[i] = state
            for n in range(len(ledgers[i]) - place, size):  # none where the ledger was ahead
                _record(ledgers[i], of[n], identities[i][place + n], edit, n, scores[n], seconds, last=n == size - 1)


def _checked(lm, facts, editing, ledger, checked):
    """sha256 of each fact of an order, once they can be edited and are those of the ledger (ValueError otherwise).

    Args:
        checked: those of facts that are known to be editable in the contexts of these runs; these join them.
    """
    identities = [fact.identity for fact in facts]
    check_facts(lm, [of for of, one in zip(facts, identities, strict=True) if one not in checked], editing.contexts)
    checked.update(identities)
    _check_same_facts(ledger, facts, identities)
    return identities


def _whole(ledger):
    """How many edits of whole steps a ledger holds: a step that was stopped between its rows is made again."""
    return len(ledger) - len(ledger) % ledger.facts_per_step


def _going(place, orders, ledgers, on_collapse):
    """The orders that edit their fact number `place`, counted from 0: they have one, and did not end before."""
    ends = [(_whole(ledger), ledger) for ledger in ledgers]
    ended = [on_collapse == "stop" and 0 < n <= place and b.rows[n - 1]["status"] not in SOUND for n, b in ends]
    return [i for i, over in enumerate(ended) if not over and place < len(orders[i])]


def _step(model, facts, ahead, runs, place, stack, batch_tokens):
    """One step of each run, applied and scored: a list of (edit, state after it, scores of its facts), and seconds of
    each fact.

    An order that was ahead of the others when they were stopped keeps what it recorded.

    Args:
        facts: those of the step, for each run.
        ahead: what no edit changes (`_ahead`), of the first fact of each.
        runs: the editing, the ledger and the state of each.
    """
    began, (editings, _, states) = time.perf_counter(), map(list, zip(*runs, strict=True))
    first, size = editings[0], editings[0].facts_per_step
    if size == 1:
        given = [ahead] if editors.method(first.method).ahead else []
        edits = editors.edit_together(editings, model, [fact for (fact,) in facts], *given, states=states)
    else:
        edits = editors.edit_steps(first, model, facts, states)
    after = []
    for row, (edit, (editing, ledger, state)) in enumerate(zip(edits, runs, strict=True)):
        made, last = edit.updates if editors.status(edit) == "edited" else [], place + size
        made = [u.to(model.device) for u in ledger.updates(last)] if last <= len(ledger) else list(made)
        _apply(model, made, row if stack else None)
        after.append(editors.after(editing, state, made))
    with editors.looked_at(editings, model, after):
        if size == 1:
            scores = [[of] for of in scoring.score_each(model, [fact for (fact,) in facts])]
        else:
            copies = [stacks.subset(model, [row]) for row in range(len(facts))]
            scores = [scoring.score_facts(*of, batch_tokens=batch_tokens) for of in zip(copies, facts, strict=True)]
    return list(zip(edits, after, scores, strict=True)), (time.perf_counter() - began) / (len(facts) * size)


def _record(ledger, fact, identity, edit, n, scores, seconds, *, last):
    """Append fact number n of an edit to a ledger: its row, and with the last one the updates if they were applied."""
    status = editors.status(edit)
    row = {
        "case_id": fact.case_id,
        "fact_sha256": identity,
        "relation_id": fact.relation_id,
        "status": status,
        **editors.summary(edit, n),
        **scoring.fact_scores(scores),
    }
    ledger.append(row, edit.updates if last and status == "edited" else [], seconds)


def _check_same_facts(ledger, facts, identities):
    for what, rows in (("edit", ledger.rows), ("fact", ledger.unedited())):
        for i, row in enumerate(rows[: len(facts)]):
            if row.get("fact_sha256", identities[i]) != identities[i]:
                raise ValueError(
                    f"{what} {i + 1} of the ledger at {ledger.folder} is case {row['case_id']}, not case "
                    f"{facts[i].case_id} as it is in this sequence; choose another out folder"
                )


def _score_unedited(lm, facts, identities, ledger, batch_tokens):
    """Write the scores of the facts on the unedited model to the ledger."""
    from tqdm import tqdm

    rows, size = [], _at_once(batch_tokens)
    with tqdm(total=len(facts), desc="score unedited model", unit="fact") as bar:
        for first in range(0, len(facts), size):
            part = facts[first : first + size]
            for fact, scores in zip(part, scoring.score_facts(lm, part, batch_tokens=batch_tokens), strict=True):
                identity = identities[len(rows)]
                rows.append({"case_id": fact.case_id, "fact_sha256": identity, **scoring.fact_scores(scores)})
            bar.update(len(part))
    ledger.write_unedited(rows)


def _at_once(batch_tokens):
    """Facts that are looked at together on the unedited model: more where a forward holds more tokens."""
    return max(editors.TOGETHER, batch_tokens // 128)


def _ahead(editing, lm, facts, start, size):
    """What no edit of the method changes (`Method.ahead`), for the facts from number `start` on, None without any.

    As many facts at a time, always the same ones, so that a resumed run has the same bits.
    """
    found, of = [None] * len(facts), editors.method(editing.method).ahead
    for first in range(start - start % size, len(facts) if of else 0, size):
        part = slice(first, first + size)
        found[part] = of(lm, facts[part], editing.params, editing.contexts, editing.factors)
    return found
