"""Tables of what things cost: `figures/cost/<device>.json`, a list of rows that `bench` measured, and their renderings.

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
apply is null.
"""

import json
import re
from pathlib import Path

FIELDS = (
    "part", "shape", "device", "precision", "orders", "plain_s", "fast_s", "ratio", "max_rel_diff", "peak_gb",
    "tflops", "share_of_peak",
)  # fmt: skip
KEY = ("part", "shape", "precision", "orders")  # what names a row in the table of one device
SHOWN = ("smollm2-135m", "gpt2-xl")  # the models in the README


def row(**given):
    """A row with all FIELDS, floats rounded to four digits; what is not given is None, and orders 1."""
    if unknown := set(given) - set(FIELDS):
        raise ValueError(f"no field {', '.join(sorted(unknown))} in a row of costs; the fields are {', '.join(FIELDS)}")
    values = {**dict.fromkeys(FIELDS), "orders": 1, **given}
    return {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in values.items()}


def device_name(device):
    """The name of a torch device: the GPU's, or the processor's with the number of threads in use."""
    import torch

    from editscale.workflow.provenance import cpu_name

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} cores"


def slug(name):
    """A device's name as that of a file: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def merged(old, new):
    """`old` rows with `new` ones in the place of those of the same KEY, or behind them."""
    by_key = {tuple(r[name] for name in KEY): r for rows in (old, new) for r in rows}
    return list(by_key.values())


def read(folder):
    """File stem ↦ rows, of all tables of a device in a folder, by name; those of `full_cost` are no such tables."""
    paths = [path for path in sorted(Path(folder).glob("*.json")) if not path.name.startswith("full-")]
    return {path.stem: json.loads(path.read_text()) for path in paths}


def write(folder, rows):
    """Merge the rows of one device into its table in `folder`, and draw its Markdown again. Returns the JSON's path."""
    path = Path(folder) / f"{slug(rows[0]['device'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = merged(json.loads(path.read_text()) if path.exists() else [], rows)
    lines = ",\n".join(" " + json.dumps(r, ensure_ascii=False) for r in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(rows), encoding="utf-8")
    return path


def _number(x, unit=""):
    """Three digits, without an exponent where one can read it so; an empty cell for None."""
    if x is None:
        return ""
    short = f"{x:.3g}" if abs(x) < 100 else f"{x:,.0f}"
    return f"{short} {unit}".strip()


def line(r):
    """A row in a line of text."""
    facts = [
        ("plain", r["plain_s"], "s"), ("fast", r["fast_s"], "s"), ("ratio", r["ratio"], "x"),
        ("difference", r["max_rel_diff"], ""), ("peak", r["peak_gb"], "GB"), ("rate", r["tflops"], "TFLOP/s"),
    ]  # fmt: skip
    found = ", ".join(f"{name} {_number(x, unit)}" for name, x, unit in facts if x is not None)
    return f"{r['part']} | {r['shape']} | {r['precision']}: {found}"


def markdown_table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def page(rows):
    """The table of one device as a Markdown page."""
    head = ["part", "model", "precision", "orders", "plain path, s", "here, s", "ratio", "largest relative difference"]
    head += ["peak memory, GB", "TFLOP/s", "share of matmul peak"]
    cells = [
        [r["part"], r["shape"], r["precision"], r["orders"]]
        + [_number(r[name]) for name in FIELDS[FIELDS.index("plain_s") :]]
        for r in rows
    ]
    return f"""# What it costs on {rows[0]["device"]}

Measured by `python -m editscale bench`; the plain path (`tests/tools/plain.py`) is what the public implementations do,
by full forwards of the unmodified model, timed in turns with this package's. Medians; seconds are those of one edit,
one round or one checkpoint, an edit being all of its 20 steps where no other number is named. `costs.py` says
what each column means, `bench.py` what is run. gpt2-small, gpt2-xl and gpt-j have random weights of these
sizes. The GLUE-like round asks `reviews` and `paraphrases`, the tasks that come with the package, in place of GLUE's.
"Again" is a later checkpoint of the same run, which knows what enters the lowest edited layer from the first. Frozen
float32 layers and the matmul peak are computed by oneDNN on a CPU and on the tensor cores of an H100
(`editscale/kernels/matmul.py`); the plain path computes them as torch does by itself.

{markdown_table(head, cells)}
"""


def _growth(rows, pattern):
    """[(n, row), …] of the parts that a pattern with one number matches, by that number."""
    found = [(int(match[1]), r) for r in rows if (match := re.match(pattern, r["part"]))]
    return sorted(found, key=lambda one: one[0])


def _sentences(rows, shape):
    """What growth costs on one model, one device and in one precision: sentences."""
    after, prompts, orders = (
        _growth(rows, f"ROME {pattern}")
        for pattern in (r"edit after (\d+) edits", r"edit, prompt of (\d+) tokens", r"edits, (\d+) orders?")
    )

    def times(pairs):
        return f"{pairs[-1][1]['fast_s'] / pairs[0][1]['fast_s']:.2f}"

    said = []
    if len(after) > 1:
        said.append(f"the {after[-1][0]:,}th ROME edit takes {times(after)} times as long as the {after[0][0]}th")
    if len(prompts) > 1:
        said.append(f"one behind {prompts[-1][0]} tokens {times(prompts)} times as long as behind {prompts[0][0]}")
    if len(orders) > 1:
        said.append(f"in a batch of {orders[-1][0]} orders an edit takes {times(orders)} times as long as alone")
    return f"On {shape} {'; '.join(said)}." if said else ""


def section(rows_by_device, shapes=SHOWN):
    """The README's section on costs, as Markdown.

    Args:
        rows_by_device: what `read` returns.
        shapes: the models it shows.
    """
    cells, growth = [], []
    for shape in shapes:
        for rows in rows_by_device.values():
            of_shape = [r for r in rows if r["shape"] == shape]
            full = [r for r in of_shape if r["precision"] == "float32"]
            tf32 = {r["part"]: r["fast_s"] for r in of_shape if r["precision"] == "tf32"}
            for r in full:
                if r["ratio"] is not None and not r["part"].startswith(("ROME edits,", "MEMIT edits,")):
                    numbers = [_number(r["plain_s"], "s"), _number(r["fast_s"], "s"), _number(r["ratio"], "×")]
                    numbers.append(_number(tf32.get(r["part"]), "s"))
                    cells.append([r["part"], f"{shape}, {r['device']}", *numbers])
            growth.append(_sentences(full, shape))
    table = markdown_table(["part", "model, device", "plain path", "here", "ratio", "here in TF32"], cells)
    links = ", ".join(f"[{rows[0]['device']}](figures/cost/{name}.md)" for name, rows in rows_by_device.items())
    return f"""## What it costs

Float32, beside the plain path: the same by full forwards of the unmodified model, as the public implementations do it,
timed in turns with it (`make bench`). Part of the ratio is that frozen layers are computed by oneDNN here on a CPU and
on the tensor cores of an H100, no less exactly ([matmul.py](editscale/kernels/matmul.py)), and in the plain path
by what torch takes itself: the row "matmul peak" has one large product in both ways. All rows, with agreement, memory
and operations: {links}.

{table}

{" ".join(filter(None, growth))}
"""
