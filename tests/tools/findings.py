"""Every number of the README's findings, worked out from the recorded tables alone: nothing of editscale is imported.

`numbers` gives the README's words with {} in the place of a number, and that number. Shares are percent, and all are
rounded as they stand there. A model has collapsed at twice the unedited perplexity, an edit disables that adds more
than 0.1 to log perplexity on a model that has not, and a denominator is small below 0.1.
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

FIGURES = Path("figures")
RUN = ["method", "order", "reversed"]


def read(scale, name, method=None):
    """A recorded table, of forward runs of one method where it is given."""
    table = pd.read_parquet(FIGURES / scale / "tables" / f"{name}.parquet")
    return table if method is None else table[(table["method"] == method) & ~table["reversed"]]


def ends(perplexity):
    """Run ↦ the edit after which perplexity is first above twice the unedited one, infinite where it never is."""
    found = {}
    for run, own in perplexity.sort_values("edits").groupby(RUN):
        values = own["perplexity"].fillna(np.inf)
        beyond = own["edits"][(values > 2 * values.iloc[0]) & (own["edits"] > 0)]
        found[run] = beyond.min() if len(beyond) else np.inf
    return found


def long_ends(scale, method="rome"):
    """The same by the long text, of one method."""
    table = read(scale, "recall/held_out").sort_values("edits")
    runs = {run: own.set_index("edits")["held_out_nll"] for run, own in table.groupby(RUN) if run[0] == method}
    return {run: min(of.index[of > of.iloc[0] + np.log(2)], default=np.inf) for run, of in runs.items()}


def judged(scale, method):
    """Edits of a method up to each run's collapse: their table with `rise` of log perplexity, and `last` of the run."""
    perplexity, parts = read(scale, "recall/perplexity", method).sort_values("edits"), []
    edits = read(scale, "edits", method)
    for run, end in ends(perplexity).items():
        own = perplexity[(perplexity[RUN] == list(run)).all(axis=1)].set_index("edits")["perplexity"].fillna(np.inf)
        rise = np.log(own).diff()
        of_run = edits[(edits[RUN] == list(run)).all(axis=1) & (edits["edits"] <= end)]
        parts.append(of_run.assign(rise=of_run["edits"].map(rise), last=of_run["edits"] == end))
    return pd.concat(parts)


def recalled(scale, at):
    """Percent of all facts recalled after `at` edits, and of those learned by their own edit: means over orders."""
    history, edits = read(scale, "recall/history"), read(scale, "edits")
    asked = history[(history["edits"] == at) & ~history["reversed"]].astype({"efficacy_accuracy": float})
    learned = edits.loc[edits["efficacy_accuracy"] == 1, [*RUN, "edits"]].rename(columns={"edits": "edit"})
    both = asked, asked.merge(learned, on=[*RUN, "edit"])
    means = [of.groupby(["method", "order"])["efficacy_accuracy"].mean().groupby("method").mean() for of in both]
    return [100 * mean for mean in means]


def collapses():
    """What is said of ROME's and MEMIT's collapses, and of fine-tuning's losses."""
    rome = judged("smollm2", "rome")
    hurt, last = rome["rise"] > 0.1, rome[rome["last"]]
    yield (
        "after {} edits, the median of ten orders",
        np.median([*ends(read("smollm2", "recall/perplexity", "rome")).values()]),
    )
    yield "In {} of 10 orders the last edit", (last["rise"] > 0.1).sum()
    yield "of all {} edits up to there", len(rome)
    yield "up to there, {} do", hurt.sum()
    yield (
        "MEMIT collapses as well**, after {} edits",
        np.median([*ends(read("smollm2", "recall/perplexity", "memit")).values()]),
    )
    yield "Fine-tuning loses {} % of the facts", lost_share("ft-c")


def looks(method, per=20):
    """Of each order of the study, up to its collapse: case_id by edit, and for every two looks `per` edits apart their
    places, the learned facts recalled at the first, and which of these the second misses."""
    history, edits, perplexity = (
        read("smollm2", name, method) for name in ("recall/history", "edits", "recall/perplexity")
    )
    stop = ends(perplexity)
    for order, own in history.groupby("order"):
        of_order = edits[edits["order"] == order].set_index("edits")
        learned = of_order.index[of_order["efficacy_accuracy"] == 1]
        known = own[own["edit"].isin(learned)].pivot(index="edit", columns="edits", values="efficacy_accuracy") == 1
        at = [n for n in known if n % per == 0 and n <= stop[method, order, False]]
        pairs = [(a, b, known.index[known[a]], ~known.loc[known[a], b].to_numpy()) for a, b in pairwise(at)]
        yield order, of_order["case_id"], pairs


def lost_share(method):
    """Mean over orders of the recalled facts that the look 20 edits later misses, over those recalled, in percent."""
    counted = [[(lost.sum(), lost.size) for *_, lost in pairs] for _, _, pairs in looks(method)]
    sums = [np.sum(of, axis=0) for of in counted if of]
    return 100 * np.mean([lost / at_risk for lost, at_risk in sums if at_risk])


def foretold(scale):
    """Of how many forward orders of ROME the first small denominator is the edit of collapse, and how many it has."""
    rome = read(scale, "edits", "rome")
    first = rome[rome["denominator"].abs() < 0.1].groupby("order")["edits"].min()
    stop = {order: end for (_, order, _), end in ends(read(scale, "recall/perplexity", "rome")).items()}
    return sum(first.get(order) == end for order, end in stop.items()), len(stop)


def of_sinks():
    """Median cosine of a fact's key and the mean key of position 0, of facts with a small denominator and of others."""
    keys = read("prospective", "denominators").query("fact_set != 'atlas' and seed == 0")
    return keys.groupby(keys["denominator"].abs() < 0.1)["sink_cosine"].median()


def forecasts():
    """What is said of small denominators: the moment of collapse, facts drawn, and what r-ROME learns of them."""
    exact, orders = foretold("smollm2")
    yield "collapses in {} of 10 orders, those", exact
    yield "collapses in 7 of {} orders, those", orders
    rome = read("smollm2", "edits", "rome")
    of_facts = rome["denominator"].abs().groupby(rome["case_id"]).first()
    calm = judged("smollm2", "r-rome")
    calm = calm[calm["case_id"].map(of_facts) < 0.5]
    yield "hardly learns such facts**: {} %", 100 * (calm["efficacy_accuracy"] == 1).mean()
    tested = read("prospective", "tested")
    rise = np.log(tested["perplexity"] / tested["perplexity_unedited"]).fillna(np.inf)
    small = tested["foretold"].abs() < 0.1
    yield "layers, {} of 180 such", (rise[small] > 0.1).sum()
    yield "layers, 159 of {} such", small.sum()
    bare, shares = tested[~tested["start_token"]].assign(hurt=rise > 0.1), []
    for _, own in bare.groupby(["fact_set", "layer"]):
        bins = own.groupby(np.digitize(own["foretold"].abs(), [0.1, 0.5, 1, 2]))
        would = bins["hurt"].mean() * bins["bin_facts"].first()
        shares.append(100 * would[0] / would.sum())
    yield "an estimated {} to 70 % of all", min(shares)
    yield "an estimated 13 to {} % of all", max(shares)
    for small, words in ((True, "cosine {} with the first"), (False, "key, other facts' {}.")):
        yield words, of_sinks()[small]
    told = pd.read_csv("params/prospective/forecast.csv").dropna(subset="forecast").set_index("order")["forecast"]
    for words, stops in (("Backwards, {} of 6 orders", ends(read("prospective", "recall/perplexity"))),
                         ("the forecast, {} by a longer text", long_ends("prospective"))):  # fmt: skip
        stop = {order: end for (_, order, _), end in stops.items()}
        yield words, sum(abs(told[order] - stop[order]) <= 0.1 * stop[order] for order in told.index)
    yield "Backwards, 3 of {} orders collapse", len(told)


def start_token():
    """What is said of a start token before every text."""
    for scale, words in (("start-token", "denominator to {} of"), ("prospective", "facts, {} without it")):
        tested = read(scale, "tested")
        tested = tested[(tested["layer"] == 3) & (tested["fact_set"] != "atlas")]
        small = tested[tested["foretold"].abs() < 0.1]
        yield words, small["bin_facts"].unique().item()
    yield (
        "denominator to 11 of {} facts",
        tested.groupby(np.digitize(tested["foretold"].abs(), [0.1, 0.5, 1, 2]))["bin_facts"].first().sum(),
    )
    edits, stop = read("start-token", "edits", "rome"), ends(read("start-token", "recall/perplexity", "rome"))
    yield "ROME then learns {} %", 100 * (edits["efficacy_accuracy"] == 1).mean()
    yield "recalls {} % of them", recalled("start-token", edits["edits"].max())[1]["rome"]
    yield "of them after {} edits", edits["edits"].max()
    yield "collapses in {} of 4 orders, by", np.isfinite(list(stop.values())).sum()
    yield "collapses in 1 of {} orders, by", len(stop)
    without = ends(read("smollm2", "recall/perplexity", "rome"))
    words = {True: "all", False: "some"}[all(without[run] <= edits["edits"].max() for run in stop)]
    longer = sum(map(np.isfinite, long_ends("start-token").values())) or "none"
    yield f"collapses in 1 of {{}} orders, by a longer text in {longer}, bare in {words}.", len(stop)
    own = read("start-token", "edits", "memit")
    yield "MEMIT then recalls {} % of what it learned", recalled("start-token", own["edits"].max())[1]["memit"]
    yield "what it learned ({} orders), bare", own["order"].nunique()
    yield "orders), bare {} %", recalled("mitigations", own["edits"].max())[1]["memit"]


def area(gone, kept):
    """Of all pairs of a lost and a kept value, how many the lost one wins, and how many pairs there are."""
    won = (gone[:, None] > kept).sum() + (gone[:, None] == kept).sum() / 2
    return np.array([won, gone.size * kept.size])


def going_first():
    """Areas under the ROC curve within an interval of 20 edits: of r-ROME's facts, which does the next look miss?"""
    margin = read("smollm2", "edits", "r-rome").set_index(["order", "edits"])["efficacy_magnitude"]
    keys = read("smollm2", "interference", "r-rome").set_index(["order", "start", "case_id"])["interference"]
    areas = {"margin": [], "keys": []}
    for order, cases, pairs in looks("r-rome"):
        counted = {name: np.zeros(2) for name in areas}
        for start, _, facts, lost in pairs:
            values = {"margin": -margin[order][facts].to_numpy()}
            if order in keys.index.get_level_values("order"):
                values["keys"] = keys[order, start][cases[facts]].to_numpy()
            for name, of in values.items():
                counted[name] += area(of[lost], of[~lost])
        for name, (won, compared) in counted.items():
            areas[name] += [won / compared] if compared else []
    yield "a fact's margin (AUROC {})", np.mean(areas["margin"])
    yield "at its key ({}; 10 orders)", np.mean(areas["keys"])
    yield "(0.62; {} orders)", len(areas["keys"])


def lost_to(change, method):
    """Percent of the facts known after 100 edits that a change as large as edits 101 to 300, or they, lose: means over
    orders of medians over seeds. A run that knew fewer than 20 facts does not count."""
    rows = read("interventions", "interventions", method).query("since == 100 and edits == 300 and scale == 1")
    rows = rows[(rows["change"] == change) & (rows["n_before"] >= 20)]
    return 100 * (1 - rows.groupby("order")["recall_before"].median()).mean()


def distance():
    """What is said of changes as large as those of edits."""
    rows = read("interventions", "interventions")
    yield "; {} orders). Of what it knew", rows["order"].nunique()
    yield "MEMIT loses {} % in 200 edits", lost_to("edits", "memit")
    yield "MEMIT loses 44 % in {} edits", (rows["edits"] - rows["since"]).where(rows["since"] == 100).max()
    yield "edits; {} % if these", lost_to("permuted", "memit")
    yield "exchange values, {} % by random", lost_to("spectrum", "memit")
    yield "previous keys the edits lose {} % as well", lost_to("edits", "memit-seq-as-memit")
    yield "r-ROME's lose {} %", lost_to("edits", "r-rome")
    yield "random ones as large {} %", lost_to("spectrum", "r-rome")


def mitigations():
    """What is said of editors against forgetting, after 300 edits."""
    at, orders = read("mitigations", "edits")["edits"].max(), read("mitigations", "edits")["order"].nunique()
    yield "After {} edits in " + {2: "two"}[orders] + " orders MEMIT", at
    found = recalled("mitigations", at)[0]
    words = {
        "memit": "MEMIT recalls {} % of all",
        "memit-seq-as-memit": "with previous keys {} %",
        "alphaedit": "AlphaEdit {} %",
    }
    words |= {"memit-seq": "settings chosen for them {} %", "memit-once": "in one step, {} %"}
    words |= {"emmet": "EMMET recalls {} %", "ultraedit": "UltraEdit {} %"}
    yield from ((text, found[name]) for name, text in words.items())
    more = [round(found[f"memit-{name}"] - found["memit"]) for name in ("rect", "prune", "nas")]
    yield "norm anchors add {} to 4 points", min(more)
    yield "norm anchors add 3 to {} points", max(more)


def lasting():
    """What is said of longer runs of the editors that keep earlier keys."""
    edits, text = read("lasting", "edits"), read("lasting", "recall/held_out")
    end, losses = edits["edits"].max(), text.pivot_table("held_out_nll", [*RUN], "edits")
    times = np.exp(losses[end] - losses[0]).groupby("method").mean()
    left = recalled("lasting", end)[0]
    assert left.idxmin() == times.idxmax() == half_lives()[0].groupby("method").max().idxmin() == "alphaedit"
    yield "; {} orders): after", edits["order"].nunique()
    yield "Tuned on {} edits", read("mitigations", "edits")["edits"].max()
    yield "after {} it recalls", end
    yield "it recalls {} % of all facts at", left["alphaedit"]
    yield "of all facts at {} times the perplexity", times["alphaedit"]
    yield "previous keys {} % at", left["memit-seq-as-memit"]
    yield "MEMIT with previous keys 55 % at {} times", times["memit-seq-as-memit"]


def half_lives():
    """Edits at the first look at a run of `lasting` that finds less than half of what was learned, by method and order;
    and the percentage that is left at the end, by method."""
    history, edits = read("lasting", "recall/history"), read("lasting", "edits")
    learned = edits.loc[edits["efficacy_accuracy"] == 1, [*RUN, "edits"]].rename(columns={"edits": "edit"})
    asked = history.merge(learned).groupby(["method", "order", "edits"])["efficacy_accuracy"].mean()
    first = asked[asked < 0.5].reset_index("edits").groupby(["method", "order"])["edits"].min()
    return first, 100 * asked.xs(edits["edits"].max(), level="edits").groupby("method").mean()


def numbers():
    """README's words with {} for a number ↦ that number as it stands there."""
    parts = (collapses(), forecasts(), start_token(), going_first(), distance(), mitigations(), lasting())
    digits = {2: "margin .AUROC|at its key|cosine|other facts'", 1: r"% at {} times"}
    return {
        words: f"{x:,.{max((n for n, which in digits.items() if re.search(which, words)), default=0)}f}"
        for of in parts
        for words, x in of
    }


# ---------------------------------------------------------------------------------------------- sentences of figures


def last_shared(scale, name):
    """The last number of edits at which every run that did not end in a failed edit has rows in a table."""
    status = read(scale, "edits").sort_values("edits").groupby(RUN)["status"].last()
    whole = status.index[status.isin(["edited", "screened"])]
    runs = read(scale, name).groupby(RUN)["edits"].agg(set)
    return max(set.intersection(*runs[runs.index.isin(whole)]))


def extremes(values, form, methods=()):
    """The lowest and the highest of values by method, written."""
    values = values[values.index.isin(methods)] if methods else values
    return list(dict.fromkeys(form.format(end).rstrip(".") for end in (values.min(), values.max())))


def forward(table, value, how="mean"):
    """A value of each forward run, (method, order, reversed) ↦ number, as its mean or median over orders."""
    runs = value if table is None else table.groupby(RUN)[value].mean()
    return runs[~runs.index.get_level_values("reversed")].groupby("method").agg(how)


def scores_and_tasks(scale, about):
    """Numbers in the sentences of figures 1, 3 and 6."""
    found = {}
    if "fig1_editing_proficiency" in about:
        edits = read(scale, "edits")
        early = edits[edits["edits"] <= last_shared(scale, "edits")]
        scores = forward(early.assign(es=100 * early["efficacy"].astype(float)), "es")
        methods = about["fig1_editing_proficiency"]["methods"]
        found["fig1_editing_proficiency"] = extremes(scores, "{:.0f}", methods)
    if "fig3_downstream" in about:
        tasks = read(scale, "downstream/downstream")
        tasks = tasks[tasks["task"] == tasks["task"].iloc[0]].astype({"f1": float}).set_index([*RUN, "edits"])["f1"]
        at_end = tasks.xs(last_shared(scale, "downstream/downstream"), level="edits")
        change = 100 * (at_end - tasks.xs(0, level="edits"))
        found["fig3_downstream"] = extremes(forward(None, change), "{:.0f}")
    if "fig6_acceptance" in about:
        score = read(scale, "acceptance").query("metric == 'ES'").set_index("method")["value"].astype(float)
        found["fig6_acceptance"] = [f"{score['none']:.1f}", f"{score.drop('none').max():.1f}"]
    return found


def weights(scale):
    """Numbers in the sentences of figures 4, 4b and 4c."""
    drift, spectra = read(scale, "drift"), read(scale, "recall/spectra")
    moved = drift.assign(percent=100 * drift["relative_drift"].astype(float)).groupby([*RUN, "edits"])["percent"].max()
    at_end = moved.xs(last_shared(scale, "drift"), level="edits")
    found = {"fig4_weight_drift": extremes(forward(None, at_end, "median"), "{:,.0f}")}
    stop = {
        (*run, end): moved[(*run, end)] / 100
        for run, end in ends(read(scale, "recall/perplexity")).items()
        if end < np.inf
    }
    found["fig4b_drift_and_loss"] = []
    if stop:
        broken = pd.Series(stop).rename_axis([*RUN, "edits"]).droplevel("edits")
        found["fig4b_drift_and_loss"] = extremes(forward(None, broken, "median"), "{:.2f}")
    top = (
        spectra[spectra["index"] == 0]
        .astype({"singular_value": float})
        .set_index([*RUN, "layer", "edits"])["singular_value"]
    )
    times = top.xs(last_shared(scale, "recall/spectra"), level="edits") / top.xs(0, level="edits")
    found["fig4c_spectra"] = extremes(forward(None, times.groupby(RUN).max(), "median"), "{:#.3g}")
    return found


def single_edits(scale):
    """Numbers in the sentences of figures 5, 5b and 5c."""
    alone = read(scale, "single").drop_duplicates(["method", "contexts", "seed", "case_id"])
    alone = alone[alone["method"] == "rome"]
    small = alone.loc[(alone["contexts"] == "run") & (alone["denominator"].abs() < 0.1), "case_id"]
    alone = alone[alone["case_id"].isin(small)]
    rise = np.log(alone["perplexity"].fillna(np.inf) / alone["perplexity_unedited"])
    shares = 100 * (rise > 0.1).groupby(alone["contexts"]).mean()
    exact, orders = foretold(scale)
    found = {"fig5_disabling_edits": [str(exact), str(orders)] if exact else []}
    found["fig5b_single_edits"] = [f"{shares['run']:.0f}", f"{shares['bare']:.0f}"]
    rome, counted = read(scale, "edits", "rome"), []
    of_facts = rome["denominator"].abs().groupby(rome["case_id"]).first()
    for method in read(scale, "edits")["method"].unique():
        own = judged(scale, method)
        if not (own["rise"] > 0.1).any():
            size = own["case_id"].map(of_facts)
            learned = own["efficacy_accuracy"] == 1
            counted.append([(learned[which].sum(), which.sum()) for which in (size < 0.1, size >= 2)])
    ends_of = np.sum(counted, axis=0)
    return found | {"fig5c_denominators": [f"{100 * learned / n:.0f}" for learned, n in ends_of]}


def of_smollm2():
    """Numbers in the sentences of figures 2b, 4d, 5d and 5e."""
    keys = read("smollm2", "interference", "rome").set_index(["order", "start", "case_id"])["interference"]
    areas = []
    for order, cases, pairs in looks("rome"):
        values = [(keys[order, start][cases[facts]].to_numpy(), lost) for start, _, facts, lost in pairs if len(facts)]
        won, compared = sum((area(of[lost], of[~lost]) for of, lost in values), np.zeros(2))
        areas += [won / compared] if compared else []
    tested = pd.concat([read(scale, "tested") for scale in ("prospective", "start-token")])
    hurt = np.log(tested["perplexity"] / tested["perplexity_unedited"]).fillna(np.inf) > 0.1
    size = tested["foretold"].abs()
    return {"fig2b_going_first": [f"{np.mean(areas):.2f}"],
            "fig5e_sinks": [f"{of_sinks()[small]:.2f}" for small in (True, False)],
            "fig4d_distance_or_direction": [f"{lost_to(of, 'memit'):.0f}" for of in ("spectrum", "edits")],
            "fig5d_forecast_tested": [f"{100 * hurt[of].mean():.0f}" for of in (size < 0.1, size >= 2)]}  # fmt: skip


def of_mitigations():
    """Numbers in the sentences of figures 8 to 8e."""
    kept = recalled("mitigations", 300)[0]
    overlap = read("mitigations", "overlap").groupby("method")["overlap"].mean()
    both = pd.concat([overlap, kept], axis=1, join="inner").rank()
    one_step, (halves, left) = kept[["memit-once"]].item(), half_lives()
    return {"fig8_mitigations": extremes(kept, "{:.0f}"), "fig8b_overlap": [f"{both.corr().iloc[0, 1]:.2f}"],
            "fig8c_steps": [f"{one_step:.0f}"],
            "fig8d_in_one_step": [f"{one_step:.0f}", f"{kept['memit-seq-as-memit']:.0f}"],
            "fig8e_to_the_end": [f"{halves['alphaedit'].median():,.0f}", f"{left.max():.0f}"]}  # fmt: skip


def of_figures(scale, about):
    """Figure ↦ the numbers in its sentence, in their order, for those that are worked out here.

    Args:
        about: figure ↦ the parameters that it was drawn with.
    """
    found = scores_and_tasks(scale, about)
    if "fig4_weight_drift" in about:
        found |= weights(scale)
    if "fig5b_single_edits" in about:
        found |= single_edits(scale)
    found |= of_smollm2() if scale == "smollm2" else {}
    return found | (of_mitigations() if scale == "mitigations" else {})
