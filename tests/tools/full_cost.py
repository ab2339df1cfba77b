"""What a full study costs on one GPU, from a dry run of it: `python -m editscale full-cost dry-xl --of gpt2-xl`.

A dry run is every notebook on random weights of the study's shape with a few edits (params/dry-xl, params/dry-gpt-j).
On a machine with a GPU:

    python -m editscale shape gpt2-xl runs/shapes/gpt2-xl --device cuda
    snakemake -s notebooks/Snakefile --cores 3 --resources wide=1 --config scale=dry-xl
    python -m editscale full-cost dry-xl --of gpt2-xl

Read are the times and peak memory that the dry run left (done.json, timing.jsonl) and the parameters of both scales;
written are `figures/cost/full-<study>.json` and the pages of `costs`. GPU hours are seconds of one × how many, summed:

- second moments: seconds of a token, in the groups of documents after the first, which warms up; n_documents ×
  max_length tokens, the most there can be. Documents of a dry run are shorter, so that attention costs less there.
- editing: seconds of an edit with the scores right after it, the median of a run's without its first two, which hold
  set-up; all runs of the grid × n_edits. Scores of the unedited model: seconds of a fact; one for each edit.
- recall: seconds of a fact asked at a checkpoint; every + 2·every + … up to n_edits for each run. Perplexity: once
  after each edit. Singular values: a layer at each checkpoint.
- tasks: seconds of an example at the last checkpoint; tasks × n_examples at n_edits / every + 1 checkpoints of each
  run; so choices, of an item. Texts: seconds of a token, of all texts together.
- edits alone: those of notebook 05a (n_damaging + n_low + n_ordinary facts, each choice of contexts and method) and of
  06a, at the seconds of an edit in a sequence; the facts and examples that 06a scores.
- notebooks: what is left of their time, such as loading weights, for as many notebooks as the study has of each.

Where figures/cost has the machine's bench of this shape in float32, the scores of the unedited model and recall are
taken from it: a dry run asks a handful of facts, which costs more for each than hundreds do. Without it the latter is
an upper bound, and the former is not in the sum. Jobs that shared the GPU took longer than alone: the sum is an upper
bound there too. Downloads, the text of Wikipedia, and the notebooks that draw figures (no GPU, minutes) are not in it.
"""

import json
import statistics
from datetime import datetime
from pathlib import Path

import click

from editscale.data import choice_files
from editscale.files import read_record, write_whole
from editscale.sequences.ledger import read_timing
from editscale.workflow import timing
from editscale.workflow.parameters import checked_scale, notebook_parameters, read_grid, read_parameters
from tools import costs

WHOLE = {"sst2": 872}  # examples of a whole validation split
WARM_UP = 2  # first measurements, which hold set-up
# Notebooks with a model ↦ their folder: in runs/<scale>, or in that of each run.
ONCE = {"01_covariance_stats": "moments", "05a_single_edits": "single", "06a_acceptance_measures": "acceptance"}
EACH = {"02a_sequential_editing": ".", "03a_recall_history": "recall", "04a_glue_eval": "downstream"}


def values(scale, notebook):
    """All parameters of a notebook at a scale."""
    known = notebook_parameters(f"notebooks/{notebook}.ipynb")
    return {name: one.default for name, one in known.items()} | read_parameters(f"params/{scale}/{notebook}.yaml")


def executed(scale):
    """One row per notebook that ran with a model at a scale.

    Returns:
        Dicts of notebook, method ("" if of all), folder, seconds (from its first cell to its end), rest (those of no
        timed part), peak_gb, device, started and ended (seconds since 1970).

    Raises FileNotFoundError for a notebook that has not finished.
    """
    runs = Path("runs") / scale
    jobs = [(name, "", runs / folder) for name, folder in ONCE.items()]
    for method, sequence in read_grid(f"params/{scale}/grid.yaml"):
        jobs += [(name, method, runs / method / sequence / folder) for name, folder in EACH.items()]
    rows = []
    for name, method, folder in jobs:
        if not (folder / "done.json").is_file():
            raise FileNotFoundError(f"no {folder / 'done.json'}; run the graph of scale {scale} to its end")
        done = read_record(folder / "done.json", f"run notebook {name} again")
        started, ended = (datetime.fromisoformat(done[end]).timestamp() for end in ("started", "finished"))
        rows.append(
            {
                "notebook": name,
                "method": method,
                "folder": folder.as_posix(),
                "seconds": ended - started,
                "rest": ended - started - sum(row["seconds"] for row in _timed(name, folder)),
                "peak_gb": done["gpu_peak_gb"],
                "device": done["gpu"] or done["cpu"],
                "started": started,
                "ended": ended,
            }
        )
    return rows


def _timed(name, folder):
    if name == "02a_sequential_editing":
        return read_timing(folder)
    return timing.read(folder) if name in ("01_covariance_stats", "03a_recall_history", "04a_glue_eval") else []


def rates(rows, bench):
    """Seconds of one of each kind, and where they are from.

    Args:
        rows: of `executed`.
        bench: part ↦ seconds of the same shape on the same machine (`costs`).

    Returns:
        kind ↦ (seconds, source); an edit's kind is ("edit", method), that of a notebook's rest ("rest", notebook). None
        for seconds that were not measured.
    """
    dry, found = "dry run", {}
    for name in dict.fromkeys(row["notebook"] for row in rows):
        found["rest", name] = statistics.mean(row["rest"] for row in rows if row["notebook"] == name), dry
    for row in rows:
        if row["notebook"] == "02a_sequential_editing":
            times = [edit["seconds"] for edit in read_timing(row["folder"])]
            found["edit", row["method"]] = statistics.median(times[WARM_UP:] or times), dry

    def parts(part, notebook):
        """Seconds of one at each measurement of a part, a list for each run."""
        of = [timing.read(row["folder"]) for row in rows if row["notebook"] == notebook]
        return [[one["seconds"] / one["n"] for one in times if one["part"] == part] for times in of]

    (groups,) = parts("second moments", "01_covariance_stats")
    found["token"] = statistics.median(groups[1:] or groups), dry
    found["spectrum"] = statistics.median(parts("spectrum", "01_covariance_stats")[0]), dry
    for kind, part, notebook in (
        ("recall", "recall", "03a_recall_history"),
        ("singular values", "spectra", "03a_recall_history"),
        ("example", "tasks", "04a_glue_eval"),
        ("choice", "choices", "04a_glue_eval"),
        ("text", "texts", "04a_glue_eval"),
    ):
        if lasts := [of_run[-1] for of_run in parts(part, notebook) if of_run]:
            found[kind] = statistics.mean(lasts), dry
    perplexities = [of_run[WARM_UP:] or of_run for of_run in parts("perplexity", "03a_recall_history")]
    found["perplexity"] = statistics.mean(statistics.median(times) for times in perplexities), dry
    for kind, part, n in (
        ("recall", "history checkpoint, 200 facts, again", 200),
        ("fact", "record evaluation", 1),
        ("fact", "record evaluation, 32 records", 32),
    ):
        if part in bench:
            found[kind] = bench[part] / n, "bench"
    return {"fact": (None, "not measured"), "choice": (None, "not measured"), **found}


def bench_of(device, shape):
    """Part ↦ seconds of a shape in float32, one order, in figures/cost; empty for a device without a table."""
    rows = costs.read(costs.FOLDER).get(costs.slug(device), [])
    return {r["part"]: r["fast_s"] for r in rows if (r["shape"], r["precision"], r["orders"]) == (shape, "float32", 1)}


def counts(study, n_layers):
    """How many of each kind a study has: (group, part, kind of `rates`, unit, number) for each row of the table.

    Args:
        n_layers: method ↦ how many layers it edits.
    """
    first, editing, recall, tasks, single, accept = (
        values(study, name) for name in ("01_covariance_stats", *EACH, "05a_single_edits", "06a_acceptance_measures")
    )
    grid = read_grid(f"params/{study}/grid.yaml")
    lengths = [(method, run.get("n_edits", editing["n_edits"])) for (method, _), run in grid.items()]
    methods = list(dict.fromkeys(method for method, _ in lengths))
    asked = [range(recall["every"], n + 1, recall["every"]) for _, n in lengths]
    rounds = sum(n // tasks["every"] + 1 for _, n in lengths)
    spectra = sum(n_layers[method] * (len(at) + 1) for (method, _), at in zip(lengths, asked, strict=True))
    n_edits = sum(n for _, n in lengths)
    n_alone = single["n_damaging"] + single["n_low"] + single["n_ordinary"]
    alone = n_alone * (2 + len(single["seeds"]) + bool(single["words"]))
    along = {accept["sequence"]: max(accept["sequence_at"], default=0)}
    examples = (accept["n_examples"] or WHOLE[accept["task"]]) * (1 + len(accept["sequence_at"]))
    n_tasks = rounds * len(tasks["tasks"]) * tasks["n_examples"]
    n_choices = sum(len(of.items) for of in choice_files.open_all(tasks["choices"], tasks["n_choices"]))
    return [
        ("second moments", "second moments", "token", "token", first["n_documents"] * first["max_length"]),
        ("second moments", "eigenvalues", "spectrum", "layer", len(first["layers"])),
        *(
            ("editing", f"edits, {method}", ("edit", method), "edit", sum(n for of, n in lengths if of == method))
            for method in methods
        ),
        ("editing", "scores of the unedited model", "fact", "fact", n_edits),
        ("recall", "earlier facts", "recall", "fact at a checkpoint", sum(map(sum, asked))),
        ("recall", "perplexity", "perplexity", "edit", n_edits + len(lengths)),
        ("recall", "singular values", "singular values", "layer at a checkpoint", spectra),
        ("tasks", "tasks", "example", "example", n_tasks),
        ("tasks", "choices", "choice", "item", rounds * n_choices),
        ("tasks", "texts", "text", "token", rounds * tasks["text_length"]),
        *(
            ("edits alone", f"edits, {m}", ("edit", m), "edit", alone + accept["n_edits"] + along.get(m, 0))
            for m in methods
        ),
        ("edits alone", "scores of the unedited model", "fact", "fact", accept["n_facts"]),
        ("edits alone", f"task {accept['task']}", "example", "example", examples),
        *(("notebooks", name, ("rest", name), "notebook", len(grid)) for name in EACH),
        *(("notebooks", name, ("rest", name), "notebook", 1) for name in ONCE),
    ]


def cost(dry, study):
    """What `figures/cost/full-<study>.json` holds: study, dry, device, minutes and side_by_side (of the notebooks with
    a model), notebooks (rows of `executed`), parts (group, part, unit, seconds of one, source, count, hours).

    Raises FileNotFoundError if the dry run is not complete, ValueError if it was made on several kinds of device.
    """
    rows = executed(dry)
    devices = sorted({row["device"] for row in rows})
    if len(devices) != 1:
        raise ValueError(f"the dry run {dry} was made on {' and '.join(devices)}; run it again on one of them")
    n_layers = {
        row["method"]: next(one["n"] for one in timing.read(row["folder"]) if one["part"] == "spectra")
        for row in rows
        if row["notebook"] == "03a_recall_history"
    }
    of_one = rates(rows, bench_of(devices[0], Path(values(dry, "01_covariance_stats")["model"]).name))
    parts = []
    for group, part, kind, unit, count in counts(study, n_layers):
        seconds, source = of_one[kind]
        hours = None if seconds is None else _short(seconds * count / 3600)
        seconds = None if seconds is None else _short(seconds)
        of = {"group": group, "part": part, "unit": unit, "seconds": seconds, "source": source}
        parts.append({**of, "count": count, "hours": hours})
    shown = ("notebook", "method", "seconds", "peak_gb")
    return {
        "study": study,
        "dry": dry,
        "device": devices[0],
        "minutes": _short((max(row["ended"] for row in rows) - min(row["started"] for row in rows)) / 60),
        "side_by_side": most_at_once(rows),
        "notebooks": [{name: row[name] for name in shown} | {"seconds": _short(row["seconds"])} for row in rows],
        "parts": parts,
    }


def most_at_once(rows):
    """The largest number of notebooks that ran at one time."""
    return max(sum(other["started"] <= row["started"] < other["ended"] for other in rows) for row in rows)


def _short(x):
    return float(f"{x:.4g}")


def write(dry, study):
    """Write what `cost` finds to figures/cost/full-<study>.json; its path."""
    one = cost(dry, study)
    text = json.dumps(one, indent=1, ensure_ascii=False) + "\n"
    return write_whole(costs.FOLDER / f"full-{study}.json", text.encode())


@click.command()
@click.argument("dry")
@click.option("--of", required=True, metavar="STUDY", help="The scale that it stands for, such as gpt2-xl.")
def main(dry, of):
    """Estimate what a full study costs on one GPU, from a dry run of it, and draw the pages of figures/cost.

    DRY is the scale of the dry run, such as dry-xl.
    """
    print(write(checked_scale(dry), checked_scale(of)))
    costs.write_pages()
