"""Panels show the numbers they are given and look the same everywhere."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn
from matplotlib.colors import to_rgb

from editscale.plots import panels, style


def table(method="rome", order=0, backward=False, n_edits=60, **columns):
    """Tidy rows of one run; the score of edit e is e / n_edits unless given."""
    edits = np.arange(1, n_edits + 1)
    columns = columns or {"efficacy": edits / n_edits}
    return pd.DataFrame({"method": method, "order": order, "reversed": backward, "edits": edits, **columns})


# ----------------------------------------------------------------------------------------------- smoothing


def test_buckets_are_means_of_consecutive_values_and_the_tail_is_dropped():
    assert panels.bucket_means([1, 2, 3, 4, 5, 6, 7], 3).tolist() == [2.0, 5.0]
    assert panels.bucket_means([1, 2], 3).tolist() == []


def test_what_is_missing_is_left_out_of_bucket_and_trailing_means():
    missing = np.nan
    np.testing.assert_array_equal(panels.bucket_means([1, missing, missing, missing, 5, 7], 2), [1, missing, 6])
    np.testing.assert_array_equal(panels.trailing_mean([missing, 2, missing, 6], 2), [missing, 2, 2, 6])


def test_trailing_mean_is_shorter_at_the_start_and_keeps_constants():
    assert panels.trailing_mean([3, 5, 7, 9], 2).tolist() == [3.0, 4.0, 6.0, 8.0]
    assert panels.trailing_mean([4.0] * 5, 10).tolist() == [4.0] * 5


# --------------------------------------------------------------------------------------------------- panels


def test_one_order_is_a_line_and_several_are_thin_lines_with_a_band(ax):
    rows = pd.concat(
        [table(order=0, n_edits=4, recall=[1, 1, 0.5, 0]), table(order=1, n_edits=4, recall=[1, 0, 0.5, 0])]
    )
    plotted = panels.lines(
        ax, pd.concat([rows, table("memit", n_edits=4, recall=1.0)]), "recall", label="recall (%)", percent=True
    )
    thin, mean = ax.lines[:2], ax.lines[-1]
    assert all(line.get_linewidth() < mean.get_linewidth() for line in thin)
    assert mean.get_label() == "rome, 2 orders" and mean.get_ydata().tolist() == [100, 50, 50, 0]
    band = plotted[plotted["method"] == "rome"].drop_duplicates("edits")
    assert band["low"].isna().all()  # two orders have no interval
    four = panels.lines(plt.subplots()[1], orders(n=4, recall=0.5), "recall", label="recall (%)", percent=True)
    assert (four["low"] <= four["mean"]).all() and (four["mean"] <= four["high"]).all()
    assert plotted.loc[plotted["method"] == "memit", "mean"].isna().all()
    assert len(ax.collections) == 1
    assert style.orders_note(rows) == "No band for 2 orders of rome; thin lines are single orders."
    assert style.orders_note(table()) == "Single orders, so no band."


def orders(method="rome", n=3, backward=False, n_edits=6, **columns):
    return pd.concat([table(method, order, backward, n_edits, **columns) for order in range(n)])


def test_the_note_on_bands_counts_orders_once_and_says_which_runs_go_on():
    rows = pd.concat([orders(n=4), orders("memit", 4), orders("memit", 2, backward=True), table("memit", 1, n_edits=9)])
    rows = rows.drop_duplicates(["method", "order", "reversed", "edits"])
    assert style.orders_note(rows) == (
        "Bands are 95 % intervals over 4 orders of memit, rome; no band for 2 orders of memit reversed; thin lines "
        "are single orders. Beyond 6 edits, 1 of 4 orders of memit."
    )


def test_long_runs_are_thinned_by_a_round_step_and_short_ones_kept():
    assert style.thinned(table(n_edits=300))["edits"].tolist() == list(range(1, 301))
    assert style.thinned(table(n_edits=1000))["edits"].tolist() == list(range(5, 1001, 5))
    assert style.thinned(table(n_edits=90), most=10)["edits"].tolist() == list(range(10, 91, 10))


def test_drift_of_several_orders_is_that_of_the_most_moved_layer_with_a_band(ax):
    layers = [orders("memit", 2, layer=k, normalised_l2=np.arange(1, 7) * k) for k in (1, 3)]
    plotted = panels.drift(ax, pd.concat(layers), label="distance")
    assert ax.get_legend_handles_labels()[1] == ["memit, 2 orders"] and ax.get_yscale() == "log"
    assert plotted["mean"].tolist() == 2 * [3, 6, 9, 12, 15, 18]


def test_updates_of_several_orders_are_a_median_line_and_a_dot_for_each_jump(ax):
    rows = orders(layer=5, update_norm=[1, 1, 1, 20, 1, 1], jump=[False] * 3 + [True] + [False] * 2)
    rows["sound"] = rows["order"] > 0
    plotted = panels.updates(ax, rows, window=3)
    (line,), (filled, hollow) = ax.lines, ax.collections
    assert line.get_ydata().tolist() == [1, 1] and [len(dots.get_offsets()) for dots in (filled, hollow)] == [2, 1]
    assert len(filled.get_facecolors()) and not len(hollow.get_facecolors())
    assert plotted["update_norm"].tolist() == [1, 1, 20, 20, 20]


def test_updates_of_single_orders_are_lines_of_all_of_them(ax):
    panels.updates(ax, table(n_edits=3, layer=5, update_norm=[1.0, 9.0, 2.0], jump=False, sound=True))
    assert ax.lines[0].get_ydata().tolist() == [1, 9, 2] and ax.get_yscale() == "log"


def test_many_points_are_small_and_keep_a_readable_legend(ax):
    panels.points(ax, table(n_edits=500), "edits", "efficacy", label="edits", other="efficacy")
    points, legend = ax.collections
    assert points.get_sizes()[0] < legend.get_sizes()[0] and not len(legend.get_offsets())
    assert ax.get_legend_handles_labels()[1] == ["rome"]


def test_a_legend_of_many_entries_fits_its_figure():
    with plt.style.context("editscale.paper"):
        for width, columns in ((6, 2), (10, 4), (2, 1)):
            fig, ax = plt.subplots(figsize=(width, 3))
            for i in range(7):
                ax.plot([0], [0], label=f"rome, {i} orders reversed")
            style.legend_below(fig, ax)
            assert fig.legends[0]._ncols == columns
            plt.close(fig)


def test_panels_stand_in_rows_of_three_at_most():
    for n, shape in ((1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))):
        fig, axes = style.grid(n, width=2, height=1)
        assert len(axes) == n and fig.axes[0].get_gridspec().get_geometry() == shape
        assert [ax.axison for ax in fig.axes] == [True] * n + [False] * (shape[0] * shape[1] - n)
        plt.close(fig)


def test_points_are_where_their_numbers_say(ax):
    panels.points(ax, table(n_edits=3, recall=[0.1, 0.2, 0.3]), "edits", "recall", label="edits", other="recall")
    (points,) = ax.collections
    assert points.get_offsets().tolist() == [[1, 0.1], [2, 0.2], [3, 0.3]]


def test_spectra_are_drawn_by_rank_over_the_unedited_ones(ax):
    rows = pd.concat([table(n_edits=1, layer=3, index=i, singular_value=v) for i, v in enumerate((8.0, 2.0))])
    before = rows.assign(edits=0, singular_value=[4.0, 2.0])
    panels.spectrum(ax, rows, before)
    dotted, line = ax.lines
    assert dotted.get_ydata().tolist() == [4, 2] and line.get_ydata().tolist() == [8, 2]
    assert line.get_xdata().tolist() == [1, 2]


def test_proficiency_draws_bucket_means_thin_and_their_trailing_mean_thick(ax):
    plotted = panels.proficiency(ax, table(), "efficacy")
    thin, thick = ax.lines
    buckets = np.array([100 * np.mean(np.arange(first, first + 5)) / 60 for first in range(1, 61, 5)])
    assert thin.get_xdata().tolist() == thick.get_xdata().tolist() == list(range(0, 60, 5))
    np.testing.assert_allclose(thin.get_ydata(), buckets)
    assert thick.get_ydata()[0] == pytest.approx(buckets[0])
    assert thick.get_ydata()[-1] == pytest.approx(buckets[-10:].mean())
    assert thin.get_linewidth() < thick.get_linewidth()
    assert plotted["moving_mean"].tolist() == thick.get_ydata().tolist()
    assert plotted["bucket_mean"].tolist() == thin.get_ydata().tolist()
    assert ax.get_ylabel() == "efficacy (%)" and ax.get_xlabel() == "edits applied"


def test_rows_may_come_in_any_order(ax):
    ordered = panels.proficiency(ax, table(), "efficacy")
    shuffled = panels.proficiency(ax, table().sample(frac=1, random_state=0), "efficacy")
    pd.testing.assert_frame_equal(ordered, shuffled)


def test_thin_lines_of_bucket_means_are_drawn_of_single_orders_only(ax):
    panels.proficiency(ax, pd.concat([orders(n_edits=20, efficacy=0.5), table("memit", n_edits=20)]), "efficacy")
    assert not [line for line in ax.lines if line.get_linewidth() == 0.7]


def test_a_legend_has_methods_in_their_order_forward_before_reversed(ax):
    for label in ("unedited model", "memit, order 0 reversed", "memit, 3 orders", "rome, 3 orders"):
        ax.plot([0, 1], label=label)
    style.legend_below(ax.figure, ax)
    texts = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert texts == ["rome, 3 orders", "memit, 3 orders", "memit, order 0 reversed", "unedited model"]


def test_names_beside_the_ends_of_lines_do_not_meet(ax):
    for height, label in ((1, "memit, 3 orders"), (0.5, "rome, 3 orders"), (60, "r-rome, order 0")):
        ax.plot([0, 1], [100, height], label=label)
    ax.set_ylim(0, 100)
    panels.name_lines(ax, apart=0.1)
    assert [(text.get_text(), text.xy[1]) for text in ax.texts] == [("rome", 0.5), ("memit", 10.5), ("r-rome", 60)]
    assert ax.texts[0].get_color() == ax.lines[1].get_color()


def test_a_task_is_drawn_with_the_scores_of_a_coin_and_of_a_constant_answer(ax):
    rows = table(n_edits=3, task="sst2", n_examples=40, f1=[0.9, 0.6, 0.3])
    plotted = panels.task(ax, rows)
    assert plotted["f1"].tolist() == [90, 60, 30] and set(plotted["task"]) == {"sst2"}
    assert ax.get_title() == "sst2 (40 examples)"
    assert {text.get_text() for text in ax.texts} == {"chance", "constant answer"}
    assert sorted(line.get_ydata()[0] for line in ax.lines) == pytest.approx([100 / 3, 50, 90])


def test_a_task_of_ones_own_is_drawn_with_its_own_references(ax):
    rows = table(n_edits=3, task="origins", n_examples=7, f1=[0.9, 0.6, 0.3], f1_chance=0.35, f1_constant=0.2)
    panels.task(ax, rows)
    assert ax.get_title() == "origins (7 examples)"
    assert sorted(line.get_ydata()[0] for line in ax.lines) == pytest.approx([20, 35, 90])


def test_a_run_has_one_legend_entry_and_a_reversed_order_open_markers(ax):
    rows = pd.concat([table("memit"), table("rome", backward=True), table("rome")])
    panels.proficiency(ax, rows, "efficacy")
    handles, labels = ax.get_legend_handles_labels()
    assert labels == ["rome, order 0", "rome, order 0 reversed", "memit, order 0"]
    forward, backward, memit = handles
    assert forward.get_color() == backward.get_color() != memit.get_color()
    assert backward.get_markerfacecolor() == "white" != forward.get_markerfacecolor()


def test_drift_draws_every_layer_in_the_style_of_its_method_from_zero_up(ax):
    layers = [table("memit", n_edits=8, layer=k, normalised_l2=np.arange(8) * k) for k in (1, 2, 3)]
    rows = pd.concat([*layers, table("rome", n_edits=8, layer=2, normalised_l2=np.arange(8) * 4)])
    plotted = panels.drift(ax, rows, label="normalized L2 distance")
    assert [line.get_ydata()[-1] for line in ax.lines] == [28, 7, 14, 21]
    assert {line.get_color() for line in ax.lines[1:]} == {style.METHOD_STYLE["memit"]["color"]}
    assert ax.get_legend_handles_labels()[1] == ["rome, order 0", "memit, order 0, 3 layers"]
    assert ax.get_ylim()[0] == 0 and len(plotted) == len(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table().drop(columns="order"), "lacks order"),
        (table(neighborhood=0.5), "lacks efficacy"),
        (table(n_edits=4), "rome, order 0 has 4 edits, fewer than one bucket of 5"),
        (pd.concat([table(), table()]), "several rows"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(ax, rows, message):
    with pytest.raises(ValueError, match=message):
        panels.proficiency(ax, rows, "efficacy")


def test_panels_are_stacked_into_one_table_of_plotted_numbers(ax):
    rows = table(efficacy=1.0, paraphrase=0.5)
    drawn = [panels.proficiency(ax, rows, metric) for metric in ("efficacy", "paraphrase")]
    whole = style.stacked(drawn)
    assert whole["metric"].tolist() == ["efficacy"] * 12 + ["paraphrase"] * 12
    assert whole["moving_mean"].tolist() == [100.0] * 12 + [50.0] * 12
    assert whole.index.is_unique


# ----------------------------------------------------------------------------------------------------- look


def test_methods_differ_in_marker_and_in_color_or_line_and_use_the_colorblind_palette():
    palette = {tuple(np.round(color, 3)) for color in seaborn.color_palette("colorblind")}
    styles = style.METHOD_STYLE.values()
    assert {tuple(np.round(to_rgb(style["color"]), 3)) for style in styles} <= palette
    for keys in (("marker",), ("color", "linestyle")):
        assert len({tuple(style[key] for key in keys) for style in styles}) == len(styles)
    of_the_paper = [style.METHOD_STYLE[name] for name in ("rome", "r-rome", "p-rome", "memit", "rome-multi", "ft-c")]
    for key in ("color", "linestyle"):
        assert len({look[key] for look in of_the_paper}) == len(of_the_paper)


def test_the_style_has_no_top_or_right_spine(ax):
    assert not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible()


@pytest.mark.parametrize(
    ("view", "labeled"),
    [((60, 4e6), ["100", "1000", "10000", "100000", "1e+06"]), ((0.1, 2), ["0.1", "0.3", "1"]), ((66, 81), None)],
)
def test_a_log_axis_is_labeled_with_few_plain_numbers(view, labeled):
    fig, ax = plt.subplots()
    ax.set(yscale="log", ylim=view)
    style.log_ticks(ax.yaxis)
    fig.canvas.draw()
    texts = [label.get_text() for label in ax.yaxis.get_ticklabels()]
    assert 3 <= len(texts) <= 8 and len(set(texts)) == len(texts)
    assert labeled is None or texts == labeled
    assert not any(label.get_text() for label in ax.yaxis.get_ticklabels(minor=True))


def test_a_legend_of_few_long_entries_stays_inside_a_narrow_figure():
    with plt.style.context("editscale.paper"):
        fig, ax = plt.subplots(figsize=(6, 3.4))
        for label in ("rome, 5 orders", "rome, order 0 reversed", "memit, 5 orders", "memit, order 0 reversed"):
            ax.plot([0, 1], label=label)
        style.legend_below(fig, ax)
        fig.canvas.draw()
        box = fig.legends[0].get_window_extent()
        plt.close(fig)
    assert box.x0 >= 0 and box.x1 <= fig.bbox.width
