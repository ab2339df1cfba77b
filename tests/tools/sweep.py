"""Hyper-parameters for a model, chosen on edits: `python -m editscale sweep SPEC.yaml OUT.csv`.

SPEC lists settings as changes to a base file, lists of values meaning every combination. OUT gets one row per setting.
Every setting edits the same facts: each on the unedited model (`single_edits`), or, where SPEC has `n_sequences`, one
after another in so many sequences (`tools.lasting`). The choice is made on OUT alone, by `best` or `lasting.best`, so
that it can be checked wherever OUT is recorded.
"""

import itertools
import re
import sys
import time

import click

from editscale.columns import harmonic_score
from editscale.editing import editors
from editscale.metrics import scoring
from tools import lasting

SPEC = """model model_cache fact_set n_facts seed document_length prefix_seeds n_short_prefixes n_long_prefixes grid
          order n_documents""".split()
SINGLE = ("order", "n_documents")  # not in a SPEC of sequences


def settings(spec):
    """(method, hyper-parameters) of every setting of a spec, in order.

    A spec's `grid` is a list of {method, base, change}: `base` a YAML file of hyper-parameters, `change` maps names to
    lists of values.
    """
    from dataclasses import replace

    for line in spec["grid"]:
        base = editors.read_params(line["method"], line["base"])
        names = list(line["change"])
        for values in itertools.product(*line["change"].values()):
            yield line["method"], replace(base, **dict(zip(names, values, strict=True)))


def single_edits(lm, facts, editing):
    """Rows of `scoring.COLUMNS` and `editors.summary`, one per fact, each edited alone on the model as it stands.

    An edit that is not finite or whose solve failed is not applied: all its scores are 0.
    """

    def row(fact, edit):
        scores = scoring.fact_scores(scoring.score_facts(lm, [fact])[0])
        if editors.status(edit) != "edited":
            scores = scoring.failed_scores(scores)
        norm = sum(update.norm() ** 2 for update in edit.updates) ** 0.5
        return {**scores, **editors.summary(edit), "update_norm": norm}

    return editors.each_alone(editing, lm, facts, row)


def best(table, method, base, *, least_es=95.0, least_ps=85.0):
    """The row of a sweep's table to use for `method`.

    Of the settings with enough ES and PS (percent), those that depart from the published `base` in the fewest values
    besides the layers; among these the one with the highest NS, and between equals the one with the smaller updates.

    Raises ValueError if no setting reaches `least_es` and `least_ps`.
    """
    import json
    from dataclasses import asdict

    enough = table[(table["method"] == method) & (table["ES"] >= least_es) & (table["PS"] >= least_ps)]
    if enough.empty:
        raise ValueError(f"no setting of {method} reaches ES {least_es} % and PS {least_ps} %")
    published = {name: value for name, value in asdict(base).items() if name not in ("layer", "layers")}
    departures = sum(
        enough[name].map(lambda cell: json.loads(str(cell).lower())) != value for name, value in published.items()
    )
    return (
        enough.assign(departures=departures)
        .sort_values(["departures", "NS", "median_update_norm"], ascending=[True, False, True], kind="stable")
        .iloc[0]
    )


def least_constraint(table, *, least_es=95.0):
    """The row of a sweep's table to use for FT-C: the smallest ε whose ES is enough (percent). ε alone varies.

    Raises ValueError if no setting reaches `least_es`.
    """
    enough = table[(table["method"] == "ft-c") & (table["ES"] >= least_es)]
    if enough.empty:
        raise ValueError(f"no setting of ft-c reaches ES {least_es} %")
    return enough.sort_values("norm_constraint", kind="stable").iloc[0]


@click.command()
@click.argument("spec")
@click.argument("out")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--part", default="0/1", show_default=True, metavar="K/N", help="Only settings, or stacks of them, k, k + n, …"
)
def main(spec, out, device, part):
    """Try hyper-parameters on edits.

    SPEC is YAML: model, fact_set, n_facts, …, grid. OUT is a CSV with one row per setting, which grows by a row
    as soon as it is known.
    """
    import json
    from dataclasses import asdict

    import pandas as pd
    import torch
    from tqdm import tqdm

    from editscale.data.orders import in_order, open_set
    from editscale.editing import corpora, moments
    from editscale.models import loading
    from editscale.workflow.parameters import read_parameters

    if not re.fullmatch(r"\d+/[1-9]\d*", part):
        raise ValueError(f"--part is {part}, expected K/N such as 0/4")
    k, n = map(int, part.split("/"))
    path, spec = spec, read_parameters(spec)
    wanted = SPEC if "n_sequences" not in spec else [x for x in SPEC if x not in SINGLE] + lasting.SPEC
    if lacking := [name for name in wanted if name not in spec]:
        raise ValueError(f"{path} lacks {', '.join(lacking)}; params/sweep has examples")
    todo = list(settings(spec))
    if "n_sequences" in spec:
        todo = [setting for of in lasting.in_stacks(todo)[k::n] for setting in of]
    else:
        todo = todo[k::n]

    lm = loading.load(spec["model"], device=device, cache=spec["model_cache"], tf32_steps=spec.get("tf32", False))
    sampling = {"prefix_seeds": spec["prefix_seeds"], "seed": spec["seed"]}
    sampling |= {"n_short": spec["n_short_prefixes"], "n_long": spec["n_long_prefixes"]}
    ways = {name: editors.method(name).contexts for name, _ in todo}
    sampled = {way: editors.sample_contexts(lm, name, **sampling) for name, way in ways.items()}
    contexts = {name: sampled[way] for name, way in ways.items()}
    rows = []

    def write(method, params, n_facts, found):
        named = {name: json.dumps(value) for name, value in asdict(params).items()}
        on = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else lm.device.type
        rows.append({"method": method, **named, "n_facts": n_facts, **found, "device": on})
        pd.DataFrame(rows).round(4).to_csv(out, index=False)

    if "n_sequences" in spec:
        lasting.sweep(lm, spec, tqdm(lasting.in_stacks(todo), desc="stacks"), contexts, write)
        return
    chosen = in_order(open_set(spec["fact_set"]), spec["order"], spec["n_facts"])
    if missing := scoring.without_true(chosen):
        print(missing, file=sys.stderr)
    seeded = torch.Generator().manual_seed(spec["seed"])
    layers, factors = sorted({layer for setting in todo for layer in editors.moment_layers(*setting)}), {}
    if layers:
        documents = corpora.sampled_documents(lm, spec["n_documents"], spec["document_length"], seeded)
        factors = editors.cholesky_factors(moments.collect(lm, documents, layers).moments, lm.device)
    for method, params in tqdm(todo, desc="settings", unit="setting"):
        start = time.perf_counter()
        editing = editors.begun(lm, editors.Editing(method, params, contexts[method], factors))
        table = pd.DataFrame(single_edits(lm, chosen, editing))
        es, ps, ns = (100 * table[kind].mean() for kind in scoring.KINDS)
        norm = table["update_norm"].median()
        found = {"ES": es, "PS": ps, "NS": ns, "S": harmonic_score(es, ps, ns), "median_update_norm": norm}
        found |= {
            "largest_update_norm": table["update_norm"].max(),
            "relative_update": norm / lm.weight(editors.layers_of(params)[-1]).norm().item(),
            "seconds_per_fact": (time.perf_counter() - start) / len(table),
        }
        write(method, params, len(table), found)
