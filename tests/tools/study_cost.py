"""What a recorded study took on its GPU: `python -m editscale study-cost SCALE`, a table in Markdown.

- Editing: the seconds of edits in timing.parquet, the scores right after each included; a batch's are shared by its
  runs, so that the sum over runs is time on the clock.
- Recall and tasks: notebooks of several runs work side by side, so the time of a part is the length of the union of the
  [started, finished] intervals of one method's runs, on each GPU, added up over GPUs. Loading included; other methods'
  notebooks may share the GPU.
- Ten orders: the means over the measured runs, times ten. Where a part was not measured, it is not in the sum.

Only what record.json says was done with device cuda counts.
"""

import argparse
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd

from editscale.workflow import recorded
from editscale.workflow.parameters import checked_scale

PARTS = ("editing", "recall", "tasks")
_NOTEBOOK = {"recall": "recall", "tasks": "downstream"}  # part ↦ its name in record.json
ORDERS = 10  # the published ones


def costs(results, scale):
    """What was measured: one row per method and part, methods in the order of the grid.

    Args:
        results: `recorded.Results` of the scale.

    Returns:
        method; part ("editing", "recall", "tasks"); runs: measured on a GPU; edits: of these runs together, NaN but
        for editing; minutes: in total, 0 without runs.
    """
    rows, grid = [], recorded.grid_of(scale)
    for method in dict.fromkeys(key[0] for key in grid.values()):
        of_method = {run: key for run, key in grid.items() if key[0] == method}
        times = [results.rows(recorded.TIMING, key) for run, key in of_method.items() if _on_gpu(results, run, "edits")]
        times = [table["seconds"] for table in times if table is not None]
        found = {"runs": len(times), "edits": sum(map(len, times)), "minutes": sum(t.sum() for t in times) / 60}
        rows.append({"method": method, "part": "editing", **found})
        for part, name in _NOTEBOOK.items():
            made = [results.made[run][name] for run in of_method if _on_gpu(results, run, name)]
            spans = {}  # by GPU; older records do not tell those of one kind apart
            for one in made:
                span = [datetime.fromisoformat(one[end]).timestamp() for end in ("started", "finished")]
                spans.setdefault(one.get("gpu_uuid"), []).append(span)
            minutes = sum(map(union_length, spans.values())) / 60
            rows.append({"method": method, "part": part, "runs": len(made), "minutes": minutes})
    return pd.DataFrame(rows)


def union_length(intervals):
    """Length of the union of intervals (first, last), in their unit; 0 of none."""
    total, reached = 0, float("-inf")
    for first, last in sorted(intervals):
        total += max(last - max(first, reached), 0)
        reached = max(reached, last)
    return total


def markdown(results, scale):
    """A sentence and a table of `costs`, in Markdown; ValueError if nothing was done on a GPU."""
    table = costs(results, scale)
    gpus = {parts["edits"].get("gpu") for run, parts in results.made.items() if _on_gpu(results, run, "edits")}
    if not table["runs"].any():
        raise ValueError(f"the recorded tables of {scale} name no part of a run that was made with device cuda")
    lines = [
        f"The recorded scale `{scale}` took this long on one {' or '.join(sorted(filter(None, gpus))) or 'GPU'} "
        f"(`python -m editscale study-cost {scale}`). An edit includes the scores right after it, and takes what it "
        "took on the clock, whatever else the GPU did; recall and tasks are the time in which any of a method's "
        "notebooks ran, several side by side, added up over GPUs; the last column is "
        f"{ORDERS} times the means of the measured runs.",
        "",
        f"| method | editing | an edit | recall | tasks | {ORDERS} orders |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, rows in table.groupby("method", sort=False):
        if rows["runs"].any():
            lines.append(f"| {' | '.join([method, *_cells(rows.set_index('part'))])} |")
    return "\n".join(lines) + "\n"


def _cells(rows):
    """The cells of one method: what was measured, and ten orders at that rate."""
    measured = rows[rows["runs"] > 0]
    cells = dict.fromkeys(PARTS, "not measured")
    for part, row in measured.iterrows():
        runs = f"{row['runs']} run{'s' if row['runs'] > 1 else ''}"
        cells[part] = f"{row['minutes']:.1f} min, {runs}"
    edits, an_edit = rows.at["editing", "edits"], "not measured"
    if edits:
        cells["editing"] += f", {edits:,.0f} edits"
        an_edit = f"{60 * rows.at['editing', 'minutes'] / edits:.3f} s"
    ten = f"{ORDERS * (measured['minutes'] / measured['runs']).sum():.0f} min"
    absent = [part for part in PARTS if part not in measured.index]
    ten += f" without {' and '.join(absent)}" if absent else ""
    return [cells["editing"], an_edit, cells["recall"], cells["tasks"], ten]


def _on_gpu(results, run, part):
    made = results.made.get(run, {}).get(part, {})
    return str(made.get("parameters", {}).get("device", "")).startswith("cuda")


def main(arguments):
    """Exit status of `python -m editscale study-cost SCALE`."""
    parser = argparse.ArgumentParser(prog="editscale study-cost", description=__doc__.splitlines()[0])
    parser.add_argument("scale", metavar="SCALE", help="a scale whose tables are in figures/")
    given = parser.parse_args(arguments)
    try:
        scale = checked_scale(given.scale)
        print(markdown(recorded.read(Path("figures") / scale / "tables", scale), scale), end="")
    except (ValueError, OSError) as error:
        print(f"editscale study-cost: {error}", file=sys.stderr)
        return 2
    return 0
