"""The pages of figures: each figure with what it shows, what the paper shows, and the notebook that draws it.

figures/README.md shows the recorded study, figures/<scale>/README.md another scale. What is found was computed when a
figure was drawn, what the paper shows is in data/paper.yaml.
"""

import os
from pathlib import Path

import click
import pandas as pd

from editscale.analysis import claims, intervals
from editscale.files import write_whole
from editscale.workflow.provenance import read_figure

# Scales with committed figures; the first is the recorded study.
SCALES = ("smollm2", "mitigations", "interventions", "twenty-counterfact")
# Figure ↦ notebook that draws it, and what to say of the paper where it has no such figure.
FIGURES = {
    "fig1_editing_proficiency": ("02b_editing_proficiency", ""),
    "fig2a_recall": ("03b_forgetting_analysis", "Not drawn: it never asks a forgotten fact again."),
    "fig2_facts_forgotten": ("03b_forgetting_analysis", ""),
    "fig2b_going_first": ("03b_forgetting_analysis", "Not asked: what tells the facts that are forgotten first."),
    "fig3_downstream": ("04b_downstream_performance", ""),
    "fig4_weight_drift": ("05_drift_analysis", ""),
    "fig4b_drift_and_loss": ("05_drift_analysis", "Not drawn; the text relates steps of the distance to the collapse."),
    "fig4c_spectra": ("05_drift_analysis", "Not shown."),
    "fig4d_distance_or_direction": (
        "05_drift_analysis",
        "Not asked: drift is the explanation it gives of gradual forgetting.",
    ),
    "fig5_disabling_edits": ("05b_disabling_edits", ""),
    "fig5b_single_edits": ("05b_disabling_edits", "Not shown: contexts were sampled once, without a seed."),
    "fig5c_denominators": (
        "05b_disabling_edits",
        "Not asked: which facts a method without disabling edits learns.",
    ),
    "fig5d_forecast_tested": ("05b_disabling_edits", "Not asked."),
    "fig5e_sinks": ("05b_disabling_edits", "Not asked."),
    "fig6_acceptance": (
        "06b_acceptance",
        "Not drawn. Scores and distances of single edits are published for GPT-2 XL.",
    ),
    "fig7_findings": ("07_findings", "Not drawn; its claims are those of the table."),
    "fig8_mitigations": ("09b_mitigations", "Not asked: what could prevent forgetting is one of its open questions."),
    "fig8b_overlap": ("09b_mitigations", "Not asked."),
    "fig8c_steps": ("09b_mitigations", "Not asked: facts are edited one at a time."),
    "fig8d_in_one_step": ("09b_mitigations", "Not asked."),
    "fig8e_to_the_end": ("09b_mitigations", "Not asked: editors that keep earlier keys are newer."),
}


def paper_shows(name):
    """What the paper shows of a figure of ours, in words: a sentence for each thing that it measures."""
    shown = {}
    for key, entry in claims.PAPER.items():
        if entry["ours"] == name:
            said = f"{claims.says(key)} ({entry['method']}, {entry['source']})"
            shown.setdefault(entry["what"], []).append(said)
    return " ".join(f"{what[0].upper()}{what[1:]}: {'; '.join(said)}." for what, said in shown.items())


def drawn(folder, scale):
    """Names of the figures that a scale has, in the order of FIGURES. FileNotFoundError without any."""
    names = [name for name in FIGURES if (Path(folder) / scale / f"{name}.json").is_file()]
    if not names:
        raise FileNotFoundError(f"no figure in {folder}/{scale}; run make figures SCALE={scale} first")
    return names


def claims_table(folder, scale):
    """The paper's claims beside a scale's numbers, in Markdown; "" where no claim can be compared (`claims`)."""
    path = Path(folder) / scale / "fig7_findings.claims.csv"
    if not path.is_file():
        return ""
    table = pd.read_csv(path)
    return _markdown(claims.for_reading(table)) if (table["verdict"] != "not comparable").any() else ""


def methods_table(folder, scale):
    """What a scale's methods do (`claims.about_methods`), in Markdown; "" where none has several orders."""
    path = Path(folder) / scale / "fig7_findings.over_orders.csv"
    if not path.is_file():
        return ""
    table = intervals.read(path)
    return _markdown(claims.about_methods(table).reset_index()) if (table["n"] > 1).any() else ""


def place(folder, scale):
    """The file of a scale's page."""
    return Path(folder) / ("README.md" if scale == SCALES[0] else f"{scale}/README.md")


def page(folder, scale):
    """The page of a scale as text, from what is in `folder`. Raises as `drawn` and `provenance.read_figure`."""
    here, names = place(folder, scale).parent, drawn(folder, scale)
    figures = {name: read_figure(Path(folder) / scale / f"{name}.json") for name in names}

    def link(text, path):
        return f"[{text}]({Path(os.path.relpath(Path(folder) / path, here)).as_posix()})"

    recorded = (Path(folder) / scale / "tables").is_dir()
    copied = "" if recorded else f" in `runs/{scale}/figures`, and copied from there"
    parts = [
        f"# Figures, scale {scale}\n\nDrawn by `make figures SCALE={scale}`{copied}. The plotted numbers are beside "
        "each figure as CSV, its parameters, package versions and code hash as JSON. *The paper* is "
        "[arXiv:2401.07453](https://arxiv.org/abs/2401.07453), which edits GPT-J with CounterFact; read shapes "
        "against it, not values.\n"
    ]
    others = [link(other, place("", other)) for other in SCALES if other != scale]
    parts.append(f"Other scales: {', '.join(others)}.\n")
    compared = claims_table(folder, scale)
    parts += [f"## The paper's claims\n\n{compared}"] if compared else []
    parts += [f"## The methods\n\n{table}"] if (table := methods_table(folder, scale)) else []
    for name in names:
        notebook = f"{FIGURES[name][0]}.ipynb"
        about = figures[name]
        made = [link("notebook", f"../notebooks/{notebook}")]
        executed = Path(scale) / "notebooks" / notebook
        made += [link("executed", executed)] if (Path(folder) / executed).is_file() else []
        number, _, title = name.removeprefix("fig").partition("_")
        rest = about["caption"].removeprefix(about["found"]).strip()
        parts.append(
            f"## Figure {number}: {title.replace('_', ' ')}\n\n!{link(name, f'{scale}/{name}.png')}\n\n"
            f"**Here.** {about['found']} ({', '.join(made)})\n\n"
            f"**The paper.** {paper_shows(name) or FIGURES[name][1]}\n"
        )
        parts += [f"<details><summary>How to read it</summary>\n\n{rest}\n\n</details>\n"] if rest else []
    return "\n".join(parts)


@click.command()
@click.argument("scales", metavar="[SCALE]…", nargs=-1)
def main(scales):
    """Write the pages of figures, figures/README.md first, from the figures of scales; of all if none is named."""
    for scale in scales or SCALES:
        write_whole(place("figures", scale), page("figures", scale).encode())


def _markdown(table):
    return table.to_markdown(index=False, disable_numparse=True) + "\n"
