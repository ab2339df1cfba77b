"""The tables of a study are read together, cut at the edits that all runs have, and refused where they do not fit."""

import pytest
import synthetic

from editscale.analysis import study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded")
    synthetic.write(path, n_orders=2, n_edits=100, longer=160, n_few=1, n_singular=2)
    return path


def test_runs_are_compared_at_the_edits_all_have_and_kept_whole(folder):
    found = study.read([folder])
    assert found.n == 100 and found.edits["edits"].max() == 160 == found.recall["edits"].max()
    assert found.losses["stop"].max() == found.stretches["stop"].max() == 100 == found.damage["edits"].max()
    assert found.places["end"].max() == 160


def test_a_smaller_number_of_edits_may_be_asked_for(folder):
    found = study.read([folder], n_edits=60)
    assert found.n == 60 and found.losses["stop"].max() == 60


def test_a_number_of_edits_without_a_checkpoint_is_named(folder):
    with pytest.raises(ValueError, match="n_edits is 61, and no run has a checkpoint there"):
        study.read([folder], n_edits=61)
