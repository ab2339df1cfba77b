"""What the README says of findings, computed a second time by a referee's script, is what the package computes."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from tools import recompute, referee

from editscale.analysis import claims, damage, hazard, intervals, mitigations, study
from editscale.workflow import cli

ROOT = Path(__file__).parents[1]
SCALES = ("smollm2",)  # whose committed figures are recomputed


def write_findings(folder):
    """The two tables beside figure 7, from the recorded tables in a folder, as notebook 07 computes them."""
    whole = study.read([folder / "tables"])
    claims.claims(whole).to_csv(folder / recompute.CLAIMS_FILE, index=False)
    sound = hazard.before(whole.losses, whole.places).rename(columns={"hazard": "before"})
    sudden = whole.stretches.assign(one=1, sudden=whole.stretches["label"] == "catastrophic")
    sudden = sudden.groupby(["method", "order", "reversed"], as_index=False)[["one", "sudden"]].max()
    kept = mitigations.kept(whole.edits, whole.unedited, whole.history, whole.perplexity, whole.drift, at=whole.n)
    kept = kept.rename(columns={"recall_all": "recall"})
    over = {
        "places": intervals.by_group(whole.places, ["collapse", "half"], statistic=np.median),
        "hazard": intervals.by_group(sound, ["before"]),
        "catastrophic": ratios(sudden, "orders", "sudden", "one"),
        "disabling": ratios(damage.counts(whole.damage), "per_edit", "disabling", "edits"),
        "kept": intervals.by_group(kept, ["learned", "recall_learned", "recall"]),
        "reversal": pd.DataFrame({"method": ["rome"], "measure": ["same_first"], "mean": [0.5]}),
    }
    table = pd.concat([table.assign(finding=name) for name, table in over.items()])
    table.to_csv(folder / recompute.METHODS_FILE, index=False)


def ratios(table, measure, part, whole):
    rows = [
        {"method": method, "reversed": backward, "measure": measure, **vars(intervals.ratio(own[part], own[whole]))}
        for (method, backward), own in table.groupby(["method", "reversed"], sort=False)
    ]
    return pd.DataFrame(rows)


def change(folder, name, changed):
    """Rewrite a recorded table with a function of it."""
    path = folder / "tables" / f"{name}.parquet"
    changed(pd.read_parquet(path)).to_parquet(path, index=False)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A made-up study of enough edits and orders for every claim and interval."""
    folder = tmp_path_factory.mktemp("figures") / "long"
    synthetic.write(folder / "tables", n_orders=6, longer=1100, n_few=2, every=25, rare=1000, n_singular=1)
    write_findings(folder)
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Few edits and orders; facts left out, a fact without scores, and a run that breaks off at an edit."""
    folder = tmp_path_factory.mktemp("figures") / "short"
    synthetic.write(folder / "tables", n_orders=5, n_edits=240, longer=300, n_few=1, rare=200, n_singular=1)

    def stopped(table):
        return table[(table["method"] != "ft-c") | (table["order"] != 3) | (table["edits"] <= 130)]

    def edits(table):
        table = stopped(table)
        table.loc[(table["method"] == "r-rome") & (table["edits"] % 7 == 0), "status"] = "screened"
        table.loc[(table["method"] == "rome") & (table["edits"] == 230), ["efficacy", "neighborhood"]] = np.nan
        table.loc[(table["method"] == "ft-c") & (table["order"] == 3) & (table["edits"] == 130), "status"] = "failed"
        return table

    for name in ("unedited", "drift", "recall/history", "recall/perplexity", "downstream/downstream"):
        change(folder, name, stopped)
    change(folder, "edits", edits)
    synthetic.vouch(folder / "tables")
    write_findings(folder)
    return folder


@pytest.mark.parametrize("name", ["long", "short"])
def test_the_recomputation_of_a_made_up_study_agrees_with_the_package(name, request):
    numbers, different = recompute.compare(request.getfixturevalue(name))
    assert different == [] and numbers > 300


@pytest.mark.parametrize("scale", SCALES)
def test_the_committed_findings_are_recomputed(scale):
    assert recompute.differences(ROOT / "figures" / scale) == []


def test_what_is_recomputed_is_all_that_the_pages_say():
    assert [(finding, measure) for finding, measure, *_ in recompute.METHODS] == [
        (finding, measure) for _, finding, measure, *_ in claims.ABOUT_METHODS
    ]
    assert [claim[:3] for claim in recompute.CLAIMS] == [
        (claim.claim, claims.PAPER[claim.paper]["method"], claim.edits) for claim in claims.CLAIMS
    ]


def test_a_planted_wrong_number_verdict_or_row_is_named(long, tmp_path):
    (tmp_path / "tables").symlink_to(long / "tables")
    found, over = (pd.read_csv(long / name) for name in (recompute.CLAIMS_FILE, recompute.METHODS_FILE))
    found.loc[0, "mean"] *= 1 + 2e-6
    found.loc[1, "verdict"] = "undecided"
    found.loc[2, "other"] = found.loc[2, "other"].replace(" orders", "1 orders")
    at = over.index[over["finding"].eq("hazard") & over["method"].eq("memit") & over["reversed"].eq(False)]
    over.loc[at, "high"] += 1e-6
    at = over.index[over["measure"].eq("recall") & over["method"].eq("rome-multi")]
    over.loc[at, "values"] = "(0.5, 0.5)"
    over = over[(over["measure"] != "half") | (over["method"] != "ft-c")]
    found.to_csv(tmp_path / recompute.CLAIMS_FILE, index=False)
    over.to_csv(tmp_path / recompute.METHODS_FILE, index=False)
    texts = recompute.differences(tmp_path)
    expected = [
        "fig7_findings.claims.csv, edits keep taking to the end (rome), mean: 100.0002 written, 100 recomputed",
        "fig7_findings.claims.csv, edits keep taking to the end (memit), verdict: undecided written, agrees recomputed",
        "fig7_findings.claims.csv, neighborhood score falls with the edits (rome), other (",
        "fig7_findings.over_orders.csv, places, half, ft-c: missing",
        "fig7_findings.over_orders.csv, hazard, before (memit), high: ",
        "fig7_findings.over_orders.csv, kept, recall (rome-multi), values: 0.5 written, ",
        "fig7_findings.over_orders.csv, kept, recall (rome-multi), values: 0.5 written, ",
    ]
    assert len(texts) == len(expected)
    assert all(text.startswith(start) for text, start in zip(texts, expected, strict=True)), texts


def test_tables_that_other_code_wrote_are_named(tmp_path):
    pd.DataFrame({"claim": ["x"]}).to_csv(tmp_path / recompute.CLAIMS_FILE)
    pd.DataFrame({"finding": ["x"]}).to_csv(tmp_path / recompute.METHODS_FILE)
    first, second = recompute.differences(tmp_path)
    assert first.startswith("fig7_findings.claims.csv lacks method, mean, ") and "notebook 07" in second


def test_the_command_counts_what_agrees_and_fails_at_a_difference(short, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recompute", "short"]) == 2
    assert "no fig7_findings.claims.csv and no tables/edits.parquet in figures/short" in capsys.readouterr().err
    (tmp_path / "figures").symlink_to(short.parent)
    assert cli.main(["recompute", "short"]) == 0
    assert capsys.readouterr().out.endswith(" numbers of figures/short recomputed, all agree\n")
    monkeypatch.setattr(recompute, "compare", lambda folder: (1, [f"{folder}: 1 written, 2 recomputed"]))
    assert cli.main(["recompute", "short"]) == 1
    assert capsys.readouterr().out == "figures/short: 1 written, 2 recomputed\n"


def test_nothing_of_the_package_is_imported():
    code = "import sys, tools.recompute; print([name for name in sys.modules if name.startswith('editscale')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ the mathematics


def test_the_cut_into_stretches_is_the_best_of_all_cuts():
    rng = np.random.default_rng(0)
    for _ in range(5):
        m, at_risk = 7, rng.integers(5, 80, size=7)
        lost = rng.binomial(at_risk, np.where(np.arange(m) < rng.integers(1, m), 0.1, 0.7))
        rows = [(20 * i, 20 * i + 20, n, x) for i, (n, x) in enumerate(zip(at_risk, lost, strict=True))]
        each, costs = referee.log_likelihoods(rows), {}
        for breaks in itertools.chain(*(itertools.combinations(range(1, m), k) for k in range(m))):
            parts = list(itertools.pairwise((0, *breaks, m)))
            fit = sum(each[i:j].sum(axis=0).max() for i, j in parts)
            costs[tuple(parts)] = -fit + len(breaks) * (2 * math.log(m) + 4)
        assert tuple(referee.cut(rows)) == min(costs, key=costs.get)


def test_intervals_are_those_of_the_textbooks():
    assert recompute.interval("share", [0] * 10)[:3] == pytest.approx((0, 0, 1 - 0.025**0.1))
    assert recompute.interval("share", [1] * 10)[:3] == pytest.approx((1, 0.025**0.1, 1))
    assert recompute.interval("median", range(10))[:3] == (4.5, 1, 8)  # Conover: the 2nd and the 9th of ten
    assert recompute.interval("median", [1, 2, 3, math.inf, math.inf])[1:] == approx_nan(
        5, [1, 2, 3, math.inf, math.inf]
    )
    assert recompute.interval("mean", [1, 2, 3, 4])[2] == pytest.approx(2.5 + 3.182446 * math.sqrt(5 / 3) / 2)
    whole = recompute.interval("ratio", [(x, 1) for x in (0.3, 0.5, 0.4, 0.6)])
    assert whole[:4] == pytest.approx(recompute.interval("mean", [0.3, 0.5, 0.4, 0.6])[:4])
    assert recompute.interval("mean", [1, math.nan, 3])[3:] == (2, [1, 3])


def approx_nan(n, single):
    return pytest.approx(math.nan, nan_ok=True), pytest.approx(math.nan, nan_ok=True), n, single
