"""What things cost: measurements in `figures/cost/*.json`, and the pages that are drawn from them.

`<device>.json` is a list of rows that `bench` measured:

| field | meaning |
|---|---|
| part | what was run |
| shape, device, precision | the model, the machine, "float32" or "tf32" (float32 multiplied in TensorFloat-32) |
| orders | how many independent edits ran together; seconds and operations are those of one |
| plain_s, fast_s, ratio | median seconds of the plain path and of this package's, and the first over the second |
| max_rel_diff | how far their results differ, see below |
| peak_gb | most memory in use on the fast path, 10⁹ bytes, with the model: of the GPU, or of the process on a CPU |
| tflops | 10¹² operations in matrix products per second on the fast path |
| share_of_peak | `tflops` over that of "matmul peak", one large product |

The difference is the largest ‖A − B‖ / ‖A‖ of changed weights or second moments, the largest relative one of a negative
log-likelihood or (history) a probability, or the share of answers that differ (GLUE-like round). A field that does not
apply is null. `full-<study>.json` is what `full_cost` found, `methods-<device>.json` one edit of each method:

| field | meaning |
|---|---|
| method, shape, device, precision | the method, and as above |
| earlier | how many edits were made before |
| rounds | how often it was timed |
| seconds, ratio | median seconds of one edit, and median ratio to MEMIT's edit in the same round |
| ledger_bytes | what the edit takes in the ledger, with the header of its tensors |
| state_bytes | what the run's state holds in memory, without the second moments |
"""

import json
import re
from datetime import datetime
from pathlib import Path

import click
import pandas as pd

from editscale.editing import context_sampling, editors
from editscale.files import write_whole
from tools import recorded

FOLDER = Path("figures/cost")
HEADS = {  # field ↦ what stands above its column
    "part": "part",
    "shape": "model",
    "device": "device",
    "precision": "precision",
    "orders": "orders",
    "plain_s": "plain path, s",
    "fast_s": "here, s",
    "ratio": "ratio",
    "max_rel_diff": "largest relative difference",
    "peak_gb": "peak memory, GB",
    "tflops": "TFLOP/s",
    "share_of_peak": "share of matmul peak",
}
FIELDS = tuple(HEADS)
KEY = ("part", "shape", "precision", "orders")  # what names a row in the table of one device
METHOD_HEADS = {  # the same of a row of `method_costs`
    "method": "method",
    "shape": "model",
    "device": "device",
    "precision": "precision",
    "earlier": "earlier edits",
    "rounds": "rounds",
    "seconds": "one edit, s",
    "ratio": "times MEMIT's",
    "ledger_bytes": "bytes in the ledger",
    "state_bytes": "bytes of the state",
}
METHODS = "methods-"  # begins the names of files of methods
LIMIT = 1.2  # times MEMIT's edit: no method but ROME's kind, and UltraEdit's, shall take longer
METHOD_KEY = ("method", "shape", "precision", "earlier")
SHOWN = ("smollm2-135m", "gpt2-xl")  # the models on the first page
SCALE = "smollm2"  # the recorded one
ORDERS = 10  # the published ones
GROUPS = ("second moments", "editing", "recall", "tasks", "edits alone", "notebooks")  # of a full study


# ------------------------------------------------------------------------------------ rows of one device


def row(**given):
    """A row with all FIELDS, floats rounded to four digits; what is not given is None, and orders 1."""
    return _row(FIELDS, {"orders": 1, **given})


def method_row(**given):
    """A row of a method's costs, with the names in METHOD_HEADS."""
    return _row(tuple(METHOD_HEADS), given)


def _row(names, given):
    if unknown := set(given) - set(names):
        raise ValueError(f"no field {', '.join(sorted(unknown))} in a row of costs; the fields are {', '.join(names)}")
    values = {**dict.fromkeys(names), **given}
    return {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in values.items()}


def device_name(device):
    """The name of a torch device: the GPU's, or the processor's with the number of threads in use."""
    import torch

    from editscale.workflow.provenance import cpu_name

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{cpu_name()}, {n} core{'' if n == 1 else 's'}"


def slug(name):
    """A device's name as that of a file: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def merged(old, new, key=KEY):
    """`old` rows with `new` ones in the place of those of the same key, or after them."""
    by_key = {tuple(r[name] for name in key): r for rows in (old, new) for r in rows}
    return list(by_key.values())


def read(folder):
    """File stem ↦ rows, of all tables of a device in a folder, by name."""
    paths = [path for path in sorted(Path(folder).glob("*.json")) if not path.name.startswith(("full-", METHODS))]
    return {path.stem: json.loads(path.read_text()) for path in paths}


def read_methods(folder):
    """Stem of a device's page ↦ rows of methods, of all devices in a folder."""
    paths = sorted(Path(folder).glob(f"{METHODS}*.json"))
    return {path.stem.removeprefix(METHODS): json.loads(path.read_text()) for path in paths}


def write(folder, rows):
    """Merge the rows of one device, `row`s or `method_row`s, into its table in `folder`; the path of that."""
    prefix, key = (METHODS, METHOD_KEY) if "method" in rows[0] else ("", KEY)
    path = Path(folder) / f"{prefix}{slug(rows[0]['device'])}.json"
    rows = merged(json.loads(path.read_text()) if path.exists() else [], rows, key)
    lines = ",\n".join(" " + json.dumps(r, ensure_ascii=False) for r in rows)
    return write_whole(path, f"[\n{lines}\n]\n".encode())


def line(r):
    """A row in a line of text."""
    heads = METHOD_HEADS if "method" in r else HEADS
    return ", ".join(f"{heads[name]} {_cell(x)}" for name, x in r.items() if x is not None)


# ------------------------------------------------------------------------------------------------- pages


def write_pages(folder=FOLDER, tables=f"figures/{SCALE}/tables"):
    """Draw all pages of a folder: README.md, and one for each JSON file. Returns their paths.

    Args:
        tables: the folder with the recorded tables of scale SCALE.
    """
    folder, devices, methods = Path(folder), read(folder), read_methods(folder)
    studies = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("full-*.json"))}
    stems = dict.fromkeys([*devices, *methods])
    texts = {stem: device_page(devices.get(stem, []), methods.get(stem, [])) for stem in stems}
    texts |= {stem: study_page(one) for stem, one in studies.items()}
    texts["README"] = first_page(devices, recorded.read(tables, SCALE), studies, methods)
    return [write_whole(folder / f"{stem}.md", text.encode()) for stem, text in texts.items()]


def first_page(devices, results, studies, methods):
    """figures/cost/README.md.

    Args:
        devices: what `read` returns.
        results: `recorded.Results` of scale SCALE.
        studies: file stem ↦ what `full_cost.cost` returns.
        methods: what `read_methods` returns.
    """
    sections = [_beside_plain(stem, rows, shape) for shape in SHOWN for stem, rows in devices.items()]
    gpus = {parts["edits"].get("gpu") for run, parts in results.made.items() if _on_gpu(results, run, "edits")}
    return f"""# What it costs

`python -m editscale costs` draws this page and those it links from the measurements beside it.

## One edit, one score, one checkpoint

Each in float32 beside the plain path, which is what the public implementations do: full forwards of the unmodified
model ([plain.py](../../tests/tools/plain.py)). Both are timed in turns (`make bench`). Part of the ratio is that frozen
layers are computed here by oneDNN on a CPU and on the tensor cores of an H100 or H200, with the same precision
([matmul.py](../../editscale/kernels/matmul.py)), while the plain path leaves the choice to torch. The row "matmul peak"
on the page of each device shows that part alone: one large product in both ways. "Again" is a later checkpoint of the
same run, which keeps what enters the lowest edited layer. The rows of the H100 are older than
[blocks.py](../../editscale/kernels/blocks.py), those of the EPYC than rows of their own for each text on a CPU.

{"".join(filter(None, sections))}{"".join(map(_methods_said, methods, methods.values()))}## The recorded study

Scale `{SCALE}` took this long on one {" or ".join(sorted(filter(None, gpus))) or "GPU"}. These times are older than
[tensor_cores.py](../../editscale/kernels/tensor_cores.py), which makes edits, scores and tasks faster. One edit is time
on the clock, with the scores right after it, on a GPU that other notebooks shared. Recall and tasks are the time in
which at least one of a method's notebooks ran. The last column is {ORDERS} times the means of the measured runs.

{table(recorded_rows(results, SCALE))}

## Full studies

What the paper's studies would take in GPU hours, from dry runs of every notebook on random weights of these shapes.
The dry runs too are older than tensor_cores.py. The page of each study says what was counted.

{table([_study_row(stem, one) for stem, one in studies.items()])}
"""


def _beside_plain(stem, rows, shape):
    """The section of one model on one device; "" where it was not measured."""
    of_shape = [r for r in rows if r["shape"] == shape]
    full = [r for r in of_shape if r["precision"] == "float32"]
    tf32 = {r["part"]: r["fast_s"] for r in of_shape if r["precision"] == "tf32"}
    shown = [
        {"part": r["part"], "plain path": _number(r["plain_s"], "s"), "here": _number(r["fast_s"], "s")}
        | {"ratio": _number(r["ratio"], "×")}
        | ({"here in TF32": _number(tf32.get(r["part"]), "s")} if tf32 else {})
        for r in full
        if r["ratio"] is not None and not r["part"].startswith(("ROME edits,", "MEMIT edits,"))
    ]
    if not shown:
        return ""
    link = f"All rows, with agreement, memory and operations: [{rows[0]['device']}]({stem}.md)."
    return f"### {shape} on {rows[0]['device']}\n\n{table(shown)}\n\n{_growth(full)}{link}\n\n"


def _growth(rows):
    """Sentences on how the cost of an edit grows with edits before it, its prompt, and orders in a batch."""
    after, prompts, orders = (
        sorted((int(match[1]), r["fast_s"]) for r in rows if (match := re.match(f"ROME {pattern}", r["part"])))
        for pattern in (r"edit after (\d+) edits", r"edit, prompt of (\d+) tokens", r"edits, (\d+) orders?")
    )

    def times(pairs):
        return f"{pairs[-1][1] / pairs[0][1]:.2f} times as long as"

    said = []
    if len(after) > 1:
        said.append(f"The {after[-1][0]:,}th ROME edit takes {times(after)} the {after[0][0]}th.\n")
    if len(prompts) > 1:
        said.append(f"With a prompt of {prompts[-1][0]} tokens it takes {times(prompts)} with {prompts[0][0]}.\n")
    if len(orders) > 1:
        said.append(f"In a batch of {orders[-1][0]} orders an edit takes {times(orders)} alone.\n")
    return "".join(said)


def _limited(name):
    """Whether a method shall take at most LIMIT times as long as MEMIT."""
    of = editors.method(name)
    return of.contexts is not context_sampling.rome_contexts and not of.by_token


def _methods_said(stem, rows):
    """What the first page says of the methods on one device."""
    asked = [r for r in rows if _limited(r["method"])]
    over = list(dict.fromkeys(r["method"] for r in asked if r["ratio"] > LIMIT))
    most = max(asked, key=lambda r: r["ratio"])
    return f"""### One edit of every method on {rows[0]["device"]}

Beside MEMIT's edit in the same run, methods that are neither of ROME's kind nor of UltraEdit's take up to
{most["ratio"]:.2f} times as long ({most["method"]}, after {most["earlier"]:,} edits); more than {LIMIT} times:
{", ".join(over) or "none"}. Seconds, bytes in the ledger and of the state: [{rows[0]["device"]}]({stem}.md#methods).

"""


def device_page(rows, methods=()):
    """The tables of one device as a page: `row`s of parts, and `method_row`s."""
    device = (rows or methods)[0]["device"]
    return f"# What it costs on {device}\n\n{_parts_section(rows)}{_methods_section(methods)}".rstrip("\n") + "\n"


def _methods_section(rows):
    """The methods of each model on one device; "" where none was measured."""
    text = ""
    for shape in dict.fromkeys(r["shape"] for r in rows):
        of = [r for r in rows if r["shape"] == shape]
        text += f"{table([_method_cells(name, of) for name in dict.fromkeys(r['method'] for r in of)])}\n\n"
    if not text:
        return ""
    shapes = ", ".join(dict.fromkeys(r["shape"] for r in rows))
    return f"""## Methods

One edit of every method on {shapes}, measured in turns with MEMIT's by `python -m editscale bench --parts methods`.
[method_costs.py](../../tests/tools/method_costs.py) says what is timed, and with which settings. "×" is the median of
the ratios to MEMIT's edit in the same round, of {_span([r["rounds"] for r in rows])}; for `memit` itself it shows how
far two runs of the same edit differ. "≤ {LIMIT} ×" says whether all of them keep the limit, which is not asked of
methods of ROME's kind, with their 20 contexts, and of UltraEdit's. Columns "after" are of an edit that many others with
random keys came before. Bytes in the ledger are those of one such edit with the header of its tensors; UltraEdit and
StableEdit take as much for each token of a target, and StableEdit's first edit holds its warm-up too
(`editors.bytes_per_edit`). A state is held in memory, and grows with every edit of a method that minds earlier keys.

{text}"""


def _span(numbers):
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))


def _method_cells(name, rows):
    """A row of the table of methods, from the rows of one model."""
    by_earlier = {r["earlier"]: r for r in rows if r["method"] == name}
    first, last = by_earlier[min(by_earlier)], by_earlier[max(by_earlier)]
    cells = {"method": name}
    for earlier in sorted({r["earlier"] for r in rows}):
        r = by_earlier.get(earlier)
        head = f"after {earlier:,}" if earlier else "first edit"
        cells |= {head: _number(r and r["seconds"], "s"), f"{head}, ×": f"{r['ratio']:.2f}" if r else ""}
    holds = all(r["ratio"] <= LIMIT for r in by_earlier.values())
    cells[f"≤ {LIMIT} ×"] = ("yes" if holds else "no") if _limited(name) else "not asked"
    n = last["earlier"] - first["earlier"]
    grown = (last["state_bytes"] - first["state_bytes"]) / n if n else 0
    return cells | {
        "ledger, per edit": _bytes(last["ledger_bytes"]),
        "state, per edit": _bytes(grown),
        "state, in all": _bytes(last["state_bytes"]),
    }


def _bytes(n):
    """Bytes with a unit and three digits; "0" for none."""
    unit, size = next((u, k) for u, k in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1)) if abs(n) >= k or k == 1)
    return f"{n / size:.3g} {unit}" if n else "0"


def _parts_section(rows):
    """The parts on one device; "" where none was measured."""
    if not rows:
        return ""
    cells = [{head: _cell(r[name]) for name, head in HEADS.items() if name != "device"} for r in rows]
    return f"""Measured by `python -m editscale bench`. [README.md](README.md) says what the plain path is,
[parts.py](../../tests/tools/parts.py) what is run, and [costs.py](../../tests/tools/costs.py) what each column means.
Seconds are medians of one edit, one round or one checkpoint. An edit is all of its 20 steps where no other number is
named. gpt2-small, gpt2-xl, gpt-j and smollm2 have random weights of these sizes. The GLUE-like round asks `reviews` and
`paraphrases`, the tasks that come with the package, in place of GLUE's.

{table(cells)}

"""


def study_page(one):
    """What `full_cost.cost` found of a study as a page."""
    parts = [
        part | {"seconds": _duration(part["seconds"]), "count": f"{part['count']:,}", "hours": _number(part["hours"])}
        for part in one["parts"]
    ]
    ran = [{name: _cell(value) for name, value in notebook.items()} for notebook in one["notebooks"]]
    return f"""# What the study {one["study"]} costs on one {one["device"]}

From a dry run of it on random weights (`python -m editscale full-cost {one["dry"]} --of {one["study"]}`).
[full_cost.py](../../tests/tools/full_cost.py) says what is counted, and how. `seconds` are those of one unit, `hours`
those of the GPU. All parts together take {_number(hours(one))} hours.

{table(parts)}

## The dry run {one["dry"]}

Up to {one["side_by_side"]} notebooks shared the GPU; `peak_gb` is the most memory in tensors, 10⁹ bytes.

{table(ran)}
"""


def _study_row(stem, one):
    most = max(one["notebooks"], key=lambda notebook: notebook["peak_gb"] or 0)
    return {
        "study": f"[{one['study']}]({stem}.md)",
        "GPU": one["device"],
        "dry run": f"{one['minutes']:.1f} min, up to {one['side_by_side']} notebooks at once",
        "most memory": f"{most['peak_gb']:.0f} GB ({most['notebook'][:2]})" if most["peak_gb"] else "",
        **{group: _number(hours(one, group)) for group in GROUPS},
        "all": f"{hours(one):.0f}" if hours(one) >= 10 else f"{hours(one):.1f}",
    }


def hours(one, group=""):
    """GPU hours of a group of a full study, of all without one."""
    return sum(part["hours"] or 0 for part in one["parts"] if group in ("", part["group"]))


def table(rows):
    """Dicts of cells as a table in Markdown."""
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _cell(x):
    return _number(x) if x is None or isinstance(x, float) else x


def _number(x, unit=""):
    """Three digits, without an exponent where one can read it so; an empty cell for None."""
    if x is None:
        return ""
    short = f"{x:.3g}" if abs(x) < 1000 else f"{x:,.0f}"
    return f"{short} {unit}".strip()


def _duration(seconds):
    """Seconds with a unit, "" for None."""
    if seconds is None:
        return ""
    unit, scale = next((u, k) for u, k in (("s", 1), ("ms", 1e3), ("µs", 1e6)) if seconds * k >= 1 or u == "µs")
    return f"{seconds * scale:.3g} {unit}"


# ---------------------------------------------------------------------------------- what a recorded study took


def minutes(results, scale):
    """What the runs of a scale that were made on a GPU took: one row per method and part, methods as in the grid.

    - editing: the seconds of edits in timing.parquet, the scores right after each included. A batch's are shared by its
      runs, so that the sum over runs is time on the clock.
    - recall and tasks: notebooks of several runs work side by side, so the time of a part is the length of the union of
      the [started, finished] intervals of one method's runs, on each GPU, added up over GPUs. Loading included; other
      methods' notebooks may share the GPU.

    Args:
        results: `recorded.Results` of the scale.

    Returns:
        method; part ("editing", "recall", "tasks"); runs: measured; edits: of these runs together, NaN but for editing;
        minutes: in total, 0 without runs.
    """
    rows, grid = [], recorded.grid_of(scale)
    for method in dict.fromkeys(key[0] for key in grid.values()):
        of_method = {run: key for run, key in grid.items() if key[0] == method}
        times = [results.rows(recorded.TIMING, key) for run, key in of_method.items() if _on_gpu(results, run, "edits")]
        times = [found["seconds"] for found in times if found is not None]
        found = {"runs": len(times), "edits": sum(map(len, times)), "minutes": sum(t.sum() for t in times) / 60}
        rows.append({"method": method, "part": "editing", **found})
        for part, name in (("recall", "recall"), ("tasks", "downstream")):
            made = [results.made[run][name] for run in of_method if _on_gpu(results, run, name)]
            spans = {}  # by GPU; older records do not tell those of one kind apart
            for one in made:
                span = [datetime.fromisoformat(one[end]).timestamp() for end in ("started", "finished")]
                spans.setdefault(one.get("gpu_uuid"), []).append(span)
            taken = sum(map(union_length, spans.values())) / 60
            rows.append({"method": method, "part": part, "runs": len(made), "minutes": taken})
    return pd.DataFrame(rows)


def union_length(intervals):
    """Length of the union of intervals (first, last), in their unit; 0 of none."""
    total, reached = 0, float("-inf")
    for first, last in sorted(intervals):
        total += max(last - max(first, reached), 0)
        reached = max(reached, last)
    return total


def recorded_rows(results, scale):
    """The cells of a table of `minutes`: a row for each method, ValueError if nothing was done on a GPU."""
    measured = minutes(results, scale).query("runs > 0")
    if measured.empty:
        raise ValueError(f"the recorded tables of {scale} name no part of a run that was made with device cuda")
    rows = []
    for method, parts in measured.groupby("method", sort=False):
        parts = parts.set_index("part")[["runs", "edits", "minutes"]]
        cells = {name: f"{taken:.1f} min, {n} run{'s' * (n > 1)}" for name, n, _, taken in parts.itertuples()}
        if "editing" in parts.index:
            edits, taken = parts.loc["editing", ["edits", "minutes"]]
            cells |= {"edits": f"{edits:,.0f}", "one edit": f"{60 * taken / edits:.3f} s"}
        if len(parts) == 3:
            cells[f"{ORDERS} orders"] = f"{ORDERS * (parts['minutes'] / parts['runs']).sum():.0f} min"
        shown = ("editing", "edits", "one edit", "recall", "tasks", f"{ORDERS} orders")
        rows.append({"method": method, **{name: cells.get(name, "not measured") for name in shown}})
    return rows


def _on_gpu(results, run, part):
    made = results.made.get(run, {}).get(part, {})
    return str(made.get("parameters", {}).get("device", "")).startswith("cuda")


@click.command()
def main():
    """Draw the pages of figures/cost from the measurements there."""
    print(*write_pages(), sep="\n")
