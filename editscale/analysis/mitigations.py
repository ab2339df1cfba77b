"""What is left after many edits, run by run, and whether a method keeps more than the one that it changes.

Runs are compared on the same facts in the same order. No verdicts: differences, with what each order says.
"""

import re

import numpy as np
import pandas as pd

from editscale.analysis import forgetting, tables
from editscale.analysis.rows import groups, require, rows_of, were_learned
from editscale.columns import OVERLAP, RUN

LAST = 50  # edits whose neighborhood scores are averaged
MEASURES = ("learned", "recall_learned", "recall_all", "neighborhood", "perplexity", "drift")
# What a method changes, where its name does not begin with that; of those that are not there, no base is named.
BASES = {"encore": "memit", "alphaedit": "memit", "emmet": "memit", "r-rome": "rome", "p-rome": "rome"}
IN_ONE_STEP = "in one step"
STEPS = re.compile(r"-(\d+|once)$")  # how labels end that name facts per step, or all facts in a single one


def gather(runs, further, names):
    """Tables of runs (`tables.gather`), and below them those of further ones on the same orders, under names of theirs.

    Args:
        further: folder ↦ what is put after the names of its methods.
    """
    found = [tables.gather(runs, name) for name in names]
    for folder, suffix in further.items():
        theirs = [tables.gather([folder], name) for name in names]
        same = [other[other["order"].isin(own["order"])] for own, other in zip(found, theirs, strict=True)]
        named = [other.assign(method=other["method"] + suffix) for other in same]
        found = [pd.concat(pair, ignore_index=True) for pair in zip(found, named, strict=True)]
    return found


def kept(edits, unedited, history, perplexity, drift, *, at, last=LAST):
    """What each run has kept after `at` edits: one row per run.

    Args:
        edits, unedited, history, perplexity, drift: tables of the runs (`tables.gather`).
        at: a number of edits; a run without a checkpoint of recall there is left out.
        last: edits whose neighborhood scores are averaged; of the last ones up to `at`.

    Returns:
        method, order, reversed, edits (`at`); learned: share of the facts whose new object was the first choice right
        after their edit; recall_learned, recall_all: share of these, and of all facts edited, whose new object is the
        first choice now; neighborhood: score of the last edits' facts right after their edit, minus that on the
        unedited model; perplexity: of fixed sentences, over the unedited model's; drift: ‖W − W₀‖ / ‖W₀‖ of the most
        moved layer. Shares are 0–1.

    Raises ValueError if columns are missing, or if no run has a checkpoint there.
    """
    require(history, (*RUN, "edits", "edit", "efficacy_accuracy"), "recall/history")
    require(perplexity, (*RUN, "edits", "perplexity"), "recall/perplexity")
    require(drift, (*RUN, "edits", "relative_drift"), "drift")
    found = []
    for run, asked in groups(history[history["edits"] == at]):
        own, before, moved = (rows_of(table, **run) for table in (edits, unedited, drift))
        own = own[own["edits"] <= at]
        learned = own.loc[were_learned(own), "edits"]
        late = own[own["edits"] > at - last].merge(before[["edits", "neighborhood"]], on="edits", suffixes=("", "_0"))
        texts = rows_of(perplexity, **run).set_index("edits")["perplexity"]
        found.append(
            {
                **run,
                "edits": at,
                "learned": len(learned) / at,
                "recall_learned": asked.loc[asked["edit"].isin(learned), "efficacy_accuracy"].mean(),
                "recall_all": asked["efficacy_accuracy"].mean(),
                "neighborhood": (late["neighborhood"] - late["neighborhood_0"]).mean(),
                "perplexity": texts.get(at, np.nan) / texts.get(0, np.nan),
                "drift": moved.loc[moved["edits"] == at, "relative_drift"].max(),
            }
        )
    if not found:
        raise ValueError(f"no run has a checkpoint of recall after {at} edits; choose one of the history's, or 0")
    return pd.DataFrame(found)


def base_of(name, names, bases=None):
    """The method among `names` that a method changes; "" where none is there.

    That is the one that `bases` gives for it, the longest that its name begins with (memit-seq of memit-seq-nas and of
    memit-seq-10), or BASES'.
    """
    if bases and name in bases:
        return bases[name] if bases[name] in names else ""
    longer = [other for other in names if name.startswith(f"{other}-")]
    base = max(longer, key=len, default=BASES.get(name, ""))
    return base if base in names else ""


def against_base(table, column="recall_all", bases=None):
    """Each method against the one that it changes, on the orders both have: one row per order.

    Args:
        table: of `kept`; its forward runs count.
        bases: method ↦ its base, where the names do not say it (`base_of`).

    Returns method, base, order, its value of `column`, that of the base, and difference; no rows without pairs.
    """
    forward, rows = table[~table["reversed"]], []
    names = list(forward["method"].unique())
    for name in names:
        if base := base_of(name, names, bases):
            pair = [forward[forward["method"] == of].set_index("order")[column] for of in (name, base)]
            for order in sorted(pair[0].index.intersection(pair[1].index)):
                own, other = (float(values[order]) for values in pair)
                of = {"method": name, "base": base, "order": order}
                rows.append({**of, "own": own, "of_base": other, "difference": own - other})
    return pd.DataFrame(rows, columns=["method", "base", "order", "own", "of_base", "difference"])


def sizes(drift, end, bases=None):
    """How long updates are beside those of the method that each changes: a row per method with a base.

    Args:
        drift: columns method, order, reversed, edits, update_norm (‖ΔW‖ of a layer); of forward runs up to `end`.
        bases: see `base_of`.

    Returns: method, base, update_norm (median over edits of ‖ΔW‖ of all layers together), times (the base's).
    """
    known = drift[~drift["reversed"] & (drift["edits"] <= end)]
    squares = known.assign(square=known["update_norm"] ** 2).groupby(["method", "order", "edits"])["square"].sum()
    medians = np.sqrt(squares).groupby("method").median()
    pairs = {name: base for name in medians.index if (base := base_of(name, list(medians.index), bases))}
    rows = [(name, base, medians[name], medians[name] / medians[base]) for name, base in pairs.items()]
    return pd.DataFrame(rows, columns=["method", "base", "update_norm", "times"])


def by_order(pairs):
    """`against_base` for reading, in points: a row per method, its base, each order's difference, and their mean."""
    points = pairs.assign(difference=100 * pairs["difference"], order="order " + pairs["order"].astype(str))
    shown = points.pivot_table(index=["method", "base"], columns="order", values="difference", sort=False)
    return shown.assign(mean=shown.mean(axis=1)).sort_values("mean", ascending=False)


def compared(pairs):
    """Sentences: which methods have more than their base in every order, in none, and in some of several.

    Args:
        pairs: of `against_base`.
    """
    kinds = {"every": [], "no": [], "some": []}
    for (method, base), rows in pairs.groupby(["method", "base"], sort=False):
        more = rows["difference"] > 0
        values = ", ".join(f"{100 * x:+z.0f}" for x in rows["difference"])
        kinds["every" if more.all() else "some" if more.any() else "no"].append(f"{method} against {base} ({values})")
    said = {
        "every": "More of all facts is recalled than under the base in every order (points, by order)",
        "no": "No more than under the base in any order",
        "some": "More in some orders and not in others",
    }
    return [f"{said[kind]}: {'; '.join(names)}." for kind, names in kinds.items() if names]


def steps(table, bases=None):
    """Recall of all facts by the facts of a step: method (of single facts), order, facts_per_step, recall_all.

    Args:
        table: of `kept`. A label that ends in -10 after the name of a method that is there has ten facts in a step,
            one in -once all; that method's own rows are its runs of one.
        bases: label ↦ the method with the same hyper-parameters, where another one than its name says.

    No rows where no label ends so.
    """
    forward, rows = table[~table["reversed"]], []
    names = set(forward["method"])
    for row in forward.itertuples():
        found, single = STEPS.search(row.method), (bases or {}).get(row.method, STEPS.sub("", row.method))
        if found and single in names:
            rows.append((single, row.order, row.edits if found[1] == "once" else int(found[1]), row.recall_all))
    several = {single for single, *_ in rows}
    ones = forward[forward["method"].isin(several)]
    rows += [(row.method, row.order, 1, row.recall_all) for row in ones.itertuples()]
    columns = ["method", "order", "facts_per_step", "recall_all"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:3], ignore_index=True)


def growing(history, in_one_step, methods):
    """Recall of all facts by their number, where one step edits all of them and where they are edited one by one.

    Args:
        history: columns method, order, reversed, edits, efficacy_accuracy of sequences (`recall/history`).
        in_one_step: the same of runs that edit all their facts in a single step.
        methods: of `history`.

    Returns: method (IN_ONE_STEP, or of methods), order, facts (of the runs in one step), recall_all (0–1).
    """
    own = [in_one_step[~in_one_step["reversed"]].assign(method=IN_ONE_STEP)]
    some = history["method"].isin(methods) & history["edits"].isin(own[0]["edits"]) & ~history["reversed"]
    rows = pd.concat([*own, history[some]]).groupby(["method", "order", "edits"], sort=False)["efficacy_accuracy"]
    return rows.mean().rename("recall_all").reset_index().rename(columns={"edits": "facts"})


def over_edits(edits, history):
    """What becomes of recall and of learning along runs: a row per run and checkpoint.

    Args:
        edits, history: tables of the same runs (`tables.gather`).

    Returns: method, order, reversed, edits, recall and recall_all (of the facts learned so far, and of all), learned
    (share of the facts since the checkpoint before that were learned by their own edit). Shares are 0–1.
    """
    curve = forgetting.recall_curve(history, edits)[[*RUN, "edits", "recall"]]
    asked = history.groupby([*RUN, "edits"])["efficacy_accuracy"].mean().rename("recall_all").reset_index()
    parts = []
    for run, own in groups(curve.merge(asked, on=[*RUN, "edits"])):
        of_run, places = rows_of(edits, **run), own["edits"].sort_values().to_numpy()
        since = np.searchsorted(places, of_run["edits"])
        learned = were_learned(of_run).groupby(since).mean().reindex(range(len(places)))
        parts.append(own.sort_values("edits").assign(learned=learned.to_numpy()))
    return pd.concat(parts, ignore_index=True)


def half_lives(curve):
    """When half of what was learned is lost: a row per run.

    Args:
        curve: of `over_edits`.

    Returns: method, order, reversed, half (edits at the first checkpoint that recalls less than half of the learned
    facts; infinite without one), last (the last checkpoint).
    """
    rows = []
    for run, own in groups(curve):
        lost = own.loc[own["recall"] < 0.5, "edits"]
        rows.append({**run, "half": lost.min() if len(lost) else np.inf, "last": own["edits"].max()})
    return pd.DataFrame(rows)


def read_overlap(path):
    """The table of notebook 09a. Raises as `tables.read`."""
    return tables.read(path, "run notebook 09a, or give the path of its table", _measured)


def _measured(table):
    if missing := [name for name in OVERLAP if name not in table]:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    return table.assign(**{name: pd.to_numeric(table[name]) for name in OVERLAP if name != "method"})


def with_overlap(table, overlap):
    """Mean overlap and recall of all facts, a row per method that has both: method, overlap, leading, recall_all.

    Args:
        table: of `kept`; means over its forward runs.
        overlap: of `read_overlap`; the mean over edits, the first left out.
    """
    means = overlap.groupby("method", sort=False)[["overlap", "leading"]].mean()
    recall = table[~table["reversed"]].groupby("method")["recall_all"].mean()
    return means.join(recall, how="inner").reset_index()
