"""The two panels of figure 6: measured scores and distances, with the published ones as marks. No torch."""

import numpy as np
import pandas as pd

from editscale.plots.style import method_style

SHOWN = ("S", "ES", "PS", "NS")
UNEDITED = {"color": "0.45", "marker": "*"}
TARGET = {"color": "black", "marker": "_", "markersize": 13, "markeredgewidth": 1.6, "linestyle": "none", "capsize": 2}


def scores_panel(ax, verdicts):
    """Draw S, ES, PS and NS of the unedited model and after single edits, and return the plotted numbers.

    A point is a mean with its 95 % half-width, drawn within 0–100 %; a bar across it the published number with its
    tolerance.

    Args:
        verdicts: of `targets.judge`.
    """
    rows = verdicts[verdicts["part"].isin(["unedited", "single edits"]) & verdicts["metric"].isin(SHOWN)]
    methods, published = list(rows["method"].unique()), rows.dropna(subset=["target"])
    for place, method in enumerate(methods):
        style = {key: method_style(method)[key] for key in ("color", "marker")} if method != "none" else UNEDITED
        shift, label = (place - (len(methods) - 1) / 2) * 0.8 / len(methods), method.replace("none", "unedited")
        for of, value, error, look in (
            (rows, "value", "half_width", {**style, "linestyle": "none", "capsize": 2, "label": label}),
            (
                published,
                "target",
                "tolerance",
                {**TARGET, "label": "published" if method == methods[0] else "_published"},
            ),
        ):
            drawn = of[of["method"] == method]
            if len(drawn):
                x = np.array([SHOWN.index(metric) for metric in drawn["metric"]]) + shift
                up, down = (np.fmin(drawn[error], room) for room in (100 - drawn[value], drawn[value]))
                ax.errorbar(x, drawn[value], yerr=[down.clip(lower=0), up.clip(lower=0)], **look)
    ax.set_xticks(range(len(SHOWN)), SHOWN)
    ax.set(ylabel="score (%)", ylim=(-3, 103))
    return rows[["part", "method", "metric", "edits", "value", "half_width", "target", "tolerance"]]


def distance_panel(ax, verdicts):
    """Draw the distance of each edited layer along the sequence, both axes log, and return the plotted numbers.

    Crosses are published distances; the dotted line grows with √n through the first point of the deepest layer.

    Args:
        verdicts: of `targets.judge`; without rows of a sequence the panel says so.
    """
    rows = verdicts[(verdicts["part"] == "sequence") & (verdicts["metric"] == "distance")]
    columns = ["part", "method", "metric", "layer", "edits", "value", "target", "tolerance"]
    if rows["value"].notna().sum() == 0:
        ax.text(0.5, 0.5, "no sequence measured", ha="center", transform=ax.transAxes)
        return rows[columns]
    layers = sorted(rows["layer"].unique())
    for gray, layer in zip(np.linspace(0.75, 0.1, len(layers)), layers, strict=True):
        of = rows[rows["layer"] == layer].sort_values("edits")
        ax.plot(of["edits"], of["value"], color=str(gray), marker="o", markersize=3, label=f"layer {layer}")
        ax.plot(of["edits"], of["target"], color="black", marker="x", linestyle="none", label="_published")
    measured = rows.dropna(subset=["value"])
    first = measured[measured["layer"] == measured["layer"].max()].sort_values("edits").iloc[0]
    edits = np.array(sorted(pd.unique(rows["edits"])))
    root = first["value"] * np.sqrt(edits / first["edits"])
    ax.plot(edits, root, color=method_style("rome")["color"], linewidth=0.8, linestyle=":", label="√n")
    ax.set(xscale="log", yscale="log", xlabel="edits applied (log scale)", ylabel="‖W − W₀‖ / numel(W) (log scale)")
    ax.set_xticks(edits, [str(n) for n in edits])
    ax.xaxis.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return rows[columns]
