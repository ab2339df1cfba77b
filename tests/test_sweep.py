"""The hyper-parameters of SmolLM2-135M are the ones its recorded sweep chooses, and the choice follows its rule."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
import yaml
from test_rome import moment
from test_sequence import CONTEXTS, FACTS, PARAMS
from tools import lasting, sweep

from editscale.data import orders
from editscale.editing import editors, memit_family, norm_anchor, rect, updates
from editscale.metrics import scoring

FOLDER = Path(__file__).parents[1] / "params"
TABLE = pd.read_csv(FOLDER / "sweep" / "smollm2-135m.csv")


@pytest.mark.parametrize("method", ("rome", "memit"))
def test_the_shipped_parameters_are_the_sweeps_choice(method):
    shipped = editors.read_params(method, FOLDER / method / "smollm2-135m.yaml")
    chosen = sweep.best(TABLE, method, editors.read_params(method, FOLDER / method / "gpt2-xl.yaml"))
    assert asdict(shipped) == {name: json.loads(str(chosen[name]).lower()) for name in asdict(shipped)}
    assert chosen["ES"] >= 95 and chosen["PS"] >= 85 and chosen["n_facts"] == 80


def test_the_recorded_table_holds_every_setting_of_its_spec():
    spec = yaml.safe_load((FOLDER / "sweep" / "smollm2-135m.yaml").read_text())
    wanted = [{"method": method, **asdict(params)} for method, params in sweep.settings(spec)]
    recorded = TABLE.astype({"layer": "Int64"}).to_dict("records")
    for setting in wanted:
        matches = [
            row
            for row in recorded
            if all(str(row[name]).lower() == str(value).lower() for name, value in setting.items())
        ]
        assert len(matches) == 1, setting
    assert len(wanted) == len(recorded)


def row(es, ps, ns, norm, clamp=4.0, layer=1):
    return {
        "method": "rome",
        **asdict(PARAMS["rome"]),
        "clamp_norm_factor": clamp,
        "layer": layer,
        "ES": es,
        "PS": ps,
        "NS": ns,
        "median_update_norm": norm,
    }


def test_the_rule_wants_enough_efficacy_then_published_values_then_neighbors_then_small_updates():
    rows = [
        row(94, 90, 99, 1, layer=1),
        row(96, 84, 99, 1, layer=2),
        row(96, 90, 80, 1, clamp=2.0, layer=3),
        row(96, 90, 70, 2, layer=4),
        row(96, 90, 70, 1, layer=5),
        row(96, 90, 60, 1, layer=6),
    ]
    assert sweep.best(pd.DataFrame(rows), "rome", PARAMS["rome"])["layer"] == 5
    assert sweep.best(pd.DataFrame(rows[:3]), "rome", PARAMS["rome"])["layer"] == 3
    with pytest.raises(ValueError, match="no setting of rome reaches ES 95.0 % and PS 85.0 %"):
        sweep.best(pd.DataFrame(rows[:2]), "rome", PARAMS["rome"])


def test_fine_tuning_takes_the_smallest_constraint_with_enough_efficacy():
    table = pd.DataFrame({"method": "ft-c", "norm_constraint": [4e-3, 1e-3, 2e-3], "ES": [100.0, 90.0, 95.0]})
    assert sweep.least_constraint(table)["norm_constraint"] == 2e-3
    with pytest.raises(ValueError, match="no setting of ft-c reaches ES 99 %"):
        sweep.least_constraint(table.iloc[1:], least_es=99)


def test_the_shipped_constraint_of_fine_tuning_is_the_sweeps_choice():
    table = pd.read_csv(FOLDER / "sweep" / "ft-c-smollm2-135m.csv")
    shipped = editors.read_params("ft-c", FOLDER / "ft-c" / "smollm2-135m.yaml")
    chosen, spec = sweep.least_constraint(table), FOLDER / "sweep" / "ft-c-smollm2-135m.yaml"
    assert asdict(shipped) == {name: json.loads(str(chosen[name])) for name in asdict(shipped)}
    assert set(table["n_facts"]) == {40} and len(table) == len(list(sweep.settings(yaml.safe_load(spec.read_text()))))


@pytest.mark.parametrize("method", PARAMS)
def test_single_edits_start_from_the_unedited_model_each_time(method):
    lm = tiny.tiny_model("gpt2")
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in (0, 1)}
    editing = editors.begun(lm, editors.Editing(method, PARAMS[method], CONTEXTS[method], factors))
    before = lm.weight(1).clone()
    forwards = sweep.single_edits(lm, FACTS[:3], editing)
    backwards = sweep.single_edits(lm, FACTS[2::-1], editing)
    assert forwards == backwards[::-1] and torch.equal(lm.weight(1), before)


# ------------------------------------------------------------------------------------- sequences


def of_sequence(method, recall, perplexity):
    return {"method": method, "recall_of_all": recall, "perplexity_ratio": perplexity}


def test_of_sequences_the_setting_that_keeps_most_of_all_facts_is_chosen_unless_it_costs_the_language():
    table = pd.DataFrame(
        [of_sequence("memit", 90, 1.6), of_sequence("memit", 80, 1.4), of_sequence("memit", 80, 1.2)]
        + [of_sequence("rome", 50, 9.0), of_sequence("rome", 40, 3.0), of_sequence("memit", 70, 1.0)]
    )
    assert lasting.best(table, "memit").name == 2
    assert lasting.best(table, "rome").name == 4
    with pytest.raises(ValueError, match="no setting of emmet"):
        lasting.best(table, "emmet")


def test_facts_of_a_sweep_are_none_that_the_orders_begin_with():
    known = [replace(FACTS[0], case_id=i, subject=f"Ada {i}") for i in range(60)]
    found = [fact.case_id for fact in lasting.unused(known, 3, 10)]
    begun = {at for order in orders.published_orders(known) for at in order[:3]}
    assert found == sorted(set(range(60)) - begun)[:10]
    with pytest.raises(ValueError, match="facts are outside the first 3 of all orders, and 60 are asked for"):
        lasting.unused(known, 3, 60)


def test_settings_share_a_stack_where_they_optimize_the_same_values():
    memit, rome = PARAMS["memit"], PARAMS["rome"]
    settings = [("memit-seq", memit), ("rome", rome), ("memit", replace(memit, mom2_update_weight=5.0))]
    settings += [("r-rome", rome), ("memit", replace(memit, layers=[1])), ("rome", replace(rome, layer=2))]
    stacks = lasting.in_stacks(settings)
    assert [[method for method, _ in of] for of in stacks] == [
        ["memit-seq", "memit"],
        ["rome", "r-rome"],
        ["memit"],
        ["rome"],
    ]
    assert [len(of) for of in lasting.in_stacks(settings[:1] * 5, most=2)] == [2, 2, 1]


def of(kind, params, **more):
    given = asdict(params) | more
    return kind(**{field.name: given[field.name] for field in fields(kind)})


STACKS = {
    "memit": [
        ("memit", PARAMS["memit"]),
        ("memit-seq", replace(PARAMS["memit"], mom2_update_weight=5.0)),
        ("emmet", of(memit_family.EmmetParams, PARAMS["memit"], emmet_lambda=0.1, update_norm_lambda=1.0)),
        ("memit-nas", of(norm_anchor.MemitNasParams, PARAMS["memit"], anchor_norm=2.0)),
        ("memit-rect", of(rect.MemitRectParams, PARAMS["memit"], zeroed_fraction=0.5)),
    ],
    "rome": [
        ("r-rome", PARAMS["rome"]),
        ("rome-nas", of(norm_anchor.RomeNasParams, PARAMS["rome"], anchor_norm=2.0)),
        ("rome-rect", of(rect.RomeRectParams, PARAMS["rome"], zeroed_fraction=0.5)),
    ],
}


@pytest.mark.parametrize("kind", STACKS)
def test_sequences_in_a_stack_are_those_that_each_method_makes(kind):
    lm, text = tiny.tiny_model("gpt2", dtype=torch.float64), [(fact.rewrite_prompt, 3) for fact in FACTS]
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in (0, 1, 2)}
    editings = [
        editors.begun(lm, editors.Editing(method, params, CONTEXTS[kind], factors)) for method, params in STACKS[kind]
    ]
    lists = [FACTS[:2], FACTS[2:4]]
    rows = lasting.sequences(lm, lists, editings, text)
    for editing, row in zip(editings, rows, strict=True):
        kept, distance = [], []
        for facts in lists:
            with updates.put_back(lm, editing.layers) as before:
                state = editing.start
                for fact in facts:
                    (edit,) = editors.edit_each(editing, lm, [fact], states=[state])
                    updates.apply(lm, edit.updates)
                    state = editors.after(editing, state, edit.updates)
                kept += [s["efficacy"][0].correct_new for s in scoring.score_facts(lm, facts)]
                distance.append(max((lm.weight(x) - w).norm() / w.norm() for x, w in before.items()).item())
        assert row["recall_of_all"] == pytest.approx(100 * sum(kept) / 4)
        assert row["relative_drift"] == pytest.approx(50 * sum(distance), rel=1e-6)
    assert len({round(row["relative_drift"], 6) for row in rows}) == len(rows)


# ------------------------------------------------------------------------------------- what was swept

SEQUENCES = FOLDER / "sweep" / "sequences-smollm2-135m"
SWEPT, SPEC = pd.read_csv(SEQUENCES.with_suffix(".csv")), yaml.safe_load(SEQUENCES.with_suffix(".yaml").read_text())
FILES = {"rome": "rome/smollm2-135m-sequences", "r-rome": "rome/smollm2-135m"}


def cells(params):
    """Hyper-parameters as a row of a table has them."""
    return {name: json.dumps(value).lower() for name, value in asdict(params).items() if name != "mini_batch"}


@pytest.mark.parametrize("method", dict.fromkeys(SWEPT["method"]))
def test_the_shipped_parameters_are_what_sequences_choose(method):
    shipped = editors.read_params(method, FOLDER / f"{FILES.get(method, f'{method}/smollm2-135m')}.yaml")
    row = lasting.best(SWEPT, method)
    assert {name: like_in(row[name], value) for name, value in cells(shipped).items()} == cells(shipped)


def like_in(cell, like):
    """A cell of the table in the words of `like`."""
    value = json.loads(str(cell).lower())
    return json.dumps(type(json.loads(like))(value))


def test_the_table_of_sequences_holds_the_settings_of_its_spec_and_no_others():
    of = list(SWEPT.itertuples())
    wanted = [(method, params) for method, params in sweep.settings(SPEC)]
    assert len(of) == len(wanted) and SWEPT["n_facts"].eq(SPEC["n_facts"] * SPEC["n_sequences"]).all()
    for method, params in wanted:
        rows = SWEPT[SWEPT["method"] == method]
        for name, value in cells(params).items():
            if not (name == "anchor_norm" and value == "0.0"):  # found by the sweep
                rows = rows[[like_in(cell, value) == value for cell in rows[name]]]
        assert len(rows) == 1, (method, params)


def test_the_page_of_sweeps_is_what_their_table_gives():
    assert (FOLDER / "sweep" / "README.md").read_text() == lasting.page(SWEPT, SPEC)


def test_a_method_keeps_more_than_another_only_if_each_sequence_says_so():
    def row(*recall):
        return pd.Series({f"recall_of_all_{i}": x for i, x in enumerate(recall)})

    base = row(50.0, 60.0)
    assert lasting.keeps_more(row(51.0, 61.0), base) == "yes" and lasting.keeps_more(row(50.0, 10.0), base) == "no"
    assert lasting.keeps_more(row(90.0, 60.0), base) == "undecided"
