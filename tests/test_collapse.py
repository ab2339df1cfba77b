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
