"""Intervals over orders, and paired comparisons of methods on identical sequences."""

import math

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import intervals


def table(method="rome", orders=(0, 1, 2), n_edits=4, score=None, reversed=False):
    """Rows of one method: `score(order, edits)`; each order has its own facts."""
    score = score or (lambda order, edits: order + edits / 10)
    return pd.DataFrame(
        [
            {
                "method": method,
                "order": order,
                "reversed": reversed,
                "edits": i,
                "case_id": 1000 * order + i,
                "recall": float(score(order, i)),
            }
            for order in orders
            for i in range(1, n_edits + 1)
        ]
    )


# ------------------------------------------------------------------------------------------------------- summaries


def test_the_interval_of_a_mean_is_student_s():
    """Four values of standard deviation 1: t of 3 degrees of freedom is 3.182446 at 97.5 %."""
    values = np.array([-1.5, -0.5, 0.5, 1.5]) / np.std([-1.5, -0.5, 0.5, 1.5], ddof=1)
    found = intervals.summary(5 + values)
    assert found.mean == 5 and (5 - found.low, found.high - 5) == pytest.approx((3.182446 / 2, 3.182446 / 2))
    assert intervals.summary([0.25] * 5) == intervals.Interval(0.25, 0.25, 0.25, 5)


@pytest.mark.parametrize("n", (4, 5, 10))
def test_intervals_of_means_hold_the_mean_in_95_of_100_draws(n):
    values = np.random.default_rng(0).normal(size=(4000, n))
    held = np.mean([found.low <= 0 <= found.high for found in map(intervals.summary, values)])
    assert held == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("n", "place"), ((6, 0), (8, 0), (9, 1), (10, 1), (12, 2), (25, 7)))
def test_the_interval_of_a_median_ends_at_the_order_statistics_of_the_tables(n, place):
    """Places as in tables of confidence limits of the median, here counted from 0."""
    values = np.random.default_rng(n).permutation(n).astype(float) ** 3
    found = intervals.summary(values, statistic=np.median)
    assert (found.low, found.high) == (place**3, (n - 1 - place) ** 3)


@pytest.mark.parametrize("statistic", (np.mean, np.median))
def test_few_orders_are_shown_one_by_one(statistic):
    found = intervals.summary([3.0, 1.0, np.nan, 2.0], statistic=statistic)
    assert (found.mean, found.n, found.values) == (2, 3, (3, 1, 2)) and np.isnan([found.low, found.high]).all()
    five = intervals.summary(range(5), statistic=np.median)
    assert np.isnan(five.low) and five.values == (0, 1, 2, 3, 4)  # no order statistic of five holds 95 %
    with pytest.raises(ValueError, match=r"shape is \(1, 2\)"):
        intervals.summary([[1.0, 2.0]])


def test_intervals_scale_and_shift_with_the_values():
    values = np.array([1.0, 4.0, 2.0, 8.0])
    plain, moved = intervals.summary(values), intervals.summary(2 * values + 1)
    assert (moved.low, moved.high) == pytest.approx((2 * plain.low + 1, 2 * plain.high + 1))


# ------------------------------------------------------------------------------------------------------------ bands


def test_one_order_has_no_band():
    with pytest.raises(ValueError, match="no second order for a band: rome has order 2 only"):
        intervals.band(table(orders=[2]), "recall")


@pytest.mark.parametrize("other", ({"method": "memit"}, {"reversed": True}))
def test_methods_and_directions_are_not_mixed(other):
    with pytest.raises(ValueError, match="2 methods or directions, not one"):
        intervals.band(pd.concat([table(), table(**other)]), "recall")


def test_bands_hold_the_mean_over_orders_at_each_number_of_edits():
    band = intervals.band(table(orders=range(5)).sample(frac=1, random_state=0), "recall")
    assert band["edits"].tolist() == [1, 2, 3, 4] and band["n"].tolist() == [5] * 4
    np.testing.assert_allclose(band["mean"], [2.1, 2.2, 2.3, 2.4])
    whole = intervals.summary(range(5))
    np.testing.assert_allclose(band["high"] - band["mean"], whole.high - 2)
    np.testing.assert_allclose(band["mean"] - band["low"], whole.high - 2)
    few = intervals.band(table(), "recall")
    assert few["low"].isna().all() and few["high"].isna().all() and few["n"].tolist() == [3] * 4


def test_a_band_of_equal_orders_has_no_width():
    band = intervals.band(table(orders=range(4), score=lambda order, i: i / 4), "recall")
    assert (band["low"] == band["mean"]).all() and (band["high"] == band["mean"]).all()


def test_an_order_that_ended_early_is_missing_from_the_band_behind_its_end():
    band = intervals.band(pd.concat([table(orders=[0], n_edits=2), table(orders=[1, 2, 3])]), "recall")
    assert band["n"].tolist() == [4, 4, 3, 3]
    assert band["mean"].tolist() == pytest.approx([1.6, 1.7, 2.3, 2.4])
    assert band["low"].isna().tolist() == band["high"].isna().tolist() == [False, False, True, True]


def test_missing_values_are_left_out_and_infinite_ones_stay():
    band = intervals.band(table(score=lambda order, i: math.nan if order == 0 else order), "recall")
    assert (band["n"] == 2).all() and (band["mean"] == 1.5).all()
    ten = table(orders=range(10), score=lambda order, i: math.inf if order < 2 else order)
    medians = intervals.band(ten, "recall", statistic=np.median)
    assert (medians["mean"] == 6.5).all() and (medians["high"] == math.inf).all() and (medians["low"] == 3).all()
    assert intervals.band(ten, "recall")["mean"].eq(math.inf).all()


def test_several_rows_of_an_order_at_one_number_of_edits_are_an_error():
    with pytest.raises(ValueError, match="several rows for one order and number of edits; average over facts"):
        intervals.band(pd.concat([table(), table()]), "recall")
    with pytest.raises(ValueError, match="lacks recall, edits; it has"):
        intervals.band(table().drop(columns=["edits", "recall"]), "recall")


# ----------------------------------------------------------------------------------------------- paired comparisons


def test_paired_difference_is_the_difference_of_means():
    scores = np.random.default_rng(5).random((2, 4, 5))
    first, second = (
        table(name, orders=range(4), score=lambda order, i, x=x: x[order, i])
        for name, x in zip(("rome", "memit"), scores, strict=True)
    )
    found = intervals.paired_over_orders(first, second.sample(frac=1, random_state=0), "recall")
    assert found.mean == pytest.approx(first["recall"].mean() - second["recall"].mean())
    assert found.low <= found.mean <= found.high and found.n == 4
    one = (t[t["order"] == 1] for t in (first, second))
    assert intervals.paired_over_facts(*one, "recall").n == 4


def test_what_orders_share_does_not_widen_a_paired_interval():
    """Orders differ by whole units and one method is always 0.5 better: paired, nothing is uncertain."""
    first, second = (
        table(name, range(4), score=lambda order, i, more=more: order + more)
        for name, more in (("rome", 0.5), ("memit", 0))
    )
    assert intervals.paired_over_orders(first, second, "recall") == intervals.Interval(0.5, 0.5, 0.5, 4)
    alone = intervals.summary(first.groupby("order")["recall"].mean())
    assert alone.high > alone.low


def test_exchanging_the_methods_changes_the_sign():
    first = table(orders=range(4))
    second = table("memit", orders=range(4), score=lambda order, i: i * order / 7)
    plain = intervals.paired_over_orders(first, second, "recall")
    turned = intervals.paired_over_orders(second, first, "recall")
    assert turned.mean == -plain.mean
    assert (turned.low, turned.high) == pytest.approx((-plain.high, -plain.low))


def test_facts_are_the_draws_of_a_comparison_within_one_sequence():
    """Facts differ by 0 or 1, orders not at all; rows of a fact at several checkpoints are one draw."""
    first, second = table(orders=range(4), score=lambda order, i: i % 2), table("memit", range(4), score=lambda *_: 0)
    assert intervals.paired_over_orders(first, second, "recall") == intervals.Interval(0.5, 0.5, 0.5, 4)
    first, second = (
        pd.concat([t[t["order"] == 0].assign(edit=t["edits"], edits=n) for n in (5, 10)]) for t in (first, second)
    )
    found = intervals.paired_over_facts(first, second, "recall", on=("edits", "edit", "case_id"))
    assert found == intervals.summary([1, 0, 1, 0])


def test_orders_of_one_method_only_are_left_out_of_the_pairs():
    found = intervals.paired_over_orders(table(orders=range(5)), table("memit", orders=(1, 3, 7)), "recall")
    assert (found.mean, found.n, found.values) == (0, 2, (0, 0))


def test_other_measurements_are_paired_by_their_own_names():
    first, second = (table(name).drop(columns="case_id").assign(task="reviews") for name in ("rome", "memit"))
    assert intervals.paired_over_orders(first, second, "recall", on=("edits", "task")).mean == 0
    with pytest.raises(ValueError, match="rows named by edits, task are not facts"):
        intervals.paired_over_facts(first, second, "recall", on=("edits", "task"))


@pytest.mark.parametrize("paired", (intervals.paired_over_orders, intervals.paired_over_facts))
def test_different_facts_are_not_compared(paired):
    other = table("memit")
    other.loc[other.index[1], "case_id"] = 77
    with pytest.raises(ValueError, match="rome and memit are not on identical sequences: 2 of 13 rows"):
        paired(table(), other, "recall")
    with pytest.raises(ValueError, match="3 of 12 rows are in one only, first order 0, edits 4, case_id 4 of rome"):
        paired(table(), table("memit", n_edits=3), "recall")


def test_a_reversed_sequence_is_not_identical():
    turned = table(orders=[0], reversed=True).assign(case_id=[4, 3, 2, 1])
    with pytest.raises(ValueError, match="rome and rome reversed are not on identical sequences"):
        intervals.paired_over_facts(table(orders=[0]), turned, "recall")


def test_a_paired_test_without_a_second_order_is_an_error():
    with pytest.raises(ValueError, match="no second order for a paired test: rome and memit share order 1 only"):
        intervals.paired_over_orders(table(orders=(0, 1)), table("memit", orders=(1, 2)), "recall")
    with pytest.raises(ValueError, match="rome has order 0 and memit order 1; a paired test needs the same"):
        intervals.paired_over_orders(table(orders=[0]), table("memit", orders=[1]), "recall")
    with pytest.raises(ValueError, match=r"facts of several orders \(orders 0, 1, 2\)"):
        intervals.paired_over_facts(table(), table("memit"), "recall")


def test_every_pair_of_methods_is_compared_over_orders_where_it_can_and_over_facts_else():
    both = pd.concat([table("rome"), table("r-rome", orders=(1,)), table("memit", score=lambda order, edits: 0)])
    pairs = intervals.every_pair(both, "recall")
    assert pairs[["first", "second", "over"]].to_numpy().tolist() == [
        ["rome", "r-rome", "facts"],
        ["rome", "memit", "orders"],
        ["r-rome", "memit", "facts"],
    ]
    assert pairs["n"].tolist() == [4, 3, 4]
    assert pairs["mean"].iloc[1] == pytest.approx(table("rome")["recall"].mean())


def test_a_single_method_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="no second method to compare with rome"):
        intervals.every_pair(table("rome"), "recall")


# --------------------------------------------------------------------------------------- whatever number of orders


def test_a_summary_of_one_value_has_no_interval_and_of_none_no_value():
    assert intervals.summary([1.0, np.nan, 3.0]).n == 2
    one, none = intervals.summary([2.0, np.nan]), intervals.summary([])
    assert (one.mean, one.n, none.n) == (2, 1, 0) and np.isnan([one.low, one.high, none.mean]).all()


def test_a_median_over_orders_that_never_got_there_is_infinite():
    found = intervals.summary([100, 200] + [np.inf] * 5, statistic=np.median)
    assert (found.mean, found.low, found.high) == (np.inf, 100, np.inf)


def test_a_ratio_is_of_sums_and_leaves_out_orders_without_a_whole():
    found = intervals.ratio([1, 0, 2], [1, 0, 3])
    assert (found.mean, found.n, found.values) == (3 / 4, 2, (1, 2 / 3))
    assert intervals.ratio([0, 0], [0, 0]).n == 0
    lone = intervals.ratio([1, 0], [2, 0])
    assert lone.mean == 0.5 and lone.n == 1 and np.isnan(lone.low)


def test_a_ratio_of_equal_wholes_has_the_interval_of_a_mean():
    parts = np.array([1.0, 3, 2, 2, 0])
    found, mean = intervals.ratio(parts, [4] * 5), intervals.summary(parts / 4)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((mean.mean, mean.low, mean.high, 5))


def test_an_interval_of_what_was_drawn_of_few_is_narrower_and_one_number_where_all_were():
    binomial, of_few, of_many = intervals.share(9, 12), intervals.share(9, 12, of=15), intervals.share(9, 12, of=10**6)
    assert binomial.low < of_few.low < of_few.mean < of_few.high < binomial.high
    assert (of_many.low, of_many.high) == pytest.approx((binomial.low, binomial.high), abs=1e-4)
    assert intervals.share(9, 12, of=12) == intervals.Interval(0.75, 0.75, 0.75, 12)


def test_where_all_or_none_happened_the_interval_is_the_exact_binomial_one():
    """Nine of nine: 66 to 100 %, as in tables of Clopper and Pearson."""
    every, none = intervals.ratio([1] * 9, [1] * 9), intervals.ratio([0] * 9, [1] * 9)
    rate = intervals.ratio([0] * 9, [100] * 9)
    assert (rate.low, rate.high) == (0, 0) and intervals.in_words(rate) == "0 (the same in 9 orders)"
    assert intervals.ratio([0, 0, 0, 30], [100] * 4).low == 0  # a rate is not negative
    assert (every.low, every.high) == (pytest.approx(0.6637, abs=1e-4), 1)
    assert (none.low, none.high) == (0, pytest.approx(0.3363, abs=1e-4))


def test_groups_of_runs_are_summed_up_and_worded_by_measure():
    rows = pd.DataFrame(
        {"method": ["rome"] * 3 + ["memit"], "reversed": False, "order": [0, 1, 2, 0], "x": [1, 1, 1, 5]}
    )
    table = intervals.by_group(rows.assign(y=rows["x"] * 100), ["x", "y"])
    words = intervals.worded(table)
    assert words.index.tolist() == [("rome", "forward"), ("memit", "forward")] and list(words) == ["x", "y"]
    assert words.index.names == ["method", "direction"]
    assert words["x"].tolist() == ["1.00 (the same in 3 orders)", "5.00 (one order)"]
    assert words["y"]["memit", "forward"] == "500 (one order)"
    with pytest.raises(ValueError, match="several rows for one method, reversed and order"):
        intervals.by_group(pd.concat([rows, rows]), ["x"])


def test_a_method_with_a_value_in_one_of_several_orders_is_not_left_out():
    rows = pd.DataFrame({"method": "rome", "reversed": False, "order": [0, 1], "x": [7.0, np.nan]})
    words = intervals.worded(intervals.by_group(rows, ["x"]))
    assert words["x"].tolist() == ["7.00 (one order)"]


def test_extremes_are_of_forward_runs_and_of_what_was_measured():
    rows = [("rome", False, 20.0), ("rome", True, 1.0), ("memit", False, 90.0), ("ft-c", False, 50.0)]
    table = pd.DataFrame(rows, columns=["method", "reversed", "mean"]).assign(measure="x", low=np.nan, high=np.nan)
    table["values"] = [()] * len(table)
    assert intervals.extremes(table, "x", "{:.0f}", " %") == "lowest under rome (20 %) and highest under memit (90 %)"
    assert intervals.extremes(table[:2], "x", "{:.0f}") == "20 under rome"
    assert intervals.extremes(table[:0], "x") == intervals.extremes(table.assign(mean=np.nan), "x") == "not measured"
    assert intervals.extremes(table.assign(mean=99.9), "x", "{:.0f}") == "100 under every method"
    last = intervals.extremes(table.replace(90.0, np.inf), "x", "{:.0f}", most="last", least="first")
    assert last == "first under rome (20) and last under memit (never)"


@pytest.mark.parametrize(
    ("half_width", "words"),
    [
        (0.5, "lowest under ft-c (10) and highest under memit (40)"),
        (2, "lowest under ft-c (10) and highest under memit or rome (40)"),  # 38–42 and 36–40
        (6, "lowest under ft-c or r-rome (10) and highest under memit or rome (40)"),  # 4–16 and 14–26 too
        (15, "lowest under ft-c (10) and highest under memit (40), but intervals overlap"),
    ],
)
def test_of_methods_whose_intervals_overlap_none_is_called_the_extreme(half_width, words):
    rows = {"method": ["memit", "ft-c", "r-rome", "rome"], "mean": [40.0, 10.0, 20.0, 38.0]}
    table = pd.DataFrame(rows).assign(measure="x", reversed=False)
    table = table.assign(low=table["mean"] - half_width, high=table["mean"] + half_width)
    table["values"] = [()] * len(table)
    assert intervals.extremes(table, "x", "{:.0f}") == words
    few = table.assign(values=[tuple(ends) for ends in table[["low", "high"]].to_numpy()], low=np.nan, high=np.nan)
    assert intervals.extremes(few, "x", "{:.0f}") == words


def test_intervals_in_words_say_what_they_are_over():
    assert intervals.in_words(intervals.Interval(0.5, 0.25, 0.75, 4), "{:.2f}", " m") == "0.50 m (0.25–0.75, 4 orders)"
    assert intervals.in_words(intervals.Interval(-1, -2, 3, 4)) == "-1 (-2 to 3, 4 orders)"
    assert intervals.in_words(intervals.summary([3.0, 1, 2]), unit=" %") == "2 % (3 orders: 1, 2, 3)"
    assert intervals.in_words(intervals.Interval(1, np.nan, np.nan, 2)) == "1 (2 orders)"
    for n in (0, 2):
        assert intervals.in_words(intervals.Interval(np.nan, np.nan, np.nan, n)) == "not measured"


def test_intervals_are_read_back_from_a_table_file(tmp_path):
    rows = pd.DataFrame({"method": "rome", "reversed": False, "order": range(3), "x": [1.5, np.inf, 2]})
    table = pd.concat([intervals.by_group(rows, ["x"]), intervals.by_group(rows[:1], ["x"])])
    table.to_csv(tmp_path / "x.csv", index=False)
    again = intervals.read(tmp_path / "x.csv")
    assert again["values"].tolist() == [(1.5, np.inf, 2.0), ()] and again["n"].tolist() == [3, 1]


def test_short_numbers_have_about_three_digits():
    assert [intervals.short(x) for x in (1000, -12.34, 0.456, 0.0123, 0)] == ["1000", "-12.3", "0.46", "0.012", "0"]


def test_a_band_of_medians_stays_finite_while_most_orders_do():
    key = {"method": "rome", "reversed": False, "edits": 1}
    rows = pd.DataFrame([{**key, "order": order, "x": x} for order, x in enumerate((1.0, 1, 2, 2, 3, np.inf))])
    mean, median = (intervals.band(rows, "x", statistic=s) for s in (np.mean, np.median))
    assert mean["mean"].item() == np.inf and median["mean"].item() == 2 and median["low"].item() == 1


def test_facts_without_a_value_are_left_out_of_paired_comparisons():
    first, second = table(orders=[0]), table("memit", orders=[0], score=lambda order, edits: 0)
    first.loc[0, "recall"] = np.nan
    found = intervals.paired_over_facts(first, second, "recall")
    assert found.n == 3 and found.mean == pytest.approx(0.3)
    first["recall"] = np.nan
    with pytest.raises(
        ValueError, match="0 of 4 facts have a value of recall under both methods, expected two or more"
    ):
        intervals.paired_over_facts(first, second, "recall")


def test_of_many_methods_at_an_end_one_is_named():
    table = pd.DataFrame({"method": [*"abcde", "last"], "mean": [1.0, 2, 3, 4, 5, 90]})
    table = table.assign(
        measure="x", reversed=False, low=table["mean"] - 9, high=table["mean"] + 9, values=[()] * len(table)
    )
    assert intervals.extremes(table, "x", "{:.0f}") == "lowest under a or others (1) and highest under last (90)"
