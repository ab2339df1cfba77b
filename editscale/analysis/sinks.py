"""Why |k·u| is small: keys of attention sinks. From what notebook 10 measured of the unedited model."""

import pandas as pd

from editscale.analysis import tables
from editscale.analysis.forecast import LOW
from editscale.analysis.prospective import DRAWING, condition_words
from editscale.analysis.rows import require

MEASURES = ("sink_cosine", "key_norm", "key_norm_contexts")


def read(paths):
    """The tables of notebook 10, one below the other, at the layer where most |k·u| are small; with `condition`, what
    each part is called (`prospective.condition_words`), and `small`, whether |k·u| is below `forecast.LOW`. Raises as
    `tables.read`.
    """

    def checked(table):
        require(table, (*DRAWING, "case_id", "denominator", "subject_place", *MEASURES), "denominators")
        return table

    remedy = "run notebook 10, or give the path of its table"
    table = pd.concat([tables.read(path, remedy, checked) for path in paths], ignore_index=True)
    table = table.assign(small=table["denominator"].abs() < LOW)
    table = table[table["layer"] == table.groupby("layer")["small"].sum().idxmax()]
    return table.assign(condition=[condition_words(*of) for of in table[list(DRAWING[:-1])].itertuples(index=False)])


def by_size(known):
    """How many facts of each condition have a small |k·u|, and medians of MEASURES of these and of the others."""
    groups = known.groupby(["condition", "small"], sort=False)
    return groups[list(MEASURES)].median().assign(facts=groups.size()).sort_index()


def compared(known):
    """Two conditions to compare: of the facts that most rows are of, with the lowest seed, those without a start token
    and those after one. Title ↦ its rows, without a condition that was not measured."""
    facts = known["fact_set"].value_counts().index[0]
    of = known[known["fact_set"] == facts]
    parts = {"bare prompts": of[~of["start_token"]], "after a start token": of[of["start_token"]]}
    return {title: rows[rows["seed"] == rows["seed"].min()] for title, rows in parts.items() if len(rows)}
