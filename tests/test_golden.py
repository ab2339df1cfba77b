"""Every number of the reference implementations in tests/golden is reproduced, and a wrong one is noticed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from editscale import values, verify

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
    found = verify.verify(subset(tmp_path, "rome_earlystop_f64.npz"), forward=values.plain_forward)
    assert found and all(d.agrees for d in found)


def test_a_wrong_number_is_reported_and_fails_the_command(tmp_path, capsys):
    folder = subset(tmp_path, "rome_earlystop_f32.npz")
    with np.load(folder / "rome_earlystop_f32.npz") as file:
        arrays = dict(file)
    arrays["single2.delta_opt"] = arrays["single2.delta_opt"] * (1 + 1e-4)
    np.savez(folder / "rome_earlystop_f32.npz", **arrays)
    assert verify.main([str(folder)]) == 1
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
    assert verify.main([str(tmp_path)]) == 2
    assert "no setup.json" in capsys.readouterr().err
    assert verify.main([str(subset(tmp_path))]) == 2
    assert "no array or metric files" in capsys.readouterr().err
