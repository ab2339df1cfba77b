"""Where a run collapses, by hand."""

import numpy as np
import pandas as pd
import pytest

from editscale.analysis import collapse

KEY = {"method": "rome", "order": 0, "reversed": False}


def perplexity(values, **key):
    return pd.DataFrame({**KEY, **key, "edits": range(len(values)), "perplexity": values})


def test_a_model_collapses_with_the_edit_that_takes_its_perplexity_above_twice_the_unedited():
    table = pd.concat(
        [perplexity([10, 12, 20, 21, 15]), perplexity([10, 20, 20], order=1), perplexity([9, 9, np.nan], order=2)]
    )
    places = collapse.where(table).set_index("order")
    assert places["collapse"].tolist() == [3, np.inf, 2] and places["end"].tolist() == [4, 2, 2]
    sound = collapse.on_sound_models(table, places.reset_index())
    assert sound.groupby("order")["edits"].max().tolist() == [3, 2, 2]
    with pytest.raises(ValueError, match="no place of collapse for {'method': 'rome', 'order': 3"):
        collapse.on_sound_models(table.assign(order=3), places.reset_index())
    assert collapse.where(table, times=1.1).set_index("order")["collapse"].tolist() == [1, 1, 2]


def test_a_run_without_the_unedited_perplexity_has_no_collapse_to_tell():
    with pytest.raises(ValueError, match="no perplexity of the unedited model"):
        collapse.where(perplexity([1, 2]).query("edits > 0"))


def held_out(ratios, every=10, **key):
    edits = [every * i for i in range(len(ratios))]
    return pd.DataFrame({**KEY, **key, "edits": edits, "held_out_nll": 3 + np.log(ratios)})


def test_a_longer_text_agrees_if_it_doubles_between_the_checkpoints_around_the_collapse():
    places = pd.DataFrame(
        [{**KEY, "order": order, "collapse": at} for order, at in enumerate((15, 20, 15, 15, np.inf))]
    )
    places = pd.concat([places, places.assign(method="memit", collapse=np.inf)])
    table = pd.concat(
        [
            held_out([1, 1.2, 2.5]),  # agrees: between 10 and 20
            held_out([1, 2.1, 2.5], order=1),  # was above before the alarm
            held_out([1, 1.2, 2.0], order=2),  # twice is not above twice
            held_out([1, 1.5], order=3),  # its last checkpoint is before the alarm
            held_out([1, 1.2, 1.9], order=4),
            held_out([1, 1.2, np.inf], method="memit"),  # only the longer text rose
        ]
    )
    found = collapse.confirmed(table, places)
    assert found["agrees"].tolist()[:3] == [1, 0, 0] and np.isnan(found["agrees"][3])
    assert found["agrees"].tolist()[4:] == [1, 0]
    assert found["before"].tolist() == [10, 10, 10, 10, 20, 20]
    assert found["after"].tolist()[:3] == [20, 20, 20] and found["after"][3:].isna().all()
    np.testing.assert_allclose(found["ratio_before"], [1.2, 2.1, 1.2, 1.5, 1.9, np.inf])
    np.testing.assert_allclose(found["ratio_after"][:3], [2.5, 2.5, 2.0])


def test_a_longer_text_moves_no_place_and_needs_the_unedited_model_and_an_alarm():
    table = perplexity([10, 12, 21])
    places = collapse.where(table)
    assert collapse.confirmed(held_out([1, 3], every=1), places)["collapse"].item() == 2
    with pytest.raises(ValueError, match="no loss on the held-out text of the unedited model"):
        collapse.confirmed(held_out([1, 3]).query("edits > 0"), places)
    with pytest.raises(ValueError, match="'order': 7.* has no perplexity; measure it with notebook 03a"):
        collapse.confirmed(held_out([1, 3], order=7), places)
    with pytest.raises(ValueError, match="recall/held_out lacks held_out_nll"):
        collapse.confirmed(table, places)
