"""What became of the predictions in params/predictions.md: `python -m editscale predictions`.

Each is judged from the recorded tables of the runs that tested it: held, failed, "undecided" where a bound lies within
an interval, or "not run". The page figures/predictions.md is written from it.
"""

from pathlib import Path

import click
import numpy as np
import pandas as pd

from editscale.analysis import collapse, distance, forecast, intervals, mitigations, prospective, tables
from editscale.analysis.rows import were_learned
from editscale.columns import RUN
from tools.costs import table as in_markdown

PAGE = Path("figures/predictions.md")
TESTS, TOKEN = "figures/prospective/tables", "figures/start-token/tables"
MOVED, EDITORS = "figures/interventions/tables", "figures/mitigations/tables"
LONG = "figures/lasting/tables"


def against(low, high, least=-np.inf, most=np.inf):
    """The verdict on least ≤ x ≤ most of an x between low and high."""
    if least <= low and high <= most:
        return "held"
    return "failed" if high < least or low > most else "undecided"


def both(*verdicts):
    """The verdict on several parts of a prediction: failed if one is, held if all are."""
    return next((verdict for verdict in ("failed", "undecided") if verdict in verdicts), "held")


def collapses(folder, method="rome"):
    """Where each run of a method collapses by the short text and by the long one, which is read at checkpoints only.

    Returns method, order, reversed, short, long; infinite where perplexity stays below twice the unedited one.
    """
    places = collapse.where(tables.gather([folder], "recall/perplexity")).rename(columns={"collapse": "short"})
    long = tables.gather([folder], "recall/held_out").sort_values("edits")
    rise = long["held_out_nll"] - long.groupby(list(RUN))["held_out_nll"].transform("first")
    beyond = long[rise > np.log(collapse.TIMES)].groupby(list(RUN))["edits"].min().rename("long").reset_index()
    runs = places[places["method"] == method].merge(beyond, on=list(RUN), how="left")
    return runs[[*RUN, "short", "long"]].fillna({"long": np.inf})


def by_both(counts, words, **bounds):
    """What was found of a count by each text, and the verdict: undecided where the two texts give different ones."""
    verdicts = {against(count, count, **bounds) for count in counts}
    said = words.format(counts[0]) + ("" if counts[0] == counts[1] else f"; by the long text {counts[1]}")
    return said, verdicts.pop() if len(verdicts) == 1 else "undecided"


def moments():
    """Predictions 1 and 2: collapses of reversed orders at the forecast edit, and of those without a forecast."""
    told = pd.read_csv("params/prospective/forecast.csv")
    runs = told.merge(collapses(TESTS), on=list(RUN), validate="one_to_one")
    foretold = runs["forecast"].notna()
    near, rest = [], []
    for text in ("short", "long"):
        near.append(((runs["forecast"] - runs[text]).abs() <= 0.1 * runs[text].where(foretold)).sum())
        rest.append(np.isfinite(runs.loc[~foretold, text]).sum())
    exact = (runs["forecast"] == runs["short"]).sum()
    yield by_both(near, f"{{}} of {foretold.sum()}, {exact} at the very edit", least=4)
    yield by_both(rest, f"{{}} of {(~foretold).sum()}", most=0)


def drawn(fact_set):
    """Predictions 3 and 4: how many of the drawn edits at layer 3 disable, with a small |k·u| and from 0.5 on."""
    tested = prospective.read([f"{TESTS}/tested.parquet"])
    own = prospective.by_bin(tested[tested["fact_set"] == fact_set], prospective.DRAWING)
    own = own[own["layer"] == 3]
    low, far = own[own["high"] <= forecast.LOW].iloc[0], own[own["low"] >= 0.5]
    share, least, most = (100 * np.average(far[name], weights=far["facts"]) for name in ("share", "least", "most"))
    said = f"small: {low.disabling} of {low.tested} ({100 * low.least:.0f}–{100 * low.most:.0f} %); from 0.5 on: "
    verdicts = against(100 * low["least"], 100 * low["most"], least=80), against(least, most, most=5)
    return said + f"{share:.1f} % ({least:.1f}–{most:.0f} %)", both(*verdicts)


def ranks():
    """Prediction 5: rank correlations of |k·u| and damage at other layers, with intervals by Fisher's z."""
    tested = prospective.read([f"{TESTS}/tested.parquet"])
    own = tested[(tested["fact_set"] != "atlas") & (tested["layer"] != 3)]
    rows = [
        (layer, len(of), of["foretold"].abs().rank().corr(of["damage"].rank())) for layer, of in own.groupby("layer")
    ]
    ends = [np.tanh(np.arctanh(rho) + 1.96 / np.sqrt(n - 3)) for _, n, rho in rows]
    said = ", ".join(f"{rho:.2f} at layer {layer}" for layer, _, rho in rows)
    return said, against(min(rho for *_, rho in rows), max(ends), most=-0.3)


def recalled_at_the_end(folder, method):
    """Percent of the facts learned that the model recalls after the last edit, by order."""
    edits, history = tables.gather([folder], "edits"), tables.gather([folder], "recall/history")
    own = edits[edits["method"] == method].assign(learned=were_learned)
    last = history[(history["method"] == method) & (history["edits"] == own["edits"].max())]
    asked = last.merge(own.loc[own["learned"], ["order", "edit"]], on=["order", "edit"])
    return 100 * asked.groupby("order")["efficacy_accuracy"].mean()


def after_the_token():
    """Predictions 6 to 10, of ROME and MEMIT after a start token."""
    edits = tables.gather([TOKEN], "edits")
    rome = edits[edits["method"] == "rome"].assign(learned=were_learned)
    small = int((rome["denominator"].abs() < forecast.LOW).sum())
    yield f"{small} of {len(rome):,}", against(small, small, most=3)
    places = collapses(TOKEN)
    yield by_both([np.isfinite(places[text]).sum() for text in ("short", "long")], f"{{}} of {len(places)}", most=0)
    learned = intervals.summary(100 * rome.groupby("order")["learned"].mean())
    yield intervals.in_words(learned, "{:.1f}", " %"), against(learned.low, learned.high, least=85)
    recalled = recalled_at_the_end(TOKEN, "rome")
    yield f"{', '.join(f'{x:.0f} %' for x in recalled)}", against(recalled.min(), recalled.max(), most=75 - 1e-9)
    after, bare = (recalled_at_the_end(folder, "memit") for folder in (TOKEN, EDITORS))
    said = ", ".join(f"{after[order]:.0f} % against {bare[order]:.0f} %" for order in after.index)
    off = (after - bare).abs()
    yield said, against(off.min(), off.max(), most=10 - 1e-9)


def alone_after_the_token():
    """Prediction 11: single edits at layer 3 after a start token, by bins of |k·u|."""
    own = prospective.by_bin(prospective.read([f"{TOKEN}/tested.parquet"]))
    own = own[own["layer"] == 3]
    shares = [f"{row.disabling} of {row.tested} from {row.low:g} on" for row in own.itertuples() if row.disabling]
    return ", ".join(shares), both(*(against(100 * row.least, 100 * row.most, most=5) for row in own.itertuples()))


def changes():
    """Predictions 12 to 14: what other changes of the size of the edits' lose."""
    measured = distance.read([f"{MOVED}/interventions.parquet"])
    by = ["method", "order", "since", "edits", "scale"]
    own = measured[(measured["change"] == "edits") & (measured["scale"] <= 1)].set_index(by)
    nothing = own["held_out_nll"].xs(0.0, level="scale")
    rise = own["held_out_nll"].xs(1.0, level="scale") - nothing
    random = measured[(measured["change"] == "gaussian") & (measured["scale"] == 1)].set_index(by[:-1])["held_out_nll"]
    times = ((random - nothing) / rise).xs(300, level="edits").xs(0, level="since")  # one for each seed and order
    groups = {name: times[name] for name in ("r-rome", "memit", "ft-c")}
    said = "; ".join(f"{name} {of.min():.2g} to {of.max():.2g}" for name, of in groups.items())
    verdicts = [against(groups[name].min(), groups[name].max(), least=2) for name in ("r-rome", "memit")]
    verdicts.append(against(groups["ft-c"].min(), groups["ft-c"].max(), most=0.5))
    yield f"the random change times as much as the edits: {said}", both(*verdicts)
    lost = distance.losses(measured).query("since == 100 and edits == 300").set_index(["method", "order", "change"])
    lost, half = (100 * lost.loc[lost["scale"] == scale, "lost"].unstack("change") for scale in (1.0, 0.5))
    lost, half = (of.loc[["r-rome", "memit"]] for of in (lost, half))
    off = lost["permuted"] - lost["edits"]
    yield _by_method(off, "{:+.0f}", " points"), against(off.abs().min(), off.abs().max(), most=10)
    part = half["edits"] / lost["edits"]
    yield _by_method(100 * part, "{:.0f}", " %"), against(part.min(), part.max(), most=0.5)


def _by_method(values, form, unit):
    groups = values.groupby(level="method", sort=False)
    return "; ".join(f"{name} {', '.join(map(form.format, of))}{unit}" for name, of in groups)


def pairs():
    """Prediction 15: minimal pairs with previous keys, and with ROME where it collapses early."""
    choices = tables.gather([MOVED], "downstream/choices")
    own = choices[choices["phenomenon"] == "all"].set_index(["method", "order", "edits"])
    parts, verdicts = [], []
    for method, order, bounds in (
        ("memit-seq-as-memit", 0, {"most": 3}),
        ("memit-seq-as-memit", 1, {"most": 3}),
        ("rome", 1, {"least": 5}),
    ):
        first, last = own.loc[method, order, 0], own.loc[method, order, 300]
        fall, error = (100 * x for x in (first.accuracy - last.accuracy, np.hypot(first.accuracy_se, last.accuracy_se)))
        parts.append(f"{method} {fall:.1f} (± {1.96 * error:.1f})")
        verdicts.append(against(fall - 1.96 * error, fall + 1.96 * error, **bounds))
    return f"points lost: {', '.join(parts)}", both(*verdicts)


def clamped():
    """Prediction 16: the collapse of ROME with a smaller clamp in order 1; the long text is next read at edit 20."""
    place = collapses(EDITORS, "rome-clamped").set_index("order").loc[1]
    counts = int(place["short"] == 17), int(place["long"] == 20)
    said = ", ".join(f"by the {text} text {'never' if np.isinf(place[text]) else f'at edit {place[text]:.0f}'}"
                     for text in ("short", "long"))  # fmt: skip
    return said, by_both(counts, "", least=1)[1]


def contexts():
    """Prediction 17: whether the facts with a small |k·u| by contexts of one seed have one by those of another."""
    measured = tables.read(f"{TESTS}/denominators.parquet", "restore it from a copy", lambda table: table)
    own = measured[(measured["fact_set"] != "atlas") & (measured["layer"] == 3)]
    small = own.assign(small=own["denominator"].abs() < forecast.LOW).pivot(
        index="case_id", columns="seed", values="small"
    )
    shares = [100 * small.loc[small[one], other].mean() for one in small for other in small if one != other]
    counts = ", ".join(f"{small[seed].sum()} of {len(small):,}" for seed in small)
    return f"{min(shares):.0f} to {max(shares):.0f} % (small: {counts})", against(min(shares), max(shares), least=70)


def half_lives():
    """Predictions 19 to 22: when half of what was learned is lost, where the runs end after fewer edits than foreseen.

    A half-life lies between two checkpoints; of two with the same ones it is not known which is longer.
    """
    curve = mitigations.over_edits(*(tables.gather([LONG], name) for name in ("edits", "recall/history")))
    halves, end = mitigations.half_lives(curve), curve["edits"].max()
    step, half = np.diff(np.sort(curve["edits"].unique())).max(), halves.set_index(["method", "order"])["half"]
    said = {
        name: ", ".join(f"{x:,.0f}" if x < np.inf else f"above {end:,}" for x in half[name])
        for name in half.index.levels[0]
    }

    def within(name, **bounds):
        return both(*(against(x - step, x, **bounds) if x < np.inf else against(end, x, **bounds) for x in half[name]))

    def longer(name, other):
        return both(
            *(
                "held" if x > y else "failed" if x < y else "undecided"
                for x, y in zip(half[name], half[other], strict=True)
            )
        )

    first, most, other, last = "alphaedit", "memit-seq-as-memit", "memit-seq", "memit-seq-lambda-4000"
    yield said[first], within(first, least=900, most=2000)
    yield f"{said[most]}; AlphaEdit {said[first]}", both(within(most, least=1500), longer(most, first))
    ended = f"runs end after {end:,} edits; {np.isinf(half).sum()} of {len(half)} have not lost half by then"
    yield ended, both(*(within(name, most=3000) for name in said)) if end >= 3000 else "not run"
    yield f"λ 4,000: {said[last]}; λ 1,000: {said[other]}", longer(last, other)


def long_texts():
    """Prediction 23: the long text after 1,000 edits."""
    text = tables.gather([LONG], "recall/held_out").set_index(["method", "order", "edits"])["held_out_nll"].unstack()
    times = np.exp(text[1000] - text[0])
    bounds = {"alphaedit": {"least": 1.5}, "memit-seq-as-memit": {"most": 1.5}}
    said = "; ".join(f"{name} {', '.join(f'{x:.2f}' for x in times[name])}" for name in bounds)
    return said, both(*(against(x, x, **of) for name, of in bounds.items() for x in times[name]))


def learned_late():
    """Prediction 24: how many of the facts 2,501 to 3,000 are learned by their own edit, in the run with the fewest."""
    edits = tables.gather([LONG], "edits")
    late = were_learned(edits[edits["edits"].between(2501, 3000)]).groupby([edits[name] for name in RUN]).mean()
    if edits["edits"].max() < 3000:
        return f"runs end after {edits['edits'].max():,} edits", "not run"
    return f"{100 * late.min():.0f} % or more", against(late.min(), late.min(), least=0.9)


def overlaps():
    """Prediction 25: how overlap with earlier keys grows along a sequence."""
    met = mitigations.read_overlap(f"{LONG}/overlap.parquet")
    bins = [met[met["edits"].between(*of)].groupby("method")["overlap"].median() for of in ((201, 300), (1101, 1200))]
    times, bounds = bins[1] / bins[0], {"alphaedit": {"least": 3}, "memit-seq": {"most": 2}}
    said = ", ".join(f"{name} {times[name]:.1f} times" for name in bounds)
    return said, both(*(against(times[name], times[name], **of) for name, of in bounds.items()))


def judged():
    """All predictions: a list of rows with number, prediction, found and verdict."""
    draws = drawn("counterfact_easyedit.json"), drawn("atlas")
    found = [*moments(), *draws, ranks(), *after_the_token(), alone_after_the_token(), *changes(), pairs(), clamped()]
    tested = prospective.by_bin(prospective.read([f"{TESTS}/tested.parquet"]), prospective.DRAWING)["tested"].max()
    said = f"see 3 and 4, which are judged by these; at most {tested} facts of a bin were drawn, not 120"
    found += [contexts(), (said, both(*(verdict for _, verdict in draws))), *half_lives(), long_texts()]
    found += [learned_late(), overlaps()]
    return [{"": i, "predicted": words, "found": text, "verdict": verdict}
            for i, (words, (text, verdict)) in enumerate(zip(PREDICTED, found, strict=True), start=1)]  # fmt: skip


PREDICTED = (
    "four or more of six collapse within a tenth of the forecast edit",
    "two orders without a forecast do not collapse",
    "80 % or more of single edits with a small k·u disable, 5 % or less of those with 0.5 or more",
    "the same of AtlasFacts",
    "rank correlation of k·u and damage below −0.3 at each other layer",
    "with a start token 3 or fewer edits have a small k·u",
    "ROME collapses in none of four orders",
    "ROME learns 85 % or more",
    "less than 75 % of what was learned is recalled at the end, in each order",
    "MEMIT's recall differs by less than 10 points",
    "single edits: 5 % or less disable in any bin",
    "text: a random change does more than twice the harm of r-ROME's and MEMIT's edits, less than half of FT-C's",
    "edits with exchanged values lose as many known facts, within 10 points, with r-ROME and MEMIT",
    "half of a change loses less than half as many known facts, with r-ROME and MEMIT",
    "minimal pairs: less than 3 points lost with previous keys, 5 or more with ROME in order 1",
    "a smaller clamp leaves ROME's collapse of order 1 at edit 17",
    "70 % or more of the small k·u by contexts of one seed are small by those of another",
    "with more draws 3 and 4 hold",
    "AlphaEdit loses half of what it learned after 900 to 2,000 edits, in each order",
    "with previous keys and MEMIT's settings after 1,500 or more, and later than AlphaEdit",
    "no method keeps half for more than 3,000 edits",
    "λ 4,000 keeps half for longer than λ 1,000 at layers 1 to 5, in each order",
    "perplexity after 1,000 edits is above 1.5 times the unedited one's under AlphaEdit, below with λ 4,000",
    "90 % or more of the facts 2,501 to 3,000 are learned",
    "overlap with earlier keys after 1,100 edits is above 3 times that after 200 under AlphaEdit, below 2 with λ 4,000",
)


def page():
    """The page figures/predictions.md."""
    rows = judged()
    counts = pd.Series([row["verdict"] for row in rows]).value_counts()
    said = ", ".join(f"{counts[name]} {name}" for name in ("held", "failed", "undecided", "not run") if name in counts)
    return f"""# Predictions, and what came

`python -m editscale predictions` writes this page from recorded tables of scales `prospective`, `start-token`,
`interventions`, `mitigations` and `lasting`. [params/predictions.md](../params/predictions.md) has each prediction as
it was committed before the runs. Those of `lasting` were cut short: 2,000 edits, looked at every 200. Undecided: a
bound lies within the 95 % interval (exact of edits drawn in a bin, weighted over several bins; t over orders; Fisher's
z of correlations; 1.96 standard errors of pairs), within the range of seeds and orders or between two looks, or a model
has collapsed by the short text and not by the long one of 20,000 tokens, or the reverse.
The long one is read every ten edits. Of {len(rows)}: {said}.

{in_markdown(rows)}
"""


@click.command()
def main():
    """Judge the predictions of params/predictions.md by the recorded tables, and write figures/predictions.md."""
    PAGE.write_text(text := page(), encoding="utf-8")
    print(text)
