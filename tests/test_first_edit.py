"""The first edit in a cell: what it shows, that it is undone bit for bit, and what is said of what it was made with."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_rome import moment
from tools import shape

import editscale
from editscale.data.facts import Fact
from editscale.editing import editors, hparams
from editscale.editing import moments as second_moments
from editscale.metrics import scoring
from editscale.sequences import first_edit, sequence
from editscale.workflow import cli

ROOT = Path(__file__).parents[1]
FACTS = {"{} is in the": ("Ada Example", "harp", "town"), "The river of {} is the": ("Bo Sample", "town")}


@pytest.fixture
def lm():
    return named(tiny.tiny_model("gpt2"))


def named(lm, name="of-mine"):
    lm.name = name
    return lm


@pytest.fixture
def moments(lm, tmp_path):
    """A file of well-conditioned second moments of all layers."""
    found = {layer: moment(lm.d_key) for layer in range(lm.n_layers)}
    made = second_moments.SecondMoments(found, 1000, {"corpus": "invented", "n_tokens": "1000", **identity(lm)})
    second_moments.save(made, tmp_path / "moments.safetensors")
    return tmp_path / "moments.safetensors"


def identity(lm):
    return {"model": lm.name, "weights_sha256": lm.identity.get("weights_sha256", ""), "dtype": "float32"}


def weights(lm):
    return {layer: lm.weight(layer).clone() for layer in range(lm.n_layers)}


@pytest.mark.parametrize("method", ["rome", "r-rome", "memit", "ft-c"])
def test_edits_are_in_the_model_within_the_block_and_undone_bit_for_bit(lm, moments, method):
    before, said = weights(lm), editscale.says(lm, "Ada Example is in the", 4)
    with editscale.edited(lm, method, FACTS, moments=moments, show=False) as edit:
        assert any(not torch.equal(before[layer], lm.weight(layer)) for layer in before)
        (score,) = scoring.score_prompts(lm, [("Ada Example is in the", "harp", "town")])
        # In float32 an NLL of 9 is known to 1e-6, and the table's was computed in another batch.
        assert edit.table["p(new) after"][0] == pytest.approx(np.exp(-score.nll_new), rel=1e-5)
        assert edit.table["writes after"][0].startswith(edit.says("Ada Example is in the", 4))
    assert all(torch.equal(before[layer], lm.weight(layer)) for layer in before)
    assert editscale.says(lm, "Ada Example is in the", 4) == said


def test_edits_stay_when_they_are_kept_and_go_when_the_block_fails(lm, moments):
    before = weights(lm)
    with pytest.raises(KeyError), editscale.edited(lm, "rome", FACTS, moments=moments, show=False):
        raise KeyError
    assert all(torch.equal(before[layer], lm.weight(layer)) for layer in before)
    with editscale.edited(lm, "rome", FACTS, moments=moments, show=False) as edit:
        edit.keep()
        kept = weights(lm)
    assert all(torch.equal(kept[layer], lm.weight(layer)) for layer in before)
    assert any(not torch.equal(kept[layer], before[layer]) for layer in before)


def test_a_model_that_holds_edits_says_so_and_is_no_unedited_one(lm, moments, tmp_path):
    with editscale.edited(lm, "rome", FACTS, moments=moments, show=False) as edit:
        assert lm.identity["edits"] == "2"
        with pytest.raises(ValueError, match="second moments of a model that has been edited"):
            with editscale.edited(lm, "memit", FACTS, moments=tmp_path / "new.safetensors", show=False):
                pass
        edit.keep()
    editing = editors.Editing("rome", None, [], {})
    with pytest.raises(ValueError, match="holds 2 edits, and a run begins on an unedited model"):
        sequence.fingerprint(lm, editing)
    assert not (tmp_path / "new.safetensors").exists()


def test_a_table_has_a_row_for_each_fact_and_no_number_without_a_true_answer(lm, moments):
    with editscale.edited(lm, "rome", FACTS, moments=moments, show=False) as edit:
        table = edit.table
    assert list(table["new"]) == ["harp", "town"] and list(table["true"]) == ["town", ""]
    assert table["p(true) after"].isna().tolist() == [False, True]
    assert table["p(new) after"][0] > table["p(new) before"][0] and (table["size of update (%)"] > 0).all()
    assert table["status"].tolist() == ["edited", "edited"]
    assert "Ada Example is in the …" in repr(edit) and "<table" in edit._repr_html_()


def test_it_is_said_what_an_edit_was_made_with(lm, tmp_path, capsys):
    kept = tmp_path / "kept.safetensors"
    for how in (r"made in \d+ s and kept in", "from"):
        with editscale.edited(lm, "r-rome", FACTS, moments=kept):
            said = capsys.readouterr().out
        assert "Hyper-parameters: none are known for" in said and "moved to 1 of 4" in said
        assert re.search(f"{how} {re.escape(str(kept))}", said) and "tokens of Python's documentation" in said
        assert "Contexts: the bare prompt and 3 sampled ones." in said


def test_a_text_of_ones_own_gives_the_second_moments(lm, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The river of Lund is number {i} in Sweden." for i in range(400)))
    with editscale.edited(lm, "rome", FACTS, text=text):
        assert f"tokens of {text}, made in" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="there is no text file"):
        with editscale.edited(lm, "rome", FACTS, text="none.txt"):
            pass


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"{} is in the": ("Ada Example",)}, r"'\{\} is in the' is given \('Ada Example',\); expected \(subject, new"),
        ({"Lund is in the": ("Ada Example", "harp")}, "Ada Example"),
        ([Fact(0, "Ada Ex", "{}ample is in the", "harp", "town")], "case 0: subject 'Ada Ex' not found"),
        ("none.csv", "no facts file none.csv"),
        ([], "the facts given holds no records"),
    ],
)
def test_what_cannot_be_edited_is_named_before_anything_is(lm, moments, facts, said):
    before = weights(lm)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        with editscale.edited(lm, "rome", facts, moments=moments, show=False):
            pass
    assert all(torch.equal(before[layer], lm.weight(layer)) for layer in before)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox", "llama", "qwen2"])
@pytest.mark.parametrize("method", ["rome", "p-rome", "memit", "rome-multi", "ft-c"])
def test_a_model_without_hyper_parameters_gets_those_of_another_at_the_same_depth(family, method):
    lm = named(tiny.tiny_model(family))
    params, said = hparams.for_model(lm, method)
    assert type(params) is editors.method(method).params and "none are known for" in said
    assert all(0 <= layer < lm.n_layers for layer in params.layers)


def test_every_model_with_hyper_parameters_is_found_by_its_name():
    known = ("tiny-gpt2", *hparams.N_LAYERS, "gpt2-medium", "gpt2-large")
    for path in sorted((ROOT / "params").glob("rome/*.yaml")):
        if path.stem not in known:  # another setting for one of them
            assert path.stem.startswith(known) and "-" in path.stem
            continue
        lm = named(tiny.tiny_model("gpt2"), path.stem.replace("tiny-", "tiny_"))
        params, said = hparams.for_model(lm, "r-rome")
        assert params == editors.read_params("rome", path) and said == f"Hyper-parameters: params/rome/{path.name}."


@pytest.mark.parametrize("model", ("gpt2-xl", "gpt-j-6b"))
def test_a_method_with_a_folder_of_its_own_begins_with_what_is_published_for_it(model):
    params, said = hparams.for_model(named(tiny.tiny_model("gpt2"), model), "memit-seq")
    assert said == f"Hyper-parameters: params/memit-seq/{model}.yaml."
    assert params == editors.read_params("memit", ROOT / f"params/memit/{model}.yaml")


def test_the_layers_of_models_that_others_begin_from_are_those_of_their_shapes():
    of_shape = {"gpt2-xl": "gpt2-xl", "gpt-j-6b": "gpt-j"}
    assert {stem: hparams.N_LAYERS[stem] for stem in of_shape} == {
        stem: shape.SHAPES[name]["n_layer"] for stem, name in of_shape.items()
    }


def test_the_package_is_light_until_an_edit_is_asked_for():
    code = "import sys, editscale; assert 'torch' not in sys.modules; editscale.edited; print(hasattr(editscale, 'no'))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_moments_that_are_made_are_of_real_text_and_enough_of_it(lm):
    found = first_edit._collected(lm, [0, 1], "")
    assert found.n_tokens >= 10 * lm.d_key and set(found.moments) == {0, 1}


@pytest.mark.real_model
def test_the_first_edit_of_the_readme_does_what_is_written_beside_it(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    monkeypatch.setattr(editscale, "load", partial(editscale.load, cache=ROOT / "runs/models"), raising=False)
    exec(code, {})
    said, promised = capsys.readouterr().out, re.search(r"# (Rome.*)$", code, re.M)[1]
    assert promised in said.splitlines()[-1] and "Paris, France." in said
    assert "Hyper-parameters: params/rome/smollm2-135m.yaml." in said and len(code.splitlines()) <= 10


def test_facts_are_tried_on_the_command_line_and_nothing_is_written_unless_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("subject,prompt,target_new\nArlen Voss,{} plays the,flute\n")
    before = sorted(tmp_path.iterdir())
    given = ["try", "--facts", "mine.csv", "--method", "rome", "--model", str(ROOT / "tests/golden/tiny_gpt2")]
    assert cli.main(given) == 0
    said = capsys.readouterr().out
    assert "Hyper-parameters: params/rome/tiny-gpt2.yaml." in said and "Arlen Voss plays the …" in said
    assert "p(true) after" in said and sorted(tmp_path.iterdir()) == before
    assert cli.main([*given, "--csv", "table.csv"]) == 0
    assert pd.read_csv("table.csv")["new"].tolist() == ["flute"]
    assert cli.main(["try", "--facts", "none.csv"]) == 2
