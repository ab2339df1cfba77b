"""A referee's recomputation of the two tables that README.md and figures/README.md show, from the recorded tables.

`python -m editscale recompute SCALE` works out again what is found of the paper's claims and what each method does to a
model. Notebook 07 computes both with editscale.analysis and writes them beside figure 7. Here nothing of that is
imported: the definitions are coded a second time, from figures/SCALE/tables/*.parquet alone (`referee`), and the
paper's numbers are typed anew. Where the two ways differ, one of them is wrong.
"""

import math
import re
from pathlib import Path

import click
import numpy as np
import pandas as pd
from scipy import special

from tools import referee

TAIL = 0.025  # chance left out at each end of an interval
ANY = math.inf
CLAIMS_FILE, METHODS_FILE = "fig7_findings.claims.csv", "fig7_findings.over_orders.csv"
PARTS = ("mean", "low", "high", "orders", "values", "least", "most")
VERDICTS = ("by_measure", "by_other", "verdict", "corrected")
OF_METHODS = ("mean", "low", "high", "n", "values")
NUMBER = r"[+-]?(?:inf|nan|\d+(?:\.\d+)?(?:e[+-]?\d+)?)"

# ------------------------------------------------------------------------------------------------------ intervals


def interval(kind, values, tail=TAIL):
    """(mean, low, high, n, single values) over orders of one value each; NaN, which says nothing, is left out.

    Of three orders or fewer there are no ends, and the single values instead. Kinds:

    - mean: Student's t; no ends where a value is infinite.
    - median: the order statistics that hold it whatever the distribution.
    - share: of values 0 and 1, exact binomial.
    - ratio: Σ parts / Σ wholes of values (part, whole), t of the ratio estimator, not below 0.
    """
    if kind == "ratio":
        parts, wholes = np.array([pair for pair in values if pair[1]], dtype=float).reshape(-1, 2).T
    else:
        parts = np.array(values, dtype=float)
        parts = parts[~np.isnan(parts)]
        wholes = np.ones(len(parts))
    n, single = len(parts), (parts / wholes).tolist()
    if not n:
        return math.nan, math.nan, math.nan, 0, []
    middle = float(np.median(parts) if kind == "median" else parts.sum() / wholes.sum())
    low, high = math.nan, math.nan
    if n <= 3:
        pass
    elif kind == "median":
        # The k-th smallest lies above the median with chance P(fewer than k of n below it) = Σ_{i<k} C(n, i) / 2ⁿ.
        k = max(k for k in range(n) if sum(math.comb(n, i) for i in range(k)) <= tail * 2**n)
        low, high = (sorted(single)[k - 1], sorted(single)[-k]) if k else (low, high)
    elif kind == "share":
        # At the lower end P(hits or more) = tail, at the upper one P(hits or fewer) = tail.
        hits = round(middle * n)
        low = special.bdtri(hits - 1, n, 1 - tail) if hits else 0.0
        high = special.bdtri(hits, n, tail) if hits < n else 1.0
    elif np.isfinite(parts).all():
        error = np.sqrt(((parts - middle * wholes) ** 2).sum() / (n - 1) / n) / wholes.mean()
        width = special.stdtrit(n - 1, 1 - tail) * error
        low, high = middle - width, middle + width
        low = max(low, 0.0) if kind == "ratio" else low
    return middle, float(low), float(high), n, single if math.isnan(low) and n > 1 else []


def verdict(found, least, most):
    """Where an interval lies: in the range, outside it on one side, or across a border of it."""
    middle, low, high, n, _ = found
    if n < 2 or math.isnan(middle):
        return "not comparable"
    if least <= low and high <= most:
        return "agrees"
    return "disagrees" if high < least or low > most else "undecided"


def together(first, other):
    """The verdict of a claim: that of its measure, unless the other one says something else."""
    return first if first == "not comparable" or other in (first, "not comparable") else "undecided"


# --------------------------------------------------------------------------------------------------------- tables

# Of each claim: what it says, method, edits without which it is not decided; then of the measure that decides, and of
# another: kind, the range that agrees, and the value of an order. The range is half of the effect that the paper shows,
# in its direction, or what the measure says of it. Shares are 0–1 here, and in percent as the table has them.
_TAKES = (
    ("mean", 95, 100, lambda run: referee.mean_of_last(run, "efficacy", run.n)),
    ("mean", 95, 100, lambda run: referee.mean_of_last(run, "efficacy", 50)),
)
_NO_DISABLING = (("share", 0, 50, referee.disables), ("share", 0, 50, referee.jumps))


def _neighborhood(before, after):
    both = referee.neighborhood_from_unedited, referee.neighborhood_from_first
    return tuple(("mean", -ANY, (after - before) / 2, value) for value in both)


def _sst2(at, least, most):
    return tuple(
        ("mean", least, most, lambda run, column=column: referee.task_change(run, "sst2", at, column))
        for column in ("f1", "accuracy")
    )


CLAIMS = (
    ("edits keep taking to the end", "rome", 1000, *_TAKES),
    ("edits keep taking to the end", "memit", 1000, *_TAKES),
    ("neighborhood score falls with the edits", "rome", 1000, *_neighborhood(78, 45)),
    ("neighborhood score falls with the edits", "memit", 1000, *_neighborhood(82, 50)),
    ("facts are lost all at once", "rome", 1000,
     ("share", 50, 100, lambda run: bool(run.catastrophic)),
     ("mean", (78 - 8) / 2, ANY, lambda run: referee.largest_fall(run, 20))),
    ("facts are lost all at once, late", "memit", 1000,
     ("share", 50, 100, lambda run: any(start >= 100 for start in run.catastrophic)),
     ("mean", (99 - 14) / 2, ANY, lambda run: referee.largest_fall(run, 150))),
    ("forgetting inflects after 100 to 1,000 edits", "rome", 1000,
     ("median", 100, 1000, lambda run: run.collapse), ("median", 100, 1000, referee.half)),
    ("MEMIT keeps more facts than ROME", "memit", 1000,
     ("mean", (98 - 10) / 2, ANY, referee.more_than_rome),
     ("mean", (98 - 10) / 2, ANY, lambda run: referee.more_than_rome(run, at=300))),
    ("fine-tuning forgets most facts", "ft-c", 1000,
     ("mean", 85 / 2, 100, referee.forgotten),
     ("mean", 85 / 2, 100, lambda run: 100 - 100 * referee.recalled(run, "learned"))),
    ("collapses come with single disabling edits", "rome", 1000,
     ("share", 50, 100, referee.collapses_by_one), ("share", 50, 100, referee.disables)),
    ("there are no disabling edits", "memit", 1000, *_NO_DISABLING),
    ("there are no disabling edits", "r-rome", 500, *_NO_DISABLING),
    ("the distance steps up at the collapse", "rome", 1000,
     ("median", 7.5 / 2, ANY, referee.distance_step), ("mean", 7.5 / 2, ANY, referee.distance_step)),
    ("the distance grows as the root of the edits", "memit", 500,
     ("mean", 0.5 - 0.1, 0.5 + 0.1, lambda run: referee.growth(run, 500)),
     ("mean", 0.5 - 0.1, 0.5 + 0.1, lambda run: referee.growth(run, min(run.collapse, run.n)))),
    ("SST-2 declines before the collapse", "rome", 500, *_sst2(500, -ANY, (75 - 92) / 2)),
    ("SST-2 is lost to the last answer", "rome", 1000,
     ("mean", 0, 100 / 3 / 2, lambda run: referee.task_score(run, "sst2", run.n, "f1")),
     ("mean", 50, 100, lambda run: referee.task_score(run, "sst2", run.n, "invalid"))),
    ("SST-2 is untouched up to the collapse", "memit", 1000, *_sst2(1000, -5, ANY)),
    ("MRPC carries no signal to begin with", "rome", 0,
     ("examples", 50 - 10, 50 + 10, lambda run: referee.right_answers(run, "mrpc")),
     ("mean", 100 / 3 - 7, 100 / 3 + 7, lambda run: referee.task_score(run, "mrpc", 0, "f1"))),
)  # fmt: skip

# Of each method: finding and measure, as the file names them, kind, and the value of an order.
METHODS = (
    ("places", "collapse", "median", lambda run: run.collapse),
    ("places", "half", "median", referee.half),
    ("hazard", "before", "mean", referee.hazard_before),
    ("catastrophic", "orders", "share", lambda run: bool(run.catastrophic)),
    ("disabling", "per_edit", "ratio", lambda run: (sum(run.disabling.values()), len(run.disabling))),
    ("kept", "learned", "mean", referee.share_learned),
    ("kept", "recall_learned", "mean", lambda run: referee.recalled(run, "learned")),
    ("kept", "recall", "mean", referee.recalled),
)


def claims(tables):
    """What is found of each claim: claim, method; of its measure mean, low, high, orders, values, least, most and
    by_measure, its verdict; the same of the other one, other_mean, …, by_other; verdict; corrected.

    Args:
        tables: a folder of recorded tables, or what `referee.read` gives of one.

    Shares are in percent. A study with too few edits for a claim has no verdict on it.
    """
    rows, runs = [], tables if isinstance(tables, dict) else referee.read(tables)
    n = next(iter(runs.values()))[0].n
    for claim, method, edits, *measures in CLAIMS:
        row = {"claim": claim, "method": method, "too_few": n if n < edits else 0}
        judged = [_judged(runs.get(method, []), n >= edits, *measure) for measure in measures]
        for prefix, (found, *_), (_, least, most, _) in zip(("", "other_"), judged, measures, strict=True):
            row |= {f"{prefix}{part}": value for part, value in zip(PARTS, (*found, least, most), strict=True)}
        row["by_measure"], row["by_other"] = (by for _, by, _ in judged)
        row["verdict"], row["corrected"] = (together(*verdicts) for verdicts in list(zip(*judged, strict=True))[1:])
        rows.append(row)
    return pd.DataFrame(rows)


def _judged(own, enough, kind, least, most, value):
    """The interval of a measure over the orders of a method, its verdict, and that corrected for all claims."""
    values, times = [value(run) for run in own], 100 if kind in ("share", "examples") else 1
    if kind == "examples":  # of one unedited model, the same in all orders
        kind, values = "share", values[0] if values else []
    both = []
    for tail in (TAIL, TAIL / len(CLAIMS)):
        *ends, n, single = interval(kind, values, tail)
        both.append((*(times * end for end in ends), n, [times * x for x in single]))
    return both[0], *(verdict(found, least, most) if enough else "not comparable" for found in both)


def methods(tables):
    """What each method does: finding, measure, method, mean, low, high, n, values. Shares are 0–1.

    Args:
        tables: see `claims`.
    """
    rows, runs = [], tables if isinstance(tables, dict) else referee.read(tables)
    for method, own in runs.items():
        for finding, measure, kind, value in METHODS:
            found = interval(kind, [value(run) for run in own])
            rows.append((finding, measure, method, *found))
    return pd.DataFrame(rows, columns=["finding", "measure", "method", *OF_METHODS])


# ------------------------------------------------------------------------------------------------------ comparison


def differences(folder):
    """What the tables beside figure 7 in a folder of figures say and the recomputation does not: a list of texts.

    Args:
        folder: figures/SCALE, with the recorded tables in its folder tables.
    """
    return compare(folder)[1]


def compare(folder):
    """How many numbers were compared, and `differences`.

    Numbers must agree to a millionth, those in words to the digits given, verdicts exactly.
    """
    folder, checked = Path(folder), Checked()
    names = ["finding", "measure", "method"]
    found = checked.read(folder / CLAIMS_FILE, ["claim", "method", *PARTS, *VERDICTS, "ours", "other"])
    over = checked.read(folder / METHODS_FILE, [*names, "reversed", *OF_METHODS])
    if checked.different:
        return 0, checked.different
    runs = referee.read(folder / "tables")
    for row, old in checked.pairs(claims(runs), found, ["claim", "method"], CLAIMS_FILE):
        checked.at = f"{CLAIMS_FILE}, {row['claim']} ({row['method']})"
        checked.row(old, row, PARTS)
        for column in VERDICTS:
            checked.same(column, old[column], row[column])
        for column, prefix in (("ours", ""), ("other", "other_")):
            parts = [row[f"{prefix}{part}"] for part in PARTS[:5]]
            checked.words(column, old[column], [row["too_few"]] if row["too_few"] else in_words(*parts))
    over = over[over["reversed"].astype(str).eq("False") & over["finding"].isin({finding for finding, *_ in METHODS})]
    for row, old in checked.pairs(methods(runs), over, names, METHODS_FILE):
        checked.at = f"{METHODS_FILE}, {row['finding']}, {row['measure']} ({row['method']})"
        checked.row(old, row, OF_METHODS)
    return checked.numbers, checked.different


def in_words(mean, low, high, n, single):
    """The numbers that a text about an interval names, in the order in which it does."""
    if math.isnan(mean):
        return []
    if n == 1:
        return [mean]
    if low == high or len(set(single)) == 1:
        return [mean, n]
    return [mean, n, *sorted(single)] if single else [mean, low, high, n]


class Checked:
    """How many numbers were compared, what differs, and at which row the comparison is."""

    def __init__(self):
        self.numbers, self.different, self.at = 0, [], ""

    def read(self, path, columns):
        """A table; a difference if other code wrote it, without some of the columns."""
        table = pd.read_csv(path)
        if missing := [name for name in columns if name not in table]:
            self.different.append(f"{path.name} lacks {', '.join(missing)}; draw figure 7 anew with notebook 07")
        return table

    def pairs(self, ours, written, names, file):
        """Each recomputed row with the written one of the same names; a row that has no other is a difference."""
        ours, written = (
            {tuple(row[name] for name in names): row for row in table.to_dict("records")} for table in (ours, written)
        )
        for key in sorted(ours.keys() ^ written.keys()):
            if key in written or not math.isnan(ours[key]["mean"]):
                self.different.append(f"{file}, {', '.join(key)}: {'not recomputed' if key in written else 'missing'}")
        return [(ours[key], written[key]) for key in ours if key in written]

    def same(self, name, old, new):
        if old != new:
            self.different.append(f"{self.at}, {name}: {old} written, {new} recomputed")

    def close(self, name, old, new, tolerance=1e-9):
        self.numbers += 1
        if not (math.isclose(old, new, rel_tol=1e-6, abs_tol=tolerance) or math.isnan(old) and math.isnan(new)):
            self.different.append(f"{self.at}, {name}: {old:.9g} written, {new:.9g} recomputed")

    def row(self, old, new, names):
        """Columns of numbers; the single values of few orders are in one column, as Python writes a tuple."""
        for name in names:
            if name == "values":
                self.each(name, sorted(map(float, re.findall(NUMBER, old[name]))), sorted(new[name]))
            else:
                self.close(name, float(old[name]), new[name])

    def words(self, name, text, new):
        """The numbers in a text, each to half of its last digit."""
        old = re.findall(NUMBER, str(text))
        self.each(f"{name} ({text})", [float(x) for x in old], new, [0.5 / 10 ** len(x.partition(".")[2]) for x in old])

    def each(self, name, old, new, tolerances=None):
        if len(old) != len(new):
            self.different.append(f"{self.at}, {name}: {len(old)} numbers written, {len(new)} recomputed")
            return
        for x, y, tolerance in zip(old, new, tolerances or [1e-9] * len(old), strict=True):
            self.close(name, x, y, tolerance + 1e-9)


@click.command()
@click.argument("scale")
def main(scale):
    """Recompute the findings of a recorded scale by a second way, and say what differs.

    SCALE has figures and recorded tables in figures/SCALE. The exit status is 0 if every number agrees, 1 if not, 2 for
    bad input.
    """
    from editscale.workflow.parameters import checked_scale

    folder = Path("figures") / checked_scale(scale)
    if missing := [name for name in (CLAIMS_FILE, "tables/edits.parquet") if not (folder / name).is_file()]:
        raise FileNotFoundError(f"no {' and no '.join(missing)} in {folder}; record the scale, then draw its figures")
    numbers, different = compare(folder)
    for text in different:
        print(text)
    if different:
        return 1
    print(f"{numbers:,} numbers of {folder} recomputed, all agree")
    return 0
