"""The parts that `bench` measures, each with its plain path and a comparison of the two results.

What is edited is AtlasFacts or a CounterFact file; contexts are pieces of 5 and 10 tokens of its prompts, second
moments are random positive definite matrices, and downstream tasks are the bundled ones: none of this changes what a
part costs. An edit is all its steps, in both paths.
"""

import copy
import functools
import itertools
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from editscale.data import glue
from editscale.editing import context_sampling, editors, memit, moments, rome, updates
from editscale.metrics import downstream, scoring
from editscale.models import decoding, hidden_states, tokens
from editscale.models.stacks import copies
from editscale.sequences import ledger, past_runs, sequence
from tools import plain

STEPS = 20
DOCUMENT = 128  # tokens of a document for second moments
KEPT_BYTES = 10**9  # of hidden states below the edited layer
EDIT_EACH = {"rome": rome.edit_each, "memit": memit.edit_each}


@dataclass(frozen=True)
class Size:
    """How much of each part is run, so that a plain path ends within a minute or so.

    Attributes:
        repeats: timed rounds of a part.
        peak: side of the square matrices whose product gives the machine's peak.
        steps: of an optimization in the rows that show growth.
        n_records, n_history: facts that are scored together, and at a checkpoint.
        tasks, n_examples: the tasks of a downstream round, and examples of each.
        n_tokens: of second moments.
        batch_tokens: most tokens of a forward that scores.
        n_edits: which edits of a sequence are timed.
        n_prompt: tokens of the prompts that are timed.
        n_orders: sizes of a batch of orders.
    """

    repeats: int
    peak: int
    steps: int
    n_records: int
    n_history: int
    tasks: tuple
    n_examples: int
    n_tokens: int
    batch_tokens: int
    n_edits: tuple = (10, 1000)
    n_prompt: tuple = (10, 40, 160)
    n_orders: tuple = (1, 2, 5, 10)

    @property
    def n_facts(self):
        """How many facts are needed."""
        return max(self.n_records, self.n_history, *self.n_orders)


SIZES = {
    "cpu": Size(
        repeats=2,
        peak=2048,
        steps=5,
        n_records=8,
        n_history=40,
        tasks=tuple(glue.BUNDLED),
        n_examples=20,
        n_tokens=1024,
        batch_tokens=hidden_states.BATCH_TOKENS,
        n_prompt=(10, 40, 80),
        n_orders=(1, 10),
    ),
    "cuda": Size(
        repeats=3,
        peak=8192,
        steps=STEPS,
        n_records=32,
        n_history=200,
        tasks=2 * tuple(glue.BUNDLED),
        n_examples=200,
        n_tokens=16384,
        batch_tokens=16384,
    ),
}


@dataclass(frozen=True)
class Case:
    """A model with all that the parts need. `ids` are tokens of running text; the rest is as in `editors`."""

    shape: str
    lm: object
    size: Size
    facts: list
    ids: tuple
    params: dict
    contexts: dict
    factors: dict
    moments: dict
    precision: str = "float32"


def typical_first(tokenizer, facts):
    """The facts, with the one to the front that has the median number of tokens from its subject's last one on.

    These are what an optimization runs; the paths differ most in cost where they are few.
    """

    def length(fact):
        (row,) = tokens.context_rows(tokenizer, ["{}"], fact.prompt, fact.subject, fact.target_new)
        return len(row.ids) - row.subject_last, len(row.ids)

    typical = sorted(facts, key=length)[len(facts) // 2]
    return [typical, *(fact for fact in facts if fact is not typical)]


def case(shape, lm, facts, params, size):
    """The `Case` of a model. Single edits are of its first fact, one of typical length.

    Args:
        params: {"rome": RomeParams, "memit": MemitParams}; their numbers of steps are not used.

    Raises ValueError if there are fewer facts than `size` asks for.
    """
    import torch

    if len(facts) < size.n_facts:
        raise ValueError(f"{len(facts)} facts are too few to measure with; {size.n_facts} are needed")
    text = " ".join(prompt for fact in facts for of in scoring.prompts_of(fact).values() for prompt in of)
    ids = tokens.prompt_ids(lm.tokenizer, text)
    rest = iter(ids)
    pieces = [
        context_sampling.as_context(lm.tokenizer, list(itertools.islice(rest, n)))
        for n in [5] * 10 + [10] * 10 + [10] * 5
    ]
    generator = torch.Generator(lm.device).manual_seed(0)
    a = torch.randn(lm.d_key, lm.d_key, dtype=torch.float64, device=lm.device, generator=generator)
    moment = a @ a.T / lm.d_key
    moment.diagonal().add_(0.1)
    factor = torch.linalg.cholesky(moment)
    layers = sorted({layer for of in params.values() for layer in editors.layers_of(of)})
    return Case(
        shape,
        lm,
        size,
        typical_first(lm.tokenizer, facts),
        ids,
        params,
        {"rome": ["{}", *pieces[:20]], "memit": [["{}"], pieces[20:]]},
        {layer: factor.clone() for layer in layers},
        {layer: moment for layer in layers},
    )


@dataclass(frozen=True)
class FastPath:
    """A fast path to time: a row of the table.

    Attributes:
        run: a model ↦ result, a list.
        lm: the model to run it on; without CUDA graphs, operations can be counted.
        orders: over how many the seconds are shared.
        prepare: called before each `run`, untimed.
    """

    part: str
    run: object
    lm: object
    orders: int = 1
    prepare: object = lambda: None

    def __call__(self):
        return self.run(self.lm)


# A part is a function of a Case that yields (plain path or None, its `FastPath`s, difference of two results), one group
# after the other; what runs after a `yield` tidies up.


def _edits(case, method, facts, steps, lm, forward=None):
    """An `Edit` per fact, each by itself, with all steps taken. Raises ValueError if one was stopped early."""
    params = replace(case.params[method], v_num_grad_steps=steps)
    edits = EDIT_EACH[method](lm, facts, params, case.contexts[method], case.factors, forward=forward)
    for fact, edit in zip(facts, edits, strict=True):
        if (taken := editors.summary(edit)["steps"]) != steps:
            raise ValueError(f"case {fact.case_id} stopped after {taken} of {steps} steps; give a smaller v_lr")
    return edits


def edit_way(case, name, method, facts, steps, lm=None):
    """The `FastPath` of editing some facts together, each by itself, on the case's model or a stack of its copies."""
    name = name if steps == STEPS else f"{name}, {steps} steps"
    return FastPath(name, functools.partial(_edits, case, method, facts, steps), lm or case.lm, len(facts))


def plain_edit(case, method, steps):
    """A function that edits the case's first fact on the plain path."""
    if method == "rome":
        return functools.partial(_edits, case, "rome", case.facts[:1], steps, case.lm, forward=plain.plain_forward)
    params = replace(case.params["memit"], v_num_grad_steps=steps)
    return lambda: [plain.memit_edit(case.lm, case.facts[0], params, case.contexts["memit"], case.moments)]


def _edit(method, case):
    way = edit_way(case, f"{method.upper()} edit", method, case.facts[:1], STEPS)
    yield plain_edit(case, method, STEPS), [way], _matrices_differ


def _first_visits(case):
    """An edit that records its CUDA graphs, as the first one of its size does. On a CPU, an edit like any other."""
    lm, ways = replace(case.lm, graphs={}), []
    for method in EDIT_EACH:
        way = edit_way(case, f"{method.upper()} edit, graphs recorded", method, case.facts[:1], STEPS, lm)
        ways.append(replace(way, prepare=lm.graphs.clear))
    yield None, ways, None


def _orders(method, case):
    for n in case.size.n_orders:
        stack = copies(case.lm, editors.layers_of(case.params[method]), n)
        name = f"{method.upper()} edits, {n} order{'s' * (n > 1)}"
        way = edit_way(case, name, method, case.facts[:n], case.size.steps, stack)
        yield plain_edit(case, method, case.size.steps), [way], _matrices_differ


def _after_edits(case):
    """The n-th edit of a sequence: on a model with n − 1 random updates, and into their ledger."""
    import torch

    lm, layer = case.lm, case.params["rome"].layer
    original, ways = updates.saved_weights(lm, [layer]), []
    generator = torch.Generator(lm.device).manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for n in case.size.n_edits:
            book = ledger.Ledger(Path(folder) / str(n), {}, sequence.weights_record(lm, [layer]))
            updates.restore(lm, original)
            for _ in range(n - 1):
                sides = (
                    torch.randn(d, 1, dtype=lm.dtype, device=lm.device, generator=generator) * 0.03 / d**0.5
                    for d in original[layer].shape
                )
                update = updates.Update(layer, *sides)
                book.append({}, [update], 0.0)
                updates.apply(lm, [update])
            way = edit_way(case, f"ROME edit after {n} edits", "rome", case.facts[:1], case.size.steps)

            def run(lm, edit=way.run, book=book):
                (edited,) = edit(lm)
                updates.apply(lm, edited.updates)
                book.append(editors.summary(edited), edited.updates, 0.0)

            weights = updates.saved_weights(lm, [layer])
            ways.append(replace(way, run=run, prepare=functools.partial(updates.restore, lm, weights)))
        try:
            yield None, ways, None
        finally:
            updates.restore(lm, original)


def _prompts(case):
    """Edits of a fact whose prompt begins with more and more text."""
    fact, tokenizer, ways = case.facts[0], case.lm.tokenizer, []
    own = len(tokens.prompt_ids(tokenizer, fact.rewrite_prompt))
    for n in case.size.n_prompt:
        text = tokenizer.decode(case.ids[: max(0, n - own)], skip_special_tokens=True)
        longer = replace(fact, prompt=f"{text} {fact.prompt}".strip())
        length = len(tokens.prompt_ids(tokenizer, longer.rewrite_prompt))
        ways.append(edit_way(case, f"ROME edit, prompt of {length} tokens", "rome", [longer], case.size.steps))
    yield None, ways, None


def _records(case):
    lm, n_tokens = case.lm, case.size.batch_tokens
    for n, name in (
        (1, "record evaluation"),
        (case.size.n_records, f"record evaluation, {case.size.n_records} records"),
    ):
        facts = case.facts[:n]
        run = functools.partial(scoring.score_facts, facts=facts, batch_tokens=n_tokens)
        yield functools.partial(plain.score_facts, lm, facts), [FastPath(name, run, lm)], _scores_differ


def _round(case):
    """The prompts of the downstream tasks, tokenized and answered; and answered again at a later checkpoint, where what
    enters the lowest edited layer is known."""
    tasks = [glue.open_task(name, n_examples=case.size.n_examples).prompts for name in case.size.tasks]
    given = {"batch_tokens": case.size.batch_tokens}

    def asked(way, lm, **given):
        return [way(lm, tokens.texts_ids(lm.tokenizer, of), downstream.N_NEW, **given) for of in tasks]

    def plainly():
        return [ids for of in asked(plain.greedy, case.lm) for ids in of]

    def answers(lm, known=()):
        prepared = [copy.copy(greedy) for greedy in known] or asked(decoding.Greedy, lm, **given)
        for greedy in prepared:
            greedy.lm = lm
        return [ids for greedy in prepared for ids in greedy()]

    most = KEPT_BYTES // len(tasks)
    known = asked(decoding.Greedy, case.lm, layer=case.params["rome"].layer, max_bytes=most, **given)
    answers(case.lm, known)
    name = f"GLUE-like round, {len(tasks)} x {case.size.n_examples} examples"
    ways = [
        FastPath(name, answers, case.lm),
        FastPath(f"{name}, again", functools.partial(answers, known=known), case.lm),
    ]
    yield plainly, ways, _answers_differ


def _checkpoint(case):
    """All facts scored again; and at a later checkpoint, where what enters the lowest edited layer is known."""
    facts = case.facts[: case.size.n_history]

    def fast(lm, kept=None):
        run = past_runs.PastRun(Path(), {}, lm, facts, None)
        return past_runs.recall_rows(run, len(facts), batch_tokens=case.size.batch_tokens, kept=kept)

    kept = hidden_states.StateCache(
        case.lm, case.params["rome"].layer, KEPT_BYTES
    )  # of this model; with it no graph is recorded
    fast(case.lm, kept)
    name = f"history checkpoint, {len(facts)} facts"
    ways = [FastPath(name, fast, case.lm), FastPath(f"{name}, again", lambda _: fast(case.lm, kept), case.lm)]
    yield functools.partial(plain.recall, case.lm, facts), ways, _recall_differs


def _moments(case):
    layers, n = editors.layers_of(case.params["memit"]), case.size.n_tokens
    ids = itertools.cycle(case.ids)
    documents = [list(itertools.islice(ids, DOCUMENT)) for _ in range(-(-n // DOCUMENT))]
    name = f"second moments, {len(layers)} layers, {len(documents) * DOCUMENT} tokens"
    given = {"batch_tokens": max(moments.BATCH_TOKENS, case.size.batch_tokens), "progress": False}
    fast = FastPath(name, lambda lm: [moments.collect(lm, documents, layers, **given).moments], case.lm)
    rows = moments.BATCH_TOKENS // DOCUMENT
    yield lambda: [plain.second_moments(case.lm, documents, layers, rows)], [fast], _matrices_differ


PARTS = {
    "rome": functools.partial(_edit, "rome"),
    "memit": functools.partial(_edit, "memit"),
    "first-visit": _first_visits,
    "record": _records,
    "glue": _round,
    "history": _checkpoint,
    "moments": _moments,
    "rome-after": _after_edits,
    "rome-prompt": _prompts,
    "rome-orders": functools.partial(_orders, "rome"),
    "memit-orders": functools.partial(_orders, "memit"),
}


def _matrices_differ(theirs, ours):
    """Largest ‖A − B‖ / ‖A‖ of the matrices, by layer, of the first results."""
    theirs, ours = (_by_layer(of[0]) for of in (theirs, ours))
    return max(
        ((a.double() - ours[layer].to(a.device).double()).norm() / a.double().norm()).item()
        for layer, a in theirs.items()
    )


def _by_layer(result):
    return result if isinstance(result, dict) else {update.layer: update.matrix() for update in result.updates}


def _nlls(by_fact):
    scores = [score for by_kind in by_fact for of_kind in by_kind.values() for score in of_kind]
    return [nll for score in scores for nll in (score.nll_new, score.nll_true)]


def _scores_differ(theirs, ours):
    """Largest relative difference of a negative log-likelihood."""
    return max(abs(a - b) / abs(a) for a, b in zip(_nlls(theirs), _nlls(ours), strict=True))


def _recall_differs(theirs, ours):
    """Largest difference of the new object's probability minus the true one's, relative to the larger of the two."""
    worst = 0.0
    for score, row in zip(theirs, ours, strict=True):
        new, true = math.exp(-score.nll_new), math.exp(-score.nll_true)
        worst = max(worst, abs(new - true - row["efficacy_magnitude"]) / max(new, true))
    return worst


def _answers_differ(theirs, ours):
    """Share of answers that are not the same tokens."""
    return sum(a != b for a, b in zip(theirs, ours, strict=True)) / len(theirs)
