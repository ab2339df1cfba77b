"""Every number of the README's findings, worked out from the recorded tables alone: nothing of editscale is imported.

`numbers` gives the README's words with {} in the place of a number, and that number. Shares are percent, and all are
rounded as they stand there. A model has collapsed at twice the unedited perplexity, an edit disables that adds more
than 0.1 to log perplexity on a model that has not, and a denominator is small below 0.1.
"""

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


def forecasts():
    """What is said of small denominators: the moment of collapse, facts drawn, and what r-ROME learns of them."""
    rome = read("smollm2", "edits", "rome")
    size = rome["denominator"].abs()
    first = rome[size < 0.1].groupby("order")["edits"].min()
    stop = {order: end for (_, order, _), end in ends(read("smollm2", "recall/perplexity", "rome")).items()}
    yield "collapses in {} of 10 orders, those", sum(first.get(order) == end for order, end in stop.items())
    yield "collapses in 7 of {} orders, those", len(stop)
    of_facts = size.groupby(rome["case_id"]).first()
    calm = judged("smollm2", "r-rome")
    calm = calm[calm["case_id"].map(of_facts) < 0.5]
    yield "hardly learns such facts**: {} %", 100 * (calm["efficacy_accuracy"] == 1).mean()
    tested = read("prospective", "tested")
    rise = np.log(tested["perplexity"] / tested["perplexity_unedited"]).fillna(np.inf)
    small = tested["foretold"].abs() < 0.1
    yield "facts, {} of 95 such facts", (rise[small] > 0.1).sum()
    yield "facts, 92 of {} such facts", small.sum()
    told = pd.read_csv("params/prospective/forecast.csv").dropna(subset="forecast").set_index("order")["forecast"]
    stop = {order: end for (_, order, _), end in ends(read("prospective", "recall/perplexity")).items()}
    yield (
        "Backwards, {} of 6 orders collapse",
        sum(abs(told[order] - stop[order]) <= 0.1 * stop[order] for order in told.index),
    )
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
    yield "ROME then learns {} % of", 100 * (edits["efficacy_accuracy"] == 1).mean()
    yield "collapses within {} edits", edits["edits"].max()
    yield "edits in {} of 4 orders", np.isfinite(list(stop.values())).sum()
    yield "edits in 1 of {} orders", len(stop)
    yield "but recalls {} % of them", recalled("start-token", edits["edits"].max())[1]["rome"]


def going_first():
    """Areas under the ROC curve within an interval of 20 edits: of r-ROME's facts, which does the next look miss?"""
    margin = read("smollm2", "edits", "r-rome").set_index(["order", "edits"])["efficacy_magnitude"]
    keys = read("smollm2", "interference", "r-rome").set_index(["order", "start", "case_id"])["interference"]
    areas = {"margin": [], "keys": []}
    for order, cases, pairs in looks("r-rome"):
        counted = dict.fromkeys(areas, (0.0, 0))
        for start, _, facts, lost in pairs:
            values = {"margin": -margin[order][facts].to_numpy()}
            if order in keys.index.get_level_values("order"):
                values["keys"] = keys[order, start][cases[facts]].to_numpy()
            for name, of in values.items():
                gone, kept = of[lost][:, None], of[~lost][None]
                won = (gone > kept).sum() + (gone == kept).sum() / 2
                counted[name] = counted[name][0] + won, counted[name][1] + gone.size * kept.size
        for name, (won, compared) in counted.items():
            areas[name] += [won / compared] if compared else []
    yield "a fact's margin (AUROC {})", np.mean(areas["margin"])
    yield "at its key ({}; 4 orders)", np.mean(areas["keys"])
    yield "(0.62; {} orders)", len(areas["keys"])


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


def numbers():
    """README's words with {} for a number ↦ that number as it stands there."""
    parts = (collapses(), forecasts(), start_token(), going_first(), mitigations())
    return {
        words: f"{x:.2f}" if "AUROC" in words or "at its key" in words else f"{x:,.0f}"
        for of in parts
        for words, x in of
    }
