"""Which facts go first: risk sets by hand, planted hazards found again, AUROC by counting, and an audit's counts."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit
from test_hazard import KEY, tables

from editscale.analysis import collapse, going_first, intervals
from editscale.analysis import tables as results
from editscale.columns import RUN
from editscale.files import sealed, sha256_file, write_json

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "figures/smollm2/tables"


def places(at=math.inf, **run):
    return pd.DataFrame([KEY | run | {"collapse": at}])


def simulated(beta, rng, *, n_intervals=40, at_risk=120, **run):
    """Facts at risk whose log odds of being lost are α of their interval and β of each covariate."""
    start = np.repeat(20 * np.arange(n_intervals), at_risk)
    x = rng.normal(size=(len(start), len(beta)))
    x[:, 0] += start / 200  # a covariate that rises along the run, as its hazard does
    chance = expit(-2 + start / 400 + x @ np.array(beta) - beta[0] * start / 200)
    columns = {f"x{i}": x[:, i] for i in range(len(beta))}
    made = {"start": start, "stop": start + 20, **columns, "lost": rng.random(len(start)) < chance}
    return pd.DataFrame({**KEY, **run, **made})


# -------------------------------------------------------------------------------------------------- the risk table


def test_facts_at_risk_are_the_recalled_ones_and_the_intervals_end_at_the_collapse():
    """Edit 3 is not learned. Fact 1 is lost at 4, 2 comes back at 4 and is lost at 6; 4 is at risk from 4 on."""
    history, edits = tables([1, 1, 0, 1, 1, 1], {2: [1, 0], 4: [0, 1, 1, 1], 6: [0, 0, 0, 1, 1, 0]})
    found = going_first.at_risk(history, edits, places(), every=2)
    assert found[["start", "stop", "edit", "lost"]].to_numpy().tolist() == [[2, 4, 1, True], [4, 6, 2, True],
                                                                            [4, 6, 4, False]]  # fmt: skip
    assert len(going_first.at_risk(history, edits, places(4), every=2)) == 1
    assert going_first.at_risk(history, edits, places(3), every=2).empty
    with pytest.raises(ValueError, match="no place of collapse for .*'order': 0"):
        going_first.at_risk(history, edits, places(order=1), every=2)


def test_covariates_are_those_of_the_fact_and_of_the_edits_within_the_interval():
    """Case 11 is of relation P1 and writes object 5; of edits 3 to 4 one is of P1, and both write 5."""
    history, edits = tables([1] * 4, {2: [1, 1], 4: [0, 1, 1, 1]})
    edits = edits.assign(case_id=edits["case_id"] + 10, efficacy_magnitude=[0.5, 0.25, 1, 1], relation_id="")
    history = history.assign(case_id=history["case_id"] + 10)
    traits = pd.DataFrame({"case_id": [11, 12, 13, 14], "relation_id": ["P1", "", "P1", "P2"],
                           "new_object": [5, 6, 5, 5], "subject_tokens": [1, 2, 3, 4], "target_tokens": 1})  # fmt: skip
    edits = edits.assign(edit=edits["edits"])
    drift = pd.DataFrame([KEY | {"edits": i, "layer": layer, "update_norm": i * side}
                          for i in range(1, 5) for layer, side in ((3, 3.0), (4, 4.0))])  # fmt: skip
    unedited = edits[[*KEY, "edit"]].assign(efficacy_magnitude=-0.5)
    risk = going_first.at_risk(history, edits, places(), every=2)
    found = going_first.with_covariates(risk[::-1], edits, unedited, drift, traits)[::-1]  # rows keep their order
    assert found["case_id"].tolist() == [11, 12] and found["margin"].tolist() == [0.5, 0.25]
    np.testing.assert_allclose(found["update"], np.log([5, 10]))
    np.testing.assert_allclose(found["age"], np.log([2, 1]))
    assert found["same_object"].tolist() == [2, 0] and found["subject_tokens"].tolist() == [1, 2]
    assert found["same_relation"].iloc[0] == 1 and math.isnan(found["same_relation"].iloc[1])  # of none known
    assert (found["margin_before"] == -0.5).all()
    known = going_first.with_covariates(risk, edits.assign(relation_id="P9"), unedited, drift, None)
    assert known["same_relation"].tolist() == [2, 2] and known["same_object"].isna().all()


def test_the_update_of_a_step_of_several_facts_is_that_of_all_of_them():
    history, edits = tables([1] * 4, {2: [1, 1], 4: [1] * 4})
    edits = edits.assign(edit=edits["edits"], efficacy_magnitude=0.0, relation_id="")
    drift = pd.DataFrame([KEY | {"edits": i, "layer": 3, "update_norm": float(i)} for i in (2, 4)])
    risk = going_first.at_risk(history, edits, places(), every=2)
    found = going_first.with_covariates(risk, edits, edits[[*KEY, "edit"]], drift)
    np.testing.assert_allclose(found["update"], np.log([2, 2]))


# ----------------------------------------------------------------------------------------------------------- AUROC


def test_auroc_is_the_share_of_pairs_of_an_interval_that_the_lost_fact_wins():
    rng = np.random.default_rng(0)
    table = simulated([0.5, 0], rng, n_intervals=5, at_risk=9).assign(x0=lambda t: t["x0"].round())  # ties
    table.loc[rng.random(len(table)) < 0.1, "x0"] = np.nan
    won = pairs = 0
    for _, own in table.dropna().groupby("start"):
        for lost, kept in itertools.product(own.loc[own["lost"], "x0"], own.loc[~own["lost"], "x0"]):
            won, pairs = won + (lost > kept) + 0.5 * (lost == kept), pairs + 1
    assert going_first.auroc(table, ["x0"])["x0"].item() == pytest.approx(won / pairs, rel=1e-12)


def test_a_covariate_that_only_follows_the_course_of_the_run_has_auroc_one_half():
    table = simulated([0.0], np.random.default_rng(0), n_intervals=60)
    ranked = going_first.auroc(table.assign(x0=table["start"]), ["x0"])["x0"].item()
    pooled = going_first.auroc(table.assign(x0=table["start"], start=0), ["x0"])["x0"].item()
    assert ranked == 0.5 and pooled > 0.6


def test_intervals_that_lose_all_or_none_say_nothing():
    table = simulated([1.0], np.random.default_rng(0), n_intervals=3)
    ends = pd.concat([table.assign(start=table["start"] + 100, lost=True), table.assign(start=900, lost=False), table])
    assert going_first.auroc(ends, ["x0"]).equals(going_first.auroc(table, ["x0"]))
    assert going_first.log_odds(ends, ["x0"]).equals(going_first.log_odds(table, ["x0"]))
    assert going_first.auroc(ends[ends["start"] == 900], ["x0"])["x0"].isna().all()


# --------------------------------------------------------------------------------------------------------- log odds


def test_planted_log_odds_are_found_again_whatever_the_course_of_the_hazard():
    rng, beta = np.random.default_rng(0), [0.5, -0.4, 0.0]
    table = pd.concat([simulated(beta, rng, order=order) for order in range(8)])
    found = going_first.log_odds(table, ["x0", "x1", "x2"])
    sd = table.groupby("order")[["x0", "x1", "x2"]].std(ddof=0).mean().to_numpy()
    for row, planted in zip(intervals.by_group(found, ["x0", "x1", "x2"]).itertuples(), beta * sd, strict=True):
        assert row.low - 0.03 < planted < row.high + 0.03 and row.high - row.low < 0.2
    assert found["intervals"].eq(40).all()


def test_the_fit_has_no_slope_left_in_its_likelihood():
    table = simulated([0.7, 0.2], np.random.default_rng(1), n_intervals=6)
    x, place = table[["x0", "x1"]].to_numpy(), (table["start"] // 20).to_numpy()
    beta = going_first.logistic(x, place, table["lost"].to_numpy())
    for alpha_of in range(6):  # each interval's intercept is the one that reproduces its losses
        own = place == alpha_of
        lows, highs = -20.0, 20.0
        for _ in range(80):
            middle = (lows + highs) / 2
            more = expit(middle + x[own] @ beta).sum() < table["lost"][own].sum()
            lows, highs = (middle, highs) if more else (lows, middle)
        residual = table["lost"][own] - expit(lows + x[own] @ beta)
        table.loc[own, "residual"] = residual
    np.testing.assert_allclose(x.T @ table["residual"].to_numpy(), 0, atol=1e-5)


def test_what_cannot_be_fitted_is_left_out_and_not_guessed():
    table = simulated([0.5], np.random.default_rng(0), n_intervals=10)
    whole = going_first.log_odds(table, ["x0"])
    more = table.assign(unknown=np.nan, constant=table["start"] * 0.1)
    found = going_first.log_odds(more, ["x0", "unknown", "constant"])
    assert found["x0"].item() == whole["x0"].item() and found[["unknown", "constant"]].isna().all(axis=None)
    assert going_first.log_odds(table.assign(x1=table["x0"]), ["x0", "x1"])[["x0", "x1"]].isna().all(axis=None)
    assert going_first.log_odds(table.assign(x0=table["lost"] * 1.0), ["x0"])["x0"].isna().all()  # separated
    few = going_first.log_odds(table[:120], ["x0"], least=1000)
    assert few["x0"].isna().all() and few["lost"].item() > 0


# ----------------------------------------------------------------------------------------------------- interference


def test_interference_is_how_far_the_edits_of_an_interval_move_the_layer_at_the_key():
    """Held against dense updates ΔW = Λ ûᵀ with values in orthogonal directions, whose movements add up so."""
    rng, n = np.random.default_rng(0), 6
    u, keys, norms = rng.normal(size=(n, 4)), rng.normal(size=(n, 4)), rng.lognormal(size=n)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    updates = [np.outer(norm * np.eye(n)[j], u[j]) for j, norm in enumerate(norms)]
    rows = [(2, 4, 1), (2, 4, 2), (4, 6, 1), (4, 6, 3)]
    risk = pd.DataFrame([KEY | dict(zip(("start", "stop", "edit"), row, strict=True)) for row in rows])
    found = going_first.interference(risk.assign(case_id=risk["edit"] + 10), u @ keys.T, norms)
    for row, (start, stop, edit) in zip(found.itertuples(), rows, strict=True):
        moved = np.linalg.norm(sum(updates[start:stop]) @ keys[edit - 1])
        assert row.interference == pytest.approx(moved) and row.case_id == edit + 10
        assert row.own == pytest.approx(np.linalg.norm(updates[edit - 1] @ keys[edit - 1]))
    joined = going_first.with_interference(risk.assign(case_id=risk["edit"] + 10)[::-1], found[:-1])
    assert joined["relative"].notna().tolist() == [False] + [True] * 3
    np.testing.assert_allclose(joined["interference"][::-1][:-1], np.log(found["interference"][:-1]))
    np.testing.assert_allclose(np.exp(joined["relative"][::-1][:-1]), (found["interference"] / found["own"])[:-1])
    assert going_first.with_interference(risk, None)[list(going_first.KEYS)].isna().all(axis=None)
    with pytest.raises(ValueError, match=r"products are \(5, 5\).*for each of 6 edits or more"):
        going_first.interference(risk, (u @ keys.T)[:5, :5], norms[:5])


def test_tables_made_beside_the_runs_are_vouched_for_and_described(tmp_path):
    meanings = yaml.safe_load((ROOT / "editscale/data/columns.yaml").read_text())
    assert (
        tuple(meanings["traits"]) == going_first.TRAITS and tuple(meanings["interference"]) == going_first.INTERFERENCE
    )
    assert going_first.beside([tmp_path], "traits") is None
    for name in "ab":
        (tmp_path / name).mkdir()
        path = tmp_path / name / "traits.parquet"
        pd.DataFrame([dict.fromkeys(going_first.TRAITS, 1)]).to_parquet(path)
        write_json(path.with_name("record.json"), sealed({"files": {path.name: sha256_file(path)}}))
    assert len(going_first.beside([tmp_path / "a"], "traits")) == 1
    with pytest.raises(ValueError, match="number objects on their own"):
        going_first.beside([tmp_path / "a", tmp_path / "b"], "traits")
    (tmp_path / "a/traits.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="is not the file that"):
        going_first.beside([tmp_path / "a"], "traits")


# ------------------------------------------------------------------------------------------------------------ words


def test_words_name_the_clearest_sign_and_say_undecided_where_an_interval_holds_one_half():
    rows = [("rome", "margin", 0.3, 0.2, 0.4), ("memit", "age", 0.6, 0.55, 0.65),
            ("rome", "same_relation", 0.5, 0.4, 0.6), ("memit", "same_relation", 0.53, 0.51, 0.55),
            ("rome", "update", 0.1, math.nan, math.nan)]  # fmt: skip
    signs = pd.DataFrame(rows, columns=["method", "measure", "mean", "low", "high"])
    text = going_first.in_words(signs)
    assert text.startswith(
        "The clearest sign of a fact lost next is a lower margin after its edit, under rome (AUROC 0.30)."
    )
    assert text.endswith("Edits of its relation: higher ones go first under memit, undecided elsewhere.")
    assert "interference" not in text
    assert going_first.in_words(signs[4:]).startswith("Undecided")


# ------------------------------------------------------------------------------------------------ the recorded study


@pytest.fixture(scope="module")
def study():
    names = ("edits", "unedited", "recall/history", "recall/perplexity", "drift")
    found = {name: results.gather([RECORDED], name) for name in names}
    found = {
        name: table[~table["reversed"] & table["method"].isin(["r-rome", "memit"])] for name, table in found.items()
    }
    where = collapse.where(found["recall/perplexity"])
    risk = going_first.at_risk(found["recall/history"], found["edits"], where.assign(collapse=math.inf))
    traits = going_first.beside([RECORDED], "traits")
    risk = going_first.with_covariates(risk, found["edits"], found["unedited"], found["drift"], traits)
    return risk.merge(where[[*RUN, "collapse"]], on=list(RUN))


def test_counts_and_signs_are_those_of_an_audit_by_other_code(study):
    """Its memit stops with the interval in which the model collapses, its r-rome goes on to the end."""
    chosen = study[(study["method"] == "r-rome") | (study["start"] < study["collapse"])]
    assert chosen.groupby("method")["lost"].sum().to_dict() == {"r-rome": 8492, "memit": 4784}
    names = ["margin", "age", "same_relation"]
    told = going_first.informative(chosen)
    place = [told[name] for name in (*RUN, "start")]
    lost, n = told["lost"].groupby(place).sum(), told["lost"].groupby(place).size()
    ranks = told.groupby([*RUN, "start"])[names].rank().where(told["lost"]).groupby(place).sum()
    ranked = ranks.sub(lost * (lost + 1) / 2, axis=0).div(lost * (n - lost), axis=0)  # AUROC, interval by interval
    expected = {"r-rome": (1 - 0.64, 0.55, 0.50), "memit": (1 - 0.61, 0.61, 0.50)}  # it weighs them by facts at risk
    for method, own in ranked.groupby("method"):
        found = np.average(own, axis=0, weights=n[own.index])
        np.testing.assert_allclose(found, expected[method], atol=0.01)  # two digits; relations are mapped anew
    columns = list(going_first.COVARIATES)
    fitted = going_first.log_odds(chosen, columns).groupby("method")[columns].mean()
    for method, name, value in (("r-rome", "age", 0.39), ("r-rome", "update", -0.29), ("r-rome", "margin", -0.47),
                                ("r-rome", "same_relation", 0.01), ("memit", "age", 0.42), ("memit", "update", -0.03),
                                ("memit", "margin", -0.21), ("memit", "same_object", -0.13)):  # fmt: skip
        assert fitted.loc[method, name] == pytest.approx(value, abs=0.06), (method, name)
