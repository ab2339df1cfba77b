"""Which facts go first: what tells the recalled facts that the next look misses from those that it still recalls.

A fact recalled at one look is at risk until the next (`hazard.looks`), some 20 edits later. All comparisons are between
facts at risk in one interval of one run, so neither the state of the model nor its course explains them:

- `auroc`: of a fact lost and one kept in the same interval, how often has the lost one the higher value;
- `log_odds`: a discrete-time hazard with an intercept for each interval (Singer and Willett 1993),
  logit P(lost) = α_interval + βᵀx, of all covariates together, in standard deviations of each.

Intervals that lose none of their facts, or all of them, say nothing of which go first and are left out. Both are
computed within a run and averaged over orders.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from editscale.analysis import hazard, tables
from editscale.analysis.forgetting import runs_of
from editscale.analysis.rows import groups, require, rows_of
from editscale.columns import RUN

# Covariate ↦ what it is of a fact at risk in an interval.
COVARIATES = {
    "age": "log age",
    "update": "log size of its own update",
    "margin": "margin after its edit",
    "margin_before": "margin before its edit",
    "subject_tokens": "tokens of its subject",
    "target_tokens": "tokens of its new object",
    "same_relation": "edits of its relation",
    "same_object": "edits to its new object",
}
KEYS = {"interference": "log interference from keys", "relative": "that over its own update"}
# Columns of the two tables that are made beside those of runs (`editscale traits`), described in data/columns.yaml.
TRAITS = ("case_id", "relation_id", "new_object", "subject_tokens", "target_tokens")
INTERFERENCE = (*RUN, "start", "stop", "case_id", "interference", "own")
LEAST = 10  # facts lost, and facts kept, for each covariate of a fit (Peduzzi et al. 1996)
_INTERVAL = [*RUN, "start", "stop"]


def beside(folders, name):
    """The table "traits" or "interference" in one of some folders of recorded tables, None where none has it.

    Raises ValueError for several, whose numbers of objects are not the same, and as `tables.read` does.
    """
    there = [path for folder in folders if (path := Path(folder) / f"{name}.parquet").is_file()]
    if len(there) > 1:
        raise ValueError(f"{there[0]} and {there[1]} number objects on their own; give runs with one {name}.parquet")
    columns = {"traits": TRAITS, "interference": INTERFERENCE}[name]
    remedy = "restore it from a copy, or make it anew with editscale traits"
    return tables.read(there[0], remedy, lambda table: table[list(columns)]) if there else None


def at_risk(history, edits, places, every=hazard.PER):
    """One row per run, interval between looks and fact recalled at its start, up to the run's collapse.

    Args:
        history, edits, every: see `hazard.losses`.
        places: see `collapse.where`, of the same runs; an interval counts that ends at the collapse or before it.

    Returns method, order, reversed, start, stop (edits), edit, case_id, lost (bool): not recalled at stop.

    Raises ValueError for a run without a place of collapse, and as `hazard.losses` does.
    """
    ends = {tuple(key.values()): own["collapse"].iloc[0] for key, own in groups(places)}
    rows = []
    for run in runs_of(history, edits):
        if (key := tuple(run.key.values())) not in ends:
            raise ValueError(f"no place of collapse for {run.key}; give collapse.where of the same runs")
        at, known = hazard.looks(run, every)
        place, fact = np.nonzero(known[:, :-1].T & (at[1:, None] <= ends[key]))
        columns = {"start": at[place], "stop": at[place + 1], "edit": fact + 1, "case_id": run.case_id[fact]}
        rows.append(pd.DataFrame({**run.key, **columns, "lost": ~known[fact, place + 1]}))
    return pd.concat(rows, ignore_index=True)


def with_covariates(risk, edits, unedited, drift, traits=None):
    """`at_risk` with the columns of COVARIATES, NaN where one is not known.

    Args:
        risk: see `at_risk`.
        edits, unedited, drift: tables of the same runs (`tables.gather`).
        traits: case_id, relation_id, new_object, subject_tokens, target_tokens (TRAITS), or None: what no
            table of runs knows of a fact is then not known.

    Returns, beside the columns of `risk`:
        age: log(1 + start − edit); update: log ‖ΔW‖ over all layers, of a step of several facts the step's;
        margin, margin_before: exp(−NLL(new)) − exp(−NLL(true)) right after the fact's edit, and of the unedited model;
        same_relation, same_object: how many edits of the interval are of the fact's relation, or write its new object.
        A relation is that of `edits` or else of `traits`.
    """
    place = [*RUN, "edit"]
    norms = drift.assign(square=drift["update_norm"] ** 2).groupby([*RUN, "edits"], as_index=False)["square"].sum()
    own = edits.merge(norms, on=[*RUN, "edits"], how="left")
    own["square"] = own.sort_values("edits").groupby(list(RUN))["square"].bfill()  # a step has it at its last fact
    own["update"] = np.log(own["square"].where(own["square"] > 0)) / 2
    before = unedited.rename(columns={"efficacy_magnitude": "margin_before"}).reindex(columns=[*place, "margin_before"])
    own = own.rename(columns={"efficacy_magnitude": "margin"}).merge(before, on=place, how="left")
    if traits is not None:
        own = own.merge(traits.rename(columns={"relation_id": "found"}), on="case_id", how="left")
    own = own.reindex(columns=list(dict.fromkeys([*own, "found", "relation_id", "margin", "new_object", *COVARIATES])))
    own["relation_id"] = own["relation_id"].where(own["relation_id"].fillna("") != "", own["found"]).replace("", None)
    known = ["update", "margin", "margin_before", "subject_tokens", "target_tokens", "relation_id", "new_object"]
    table = risk.merge(own[[*place, *known]], on=place, how="left")
    table["age"] = np.log1p(table["start"] - table["edit"])
    for name, of in (("same_relation", "relation_id"), ("same_object", "new_object")):
        table[name] = _alike(table, own, of)
    return table.drop(columns=["relation_id", "new_object"])


def _alike(table, edits, column):
    """How many edits of each row's interval share its value of a column, NaN where it has none."""
    counts, place = [], [*RUN, "start", column]
    for key, own in groups(table):
        starts, stops = own[["start", "stop"]].drop_duplicates().sort_values("start").to_numpy().T
        run = rows_of(edits, **key).dropna(subset=column)
        last = np.searchsorted(starts, run["edit"]) - 1  # the interval that starts last before the edit
        inside = (last >= 0) & (run["edit"] <= stops[last])
        within = run[inside].assign(start=starts[last[inside]])
        counts.append(within.groupby(place).size().rename("count").reset_index())
    found = pd.Series(0.0, index=range(len(table)))
    if counts := [of for of in counts if len(of)]:
        found = table[place].merge(pd.concat(counts), on=place, how="left")["count"].fillna(0.0)
    return found.where(table[column].notna().to_numpy()).to_numpy(dtype=float)


def interference(risk, products, norms):
    """What the edits of each interval do to the keys of the facts at risk, from the unedited model alone.

    Each edit j of one layer adds ΔW_j = Λ_j û_jᵀ with ‖û_j‖ = 1, and moves the layer's output at the key k_i of fact i
    by a vector of length ‖ΔW_j‖ |û_j·k_i|, whatever was edited before it; of an interval it is the root of the summed
    squares, as of movements in unrelated directions.

    Args:
        risk: rows of one run, see `at_risk`.
        products: û_j·k_i, (edits, edits), a row per edit, in the run's order (`overlap.unit_products`).
        norms: ‖ΔW_j‖, (edits,).

    Returns method, order, reversed, start, stop, case_id; interference; own, ‖ΔW_i‖ |û_i·k_i|.

    Raises ValueError unless products and norms are of all edits up to the last interval's end.
    """
    n = len(norms)
    if products.shape != (n, n) or n < risk["stop"].max():
        raise ValueError(
            f"products are {products.shape} and norms {norms.shape}; expected a row, a column and a norm for each of "
            f"{risk['stop'].max()} edits or more"
        )
    moved, rows = (norms[:, None] * products) ** 2, []
    for (start, stop), own in risk.groupby(["start", "stop"], sort=False):
        fact = own["edit"].to_numpy() - 1
        met, of_own = np.sqrt(moved[start:stop, fact].sum(axis=0)), np.sqrt(moved[fact, fact])
        rows.append(own[[*_INTERVAL, "case_id"]].assign(interference=met, own=of_own))
    return pd.concat(rows, ignore_index=True)


def with_interference(table, met):
    """The risk table with the columns of KEYS, logs of what `met` (`interference`) holds; NaN where it has no row.

    Args:
        met: None: it has none.

    Returns, beside the columns of `table`: interference, its log; relative, log(interference / own).
    """
    if met is None:
        return table.assign(**dict.fromkeys(KEYS, np.nan))
    found = table.merge(met, on=[*_INTERVAL, "case_id"], how="left")
    logs = np.log(found[["interference", "own"]].where(found[["interference", "own"]] > 0))
    return table.assign(
        interference=logs["interference"].to_numpy(), relative=(logs["interference"] - logs["own"]).to_numpy()
    )


def informative(table):
    """The rows of intervals that lose some of their facts and keep others."""
    share = table.groupby(_INTERVAL)["lost"].transform("mean")
    return table[(share > 0) & (share < 1)]


def auroc(table, columns):
    """The chance that, of a fact lost and one kept in the same interval, the lost one has the higher value.

    Ties count half; every pair counts once, so that intervals weigh by their pairs. Rows without a value do not count.

    Returns method, order, reversed; each of `columns`: 0–1, NaN without a pair.
    """
    require(table, (*_INTERVAL, "lost", *columns), "facts at risk")
    rows = []
    for run, own in groups(table):
        row = dict(run)
        for column in columns:
            known = informative(own.dropna(subset=column))
            inside = known.groupby("start")
            lost, n = inside["lost"].sum(), inside.size()
            ranks = inside[column].rank().where(known["lost"]).groupby(known["start"]).sum()  # midranks
            pairs = (lost * (n - lost)).sum()
            row[column] = float((ranks - lost * (lost + 1) / 2).sum() / pairs) if pairs else np.nan
        rows.append(row)
    return pd.DataFrame(rows, columns=[*RUN, *columns])


def log_odds(table, columns, least=LEAST):
    """How the log odds of being lost change with each covariate, by one standard deviation, the others held fixed.

    Args:
        table: see `with_covariates`.
        columns: covariates. One that a run does not know, or that is the same for all facts of each interval, is left
            out of its fit; rows that lack a value of another are left out too.
        least: facts lost, and facts kept, that a fit needs for each covariate.

    Returns:
        method, order, reversed; lost, kept, intervals: what the fit is of; each of `columns`: log odds, NaN where it
        was left out, and all of them where too few were lost or kept, or where the largest likelihood lies at infinity
        (covariates that separate the facts lost from those kept) or is not unique.
    """
    require(table, (*_INTERVAL, "lost", *columns), "facts at risk")
    rows = []
    for run, own in groups(table):
        known = informative(own.dropna(subset=[name for name in columns if own[name].notna().any()]))
        values, lost = known[list(columns)].to_numpy(dtype=float), known["lost"].to_numpy()
        starts, place = np.unique(known["start"], return_inverse=True)
        means = known.groupby("start")[list(columns)].transform("mean").to_numpy(dtype=float)
        used = (np.abs(values - means) > 1e-9).any(axis=0) if len(known) else np.zeros(len(columns), dtype=bool)
        found = np.full(len(columns), np.nan)
        if used.any() and min(lost.sum(), (~lost).sum()) >= least * used.sum():
            scaled = (values[:, used] - values[:, used].mean(axis=0)) / values[:, used].std(axis=0)
            found[used] = logistic(scaled, place, lost)
        counts = {"lost": int(lost.sum()), "kept": int((~lost).sum()), "intervals": len(starts)}
        rows.append({**run, **counts, **dict(zip(columns, found, strict=True))})
    return pd.DataFrame(rows, columns=[*RUN, "lost", "kept", "intervals", *columns])


def logistic(x, place, lost, most=30):
    """β of the largest likelihood of logit P(lost) = α_place + βᵀx, by Newton's method; NaN where there is none.

    Args:
        x: (rows, covariates); place: (rows,), 0 to the number of intervals − 1, each with rows lost and kept.
        lost: (rows,), bool.
        most: steps; a likelihood that still rises after them is taken to rise to infinity.
    """
    dummies = np.eye(place.max() + 1)[place]
    design = np.hstack([dummies, x])
    beta = np.concatenate([logit(lost @ dummies / dummies.sum(axis=0)), np.zeros(x.shape[1])])
    for _ in range(most):
        p = expit(design @ beta)
        curvature = (design * (p * (1 - p))[:, None]).T @ design
        if np.linalg.cond(curvature) > 1e12:
            break
        step = np.linalg.solve(curvature, design.T @ (lost - p))
        beta += step
        if np.abs(step).max() < 1e-8:
            return beta[dummies.shape[1] :]
    return np.full(x.shape[1], np.nan)


def verdict(low, high):
    """Which facts go first by an interval of `auroc`: "lower", "higher", or "undecided": it holds 0.5 or is NaN."""
    return "lower" if high < 0.5 else "higher" if low > 0.5 else "undecided"


def in_words(signs, asked=("interference", "same_relation")):
    """What `auroc` finds over orders, in at most three sentences: the clearest sign, and what is asked for by name.

    Args:
        signs: intervals of `auroc` (`intervals.by_group`) with columns method, measure, mean, low, high.
        asked: covariates that are named whatever is found of them, where they were measured.
    """
    told = signs.dropna(subset="mean")
    told = told.assign(first=[verdict(row.low, row.high) for row in told.itertuples()])
    clear = told[told["first"] != "undecided"]
    if clear.empty:
        return "Undecided: of no sign of the facts that go first does an interval over orders leave out 0.5."
    most = clear.loc[(clear["mean"] - 0.5).abs().idxmax()]
    labels = COVARIATES | KEYS
    parts = [f"The clearest sign of a fact lost next is a {most['first']} {labels[most['measure']]}, under "
             f"{most['method']} (AUROC {most['mean']:.2f})."]  # fmt: skip
    for name in asked:
        of, words = told[told["measure"] == name], []
        for first in ("higher", "lower"):
            methods = ", ".join(of.loc[of["first"] == first, "method"])
            words += [f"{first} ones go first under {methods}"] if methods else []
        words += ["undecided" + " elsewhere" * bool(words)] if (of["first"] == "undecided").any() else []
        parts += [f"{labels[name].capitalize()}: {', '.join(words)}."] if len(of) else []
    return " ".join(parts)
