"""Facts with a small k·u beside the others: at which layer, under which condition, and what their keys are like."""

import pandas as pd
import pytest

from editscale.analysis import sinks
from editscale.files import sealed, sha256_file, write_json


def table(folder, **made_with):
    """A table of notebook 10 in a folder: two facts at each of two layers, of which layer 3 has a small one."""
    folder.mkdir()
    rows = [(0, 2, 4.0, 0.1), (1, 2, 5.0, 0.2), (0, 3, -0.05, 0.9), (1, 3, 3.0, 0.1)]
    of = pd.DataFrame(rows, columns=["case_id", "layer", "denominator", "sink_cosine"])
    of = of.assign(key_norm=1.0, key_norm_contexts=2.0, subject_place=0, fact_set="counterfact.json", seed=0)
    of.assign(start_token=False).assign(**made_with).to_parquet(path := folder / "denominators.parquet")
    write_json(folder / "done.json", sealed({"files": {path.as_posix(): sha256_file(path)}}))
    return path


def test_facts_are_counted_at_the_layer_with_most_small_ones(tmp_path):
    known = sinks.read([table(tmp_path / "a"), table(tmp_path / "b", fact_set="atlas", seed=1)])
    assert set(known["layer"]) == {3} and known["small"].tolist() == [True, False, True, False]
    counts = sinks.by_size(known)
    assert counts.index.tolist() == [(name, small) for name in ("AtlasFacts, contexts of seed 1",
                                     "CounterFact, contexts of seed 0") for small in (False, True)]  # fmt: skip
    assert counts["facts"].tolist() == [1] * 4 and counts["sink_cosine"].tolist() == [0.1, 0.9] * 2


def test_the_lowest_seed_without_a_start_token_is_compared_with_that_after_one(tmp_path):
    made = [{"seed": 2}, {"seed": 1}, {"seed": 3, "start_token": True}, {"fact_set": "atlas"}]
    known = sinks.read([table(tmp_path / str(i), **of) for i, of in enumerate(made)])
    parts = sinks.compared(known)
    assert {title: of["seed"].unique().tolist() for title, of in parts.items()} == {
        "bare prompts": [1],
        "after a start token": [3],
    }
    assert list(sinks.compared(known[~known["start_token"]])) == ["bare prompts"]


def test_another_table_is_refused_by_name(tmp_path):
    path = table(tmp_path / "a")
    pd.read_parquet(path).drop(columns="sink_cosine").to_parquet(path)
    write_json(path.with_name("done.json"), sealed({"files": {path.as_posix(): sha256_file(path)}}))
    with pytest.raises(ValueError, match="lacks sink_cosine.*run notebook 10"):
        sinks.read([path])
