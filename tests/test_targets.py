"""Published numbers are typed right and complete, and planted measurements get the verdict they should."""

import math

import pandas as pd
import pytest
import synthetic
import yaml

from editscale import columns
from editscale.analysis import targets
from editscale.columns import harmonic_score
from editscale.files import bundled
from editscale.sequences import acceptance

MODELS = ("gpt2-medium", "gpt2-large", "gpt2-xl", "gpt-j-6b")


def row(metric, value, *, half_width=0.0, part="unedited", method="none", layer=-1, edits=0, case_id=-1):
    of = {"part": part, "method": method, "metric": metric, "layer": layer, "edits": edits, "case_id": case_id}
    return {"model": "planted", **of, "value": value, "half_width": half_width, "n": 10}


def target(metric, value, tolerance, **where):
    of = {name: row(metric, value, **where)[name] for name in (*columns.ACCEPTANCE_KEY, "case_id")}
    return {**of, "target": value, "tolerance": tolerance, "source": "planted"}


def verdicts(rows, wanted):
    """(metric, layer) ↦ (verdict, reason)."""
    judged = targets.judge(pd.DataFrame(rows, columns=list(columns.ACCEPTANCE)), pd.DataFrame(wanted))
    return {(r.metric, r.layer): (r.verdict, r.reason) for r in judged.itertuples()}


@pytest.mark.parametrize("model", MODELS)
def test_each_published_s_is_the_harmonic_mean_of_the_published_scores(model):
    """A mistyped score would show: S is printed to a tenth, of scores rounded to a tenth."""
    table = targets.published(model)
    for _, rows in table[table["metric"].isin(["S", "ES", "PS", "NS"])].groupby(["part", "method"]):
        of = rows.set_index("metric")["target"]
        assert of["S"] == pytest.approx(harmonic_score(of["ES"], of["PS"], of["NS"]), abs=0.11)


@pytest.mark.parametrize("model", MODELS)
def test_every_target_is_given_once_with_a_tolerance_and_a_source(model):
    table = targets.published(model)
    assert not table.duplicated(columns.ACCEPTANCE_KEY).any() and (table["tolerance"] > 0).all()
    assert table["source"].str.match(r"arXiv:\d|[\w-]+/[\w-]+,").all()
    assert {"unedited", "single edits"} <= set(table["part"])


def test_the_first_memit_distances_of_gpt2_xl_grow_with_edits_and_layers():
    table = targets.published("gpt2-xl")
    first = table[table["metric"] == "distance"].pivot(index="edits", columns="layer", values="target")
    assert list(first.columns) == [13, 14, 15, 16, 17] and list(first.index) == [1, 2, 5, 10, 50, 100, 300, 500]
    assert first.diff().iloc[1:][[13, 17]].gt(0).all(axis=None)
    assert first.loc[:10].diff(axis=1).iloc[:, 1:].gt(0).all(axis=None)
    # What is said of the growth fits the distances it is said of.
    coefficient = table.loc[table["metric"] == "coefficient", "target"].item()
    assert first.loc[[50, 100, 300, 500], 17].div(
        first.loc[[50, 100, 300, 500]].index.to_numpy() ** 0.5
    ).to_numpy() == (pytest.approx(coefficient, rel=0.05))


def test_an_unknown_model_is_named_with_those_that_have_targets():
    with pytest.raises(ValueError, match="no targets for 'gpt5'; there are some for gpt2-medium, gpt2-large"):
        targets.published("gpt5")
    assert targets.published("").empty


def test_a_value_passes_within_tolerance_and_own_half_width_together():
    rows = [row("ES", 23.0), row("PS", 23.1), row("NS", 23.1, half_width=0.5), row("EM", -2.0, half_width=9.0)]
    wanted = [target(metric, 22.0, 1.0) for metric in ("ES", "PS", "NS")]
    found = verdicts(rows, wanted)
    assert found["ES", -1] == ("pass", "+1 of ±1")
    assert found["PS", -1] == ("fail", "+1.1 of ±1")
    assert found["NS", -1] == ("pass", f"+1.1 of ±{math.hypot(1, 0.5):.3g}")
    assert found["EM", -1] == ("", "")


def test_what_was_not_measured_is_nan_or_another_fact_fails_with_its_reason():
    place = {"part": "sequence", "method": "memit", "edits": 1}
    rows = [row("distance", 1e-7, layer=13, case_id=5, **place), row("ES", math.nan, half_width=math.nan)]
    rows.append(row("distance", 1e-7, layer=14, case_id=8766, **place))
    wanted = [target("distance", 1e-7, 1e-8, layer=layer, case_id=8766, **place) for layer in (13, 14, 15)]
    found = verdicts(rows, [*wanted, target("ES", 22.0, 1.0)])
    assert found["distance", 13] == ("fail", "edit 1 is case 5, the target's case 8766")
    assert found["distance", 14][0] == "pass"
    assert found["distance", 15] == ("fail", "not measured")
    assert found["ES", -1] == ("fail", "the value is NaN")


def test_too_few_facts_tell_nothing():
    rows = [row("ES", 22.0, half_width=5.0), row("PS", 22.0, half_width=5.1)]
    found = verdicts(rows, [target(metric, 22.0, 1.0) for metric in ("ES", "PS")])
    assert found["ES", -1][0] == "pass"
    assert found["PS", -1] == ("fail", "too few facts (10) to tell: half-width 5.1, tolerance 1")


def test_no_name_of_a_metric_is_taken_for_a_missing_value(tmp_path):
    table = pd.DataFrame([row(metric, 1.0) for metric in ("S", *acceptance.SCORES)])
    targets.judge(table, targets.published("")).to_csv(tmp_path / "verdicts.csv", index=False)
    assert pd.read_csv(tmp_path / "verdicts.csv")["metric"].tolist() == ["S", *acceptance.SCORES]


def test_a_table_is_read_back_as_it_was_and_another_file_is_named(tmp_path):
    table = pd.DataFrame([row("ES", 1 / 3), row("distance", 1e-7, layer=3)])[list(columns.ACCEPTANCE)]
    table.to_parquet(tmp_path / "acceptance.parquet", index=False)
    pd.DataFrame({"value": [1.0]}).to_parquet(tmp_path / "other.parquet")
    synthetic.vouch(tmp_path, "done.json")
    pd.testing.assert_frame_equal(targets.read_measured(tmp_path / "acceptance.parquet"), table, check_exact=True)
    with pytest.raises(ValueError, match="other.parquet holds no table of results .it lacks the columns model, part"):
        targets.read_measured(tmp_path / "other.parquet")
    with pytest.raises(FileNotFoundError, match="no none.parquet in .*; run notebook 06a"):
        targets.read_measured("none.parquet")


def test_a_measurement_of_another_method_is_not_taken_for_the_target():
    rows = [row("ES", 99.0, part="single edits", method="r-rome", edits=1)]
    wanted = [target("ES", 99.0, 1.0, part="single edits", method="rome", edits=1)]
    judged = targets.judge(pd.DataFrame(rows), pd.DataFrame(wanted))
    assert judged["verdict"].tolist() == ["", "fail"] and judged["model"].tolist() == ["planted"] * 2
    assert targets.verdict_line(judged) == "0 of 1 published numbers reproduced, 0 missed, 1 not measured."


def test_without_targets_nothing_is_judged():
    judged = targets.judge(pd.DataFrame([row("ES", 50.0)]), targets.published(""))
    assert judged["verdict"].tolist() == [""]
    assert targets.verdict_line(judged) == "1 measurements, no published numbers to judge them by."


def test_a_table_as_published_passes_in_every_row():
    for model in MODELS:
        wanted = targets.published(model)
        table = wanted.assign(model=model, value=wanted["target"], half_width=0.0, n=1)[list(columns.ACCEPTANCE)]
        judged = targets.judge(table, wanted)
        assert (judged["verdict"] == "pass").all() and len(judged) == len(wanted)


def test_the_file_of_targets_holds_nothing_that_is_not_read():
    path = bundled("acceptance.yaml")
    known = {"part", "method", "edits", "source", "values", "tolerance", "relative", "case_id"}
    known |= {"distances", "exponents", "coefficients"}
    for model, entries in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for entry in entries:
            assert set(entry) <= known, model
            assert len({"tolerance", "relative"} & set(entry)) == 1, entry
