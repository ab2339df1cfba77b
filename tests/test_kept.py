"""What runs have kept: planted numbers come back, bases are those that a method changes, and panels draw them."""

import numpy as np
import pandas as pd
import pytest
import synthetic

from editscale import columns
from editscale.analysis import mitigations, tables
from editscale.plots import mitigation_panels
from editscale.plots.style import METHOD_STYLE

NAMES = ("edits", "unedited", "recall/history", "recall/perplexity", "drift")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    synthetic.write(folder, n_orders=2, n_edits=100, longer=160, n_few=1, n_singular=6)
    return [tables.gather([folder], name) for name in NAMES]


def run(method, order, recalled, **more):
    """Tables of a run of four edits, three of them learned, with what is recalled at the end."""
    key, edit = {"method": method, "order": order, "reversed": False}, [1, 2, 3, 4]
    learned = {"efficacy_accuracy": [1.0, 1, 0, 1], "neighborhood": [0.0, 0, 0.5, 0.75], "status": "edited"}
    return {
        "edits": pd.DataFrame({**key, "edits": edit, "case_id": edit, **learned}),
        "unedited": pd.DataFrame({**key, "edits": edit, "case_id": edit, "neighborhood": [1.0, 0.5, 0.75, 1]}),
        "history": pd.DataFrame({**key, "edits": 4, "edit": edit, "case_id": edit, "efficacy_accuracy": recalled}),
        "perplexity": pd.DataFrame({**key, "edits": [0, 4], "perplexity": [20.0, 50]}),
        "drift": pd.DataFrame({**key, "edits": [2, 4, 2, 4], "layer": [0, 0, 1, 1], "relative_drift": [1, 2, 1, 3]}),
    } | more


def test_every_measure_of_a_run_is_the_one_that_was_planted():
    planted = run("memit", 0, [1.0, 0, 1, 1])
    (row,) = mitigations.kept(**planted, at=4, last=2).to_dict("records")
    assert (row["learned"], row["recall_learned"], row["recall_all"]) == (0.75, pytest.approx(2 / 3), 0.75)
    assert (row["neighborhood"], row["perplexity"], row["drift"]) == (-0.25, 2.5, 3)
    assert set(mitigations.MEASURES) < set(row)


def test_a_fact_that_was_left_out_was_not_learned_and_counts_among_all():
    screened = run("memit", 0, [1.0, 1, 1, 0])
    screened["edits"].loc[0, "status"] = "screened"
    row = mitigations.kept(**screened, at=4).iloc[0]
    assert (row["learned"], row["recall_learned"], row["recall_all"]) == (0.5, 0.5, 0.75)


def test_runs_without_a_checkpoint_there_are_left_out_and_none_is_an_error(study):
    long = mitigations.kept(*study, at=160)
    assert set(zip(long["method"], long["order"], strict=True)) == {("memit", 0)}
    with pytest.raises(ValueError, match="no run has a checkpoint of recall after 99 edits"):
        mitigations.kept(*study, at=99)


def test_all_runs_of_a_study_are_kept_with_recall_of_all_facts_as_its_history_has_it(study):
    table, history = mitigations.kept(*study, at=100), study[2]
    assert len(table) == len(history.groupby(list(columns.RUN)))
    asked = history[(history["edits"] == 100) & (history["method"] == "ft-c") & (history["order"] == 1)]
    row = table[(table["method"] == "ft-c") & (table["order"] == 1)].iloc[0]
    assert row["recall_all"] == asked["efficacy_accuracy"].mean() < 0.9
    assert row["perplexity"] > 1 and 0 < row["drift"] < 1


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("memit-seq-nas", "memit-seq"),
        ("memit-10", "memit"),
        ("memit-seq-100", "memit-seq"),
        ("encore-once", "encore"),
        ("encore", "memit"),
        ("alphaedit-nas", "alphaedit"),
        ("r-rome", "rome"),
        ("rome-multi-two-keys", "rome-multi"),
        ("memit", ""),
        ("stableedit", ""),
    ],
)
def test_a_method_is_held_against_the_one_that_it_changes(name, base):
    names = [*METHOD_STYLE, name]
    assert mitigations.base_of(name, names) == base
    assert mitigations.base_of(name, [name]) == ""
    assert mitigations.base_of(name, [*names, "mine"], {name: "mine"}) == "mine"
    assert mitigations.base_of(name, names, {name: "elsewhere"}) == ""


def four(**recalls):
    """A table of `kept` with recall of all facts by order."""
    rows = [
        {"method": method.replace("_", "-"), "order": order, "reversed": False, "edits": 100, "recall_all": value}
        for method, values in recalls.items()
        for order, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_pairs_are_of_the_same_order_and_said_by_what_all_orders_agree_on():
    table = four(memit=[0.5, 0.2, 0.9], memit_seq=[0.6, 0.5], emmet=[0.5, 0.1], encore=[0.4, 0.3], ft_c=[0.1])
    backward = four(emmet=[0.99]).assign(reversed=True)
    pairs = mitigations.against_base(pd.concat([table, backward]))
    assert pairs[["method", "order"]].to_numpy().tolist() == [
        ["memit-seq", 0], ["memit-seq", 1], ["emmet", 0], ["emmet", 1], ["encore", 0], ["encore", 1]
    ]  # fmt: skip
    assert pairs["difference"].tolist() == pytest.approx([0.1, 0.3, 0, -0.1, -0.1, 0.1])
    more, no, some = mitigations.compared(pairs)
    assert more.endswith("in every order (points, by order): memit-seq against memit (+10, +30).")
    assert no == "No more than under the base in any order: emmet against memit (+0, -10)."
    assert some.endswith("encore against memit (-10, +10).")
    shown = mitigations.by_order(pairs)
    assert shown.loc[("memit-seq", "memit"), "mean"] == pytest.approx(20) and shown.index[0][0] == "memit-seq"
    assert mitigations.compared(pairs[:0]) == [] and mitigations.by_order(pairs[:0]).empty


def test_updates_are_as_many_times_as_long_as_those_of_the_base():
    norms = {"memit": (3.0, 4.0), "memit-nas": (6.0, 8.0), "ft-c": (1.0, 1.0)}
    key = {"order": 0, "reversed": False}
    rows = [
        {**key, "method": name, "layer": layer, "edits": t, "update_norm": norm * t}
        for name, of in norms.items()
        for t in (1, 2, 3, 9)
        for layer, norm in enumerate(of)
    ]
    found = mitigations.sizes(pd.DataFrame(rows), 3)
    assert found.to_numpy().tolist() == [["memit-nas", "memit", 20.0, 2.0]]  # √(12² + 16²), of the second of three


def test_labels_name_the_facts_of_a_step():
    table = four(memit=[0.1, 0.2], memit_10=[0.3], memit_once=[0.9], rome=[0.5], memit_lambda_1000=[0.4])
    found = mitigations.steps(table)
    assert found.to_numpy().tolist() == [
        ["memit", 0, 1, 0.1], ["memit", 0, 10, 0.3], ["memit", 0, 100, 0.9], ["memit", 1, 1, 0.2]
    ]  # fmt: skip
    assert mitigations.steps(four(memit=[0.1], rome=[0.2], rome_multi=[0.3])).empty


def test_facts_in_one_step_are_set_beside_sequences_of_as_many():
    def runs(method, n, told, order=0):
        key = {"method": method, "order": order, "reversed": False}
        return pd.DataFrame([{**key, "edits": n, "efficacy_accuracy": float(i < told)} for i in range(n)])

    once = pd.concat([runs("memit-once-2", 2, 2), runs("memit-once-4", 4, 3), runs("memit-once-4", 4, 1, order=1)])
    one_by_one = [runs("memit", n, n // 2) for n in (1, 2, 3, 4)]
    found = mitigations.growing(pd.concat([*one_by_one, runs("rome", 2, 1)]), once, ["memit"])
    assert found.sort_values(["method", "facts", "order"]).to_numpy().tolist() == [
        ["in one step", 0, 2, 1.0], ["in one step", 0, 4, 0.75], ["in one step", 1, 4, 0.25],
        ["memit", 0, 2, 0.5], ["memit", 0, 4, 0.5],
    ]  # fmt: skip


def test_facts_of_a_step_are_set_beside_single_ones_with_the_same_hyper_parameters():
    table = four(seq=[0.9], seq_as_memit=[0.7], seq_10=[0.6])
    found = mitigations.steps(table, {"seq-10": "seq-as-memit"})
    assert found.to_numpy().tolist() == [["seq-as-memit", 0, 1, 0.7], ["seq-as-memit", 0, 10, 0.6]]


def overlaps(**medians):
    return pd.DataFrame(
        [
            {"method": method.replace("_", "-"), "layer": 1, "edits": t, "case_id": t, "own": 1.0, "interference": x,
             "overlap": np.nan if t == 1 else x * (t - 1), "largest": x, "leading": 0.5}
            for method, x in medians.items() for t in (1, 2, 3, 4)
        ]
    )  # fmt: skip


def test_overlap_is_put_beside_recall_of_methods_that_have_both():
    found = mitigations.with_overlap(four(memit=[0.2, 0.4], rome=[0.1]), overlaps(memit=0.1, memit_seq=0.01))
    (row,) = found.to_dict("records")
    assert row == {"method": "memit", "overlap": pytest.approx(0.2), "leading": 0.5, "recall_all": pytest.approx(0.3)}


def test_the_table_of_overlaps_is_read_and_another_is_refused(tmp_path):
    table = overlaps(memit=0.1)
    path = tmp_path / "overlap.parquet"
    table.to_parquet(path, index=False)
    synthetic.vouch(tmp_path)
    assert mitigations.read_overlap(path).equals(table[list(columns.OVERLAP)])
    table.drop(columns="leading").to_parquet(path, index=False)
    synthetic.vouch(tmp_path)
    with pytest.raises(ValueError, match="lacks the columns leading.*; run notebook 09a"):
        mitigations.read_overlap(path)


# Panels


def test_methods_are_rows_from_the_one_that_recalls_most(ax):
    kept = four(memit=[0.2, 0.4], memit_seq=[0.8, 0.9], rome=[0.1]).assign(perplexity=[2.0, 8, 1, 1, np.inf])
    methods = mitigation_panels.sorted_by(kept, "recall_all")
    assert methods == ["memit-seq", "memit", "rome"]
    drawn = mitigation_panels.rows(ax, kept, "recall_all", methods, label="recall", scale=100, named=True)
    assert [text.get_text() for text in ax.get_yticklabels()] == methods and ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.collections[1].get_offsets().tolist() == [[20, 1], [40, 1]]
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([85, 30, 10])
    assert drawn["recall_all"].tolist() == [20, 40, 80, 90, 10]


def test_a_model_without_finite_numbers_stands_beyond_the_largest_one(ax):
    kept = four(memit=[0.2, 0.4], rome=[0.1, 0.1]).assign(perplexity=[2.0, 8, np.inf, 8])
    drawn = mitigation_panels.rows(ax, kept, "perplexity", ["memit", "rome"], label="x", log=True, unedited=1)
    assert ax.get_xscale() == "log" and len(ax.get_xticks()) <= 3
    assert ax.lines[0].get_xdata()[0] == pytest.approx(4)  # the geometric mean of 2 and 8
    beyond = ax.collections[-1].get_offsets().tolist()
    assert beyond == [[32, 1]] and np.isinf(drawn["perplexity"]).sum() == 1
    assert [text.get_text() for text in ax.get_yticklabels()] == ["", ""]


def test_overlaps_are_rows_of_their_medians(ax):
    shown = mitigation_panels.overlap_rows(ax, overlaps(memit=0.1, memit_seq=0.01), ["memit-seq", "memit"])
    assert shown["method"].tolist() == ["memit-seq", "memit"] and shown["overlap"].tolist() == [0.02, 0.2]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["memit-seq", "memit"]


def test_overlaps_along_a_sequence_are_running_medians_on_a_log_axis(ax):
    table = overlaps(memit=0.1, memit_seq=0.01)
    drawn = mitigation_panels.overlap_lines(ax, table, window=2)
    assert drawn[drawn["method"] == "memit"]["overlap"].tolist() == pytest.approx([0.1, 0.15, 0.25])
    assert ax.get_legend_handles_labels()[1] == ["memit", "memit-seq"] and ax.get_yscale() == "log"


def test_shares_are_drawn_in_percent_with_the_mean_key_beside_them(ax):
    table = pd.DataFrame({"keys": "raw", "directions": [0, 1, 2], "share": [0.4, 0.5, 1.0]})
    assert mitigation_panels.shares(ax, table)["share"].tolist() == [40, 50, 100]
    line, cross = ax.lines
    assert line.get_ydata().tolist() == [50, 100] and (cross.get_xdata()[0], cross.get_ydata()[0]) == (0, 40)


def test_steps_are_a_line_per_method_through_the_means_of_orders(ax):
    table = mitigations.steps(four(memit=[0.1, 0.3], memit_10=[0.5, 0.7]))
    mitigation_panels.steps(ax, table)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [1, 10] and line.get_ydata().tolist() == pytest.approx([20, 60])
