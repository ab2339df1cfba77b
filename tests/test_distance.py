"""What changes as large as those of edits lose, by hand, and drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from tools.recorded import PIECE

from editscale.analysis import distance
from editscale.files import sealed, sha256_file, write_json
from editscale.plots import distance_panels


def measured(method="memit", order=0, since=100, n_before=40, **lost):
    """Rows of one stretch: nothing added, then each change with its share lost of each seed, at scale 1 and half."""
    key = {"method": method, "order": order, "reversed": False, "since": since, "edits": 300, "n_before": n_before}
    rows = [{**key, "change": "edits", "seed": np.nan, "scale": 0.0, "recall_before": 1.0, "held_out_nll": 3.0}]
    for change, shares in lost.items():
        for seed, share in enumerate(shares):
            for scale in (0.5, 1.0):
                of = {"scale": scale, "recall_before": 1 - scale * share, "held_out_nll": 3 + scale * share}
                rows.append({**key, "change": change, "seed": np.nan if change == "edits" else seed, **of})
    return pd.DataFrame(rows)


def test_losses_are_medians_over_seeds_of_what_is_not_recalled_and_of_the_rise():
    found = distance.losses(measured(edits=[0.6], spectrum=[0.1, 0.2, 0.9])).set_index(["change", "scale"])
    assert found["lost"].to_dict() == pytest.approx(
        {("edits", 0.5): 0.3, ("edits", 1.0): 0.6, ("spectrum", 0.5): 0.1, ("spectrum", 1.0): 0.2}
    )
    assert found["rise"].tolist() == pytest.approx(found["lost"].tolist())


def test_a_share_of_few_facts_is_not_given_and_the_rise_is():
    found = distance.losses(measured(n_before=distance.LEAST - 1, edits=[0.6]))
    assert found["lost"].isna().all() and found["rise"].notna().all()


def test_the_stretches_that_answer_are_the_latest_and_the_whole_one_at_full_scale():
    table = pd.concat([measured(since=n, edits=[0.6], spectrum=[0.1]) for n in (0, 100, 200)])
    facts, text = distance.as_large(distance.losses(table))
    assert set(facts["since"]) == {200} and set(text["since"]) == {0}
    assert set(facts["scale"]) == set(text["scale"]) == {1.0}


def test_methods_lie_beside_what_a_random_change_loses_where_both_are_known():
    table = pd.concat([measured(order=order, edits=[0.6], spectrum=[0.1 * order]) for order in (0, 1)])
    table = pd.concat([table, measured("rome", n_before=3, edits=[1.0], spectrum=[1.0]), measured("ft-c", edits=[0.7])])
    both = distance.beside_edits(distance.losses(table).query("scale == 1"), "lost")
    assert both.index.tolist() == ["memit"]
    assert both.loc["memit"].to_dict() == pytest.approx({"edits": 0.6, "spectrum": 0.05})


def test_each_method_has_a_line_over_the_changes_that_it_has(tmp_path):
    table = pd.concat([measured(order=0, edits=[0.6], permuted=[0.5], spectrum=[0.1]), measured("ft-c", edits=[0.7])])
    fig, ax = plt.subplots()
    drawn = distance_panels.changes(ax, distance.losses(table).query("scale == 1"), "lost", label="lost", factor=100)
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        distance.CHANGES[kind] for kind in ("edits", "permuted", "spectrum")
    ]
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines() if not line.get_label().startswith("_")}
    np.testing.assert_allclose(lines["memit"], [60, 50, 10])
    np.testing.assert_allclose(lines["ft-c"], [70, np.nan, np.nan])
    assert drawn["lost"].tolist() == pytest.approx([0.6, 0.5, 0.1, 0.7])
    plt.close(fig)


def test_a_table_without_a_held_out_text_is_refused_by_name(tmp_path):
    path = tmp_path / "interventions.parquet"
    for table in (measured(edits=[0.6]), measured(edits=[0.6]).drop(columns="held_out_nll")):
        table.to_parquet(path)
        write_json(tmp_path / "done.json", sealed({"files": {path.as_posix(): sha256_file(path)}}))
        if "held_out_nll" in table:
            assert set(PIECE["interventions"]) <= set(distance.read([path]))
        else:
            with pytest.raises(ValueError, match="lacks held_out_nll.*held_out text"):
                distance.read([path])
