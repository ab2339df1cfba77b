"""Hyper-parameters chosen on sequences of edits: what `sweep` does where its SPEC has `n_sequences`.

Each setting edits `n_sequences` lists of facts, one fact after another. The facts are none of those that a study may
edit: they lie outside the first `outside` facts of all ten orders. Settings that optimize the same values are edited in
one stack of copies, a copy for each setting and sequence. An `anchor_norm` of 0 stands for the anchor that `N_ANCHOR`
more such facts give.

The choice, the same for all methods and stated before the first sweep (`best`): of the settings that leave the
perplexity of a text at most 1.5 times that of the unedited model, the one after which the model completes most of all
facts that were edited. Learning fewer facts does not help a setting, and keeping them at the cost of the language does
not either.
"""

import math
import time
from dataclasses import replace

from editscale.data import orders
from editscale.editing import corpora, editors, moments, norm_anchor, updates
from editscale.metrics import generation, scoring
from editscale.models import stacks, tokens

SPEC = ["n_sequences", "outside", "corpus", "document_length", "text", "text_tokens"]
# Hyper-parameters that only `Method.start` reads.
OF_START = ("mom2_update_weight", "update_norm_lambda", "nullspace_threshold", "L2")
MOST = 7  # settings in a stack
N_ANCHOR = 300  # facts that an anchor is the mean of; 1,000 in the released code
MOST_PERPLEXITY = 1.5  # times that of the unedited model


def unused(facts, outside, n):
    """The first n facts, by position, that are not among the first `outside` of any of the ten orders.

    Raises ValueError if there are not so many.
    """
    used = {position for order in orders.published_orders(facts) for position in order[:outside]}
    found = [position for position in orders.unique_subjects(facts) if position not in used][:n]
    if len(found) < n:
        raise ValueError(f"{len(found)} facts are outside the first {outside} of all orders, and {n} are asked for")
    return [facts[position] for position in found]


def in_stacks(settings, most=MOST):
    """Lists of at most so many settings (method, params) that one stack can edit, see `editors.alike`.

    Settings of a method that shares no stack with others may still differ in what its first state is made of.
    """
    found = []
    for method, params in settings:
        here = editors.alike(method, _without_start(method, params))
        for alike, of in found:
            if alike == here and len(of) < most:
                of.append((method, params))
                break
        else:
            found.append((here, [(method, params)]))
    return [of for _, of in found]


def _without_start(method, params):
    """Hyper-parameters with a 0 for what only the first state of a run is made of."""
    state = editors.method(method).start is not None
    return replace(params, **{name: 0.0 for name in OF_START if state and hasattr(params, name)})


def documents_of(lm, path, n_tokens):
    """The first paragraphs of a text file that have more than 20 tokens, until they have `n_tokens`."""
    found, n = [], 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            if (ids := tokens.prompt_ids(lm.tokenizer, line.strip())) and len(ids) > 20:
                found.append((line.strip(), len(ids) - 1))
                n += len(ids) - 1
            if n >= n_tokens:
                return found
    raise ValueError(f"{path} has {n} tokens in its paragraphs, and {n_tokens} are asked for")


def log_perplexity(lm, documents):
    """Mean negative log-likelihood of a token, in nats."""
    total = sum(n * math.log(generation.perplexity(lm, [text])) for text, n in documents)
    return total / sum(n for _, n in documents)


def sequences(lm, of_facts, editings, documents):
    """Rows, one for each editing: what its sequences of edits learned, kept and cost.

    Args:
        of_facts: lists of facts, equally long.
        editings: of one stack, see `in_stacks`.
        documents: see `documents_of`.
    """
    import numpy as np

    runs = [(editing, facts) for editing in editings for facts in of_facts]
    first, n_facts, of_runs = editings[0], len(of_facts[0]), [editing for editing, _ in runs]
    states, looked_up = [editing.start for editing in of_runs], []
    for editing, facts in runs:
        if look := editors.method(editing.method).ahead:
            looked_up.append(look(lm, facts, editing.params, editing.contexts, editing.factors))
    model, after, norms = stacks.copies(lm, first.layers, len(runs)), [[] for _ in runs], [[] for _ in runs]
    began = time.perf_counter()
    for place in range(n_facts):
        facts = [of[place] for _, of in runs]
        ahead = [[of[place] for of in looked_up]] if looked_up else []
        edits = editors.edit_together(of_runs, model, facts, *ahead, states=states)
        for i, edit in enumerate(edits):
            made = list(edit.updates) if editors.status(edit) == "edited" else []
            updates.apply(model, made, i)
            states[i] = editors.after(of_runs[i], states[i], made)
            norms[i].append(max((update.norm() for update in made), default=0.0))
        for i, scores in enumerate(scoring.score_each(model, facts)):
            after[i].append(scoring.fact_scores(scores))
    seconds = (time.perf_counter() - began) / n_facts / len(runs)
    unedited, rows = log_perplexity(lm, documents), []
    for i, (editing, facts) in enumerate(runs):
        copy = stacks.subset(model, [i]) if len(runs) > 1 else model
        end = [scoring.fact_scores(scores) for scores in scoring.score_facts(copy, facts)]
        learned = np.array([row["efficacy_accuracy"] for row in after[i]]) == 1
        kept = np.array([row["efficacy_accuracy"] for row in end]) == 1
        drift = max(
            ((copy.weight(layer) - lm.weight(layer)).norm() / lm.weight(layer).norm()).item()
            for layer in editing.layers
        )
        rows.append(
            {
                "ES": 100 * np.mean([row["efficacy"] for row in after[i]]),
                "learned": 100 * learned.mean(),
                "recall_of_learned": 100 * kept[learned].mean() if learned.any() else 0.0,
                "recall_of_all": 100 * kept.mean(),
                "NS_after": 100 * np.mean([row["neighborhood"] for row in after[i]]),
                "NS_end": 100 * np.mean([row["neighborhood"] for row in end]),
                "perplexity_ratio": math.exp(min(log_perplexity(copy, documents) - unedited, 700.0)),
                "relative_drift": 100 * drift,
                "median_update_norm": float(np.median(norms[i])),
                "largest_update_norm": float(np.max(norms[i])),
                "seconds_per_edit": seconds,
            }
        )
    return [_mean(rows[i : i + len(of_facts)]) for i in range(0, len(rows), len(of_facts))]


def _mean(rows):
    """Means over the sequences of a setting, of perplexities the geometric one; recall of all of each sequence too."""
    import numpy as np

    found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    found["perplexity_ratio"] = math.exp(np.mean([math.log(row["perplexity_ratio"]) for row in rows]))
    return found | {f"recall_of_all_{i}": row["recall_of_all"] for i, row in enumerate(rows)}


def best(table, method):
    """The row of a table of sequences to use for a method, by the rule at the top.

    If all its settings leave a higher perplexity, that with the lowest. Raises ValueError without a row of the method.
    """
    of = table[table["method"] == method]
    if of.empty:
        raise ValueError(f"the table has no setting of {method}")
    enough = of[of["perplexity_ratio"] <= MOST_PERPLEXITY]
    if enough.empty:
        return of.sort_values("perplexity_ratio", kind="stable").iloc[0]
    return enough.sort_values(["recall_of_all", "perplexity_ratio"], ascending=[False, True], kind="stable").iloc[0]


def sweep(lm, spec, todo, contexts, write):
    """Try settings, stack by stack; `write` gets a (method, params, n edits, row) for each as soon as it is known."""
    n = spec["n_facts"] * spec["n_sequences"]
    facts = unused(orders.open_set(spec["fact_set"]), spec["outside"], n + N_ANCHOR)
    of_facts = [facts[i : n : spec["n_sequences"]] for i in range(spec["n_sequences"])]
    documents = documents_of(lm, spec["text"], spec["text_tokens"])
    layers, factors = sorted({layer for of in todo for s in of for layer in editors.moment_layers(*s)}), {}
    if layers:
        corpus = list(corpora.documents_from_file(lm.tokenizer, spec["corpus"], spec["document_length"]))
        factors = editors.cholesky_factors(moments.collect(lm, corpus, layers, batch_tokens=16384).moments, lm.device)
    for of in todo:
        of = [(method, anchored(lm, params, facts[n:])) for method, params in of]
        editings = [editors.Editing(method, params, contexts[method], factors) for method, params in of]
        editings = [editors.begun(lm, editing) for editing in editings]
        for editing, row in zip(editings, sequences(lm, of_facts, editings, documents), strict=True):
            write(editing.method, editing.params, n, row)


def anchored(lm, params, facts):
    """The same hyper-parameters, an `anchor_norm` of 0 replaced by the anchor that some facts give."""
    if getattr(params, "anchor_norm", 1):
        return params
    found = norm_anchor.norms(lm, facts, editors.layers_of(params)[-1], params)
    return replace(params, anchor_norm=round(norm_anchor.anchor(found), 3))


# Methods that change one thing of another: that one, whose row has the same values in these columns.
BASES = {
    **dict.fromkeys(("memit-seq", "encore", "alphaedit", "emmet", "memit-nas", "memit-rect"), ("memit", ())),
    "memit-seq-nas": ("memit-seq", ("layers", "mom2_update_weight")),
    "alphaedit-nas": ("alphaedit", ("layers", "nullspace_threshold", "L2")),
    **dict.fromkeys(("r-rome", "rome-nas", "rome-rect"), ("rome", ("layer", "clamp_norm_factor"))),
    "stableedit": ("ultraedit", ()),
}
SHOWN = ("layer", "layers", "clamp_norm_factor", *OF_START, "zeroed_fraction", "eta")
PAGE = """# What the sweeps of hyper-parameters found

`python -m editscale sweep SPEC.yaml OUT.csv` made the tables here. Two are of single edits, each on the unedited model:
[smollm2-135m.csv](smollm2-135m.csv), [ft-c-smollm2-135m.csv](ft-c-smollm2-135m.csv). They chose the settings of the
recorded study. The third, [sequences-smollm2-135m.csv](sequences-smollm2-135m.csv), is of sequences of edits, and chose
those of the editors against forgetting.

## Sequences

SmolLM2-135M, {n_each} facts of CounterFact edited one after another, in {n} sequences, none of them a fact that the
study edits. Below is the chosen setting of each method: the one with the highest recall of all facts at the end, unless
it raises the perplexity of {text_tokens:,} tokens of WikiText-2 above {most} times that of the unedited model
([lasting.py](../../tests/tools/lasting.py)). A fact is learned if its new object is the first choice right after its
edit, and recalled if it is at the end. Both sequences' recall of all facts is given. *Keeps more?* compares it with the
method that this one changes: yes or no if both sequences say so. Settings were chosen on these same sequences, so small
differences mean little, and least where many settings were tried. Devices: {devices}.

{table}

{found}
"""


def chosen(table):
    """The chosen row of each method, by descending recall of all facts."""
    rows = [best(table, method) for method in dict.fromkeys(table["method"])]
    return sorted(rows, key=lambda row: -row["recall_of_all"])


def base_of(table, row):
    """The row of the method that a row's method changes one thing of; None for one that stands for itself."""
    if row["method"] not in BASES:
        return None
    name, same = BASES[row["method"]]
    of = table[table["method"] == name]
    for column in same:
        of = of[of[column] == row[column]]
    return best(of, name)


def keeps_more(row, base):
    """ "yes" or "no", whether recall of all facts is higher in each sequence, or in none; else "undecided"."""
    columns = [name for name in row.index if name.startswith("recall_of_all_")]
    higher = [row[name] > base[name] for name in columns]
    return "yes" if all(higher) else "undecided" if any(higher) else "no"


def _methods_on(table):
    """Device ↦ the methods that were swept there."""
    return {on: list(dict.fromkeys(rows["method"])) for on, rows in table.groupby("device", sort=False)}


def page(table, spec):
    """The page params/sweep/README.md, from the table of sequences and its spec."""
    import pandas as pd

    rows, verdicts = [], {"yes": [], "no": [], "undecided": []}
    for row in chosen(table):
        base, of_each = base_of(table, row), [f"{row[f'recall_of_all_{i}']:.0f}" for i in range(spec["n_sequences"])]
        verdict = "" if base is None else keeps_more(row, base)
        verdicts.setdefault(verdict, []).append(row["method"])
        values = {x: row[x] for x in SHOWN if x in row and pd.notna(row[x])}
        rows.append(
            {
                "method": row["method"],
                "setting": ", ".join(f"{x} {v:g}" if isinstance(v, float) else f"{x} {v}" for x, v in values.items()),
                "learned (%)": f"{row['learned']:.0f}",
                "recall of learned (%)": f"{row['recall_of_learned']:.0f}",
                "recall of all (%)": f"{row['recall_of_all']:.0f} ({', '.join(of_each)})",
                "neighborhood at the end (%)": f"{row['NS_end']:.0f}",
                "perplexity (×)": f"{row['perplexity_ratio']:.3g}",
                "drift (%)": f"{row['relative_drift']:.0f}",
                "keeps more?": f"{verdict}, than {base['method']} ({base['recall_of_all']:.0f})" if verdict else "",
            }
        )
    said = {"yes": "keep more than what they change", "no": "keep no more", "undecided": "differ by sequence"}
    found = "; ".join(f"{', '.join(verdicts[of])} {words}" for of, words in said.items() if verdicts[of])
    return PAGE.format(
        n_each=spec["n_facts"],
        n=spec["n_sequences"],
        text_tokens=spec["text_tokens"],
        most=MOST_PERPLEXITY,
        table=pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True),
        found=f"One fact at a time, {found}.",
        devices="; ".join(f"{on} for {', '.join(of)}" for on, of in _methods_on(table).items()),
    )
