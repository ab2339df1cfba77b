"""The claims of arXiv:2401.07453 and its companions beside what this study finds: claim, numbers, verdict.

What the paper shows is in data/paper.yaml. Each claim of `CLAIMS` names a measure of the study's tables, an `Interval`
over the forward orders of a method, and the range of it that would agree. The rule for the range: where the paper's
figure shows an effect, at least half of it in the same direction; where it shows none, less than `CLAIMS` says beside
it. A verdict is taken from the 95 % interval over orders:

- agrees: the whole interval lies in the range;
- disagrees: the whole interval lies outside it, on one side;
- undecided: the interval holds a border of the range, or there are too few orders for one;
- not comparable: one order, a task or method that was not run, or fewer edits than the claim speaks of.

Beside each measure stands another that a reader could have taken: where its verdict is a different one, the claim is
undecided. `corrected` is the verdict from intervals that leave out a share of 5 % over all claims (Bonferroni).

The paper edits GPT-J (GPT-2 XL in its first version): a verdict is about shapes on another model, not about its runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import yaml

from editscale.analysis import intervals, measures
from editscale.analysis.intervals import Interval
from editscale.analysis.rows import rows_of
from editscale.files import bundled

PAPER = yaml.safe_load(bundled("paper.yaml").read_text(encoding="utf-8"))
VERDICTS = ("agrees", "disagrees", "undecided", "not comparable")
ANY = np.inf


def says(name):
    """What an entry of data/paper.yaml says, its values filled in."""
    return PAPER[name]["says"].format_map(PAPER[name])


def half_effect(name):
    """Half of the effect that an entry of data/paper.yaml shows: of its `after` less its `before`."""
    return (PAPER[name]["after"] - PAPER[name]["before"]) / 2


@dataclass(frozen=True)
class Measure:
    """A function of `measures`, the range of it that agrees, and what it is in words.

    `form` and `unit` write its numbers; `over` is what they are over.
    """

    of: Callable
    low: float
    high: float
    words: str
    form: str = "{:.0f}"
    unit: str = " %"
    over: str = "orders"


@dataclass(frozen=True)
class Claim:
    """What the paper says and its entry in data/paper.yaml, the measure that decides, and another that could have been
    taken. `edits`: a study with fewer cannot decide it."""

    claim: str
    paper: str
    measure: Measure
    other: Measure
    edits: int = field(default=1000)


POINTS, SIGNED = " points", "{:+z.0f}"


def _keeps_taking():
    mean = partial(measures.mean_score, column="efficacy")
    last = partial(measures.mean_score, column="efficacy", last=measures.EDGE)
    return Measure(mean, 95, 100, "efficacy right after each edit", "{:.1f}"), Measure(
        last, 95, 100, "the same of the last 50 edits", "{:.1f}"
    )


def _neighborhood(name):
    from_unedited = partial(measures.change_from_unedited, column="neighborhood")
    from_first = partial(measures.change_from_first, column="neighborhood")
    ends = -ANY, half_effect(name)
    return Measure(from_unedited, *ends, "last 50 edits less the same facts unedited", SIGNED, POINTS), Measure(
        from_first, *ends, "last less first 50 edits", SIGNED, POINTS
    )


def _no_disabling():
    return Measure(measures.with_disabling, 0, 50, "orders with an edit that raises log perplexity by 0.1"), Measure(
        measures.with_jump, 0, 50, "orders with an update five times as large as those before"
    )


def _before_collapse(task, at, low, high):
    f1, accuracy = (
        partial(measures.change_before_collapse, task=task, at=at, column=column) for column in ("f1", "accuracy")
    )
    words = f"before the collapse, or at {at:,} edits, less unedited"
    return Measure(f1, low, high, f"F1 {words}", SIGNED, POINTS), Measure(
        accuracy, low, high, f"accuracy {words}", SIGNED, POINTS
    )


CLAIMS = (
    Claim("edits keep taking to the end", "rome-efficacy", *_keeps_taking()),
    Claim("edits keep taking to the end", "memit-efficacy", *_keeps_taking()),
    Claim("neighborhood score falls with the edits", "rome-neighborhood", *_neighborhood("rome-neighborhood")),
    Claim("neighborhood score falls with the edits", "memit-neighborhood", *_neighborhood("memit-neighborhood")),
    Claim(
        "facts are lost all at once",
        "rome-forgotten",
        Measure(measures.catastrophic, 50, 100, "orders with a catastrophic stretch"),
        Measure(
            partial(measures.largest_fall, within=20), half_effect("rome-forgotten"), ANY,
            "largest fall of recall within 20 edits", unit=POINTS,
        ),
    ),
    Claim(
        "facts are lost all at once, late",
        "memit-forgotten",
        Measure(
            partial(measures.catastrophic, after=100), 50, 100, "orders with a catastrophic stretch after 100 edits"
        ),
        Measure(
            partial(measures.largest_fall, within=150), half_effect("memit-forgotten"), ANY,
            "largest fall of recall within 150 edits", unit=POINTS,
        ),
    ),
    Claim(
        "forgetting inflects after 100 to 1,000 edits",
        "rome-inflection",
        Measure(
            measures.collapse_place, PAPER["rome-inflection"]["least"], PAPER["rome-inflection"]["most"],
            "median of the collapse", unit=" edits",
        ),
        Measure(
            measures.half_place, PAPER["rome-inflection"]["least"], PAPER["rome-inflection"]["most"],
            "median of the place where half of the facts are lost", unit=" edits",
        ),
    ),
    Claim(
        "MEMIT keeps more facts than ROME",
        "memit-forgotten-less",
        Measure(
            partial(measures.kept_more, other="rome"), -half_effect("memit-forgotten-less"), ANY,
            "recall of all facts so far, MEMIT − ROME, mean of checkpoints", SIGNED, POINTS,
        ),
        Measure(
            partial(measures.kept_more, other="rome", at=300), -half_effect("memit-forgotten-less"), ANY,
            "the same at 300 edits", SIGNED, POINTS,
        ),
    ),
    Claim(
        "fine-tuning forgets most facts",
        "ft-c-forgotten",
        Measure(measures.forgotten, half_effect("ft-c-forgotten"), 100, "learned facts forgotten, as the paper counts"),
        Measure(measures.not_recalled, half_effect("ft-c-forgotten"), 100, "learned facts not recalled at the end"),
    ),
    Claim(
        "collapses come with single disabling edits",
        "rome-disabling",
        Measure(measures.collapses_by_one, 50, 100, "collapses whose last edit alone raises log perplexity by 0.1"),
        Measure(measures.with_disabling, 50, 100, "orders with such an edit before or at the collapse"),
    ),
    Claim("there are no disabling edits", "memit-disabling", *_no_disabling()),
    Claim("there are no disabling edits", "r-rome-disabling", *_no_disabling(), edits=500),
    Claim(
        "the distance steps up at the collapse",
        "rome-distance",
        Measure(
            measures.step_of_distance, PAPER["rome-distance"]["times"] / 2, ANY,
            "median distance after the edit that collapses the model over before", "{:.1f}", " ×",
        ),
        Measure(
            partial(measures.step_of_distance, statistic=np.mean), PAPER["rome-distance"]["times"] / 2, ANY,
            "the mean of it", "{:.1f}", " ×",
        ),
    ),
    Claim(
        "the distance grows as the root of the edits",
        "memit-growth",
        Measure(
            measures.growth, PAPER["memit-growth"]["exponent"] - 0.1, PAPER["memit-growth"]["exponent"] + 0.1,
            "exponent from 50 to 500 edits; ± 0.1", "{:.2f}", "",
        ),
        Measure(
            partial(measures.growth, collapse=True), PAPER["memit-growth"]["exponent"] - 0.1,
            PAPER["memit-growth"]["exponent"] + 0.1, "exponent from 50 edits to the collapse; ± 0.1", "{:.2f}", "",
        ),
        edits=500,
    ),
    Claim(
        "SST-2 declines before the collapse",
        "rome-sst2",
        *_before_collapse("sst2", 500, -ANY, half_effect("rome-sst2")),
        edits=500,
    ),
    Claim(
        "SST-2 is lost to the last answer",
        "rome-sst2-end",
        Measure(partial(measures.task_score, task="sst2"), 0, 100 / 6, "F1 at the end; half a constant answer's"),
        Measure(partial(measures.task_score, task="sst2", column="invalid"), 50, 100, "invalid answers at the end"),
    ),
    Claim("SST-2 is untouched up to the collapse", "memit-sst2", *_before_collapse("sst2", 1000, -5, ANY)),
    Claim(
        "MRPC carries no signal to begin with",
        "rome-mrpc",
        Measure(partial(measures.unedited_accuracy, task="mrpc"), 40, 60, "accuracy of the unedited model; 50 ± 10",
                over="examples"),
        Measure(
            partial(measures.task_score, task="mrpc", at=0), 100 / 3 - 7, 100 / 3 + 7,
            "F1 of the unedited model; a constant answer's ± 7",
        ),
        edits=0,
    ),
)  # fmt: skip


def claims(study, wanted=CLAIMS):
    """One row per claim: claim, method, paper, source; measured, mean, low, high, values, orders, least, most, ours (in
    words) and by_measure, its verdict; of the other measure other_measured, other, by_other; verdict; corrected.

    `least` and `most` bound the range that agrees. See the module for the verdicts.
    """
    rows, wide = [], replace(study, tail=study.tail / len(wanted))
    for claim in wanted:
        entry, short = PAPER[claim.paper], study.n < claim.edits
        (found, ours, by_measure), (_, other, by_other) = (
            _judged(of, study, entry["method"], short) for of in (claim.measure, claim.other)
        )
        rows.append(
            {
                **{"claim": claim.claim, "method": entry["method"], "paper": says(claim.paper)},
                **{"source": entry["source"], "measured": claim.measure.words},
                **{"mean": found.mean, "low": found.low, "high": found.high, "values": found.values},
                **{"orders": found.n, "least": claim.measure.low, "most": claim.measure.high},
                **{"ours": ours, "by_measure": by_measure},
                **{"other_measured": claim.other.words, "other": other, "by_other": by_other},
                "verdict": _together(by_measure, by_other),
                "corrected": _together(
                    *(_judged(of, wide, entry["method"], short)[2] for of in (claim.measure, claim.other))
                ),
            }
        )
    return pd.DataFrame(rows)


def _together(by_measure, by_other):
    """The verdict of a claim from those of its two measures."""
    if by_measure == "not comparable" or by_other in (by_measure, "not comparable"):
        return by_measure
    return "undecided"


def _judged(measure, study, method, short):
    """A measure's `Interval`, its words and its verdict."""
    found = measure.of(study, method)
    if short:
        return found, f"{study.n} edits are too few", "not comparable"
    return (
        found,
        intervals.in_words(found, measure.form, measure.unit, measure.over),
        verdict(found, measure.low, measure.high),
    )


def verdict(found, low, high):
    """agrees, disagrees, undecided or not comparable: where an `Interval` lies about the range from low to high."""
    if found.n < 2 or np.isnan(found.mean):
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
    """The claims with few columns: claim and method, the paper's number, ours by both measures, verdict.

    Args:
        table: see `claims`, also as read back from claims.csv.
    """
    claim = table["claim"] + " (" + table["method"] + ")"
    paper = table["paper"] + " (" + table["source"] + ")"
    here, other = table["measured"] + ": " + table["ours"], table["other_measured"] + ": " + table["other"]
    return pd.DataFrame({"claim": claim, "paper": paper, "here": here, "also": other, "verdict": table["verdict"]})


# What is said of each method: heading, finding and measure of `over_orders` (notebook 07), scale, form.
ABOUT_METHODS = (
    ("median edits until the collapse (perplexity twice the unedited)", "places", "collapse", 1, "{:.0f}"),
    ("median edits until less than half of the learned facts is recalled", "places", "half", 1, "{:.0f}"),
    ("facts lost per 20 edits before the collapse, %", "hazard", "before", 100, "{:.1f}"),
    ("orders with a catastrophic stretch, %", "catastrophic", "orders", 100, "{:.0f}"),
    ("disabling edits before the collapse, per 1,000", "disabling", "per_edit", 1000, "{:.1f}"),
    ("facts learned, %", "kept", "learned", 100, "{:.0f}"),
    ("recall of learned facts at the end, %", "kept", "recall_learned", 100, "{:.0f}"),
    ("recall of all facts at the end, %", "kept", "recall", 100, "{:.0f}"),
)


def about_methods(over_orders):
    """What holds over the forward orders of each method, in words: a row per finding of `ABOUT_METHODS`, a column per
    method; "none" where no order has one.

    Args:
        over_orders: columns method, reversed, finding, measure and `intervals.PARTS`.
    """
    forward = over_orders[~over_orders["reversed"].fillna(True).astype(bool)]
    methods = forward.loc[forward["finding"] == "places", "method"].unique()

    def cell(method, finding, measure, scale, form):
        rows = rows_of(forward, method=method, finding=finding, measure=measure).dropna(subset="mean")
        if rows.empty:
            return "none"
        mean, low, high, n, values = rows[list(intervals.PARTS)].iloc[0]
        values = tuple(scale * x for x in values)
        return intervals.in_words(Interval(scale * mean, scale * low, scale * high, int(n), values), form)

    headings = [about[0] for about in ABOUT_METHODS]
    cells = {method: [cell(method, *about[1:]) for about in ABOUT_METHODS] for method in methods}
    return pd.DataFrame(cells, index=headings).rename_axis("over orders")
