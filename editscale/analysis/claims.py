"""The claims of arXiv:2401.07453 and its companions beside what this study finds: claim, numbers, verdict.

What the paper shows is in data/paper.yaml. Each claim of `CLAIMS` names a measure of the study's tables, an `Interval`
over the forward orders of a method, and the range of it that would agree. The rule for the range: where the paper's
figure shows an effect, at least half of it in the same direction; where it shows none, less than `CLAIMS` says beside
it. A verdict is taken from the 95 % bootstrap interval over orders:

- agrees: the whole interval lies in the range;
- disagrees: the whole interval lies outside it, on one side;
- undecided: the interval holds a border of the range;
- not comparable: one order, a task or method that was not run, or fewer edits than the claim speaks of.

The paper edits GPT-J (GPT-2 XL in its first version): a verdict is about shapes on another model, not about its runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import yaml

from editscale.analysis import collapse, intervals, paired, task_loss
from editscale.analysis.intervals import Interval
from editscale.analysis.rows import groups, rows_of
from editscale.files import bundled
from editscale.metrics import drift

EDGE = 50  # edits at the start and at the end of a run whose means are compared
PAPER = yaml.safe_load(bundled("paper.yaml").read_text(encoding="utf-8"))


def says(name):
    """What an entry of data/paper.yaml says, its values filled in."""
    return PAPER[name]["says"].format_map(PAPER[name])


def half_effect(name):
    """Half of the effect that an entry of data/paper.yaml shows: of its `after` less its `before`."""
    return (PAPER[name]["after"] - PAPER[name]["before"]) / 2


# ------------------------------------------------------------------------------------- measures of a `study.Study`


def _forward(table, method, **wanted):
    return rows_of(table, method=method, reversed=False, **wanted)


def mean_score(study, rng, method, column):
    """Mean of a score right after each edit, in percent."""
    rows = _forward(study.edits, method)
    return intervals.summary(100 * rows[rows["edits"] <= study.n].groupby("order")[column].mean(), rng)


def change(study, rng, method, column):
    """Last less first `EDGE` edits of a score right after each edit, in points."""
    rows, edge = _forward(study.edits, method), min(EDGE, study.n // 2)
    last = rows[(rows["edits"] > study.n - edge) & (rows["edits"] <= study.n)].groupby("order")[column].mean()
    first = rows[rows["edits"] <= edge].groupby("order")[column].mean()
    return intervals.summary(100 * (last - first), rng)


def largest_fall(study, rng, method, within, beyond=False):
    """Largest loss of recall within a number of edits, in points; `beyond`: of whole runs, those longer than n only."""
    values = []
    for _, run in groups(_forward(study.recall, method), ("order",)):
        curve = run.set_index("edits")["recall"]
        if beyond and curve.index.max() <= study.n:
            continue
        curve = pd.concat([pd.Series({0: 1.0}), curve if beyond else curve[curve.index <= study.n]]).dropna()
        lowest = [curve[(curve.index >= at) & (curve.index <= at + within)].min() for at in curve.index]
        values.append(100 * (curve.to_numpy() - lowest).max())
    return intervals.summary(values, rng)


def forgotten(study, rng, method):
    """The paper's share of learned facts forgotten after n edits, in percent."""
    return intervals.summary(_forward(study.paper, method, edits=study.n)["forgotten_percent"], rng)


def kept_more(study, rng, method, other):
    """Recall of all n facts under a method less that under another one on the same sequences, in points."""
    ends = paired.at_end(study.edits, study.history, study.drift, study.n)
    left, right = (rows_of(ends, method=name).set_index("order")["recall"] for name in (method, other))
    return intervals.summary(100 * (left - right), rng)


def opened(study, rng, method):
    """Share of first collapses with a disabling edit at their steepest fall, in percent."""
    first = collapse.first_of_each(_forward(study.collapses, method))
    counts = collapse.by_order(first, _forward(study.points, method))
    share = intervals.ratio(counts["opened"], counts["collapses"], rng)
    return Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n)


def disabling_edits(study, rng, method):
    """Updates above the jump, per order, up to the first checkpoint at which less than half of the facts are recalled.

    After that a large update disables nothing: the model is broken already, and makes large updates for that.
    """
    places = collapse.places(_forward(study.points, method), _forward(study.recall, method))
    ends = places.set_index("order")["half"]
    rows = _forward(study.jumps, method)
    counted = rows["edits"] <= rows["order"].map(ends).clip(upper=study.n)
    return intervals.summary(rows[counted].groupby("order").size().reindex(ends.index, fill_value=0), rng)


def step_of_distance(study, rng, method):
    """Distance of the most moved layer after a collapse's steepest fall, over that before it; largest of each order."""
    far = _forward(study.drift, method).groupby(["order", "edits"])["distance"].max()
    steps = {}
    for row in _forward(study.collapses, method).itertuples():
        if row.steepest_start > 0:
            step = far[row.order, row.steepest_stop] / far[row.order, row.steepest_start]
            steps[row.order] = max(step, steps.get(row.order, 0))
    return intervals.summary(list(steps.values()), rng)


def inflection_place(study, rng, method):
    """Median over the orders that have an inflection of its place, in edits."""
    return intervals.summary(_forward(study.points, method)["inflection"], rng, statistic=np.median)


def change_before_collapse(study, rng, method, task, at):
    """Weighted F1 of a task less that of the unedited model, in points, at the last checkpoint up to the order's first
    collapse and to `at` edits (at most n). Orders without a checkpoint there have no value."""
    first = collapse.first_of_each(_forward(study.collapses, method)).set_index("order")["start"]
    values = []
    for order, run in _forward(study.downstream, method, task=task).groupby("order"):
        f1 = run.set_index("edits")["f1"].sort_index().loc[: min(at, study.n, first.get(order, at))]
        values += [100 * (f1.iloc[-1] - f1.iloc[0])] if len(f1) > 1 else []
    return intervals.summary(values, rng)


def task_score(study, rng, method, task, at=None):
    """Weighted F1 of a task after `at` edits, or after n, in percent."""
    place = study.n if at is None else at
    rows = task_loss.scores_at(_forward(study.downstream, method, task=task), [place])
    return intervals.summary(100 * rows["f1"], rng)


def growth(study, rng, method, first=50, last=500):
    """Exponent of the distance's growth with the number of edits from `first` to `last`, in the deepest layer."""
    rows = _forward(study.drift, method)
    rows = rows[(rows["layer"] == rows["layer"].max()) & rows["edits"].between(first, last)]
    values = [drift.exponent(run["edits"], run["distance"]) for _, run in rows.groupby("order")]
    return intervals.summary(values, rng)


# ------------------------------------------------------------------------------------------------------ claims


@dataclass(frozen=True)
class Claim:
    """What the paper says, its entry in data/paper.yaml, and which range of `measure` (of the entry's method) agrees.

    `edits`: a study with fewer cannot decide it. `measured` says what the measure is; form and unit write its numbers.
    """

    claim: str
    paper: str
    measure: Callable
    low: float
    high: float
    edits: int
    measured: str
    form: str = "{:.0f}"
    unit: str = ""


VERDICTS = ("agrees", "disagrees", "undecided", "not comparable")
ANY = np.inf
EFFICACY, NEIGHBORHOOD = partial(mean_score, column="efficacy"), partial(change, column="neighborhood")
JUMPS = "jumps per order while half of the facts last; less than one in two orders"
CLAIMS = (
    Claim("edits keep taking to the end", "rome-efficacy", EFFICACY, 95, 100, 1000,
          "efficacy right after each edit", "{:.1f}", " %"),
    Claim("edits keep taking to the end", "memit-efficacy", EFFICACY, 95, 100, 1000,
          "efficacy right after each edit", "{:.1f}", " %"),
    Claim("neighborhood score falls with the edits", "rome-neighborhood", NEIGHBORHOOD,
          -ANY, half_effect("rome-neighborhood"), 1000, "last less first 50 edits", "{:+z.0f}", " points"),
    Claim("neighborhood score falls with the edits", "memit-neighborhood", NEIGHBORHOOD,
          -ANY, half_effect("memit-neighborhood"), 1000, "last less first 50 edits", "{:+z.0f}", " points"),
    Claim("facts are lost all at once", "rome-forgotten", partial(largest_fall, within=20),
          half_effect("rome-forgotten"), ANY, 1000, "largest fall of recall within 20 edits", "{:.0f}", " points"),
    Claim("facts are lost all at once, late", "memit-forgotten", partial(largest_fall, within=150, beyond=True),
          half_effect("memit-forgotten"), ANY, 1000,
          "largest fall of recall within 150 edits, longer runs", "{:.0f}", " points"),
    Claim("forgetting inflects after 100 to 1,000 edits", "rome-inflection", inflection_place,
          PAPER["rome-inflection"]["least"], PAPER["rome-inflection"]["most"], 1000,
          "median inflection", "{:.0f}", " edits"),
    Claim("MEMIT keeps more facts than ROME", "memit-forgotten-less", partial(kept_more, other="rome"),
          -half_effect("memit-forgotten-less"), ANY, 1000,
          "recall of the same facts at the end, MEMIT − ROME", "{:+z.0f}", " points"),
    Claim("fine-tuning forgets most facts", "ft-c-forgotten", forgotten, half_effect("ft-c-forgotten"), 100, 1000,
          "learned facts forgotten, as the paper counts", "{:.0f}", " %"),
    Claim("collapses come with single disabling edits", "rome-disabling", opened, 50, 100, 1000,
          "first collapses with a jump at their steepest fall", "{:.0f}", " %"),
    Claim("there are no disabling edits", "memit-disabling", disabling_edits, 0, 0.5, 1000, JUMPS, "{:.1f}"),
    Claim("there are no disabling edits", "r-rome-disabling", disabling_edits, 0, 0.5, 500, JUMPS, "{:.1f}"),
    Claim("the distance steps up at the collapse", "rome-distance", step_of_distance,
          PAPER["rome-distance"]["times"] / 2, ANY, 1000, "distance after the steepest fall over before", "{:.1f}",
          " ×"),
    Claim("the distance grows as the root of the edits", "memit-growth", growth,
          PAPER["memit-growth"]["exponent"] - 0.1, PAPER["memit-growth"]["exponent"] + 0.1, 500,
          "exponent from 50 to 500 edits; ± 0.1", "{:.2f}"),
    Claim("SST-2 declines before the collapse", "rome-sst2", partial(change_before_collapse, task="sst2", at=500),
          -ANY, half_effect("rome-sst2"), 500, "F1 before the collapse, or at 500 edits, less unedited", "{:+z.0f}",
          " points"),
    Claim("SST-2 is lost to the last answer", "rome-sst2-end", partial(task_score, task="sst2"), 0, 100 / 6, 1000,
          "F1 at the end; half a constant answer's", "{:.0f}", " %"),
    Claim("SST-2 is untouched up to the collapse", "memit-sst2", partial(change_before_collapse, task="sst2", at=1000),
          -5, ANY, 1000, "F1 before the collapse, or at 1,000 edits, less unedited; − 5", "{:+z.0f}", " points"),
    Claim("MRPC carries no signal to begin with", "rome-mrpc", partial(task_score, task="mrpc", at=0),
          100 / 3 - 7, 100 / 3 + 7, 0, "F1 of the unedited model; ± 7", "{:.0f}", " %"),
)  # fmt: skip


def claims(study, rng, wanted=CLAIMS):
    """One row per claim: claim, method, paper, source, measured, mean, low, high, orders, least, most, verdict, ours.

    `least` and `most` bound the range that agrees; `ours` is the interval in words. See the module for the verdicts.
    """
    rows = []
    for claim in wanted:
        entry = PAPER[claim.paper]
        found = claim.measure(study, rng, entry["method"])
        short = study.n < claim.edits
        ours = f"{study.n} edits are too few" if short else intervals.in_words(found, claim.form, claim.unit)
        rows.append(
            {
                **{"claim": claim.claim, "method": entry["method"], "paper": says(claim.paper)},
                **{"source": entry["source"], "measured": claim.measured},
                **{"mean": found.mean, "low": found.low, "high": found.high},
                **{"orders": found.n, "least": claim.low, "most": claim.high},
                **{"verdict": "not comparable" if short else verdict(found, claim.low, claim.high), "ours": ours},
            }
        )
    return pd.DataFrame(rows)


def verdict(found, low, high):
    """agrees, disagrees, undecided or not comparable: where an `Interval` lies about the range from low to high."""
    if found.n < 2 or np.isnan(found.low):
        return "not comparable"
    if low <= found.low and found.high <= high:
        return "agrees"
    return "disagrees" if found.high < low or found.low > high else "undecided"


def tally(table):
    """ "11 agree, 4 disagree, 1 undecided": how many claims have each verdict."""
    counts = table["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    plural = {"agrees": "agree", "disagrees": "disagree"}
    return ", ".join(f"{n} {name if n == 1 else plural.get(name, name)}" for name, n in counts.items() if n)


def for_reading(table):
    """The claims with few columns: claim (of which method, and what is measured), the paper's number, ours, verdict.

    Args:
        table: see `claims`, also as read back from claims.csv.
    """
    claim = table["claim"] + " (" + table["method"] + "): " + table["measured"]
    paper = table["paper"] + " (" + table["source"] + ")"
    return pd.DataFrame({"claim": claim, "paper": paper, "here": table["ours"], "verdict": table["verdict"]})


# What is said of each method: heading, finding and measure of `over_orders` (notebook 07), stretch, scale, form.
ABOUT_METHODS = (
    ("median inflection, edits", "places", "inflection", "", 1, "{:.0f}"),
    ("median edits until less than half is recalled", "places", "half", "", 1, "{:.0f}"),
    ("gradual: points of recall lost in 100 edits", "stretches", "per_100", "gradual", 100, "{:.1f}"),
    ("catastrophic: the same, while it lasts", "stretches", "per_100", "catastrophic", 100, "{:.0f}"),
    ("share of the loss that is catastrophic, %", "share of loss", "share", "", 100, "{:.0f}"),
    ("collapses with exactly one disabling edit at the steepest fall, %", "collapses", "single", "", 100, "{:.0f}"),
    ("loss explained by drift, R²", "within runs", "r2_drift", "", 1, "{:.2f}"),
    ("loss explained by the number of edits, R²", "within runs", "r2_edits", "", 1, "{:.2f}"),
)


def about_methods(over_orders):
    """What holds over the forward orders of each method, in words: a row per finding of `ABOUT_METHODS`, a column per
    method; "none" where no order has one.

    Args:
        over_orders: columns method, reversed, finding, measure, label, mean, low, high, n.
    """
    forward = over_orders[~over_orders["reversed"].fillna(True).astype(bool)].fillna({"label": ""})
    methods = forward.loc[forward["finding"] == "places", "method"].unique()

    def cell(method, finding, measure, label, scale, form):
        rows = rows_of(forward, method=method, finding=finding, measure=measure, label=label).dropna(subset="mean")
        if rows.empty:
            return "none"
        mean, low, high, n = rows[["mean", "low", "high", "n"]].to_numpy(float)[0]
        return intervals.in_words(Interval(scale * mean, scale * low, scale * high, int(n)), form)

    headings = [about[0] for about in ABOUT_METHODS]
    cells = {method: [cell(method, *about[1:]) for about in ABOUT_METHODS] for method in methods}
    return pd.DataFrame(cells, index=headings).rename_axis("over orders")
