"""Whether runs made again agree with the recorded ones: `python -m editscale rerun SCALE [--upto N] [--write]`.

Compared is each run that is finished in runs/<scale> (or in the folder of recorded tables named with --rerun) and
recorded in figures/<scale>/tables (or in those named with --from), up to the last edit that both have. A run that
started and finished when the recorded one did is that one, and is not compared.

A sequence of edits is chaotic: a difference in the last bits, such as another number of orders in a batch or another
GPU brings, grows with each edit. After some hundred edits single updates and answers differ, and a collapse may come a
few edits earlier or later, while means agree. So single values are held against each other at the beginning only, and
means over all edits.
"""

import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd

from editscale.analysis import forgetting, tables
from editscale.workflow.parameters import checked_scale
from tools import recorded

# Over these first edits rounding has not grown yet: most updates must be those recorded, one by one.
FIRST, NORMS = 20, 0.05  # edits; median relative difference of ‖ΔW‖
# Standard error of the difference of two independent shares near 90 % over 100 edits: 4 points, over 1,000: 1.3. Two
# runs on the same facts, most of which answer alike, differ by less.
EFFICACY = 5.0  # points of mean efficacy right after each edit
# Before a collapse the error of a share of the facts is as above; inside one, twenty edits cost ten points and more.
RECALL = 10.0  # points of recall at the last checkpoint that both have
SPANS = (1, 10, 100, 1000)  # edits up to which the largest difference of ‖ΔW‖ is shown


def compare(again, known, scale, *, upto=0):
    """How runs made again differ from the recorded ones: one row per run that both hold.

    Args:
        again, known: `recorded.Results`.
        upto: compare this many edits at most; 0: all that both have.

    Returns:
        method, order, reversed; edits: compared; first_other_fact: edit at which the facts differ, NaN for none;
        norm_difference: median relative difference of ‖ΔW‖ over the first 20 edits, all layers;
        norm_difference_1, _10, _100, _1000: the largest up to so many edits, NaN if fewer were compared;
        same_efficacy: share of edits with the same efficacy_accuracy, 0–1; efficacy_difference: of its mean, points;
        checkpoint, recall_difference: the last checkpoint of both and the difference of recall there, points, NaN
        without one; same_gpu: whether the records name one GPU; within: whether all of it is within tolerance.

    Differences are those of the new run less the recorded one. Raises ValueError if there is nothing to compare.
    """
    rows = []
    for run, key in recorded.grid_of(scale).items():
        one, two = (results.made.get(run, {}).get("edits") for results in (again, known))
        if one and two and any(one.get(end) != two.get(end) for end in ("started", "finished")):
            found = _compare_run(again, known, key, upto)
            gpus = {"same_gpu": one.get("gpu") == two.get("gpu")}
            rows.append(dict(zip(tables.RUN, key, strict=True)) | found | gpus | {"within": _within(found)})
    if not rows:
        raise ValueError(
            f"no run of scale {scale} was made again; run one anew, without recording it, or name the tables of one "
            "with --rerun FOLDER"
        )
    return pd.DataFrame(rows)


def _compare_run(again, known, key, upto):
    edits = [results.rows("edits", key).sort_values("edits") for results in (again, known)]
    n = min(min(len(table) for table in edits), upto or sys.maxsize)
    new, old = (table.head(n) for table in edits)
    other = np.flatnonzero(new["case_id"].to_numpy() != old["case_id"].to_numpy())
    answers = new["efficacy_accuracy"].to_numpy(float), old["efficacy_accuracy"].to_numpy(float)
    norms = _norm_differences(again.rows("drift", key), known.rows("drift", key), n)
    return {
        "edits": n,
        "first_other_fact": other[0] + 1 if len(other) else np.nan,
        "norm_difference": norms[norms.index <= FIRST].median(),
        **{f"norm_difference_{m}": norms[norms.index <= m].max() if m <= n else np.nan for m in SPANS},
        "same_efficacy": ((answers[0] == answers[1]) | np.isnan(answers).all(axis=0)).mean(),
        "efficacy_difference": _points(np.nanmean(answers[0]) - np.nanmean(answers[1])),
        **_recall_difference((again.rows("recall/history", key), new), (known.rows("recall/history", key), old)),
    }


def _norm_differences(new, old, n):
    """|‖ΔW‖ − recorded| / recorded by number of edits, of all layers; infinite where only one is a number."""
    both = [table[table["edits"] <= n].set_index(["edits", "layer"])["update_norm"] for table in (new, old)]
    one, two = both[0].align(both[1])
    difference = ((one - two).abs() / two).where(one != two, 0.0)
    return difference.where(one.isna() == two.isna(), np.inf).where(one.notna() | two.notna(), 0.0).droplevel("layer")


def _recall_difference(*runs):
    """At the last checkpoint that two runs, each a history and the compared edits, have within these."""
    curves = []
    for history, edits in runs:
        history = None if history is None else history[history["edits"] <= len(edits)]
        if history is not None and len(history):
            curves.append(forgetting.recall_curve(history, edits).set_index("edits")["recall"])
    shared = sorted(set.intersection(*(set(curve.index) for curve in curves))) if len(curves) == 2 else []
    if not shared:
        return {"checkpoint": np.nan, "recall_difference": np.nan}
    return {"checkpoint": shared[-1], "recall_difference": _points((curves[0] - curves[1])[shared[-1]])}


def _points(difference):
    """Of shares, in points, without the last bits, which would decide at a bound."""
    return round(100 * float(difference), 6)


def _within(found):
    """Whether a comparison is within the stated tolerances; recall that was not measured is not held against it."""
    return bool(
        np.isnan(found["first_other_fact"])
        and found["norm_difference"] <= NORMS
        and abs(found["efficacy_difference"]) <= EFFICACY
        and not abs(found["recall_difference"]) > RECALL
    )


def shown(table):
    """The comparison as lines of text."""
    lines = []
    for row in table.to_dict("records"):
        run = f"{row['method']} order {row['order']}{' reversed' if row['reversed'] else ''}"
        other = "" if np.isnan(row["first_other_fact"]) else f"; other facts from edit {row['first_other_fact']:.0f}"
        spans = {m: row[f"norm_difference_{m}"] for m in SPANS}
        norms = ", ".join(f"{100 * most:.2g} % in {m:,}" for m, most in spans.items() if not np.isnan(most))
        recall = "not measured"
        if not np.isnan(row["checkpoint"]):
            recall = f"{row['recall_difference']:+.1f} points at {row['checkpoint']:.0f} edits"
        lines += [
            f"{run}, {row['edits']:,} edits: {'within tolerance' if row['within'] else 'NOT within tolerance'}"
            f"{'' if row['same_gpu'] else ', on another GPU'}{other}",
            f"    ‖ΔW‖ differs by {100 * row['norm_difference']:.2g} % (median of the first {FIRST}), at most {norms}",
            f"    efficacy right after each edit: {100 * row['same_efficacy']:.1f} % of edits the same, mean "
            f"{row['efficacy_difference']:+.1f} points; recall {recall}",
        ]
    return lines


@click.command()
@click.argument("scale")
@click.option("--upto", default=0, metavar="N", help="Compare N edits at most; all if not given.")
@click.option("--from", "known", metavar="FOLDER", help="Recorded tables; figures/SCALE/tables if not given.")
@click.option(
    "--rerun", "again", metavar="FOLDER", help="Recorded tables of the runs made again, instead of runs/SCALE."
)
@click.option("--write", is_flag=True, help="Write figures/SCALE/tables/reruns.csv too.")
def main(scale, upto, known, again, write):
    """Say whether runs made again agree with the recorded ones.

    SCALE is recorded, and runs of it were made again. The exit status is 0 if all runs are within tolerance, 1 if not,
    2 for bad input.
    """
    out = Path("figures") / checked_scale(scale) / "tables"
    if upto < 0:
        raise ValueError(f"--upto is {upto}; give the number of edits to compare, or leave it out for all")
    known = recorded.read(known or out, scale)
    table = compare(recorded.read(again, scale) if again else recorded.in_runs(scale), known, scale, upto=upto)
    if write:
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "reruns.csv", index=False, float_format="%.6g")
    print("\n".join(shown(table)))
    return 0 if table["within"].all() else 1
