"""The gallery figures/README.md, each figure beside what the paper shows: `python -m editscale gallery`.

What is found is each figure's own caption, computed when it was drawn, and a table from the plotted numbers; only what
the paper shows is written here.
"""

import json
from pathlib import Path

import pandas as pd

from editscale.analysis import claims

# Figure ↦ notebook that draws it, what arXiv:2401.07453 shows (its final version edits GPT-J, the first one GPT-2 XL).
FIGURES = {
    "fig1_editing_proficiency": (
        "02b_editing_proficiency",
        "Figure 1: ROME keeps efficacy near 100 % and loses neighborhood score from about 78 to 45 within 1,000 edits; "
        "MEMIT keeps both until a late collapse.",
    ),
    "fig2_facts_forgotten": (
        "03b_forgetting_analysis",
        "Figures 1d and 3: the share of forgotten facts grows slowly (ROME about 8 % at 550 edits), then jumps (78 % "
        "at 556); MEMIT goes from 14 % at 1,150 edits to 99 % at 1,300.",
    ),
    "fig2b_forget_lengths": (
        "03b_forgetting_analysis",
        "A histogram of how long facts last, and the finding that most fall at one moment.",
    ),
    "fig3_downstream": (
        "04b_downstream_performance",
        "Figure 2: F1 of SST-2 falls from 92 to 75 by edit 500 and to 0 by 840 under ROME; MRPC sits at the 33.3 of a "
        "constant answer until it goes to 0 at the jump.",
    ),
    "fig4_weight_drift": (
        "05_drift_analysis",
        "Figure 2d: the normalized L2 distance grows slowly and steps up at 556 and 900 edits of ROME; MEMIT's stays "
        "small until its collapse.",
    ),
    "fig4b_drift_and_loss": ("05_drift_analysis", "Not drawn; the text relates steps of the distance to the collapse."),
    "fig4c_spectra": ("05_drift_analysis", "Not shown."),
    "fig5_disabling_edits": (
        "05b_disabling_edits",
        "Single disabling edits of ROME are about a thousand times as large as ordinary ones; MEMIT has none.",
    ),
    "fig5b_single_edits": ("05b_disabling_edits", "Not shown: contexts were sampled once, without a seed."),
    "fig5c_denominators": (
        "05b_disabling_edits",
        "Not shown; arXiv:2403.07175 names the two keys of the released code.",
    ),
    "fig6_acceptance": (
        "06_acceptance",
        "Not drawn. Published elsewhere for GPT-2 XL and GPT-J: scores and distances of single edits.",
    ),
    "fig7_findings": ("07_findings", "Not drawn; its claims are in the table, each with the figure it is read from."),
}


# What is compared ↦ what the paper shows for ROME and for MEMIT (its figures 1 to 3, GPT-J).
PAPER = {
    "efficacy right after each edit": ("100 %, dips of a few % after 650 edits", "100 % up to 1,250 edits"),
    "neighborhood score, first and last edits": ("78 → 45 % (1,000 edits)", "82 → 50 % (1,000 edits)"),
    "learned facts forgotten": ("8 % at 550 edits, 78 % at 556", "10 % at 1,000 edits, 99 % at 1,300"),
    "largest fall of recall between checkpoints": ("near 556 edits", "between 1,200 and 1,300 edits"),
    "sentiment task, weighted F1": ("SST-2 92 → 75 (500 edits) → 0 (840)", "SST-2 92 up to 1,230 edits, then 0"),
    "normalized L2 distance": ("4e-6, 3e-5 behind the jump at 556", "below 1e-6 up to 1,250 edits"),
    "largest update over the median one": ("disabling edits, visible as steps", "no disabling edits"),
}


def comparison(folder, scale):
    """A table in Markdown: the paper's ROME and MEMIT beside the first forward runs, from the plotted numbers; "" where
    several orders are drawn, whose captions hold their means."""
    tables = {path.stem: pd.read_csv(path) for path in sorted((Path(folder) / scale).glob("*.csv"))}
    if "layer" not in tables["fig4_weight_drift"]:
        return ""
    lines = ["| | ROME, paper | ROME, here | MEMIT, paper | MEMIT, here |", "|---|---|---|---|---|"]
    found = {method: _found(tables, method) for method in ("rome", "memit")}
    for name, (rome, memit) in PAPER.items():
        lines.append(f"| {name} | {rome} | {found['rome'][name]} | {memit} | {found['memit'][name]} |")
    return "\n".join(lines) + "\n"


def _found(tables, method):
    """The entries of PAPER as a method's first forward run has them."""

    def rows(name, **wanted):
        table = tables[name]
        table = table[(table["method"] == method) & ~table["reversed"].fillna(False).astype(bool)]
        for column, value in wanted.items():
            table = table[table[column] == value]
        return table[table["order"] == table["order"].min()].sort_values("edits")

    es, ns = (rows("fig1_editing_proficiency", metric=name)["bucket_mean"] for name in ("efficacy", "neighborhood"))
    paper, recall = (rows("fig2_facts_forgotten", panel=name) for name in ("paper", "recall"))
    fall, worst = "none", recall["recall"].diff().idxmin()
    before, after = recall.loc[:worst].iloc[-2], recall.loc[worst]
    if after["recall"] < before["recall"]:
        fall = f"{before['recall']:.0f} → {after['recall']:.0f} %, {before['edits']:.0f} to {after['edits']:.0f} edits"
    f1 = rows("fig3_downstream", task="reviews")["f1"]
    drift = rows("fig4_weight_drift")
    ratio = (drift["update_norm"] / drift.groupby("layer")["update_norm"].transform("median")).max()
    return dict(
        zip(
            PAPER,
            (
                f"{es.mean():.0f} %",
                f"{ns.iloc[0]:.0f} → {ns.iloc[-1]:.0f} % ({drift['edits'].max()} edits)",
                f"{paper['forgotten_percent'].iloc[-1]:.0f} % at {paper['edits'].iloc[-1]:.0f} edits",
                fall,
                f"reviews {f1.iloc[0]:.0f} → {f1.iloc[-1]:.0f}",
                f"{drift.loc[drift['edits'] == drift['edits'].max(), 'normalised_l2'].max():.1e}",
                f"{ratio:.0f} ×",
            ),
            strict=True,
        )
    )


SCALES = ("smollm2", "twenty-counterfact", "laptop")  # committed, the largest first


def drawn(folder, scale):
    """Names of the figures that a scale has, in the order of FIGURES: a recorded one need not have all.

    Raises FileNotFoundError that names the first figure of all if it is missing.
    """
    names = [name for name in FIGURES if (Path(folder) / scale / f"{name}.json").is_file()]
    first = next(iter(FIGURES))
    if first not in names:
        raise FileNotFoundError(f"no figure {first} in {folder}/{scale}; run make figures SCALE={scale} first")
    return names


def claims_table(folder, scale):
    """The paper's claims beside a scale's numbers, in Markdown; "" where no claim can be compared (`claims`)."""
    path = Path(folder) / scale / "fig7_findings.claims.csv"
    claims = pd.read_csv(path) if path.is_file() else pd.DataFrame({"verdict": []})
    return claims.markdown(claims) if (claims["verdict"] != "not comparable").any() else ""


def methods_table(folder, scale):
    """What a scale's methods do (`claims.about_methods`), in Markdown; "" where none has several orders."""
    path = Path(folder) / scale / "fig7_findings.over_orders.csv"
    over_orders = pd.read_csv(path) if path.is_file() else pd.DataFrame({"n": []})
    return claims.about_methods(over_orders) if (over_orders["n"] > 1).any() else ""


def gallery(folder, scales=SCALES):
    """figures/README.md as text, from what is in `folder`, a section for each of `scales`.

    Raises FileNotFoundError that names the first figure that is missing.
    """
    parts = [
        "# Figures\n",
        "The plotted numbers are beside each figure as CSV, its parameters, package versions and code hash as JSON. "
        "*The paper* is [arXiv:2401.07453](https://arxiv.org/abs/2401.07453), which edits GPT-J with CounterFact; read "
        "shapes against it, not values.\n",
    ]
    for scale in scales:
        names = drawn(folder, scale)
        parts.append(f"# Scale {scale}\n\nDrawn by `make figures SCALE={scale}`.\n")
        parts += filter(None, [claims_table(folder, scale) or comparison(folder, scale), methods_table(folder, scale)])
        for name in names:
            notebook, paper = FIGURES[name]
            caption = json.loads((Path(folder) / scale / f"{name}.json").read_text())["caption"]
            parts.append(
                f"## {name}, {scale}\n\n![{name}]({scale}/{name}.png)\n\n"
                f"**Here** ([notebook](../notebooks/{notebook}.ipynb)). {caption}\n\n**The paper.** {paper}\n"
            )
    return "\n".join(parts)


def write(scales=SCALES):
    """Write figures/README.md."""
    Path("figures/README.md").write_text(gallery("figures", scales))
