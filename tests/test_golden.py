"""Every number of the reference implementations in tests/golden is reproduced, and a wrong one is noticed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_rome import moment
from tools import plain, verify

from editscale.data import facts
from editscale.editing import rome
from editscale.workflow import cli

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def differences():
    return verify.verify(GOLDEN)


def test_every_golden_number_is_reproduced(differences):
    assert [d for d in differences if not d.agrees] == [], verify.table(differences)


def test_every_golden_file_is_compared_in_both_precisions(differences):
    stored = {tuple(path.stem.rsplit("_", 1)) for path in GOLDEN.glob("*_f??.*")}
    compared = {(d.file, {"float32": "f32", "float64": "f64"}[d.precision]) for d in differences}
    assert len(stored) == 14 and compared == stored


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        (
            "rome",
            {
                "keys_per_context",
                "key_mean",
                "left_vector_u",
                "target_init",
                "losses",
                "nll_per_prompt",
                "delta_opt",
                "target_v_star",
                "cur_input",
                "cur_output",
                "right_vector_v",
                "delta_weight",
            },
        ),
        (
            "memit",
            {
                "zs",
                "z_target_init",
                "z_delta_opt",
                "losses",
                "nll_per_prompt",
                "ks",
                "cur_zs",
                "adj_k",
                "resid",
                "update",
            },
        ),
    ],
)
def test_every_kind_of_array_is_compared_alone_and_in_sequence(differences, file, kinds):
    compared = {d.kind for d in differences if d.file == file}
    assert compared == kinds | {f"{kind}, sequential" for kind in kinds} | {"final_weight, sequential"}


def test_float64_agrees_to_rounding(differences):
    arrays = [d for d in differences if d.precision == "float64" and not d.file.startswith("metrics")]
    assert max(d.largest for d in arrays) < 1e-11


def subset(folder, *names):
    shutil.copytree(GOLDEN / "tiny_gpt2", folder / "tiny_gpt2")
    for name in ("setup.json", "second_moments.npz", *names):
        shutil.copy(GOLDEN / name, folder)
    return folder


def test_full_forwards_reproduce_the_numbers_too(tmp_path):
    found = verify.verify(subset(tmp_path, "rome_earlystop_f64.npz"), forward=plain.plain_forward)
    assert found and all(d.agrees for d in found)


def test_a_wrong_number_is_reported_and_fails_the_command(tmp_path, capsys):
    folder = subset(tmp_path, "rome_earlystop_f32.npz")
    with np.load(folder / "rome_earlystop_f32.npz") as file:
        arrays = dict(file)
    arrays["single2.delta_opt"] = arrays["single2.delta_opt"] * (1 + 1e-4)
    np.savez(folder / "rome_earlystop_f32.npz", **arrays)
    assert cli.main(["verify", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "DIFFERS single2" in printed and "kinds of numbers agree" in printed


def test_a_wrong_flag_is_reported(tmp_path):
    folder = subset(tmp_path, "metrics_rome_memit_f32.json")
    path = folder / "metrics_rome_memit_f32.json"
    golden = json.loads(path.read_text())
    flags = golden["unedited"][1]["neighborhood_prompts_correct"]
    flags[3] = not flags[3]
    path.write_text(json.dumps(golden))
    assert [d.kind for d in verify.verify(folder) if not d.agrees] == ["wrong flags"]


def test_a_folder_without_numbers_is_an_error(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert "no setup.json" in capsys.readouterr().err
    assert cli.main(["verify", str(subset(tmp_path))]) == 2
    assert "no array or metric files" in capsys.readouterr().err


def golden_of_a_llama(folder):
    """A folder in the format of tests/golden for a tiny random Llama, its numbers made by full forwards here."""
    lm = tiny.tiny_model("llama", n_layers=4)
    lm.model.save_pretrained(folder / "tiny_llama")
    lm.tokenizer.save_pretrained(folder / "tiny_llama")
    c = moment(lm.d_key)
    setup = json.loads((GOLDEN / "setup.json").read_text())
    setup["context_templates_rome"] = setup["context_templates_rome"][:3]
    setup["hparams_rome"] |= {"layers": [1], "v_num_grad_steps": 4}
    (folder / "setup.json").write_text(json.dumps(setup))
    np.savez(folder / "second_moments.npz", **{"mom2.layer1": c.numpy()})
    params = verify._hparams(rome.RomeParams, setup["hparams_rome"])
    record = facts.parse(setup["records"], source="setup")[0]
    factors = {1: torch.linalg.cholesky(c)}
    edit = rome.edit(lm, record, params, setup["context_templates_rome"], factors, forward=plain.plain_forward)
    t, update = edit.trace, edit.updates[0]
    arrays = {
        "keys_per_context": t["keys"],
        "key_mean": t["key_mean"],
        "left_vector_u": t["u"],
        "target_init": t["init"],
        "losses": t["losses"],
        "nll_per_prompt": t["nll_per_prompt"],
        "delta_opt": t["delta"],
        "target_v_star": t["init"] + t["delta"],
        "cur_input": t["key"],
        "cur_output": t["value"],
        "right_vector_v": update.left[:, 0],
        "delta_weight": update.matrix(),
    }
    return {f"single0.{name}": array.numpy() for name, array in arrays.items()}


@pytest.mark.parametrize("suffix", ("f32", "f64"))
def test_a_folder_of_another_family_is_compared_with_its_own_tolerance(tmp_path, suffix):
    """A Linear stores W where GPT-2 stores its transpose, and Llama's float64 is float32 in places."""
    np.savez(tmp_path / f"rome_{suffix}.npz", **golden_of_a_llama(tmp_path))
    found = verify.verify(tmp_path)
    assert {d.kind for d in found} >= {"delta_weight", "losses", "left_vector_u"}
    assert all(d.agrees for d in found), verify.table(found)
    assert {d.allowed for d in found} == {1e-5, 2e-4}
