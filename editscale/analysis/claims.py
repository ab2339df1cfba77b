"""The claims of arXiv:2401.07453 and its companions beside what this study finds: claim, numbers, verdict.

Each claim of `CLAIMS` names a measure of the study's tables, one value per order, and the range of it that would agree.
The rule for the range: where the paper's figure shows an effect, at least half of it in the same direction; where it
shows none, less than `CLAIMS` says beside it. A verdict is taken from the 95 % bootstrap interval over orders:

- agrees: the whole interval lies in the range;
- disagrees: the whole interval lies outside it, on one side;
- undecided: the interval holds a border of the range;
- not comparable: one order, a task or method that was not run, or fewer edits than the claim speaks of.

The paper edits GPT-J (GPT-2 XL in its first version): a verdict is about shapes on another model, not about its runs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from editscale.analysis import intervals
from editscale.analysis.measures import (
    change,
    change_before_collapse,
    disabling_edits,
    forgotten,
    growth,
    inflection_place,
    kept_more,
    largest_fall,
    mean_score,
    opened,
    step_of_distance,
    task_score,
)


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, and which range of `measure` agrees. `edits`: a study with fewer cannot tell."""

    claim: str
    method: str
    paper: str
    source: str
    measure: Callable
    low: float
    high: float
    edits: int
    measured: str
    form: str = "{:.0f}"
    unit: str = ""


VERDICTS = ("agrees", "disagrees", "undecided", "not comparable")
ANY = np.inf
FIGURE_1C, FIGURE_1D, FIGURE_2, FIGURE_3 = "Figure 1c", "Figure 1d", "Figure 2", "Figure 3"
CLAIMS = (
    Claim("edits keep taking to the end", "rome", "100 %, dips of a few % after 650 edits", FIGURE_1C,
          mean_score("rome", "efficacy"), 95, 100, 1000, "efficacy right after each edit", "{:.1f}", " %"),
    Claim("edits keep taking to the end", "memit", "100 % up to 1,250 edits", FIGURE_3,
          mean_score("memit", "efficacy"), 95, 100, 1000, "efficacy right after each edit", "{:.1f}", " %"),
    Claim("neighborhood score falls with the edits", "rome", "78 → 45 % in 1,000 edits", FIGURE_1C,
          change("rome", "neighborhood"), -ANY, -33 / 2, 1000, "last less first 50 edits", "{:+z.0f}", " points"),
    Claim("neighborhood score falls with the edits", "memit", "82 → 50 % in 1,000 edits", FIGURE_3,
          change("memit", "neighborhood"), -ANY, -32 / 2, 1000, "last less first 50 edits", "{:+z.0f}", " points"),
    Claim("facts are lost all at once", "rome", "8 % forgotten at 550 edits, 78 % at 556", FIGURE_1D,
          largest_fall("rome", 20), 70 / 2, ANY, 1000, "largest fall of recall within 20 edits", "{:.0f}", " points"),
    Claim("facts are lost all at once, late", "memit", "14 % forgotten at 1,150 edits, 99 % at 1,300", FIGURE_3,
          largest_fall("memit", 150, beyond=True), 85 / 2, ANY, 1000,
          "largest fall of recall within 150 edits, longer runs", "{:.0f}", " points"),
    Claim("forgetting inflects after 100 to 1,000 edits", "rome", "depends on the order, about 100 to 1,000",
          "first version, second-hand", inflection_place("rome"), 100, 1000, 1000, "median inflection", "{:.0f}",
          " edits"),
    Claim("MEMIT keeps more facts than ROME", "memit", "10 % forgotten at 1,000 edits, ROME about 98 %",
          "Figures 1d and 3", kept_more("memit", "rome"), 88 / 2, ANY, 1000,
          "recall of the same facts at the end, MEMIT − ROME", "{:+z.0f}", " points"),
    Claim("fine-tuning forgets most facts", "ft-c", "85 % forgotten at 1,000 edits", FIGURE_1D,
          forgotten("ft-c"), 85 / 2, 100, 1000, "learned facts forgotten, as the paper counts", "{:.0f}", " %"),
    Claim("collapses come with single disabling edits", "rome", "disabling edits: yes", "Table 3",
          opened("rome"), 50, 100, 1000, "first collapses with a jump at their steepest fall", "{:.0f}", " %"),
    Claim("there are no disabling edits", "memit", "disabling edits: no", "Table 3",
          disabling_edits("memit"), 0, 0.5, 1000,
          "jumps per order while half of the facts last; less than one in two orders", "{:.1f}"),
    Claim("there are no disabling edits", "r-rome", "no steps of the distance", "arXiv:2403.07175",
          disabling_edits("r-rome"), 0, 0.5, 500,
          "jumps per order while half of the facts last; less than one in two orders", "{:.1f}"),
    Claim("the distance steps up at the collapse", "rome", "4e-6 → 3e-5 at 556 edits (× 7.5)", "Figure 2d",
          step_of_distance("rome"), 7.5 / 2, ANY, 1000, "distance behind the steepest fall over before",
          "{:.1f}", " ×"),
    Claim("the distance grows as the root of the edits", "memit", "exponent 0.50 from 50 to 500 edits (GPT-2 XL)",
          "released logs", growth("memit"), 0.4, 0.6, 500, "exponent from 50 to 500 edits; ± 0.1", "{:.2f}"),
    Claim("SST-2 declines before the collapse", "rome", "F1 92 → 75 at 500 edits", FIGURE_2,
          change_before_collapse("rome", "sst2", 500), -ANY, -17 / 2, 500,
          "F1 before the collapse, or at 500 edits, less unedited", "{:+z.0f}", " points"),
    Claim("SST-2 is lost to the last answer", "rome", "F1 0 from 840 edits on", FIGURE_2,
          task_score("rome", "sst2", None), 0, 100 / 6, 1000, "F1 at the end; half a constant answer's", "{:.0f}",
          " %"),
    Claim("SST-2 is untouched up to the collapse", "memit", "F1 92 up to 1,230 edits", FIGURE_3,
          change_before_collapse("memit", "sst2", 1000), -5, ANY, 1000,
          "F1 before the collapse, or at 1,000 edits, less unedited; − 5", "{:+z.0f}", " points"),
    Claim("MRPC carries no signal to begin with", "rome", "F1 33.3, a constant answer's", FIGURE_2,
          task_score("rome", "mrpc", 0), 100 / 3 - 7, 100 / 3 + 7, 0, "F1 of the unedited model; ± 7", "{:.0f}", " %"),
)  # fmt: skip


def claims(study, rng, wanted=CLAIMS):
    """One row per claim: claim, method, paper, source, measured, mean, low, high, orders, least, most, verdict, ours.

    `least` and `most` bound the range that agrees; `ours` is the interval in words. See the module for the verdicts.
    """
    rows = []
    for claim in wanted:
        found = claim.measure(study, rng)
        short = study.n < claim.edits
        ours = f"{study.n} edits are too few" if short else intervals.in_words(found, claim.form, claim.unit)
        rows.append(
            {
                **{"claim": claim.claim, "method": claim.method, "paper": claim.paper, "source": claim.source},
                **{"measured": claim.measured, "mean": found.mean, "low": found.low, "high": found.high},
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
    """What holds over the forward orders of each method, with 95 % intervals, as a table in Markdown.

    Args:
        over_orders: columns method, reversed, finding, measure, label, mean, low, high, n.
    """
    forward = over_orders[~over_orders["reversed"].fillna(True).astype(bool)].fillna({"label": ""})
    found = {
        key: intervals.Interval(*rows[["mean", "low", "high", "n"]].to_numpy(float)[0])
        for key, rows in forward.groupby(["method", "finding", "measure", "label"])
    }
    methods = forward.loc[forward["finding"] == "places", "method"].unique()
    lines = [f"| | {' | '.join(methods)} |", f"| --- |{' --- |' * len(methods)}"]
    for heading, finding, measure, label, scale, form in ABOUT_METHODS:
        cells = [found.get((method, finding, measure, label)) for method in methods]
        lines.append(f"| {heading} | {' | '.join(_cell(cell, scale, form) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _cell(interval, scale, form):
    """An interval in words, "none" where no order has one."""
    if interval is None or np.isnan(interval.mean):
        return "none"
    scaled = intervals.Interval(*(scale * x for x in (interval.mean, interval.low, interval.high)), int(interval.n))
    return intervals.in_words(scaled, form)


def markdown(table):
    """The claims as a table in Markdown: claim, method, the paper's number and where, ours with interval, verdict.

    Args:
        table: see `claims`, also as read back from claims.csv.
    """
    lines = ["| claim | method | paper | here | verdict |", "| --- | --- | --- | --- | --- |"]
    for row in table.itertuples():
        paper, here = f"{row.paper} ({row.source})", f"{row.measured}: {row.ours}"
        cells = (row.claim, row.method, paper, here, row.verdict)
        lines.append(f"| {' | '.join(cell.replace('|', '∣') for cell in cells)} |")
    return "\n".join(lines) + "\n"
