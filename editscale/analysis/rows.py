"""Rows of tables: the columns they must have, those of one run, and run by run."""

from editscale.columns import RUN


def require(table, columns, name):
    """Raise ValueError, naming them, if columns are missing from the table of `name`."""
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"the table of {name} lacks {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")


def rows_of(table, **wanted):
    """The rows that hold the values wanted, column by column: `rows_of(edits, method="rome", reversed=False)`."""
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def groups(table, by=RUN):
    """(its values of `by` as a dict, rows) of each group, in the order of the table; of each run, unless given."""
    for values, group in table.groupby(list(by), sort=False):
        yield dict(zip(by, values, strict=True)), group


def left_out(edits):
    """Which facts a method left out ("screened"), a Series of bool; a table without column status holds none."""
    return edits.reindex(columns=["status"])["status"].isin(["screened"])


def were_learned(edits):
    """Which edits, a Series of bool, made the new object the model's first choice. A fact that was left out was not
    learned, whatever the model says."""
    return (edits["efficacy_accuracy"] == 1) & ~left_out(edits)
