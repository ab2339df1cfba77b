"""The published editors are asked on the same model, facts, contexts and second moment, and what is wrong is named."""

import subprocess
import sys

import pytest
import torch
from test_bench import tiny_case
from tools import beside, beside_driver

from editscale.workflow import cli

# A stand-in for the checkout: names and signatures as published, and changes that show what it was given.
STAND_IN = {
    "rome/rome_hparams.py": """
from dataclasses import dataclass
from typing import List

@dataclass
class ROMEHyperParams:
    layers: List[int]
    fact_token: str
    v_num_grad_steps: int
    v_lr: float
    v_loss_layer: int
    mom2_adjustment: bool
    rewrite_module_tmp: str
    lm_head_module: str
    ln_f_module: str
""",
    "rome/compute_u.py": """
def get_inv_cov(model, tok, layer_name, mom2_dataset, mom2_n_samples, mom2_dtype):
    raise AssertionError("it would read a file")
""",
    "rome/rome_main.py": """
from . import compute_u

def get_context_templates(model, tok, length_params):
    raise AssertionError("it would sample")

def execute_rome(model, tok, request, hparams):
    print("what it prints is no answer")
    (layer,) = hparams.layers
    name = hparams.rewrite_module_tmp.format(layer)
    weight = model.get_submodule(name).weight
    assert model.get_submodule(hparams.lm_head_module).weight.shape[0] == model.config.vocab_size
    n = len(get_context_templates(model, tok, [])) + hparams.v_num_grad_steps + len(request["subject"])
    inverse = compute_u.get_inv_cov(model, tok, name, "", 0, "float32")
    assert set(tok("a harp")) == {"input_ids", "attention_mask"} and model.config.n_embd
    d_key = len(inverse)
    rows = weight if weight.shape[0] == d_key else weight.T
    return {f"{name}.weight": (inverse[0], n * rows.sum(0))}
""",
    "memit/memit_hparams.py": """
from dataclasses import dataclass
from typing import List

@dataclass
class MEMITHyperParams:
    layers: List[int]
    mom2_update_weight: int
    rewrite_module_tmp: str
""",
    "memit/memit_main.py": """
import torch

def get_context_templates(model, tok):
    raise AssertionError("it would sample")

def get_cov(model, tok, layer_name, mom2_dataset, mom2_n_samples, mom2_dtype):
    raise AssertionError("it would read a file")

def execute_memit(model, tok, requests, hparams, cache_template=None):
    n = sum(map(len, get_context_templates(model, tok)))
    cov = get_cov(model, tok, "", "", 0, "float32")
    width = model.config.n_embd
    names = [hparams.rewrite_module_tmp.format(layer) for layer in hparams.layers]
    return {f"{name}.weight": (cov[:, :1], n * torch.ones(width, len(requests))) for name in names}
""",
}


def git(folder, *words):
    command = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    folder = tmp_path / "memit"
    for name, text in STAND_IN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(tmp_path, "init", "-q", folder)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "A stand-in")
    monkeypatch.setattr(beside, "COMMIT", git(folder, "rev-parse", "HEAD"))
    return folder


def expected(case, number):
    """What the stand-in makes of a fact with ROME and with MEMIT, layer ↦ ΔW."""
    layer, moment = case.params["rome"].layer, next(iter(case.moments.values()))
    n = len(case.contexts["rome"]) + 20 + len(case.facts[number].subject)
    rome = n * case.lm.weight(layer).sum(1)[:, None] @ torch.inverse(moment).float()[0][None]
    n = sum(map(len, case.contexts["memit"]))
    memit = torch.full((case.lm.d_model, 1), float(n)) @ moment[:1].float()
    return {layer: rome}, dict.fromkeys(case.params["memit"].layers, memit)


@pytest.fixture
def here(checkout, monkeypatch):
    """The modules of the checkout can be imported in this process, until the test ends."""
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(str(checkout))
    yield checkout
    for name in [name for name in sys.modules if name.split(".")[0] in ("rome", "memit")]:
        del sys.modules[name]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_the_published_code_has_the_model_the_facts_the_contexts_and_the_moment(model_type, here, tmp_path, capsys):
    case = tiny_case(model_type, torch.float32)
    beside.prepare(case, tmp_path)
    editors = beside_driver.Published(tmp_path)
    for number in (0, 1):
        for method, changed in zip(beside.METHODS, expected(case, number), strict=True):
            assert editors.edit(method, number, tmp_path / "changes.pt") > 0
            torch.testing.assert_close(beside.changes(tmp_path / "changes.pt"), changed, rtol=1e-4, atol=1e-5)


def test_it_is_asked_in_a_process_of_its_own_and_what_fails_there_is_said_here(checkout):
    case = tiny_case("llama", torch.float32)
    with beside.running(case, checkout) as other:
        assert set(other.versions) == {"torch", "transformers"}
        seconds, changed = other.edit("rome", 1)
        torch.testing.assert_close(changed, expected(case, 1)[0], rtol=1e-4, atol=1e-5)
        assert seconds > 0
        with pytest.raises(ValueError, match="the published code failed: IndexError"):
            other.edit("rome", 99)


def test_rows_have_theirs_as_the_plain_path(checkout):
    rows = list(beside.rows(tiny_case("gpt2", torch.float32), checkout))
    assert [row["part"].split()[0] for row in rows] == ["ROME", "MEMIT"]
    for row in rows:
        assert row["plain_s"] > 0 and row["fast_s"] > 0 and row["max_rel_diff"] > 0 and beside.COMMIT[:7] in row["part"]


def test_what_is_missing_is_named_before_anything_is_measured(checkout, tmp_path, capsys):
    def refused(folder):
        assert cli.main(["bench", "--beside", str(folder), "--parts"]) == 2
        return capsys.readouterr().err

    assert "no checkout at" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no rome/rome_main.py in" in refused(tmp_path / "empty")
    path = checkout / "memit/memit_main.py"
    path.write_text(path.read_text() + "\n# changed\n")
    assert "has changes: M memit/memit_main.py" in refused(checkout)
    git(checkout, "commit", "-qam", "Other code")
    assert f"is not at commit {beside.COMMIT}" in refused(checkout)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("memit/memit_main.py", "def get_cov", "def get_c", "memit.memit_main of the checkout has no get_cov"),
        ("rome/rome_main.py", "from . import", "import no_such_package\nfrom . import", "no_such_package"),
        ("rome/rome_hparams.py", "v_lr: float", "v_lr: float\n    of_later: int", "has the fields of_later, which"),
    ],
)
def test_what_another_version_lacks_or_asks_for_is_named(name, old, new, message, here):
    path = here / name
    path.write_text(path.read_text().replace(old, new))
    given = beside.given(tiny_case("gpt2", torch.float32))["hparams"]["rome"]
    with pytest.raises(ValueError, match=message):
        kind = beside_driver.published()["rome.rome_hparams"].ROMEHyperParams
        beside_driver.hparams(kind, given)
