"""Published numbers of models, with source and tolerance (data/acceptance.yaml), and verdicts on measured ones.

What was measured is a table of `acceptance.measure`. No torch.
"""

import numpy as np
import pandas as pd

from editscale.analysis import tables
from editscale.columns import ACCEPTANCE, harmonic_half_width
from editscale.columns import ACCEPTANCE_KEY as KEY
from editscale.files import bundled

WIDEST = 5.0  # tolerances that a half-width may have; beyond, nearly anything would pass


def published(name):
    """The published numbers of a model: columns KEY, case_id, target, tolerance, source; none for an empty name.

    Raises ValueError for a model without targets, which lists those that have some.
    """
    import yaml

    columns = [*KEY, "case_id", "target", "tolerance", "source"]
    if not name:
        return pd.DataFrame(columns=columns)
    known = yaml.safe_load(bundled("acceptance.yaml").read_text(encoding="utf-8"))
    if name not in known:
        raise ValueError(f"no targets for {name!r}; there are some for {', '.join(known)}; leave it empty for none")
    rows = []
    for entry in known[name]:
        here = {field: entry[field] for field in ("part", "method", "edits", "source")}
        values = [(metric, -1, value) for metric, value in entry.get("values", {}).items()]
        for metric in ("distance", "exponent", "coefficient"):
            values += [(metric, layer, value) for layer, value in entry.get(metric + "s", {}).items()]
        for metric, layer, value in values:
            given = {"metric": metric, "layer": layer, "target": value, "case_id": entry.get("case_id", -1)}
            rows.append({**here, **given, "tolerance": _tolerance(entry, metric, value)})
    return pd.DataFrame(rows)[columns]


def _tolerance(entry, metric, value):
    """How far from a target its repetition may be."""
    if "relative" in entry:
        return entry["relative"] * value
    if not isinstance(entry["tolerance"], dict):
        return entry["tolerance"]
    if metric != "S":
        return entry["tolerance"][metric]
    scores = ("ES", "PS", "NS")
    return harmonic_half_width([entry["values"][x] for x in scores], [entry["tolerance"][x] for x in scores])


def read_measured(path):
    """The table of notebook 06a. Raises as `tables.read`."""
    return tables.read(path, "run notebook 06a, or give the path of its table", _measured)


def _measured(table):
    if missing := [name for name in ACCEPTANCE if name not in table]:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    text = ("model", "part", "method", "metric")
    return table.assign(**{name: pd.to_numeric(table[name]) for name in ACCEPTANCE if name not in text})


def judge(table, targets):
    """The measured rows with target, allowed distance, verdict (pass, fail, empty without a target) and its reason.

    Targets that were not measured follow, each a fail.

    Args:
        table: of `acceptance.measure`.
        targets: of `published`.

    A value passes if it is no farther from its target than the tolerance and its own half-width together (hypot): both
    are samples. It fails if its half-width is more than WIDEST tolerances, if it is NaN, and if a sequence ended with
    another fact than the target's.
    """
    merged = table.merge(targets, on=KEY, how="outer", suffixes=("", "_of_target"), sort=False)
    order = {key: i for i, key in enumerate(zip(*(table[name] for name in KEY), strict=True))}
    place = [order.get(key, len(order)) for key in zip(*(merged[name] for name in KEY), strict=True)]
    merged = merged.iloc[np.argsort(place, kind="stable")].reset_index(drop=True)
    merged["allowed"] = np.hypot(*(merged[name].astype(float) for name in ("tolerance", "half_width")))
    judged = [_verdict(row) for row in merged.itertuples()]
    return merged.assign(
        verdict=[verdict for verdict, _ in judged],
        reason=[reason for _, reason in judged],
        model=merged["model"].fillna(table["model"].iloc[0] if len(table) else ""),
    )


def _verdict(row):
    if pd.isna(row.target):
        return "", ""
    if pd.isna(row.model):
        return "fail", "not measured"
    if row.case_id_of_target not in (-1, row.case_id):
        return "fail", f"edit {row.edits} is case {row.case_id:.0f}, the target's case {row.case_id_of_target:.0f}"
    if pd.isna(row.value):
        return "fail", "the value is NaN"
    if row.half_width > WIDEST * row.tolerance:
        return (
            "fail",
            f"too few facts ({row.n:.0f}) to tell: half-width {row.half_width:.3g}, tolerance {row.tolerance:.3g}",
        )
    near = abs(row.value - row.target) <= row.allowed
    return "pass" if near else "fail", f"{row.value - row.target:+.3g} of ±{row.allowed:.3g}"


def verdict_line(verdicts):
    """What the judged rows say in one sentence."""
    judged = verdicts[verdicts["verdict"] != ""]
    if judged.empty:
        return f"{len(verdicts)} measurements, no published numbers to judge them by."
    passed = (judged["verdict"] == "pass").sum()
    absent = (judged["reason"] == "not measured").sum()
    return f"{passed} of {len(judged)} published numbers reproduced, {len(judged) - passed - absent} missed, " + (
        f"{absent} not measured."
    )
