"""Rows of a table are picked by what they hold, grouped in the order they come, and checked for their columns."""

import pandas as pd
import pytest

from editscale.analysis import rows

TABLE = pd.DataFrame(
    {"method": ["memit", "rome", "memit"], "order": [0, 1, 0], "reversed": [False, True, False], "x": [1, 2, 3]}
)


def test_rows_hold_every_value_wanted():
    assert rows.rows_of(TABLE, method="memit", reversed=False)["x"].tolist() == [1, 3]
    assert rows.rows_of(TABLE, method="memit", order=1).empty and len(rows.rows_of(TABLE)) == 3


def test_groups_come_in_the_order_of_the_table_one_per_run_unless_said():
    assert [(key["method"], group["x"].tolist()) for key, group in rows.groups(TABLE)] == [
        ("memit", [1, 3]),
        ("rome", [2]),
    ]
    assert [key for key, _ in rows.groups(TABLE, ("order",))] == [{"order": 0}, {"order": 1}]


def test_a_table_without_a_column_is_refused_by_name():
    with pytest.raises(ValueError, match="the table of things lacks y, z; it has method, order, reversed, x"):
        rows.require(TABLE, ("x", "y", "z"), "things")
