"""The published editors beside ours: rows of `bench` from a checkout that the user has. None of their code is here.

    git clone https://github.com/kmeng01/memit /elsewhere/memit
    git -C /elsewhere/memit checkout 80426fd9316cf9a50c5ba15e0912f2c2c5bfe84b
    python3 -m venv /elsewhere/venv
    /elsewhere/venv/bin/pip install torch transformers==4.46.3 datasets hydra-core pyyaml matplotlib scikit-learn nltk
    .venv/bin/python -m editscale bench --device cuda --shapes gpt2-xl --parts --beside /elsewhere/memit \
        --beside-python /elsewhere/venv/bin/python

Their ROME and MEMIT run in a process of their own (`beside_driver`), which is asked in turns with ours and idle
otherwise, on the same random weights, facts, contexts and second moment. An edit is computed and not applied, with all
its steps. Three things are replaced there, none of them part of an edit: where the second moment is read, where
contexts are sampled, and the width of a Llama. The first edit of a method is not timed, in either process. The
published code puts its tensors on a GPU whatever it is told, so that there is nothing to time on a CPU.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tools import costs, parts

COMMIT = "80426fd9316cf9a50c5ba15e0912f2c2c5bfe84b"
DRIVER = Path(__file__).with_name("beside_driver.py")
METHODS = ("rome", "memit")


def check(checkout):
    """Raise FileNotFoundError or ValueError, saying what to do, unless a folder is a checkout of the published code at
    COMMIT, without changes."""
    checkout = Path(checkout)
    if not checkout.is_dir():
        raise FileNotFoundError(f"no checkout at {checkout}; tests/tools/beside.py says how to get one")
    for name in ("rome/rome_main.py", "memit/memit_main.py"):
        if not (checkout / name).is_file():
            raise FileNotFoundError(f"no {name} in {checkout}; give the folder of a checkout of kmeng01/memit")

    def git(*words):
        return subprocess.run(["git", "-C", checkout, *words], capture_output=True, text=True)

    at = git("rev-parse", "HEAD")
    if at.returncode or at.stdout.strip() != COMMIT:
        found = at.stdout.strip() or at.stderr.strip()
        raise ValueError(f"{checkout} is not at commit {COMMIT} ({found}); run git -C {checkout} checkout {COMMIT}")
    if changed := git("status", "--porcelain", "--untracked-files=no").stdout.strip():
        raise ValueError(f"{checkout} has changes: {changed.splitlines()[0].strip()}; take them back")


def modules_of(lm):
    """Where the model keeps its parts, by the names of the published hyper-parameters."""
    names = {module: name for name, module in lm.model.named_modules()}
    head, family = lm.model.get_output_embeddings(), lm.family
    if head.weight is lm.model.get_input_embeddings().weight:
        head = lm.model.get_input_embeddings()
    block = f"{lm.model.base_model_prefix}.{family.blocks}.{{}}"
    attention = next(name for name in ("attn", "self_attn", "attention") if hasattr(lm.block(0), name))
    return {
        "rewrite_module_tmp": f"{block}.{family.projection}",
        "layer_module_tmp": block,
        "mlp_module_tmp": f"{block}.{family.mlp}",
        "attn_module_tmp": f"{block}.{attention}",
        "ln_f_module": f"{lm.model.base_model_prefix}.{family.norm}",
        "lm_head_module": names[head],
    }


def given(case):
    """What the other process is told, as JSON values: facts, contexts, hyper-parameters by their published names."""
    contexts = {"rome": case.contexts["rome"], "memit": case.contexts["memit"]}
    hparams = {}
    for method in METHODS:
        params = case.params[method]
        hparams[method] = {
            **asdict(params),
            "layers": list(params.layers),
            "layer_selection": "all",
            "fact_token": "subject_last",
            "v_num_grad_steps": parts.STEPS,
            "v_loss_layer": case.lm.n_layers - 1,
            "mom2_adjustment": True,
            "context_template_length_params": [],
            "mom2_dataset": "",
            "mom2_n_samples": 0,
            "mom2_dtype": "float32",
            **modules_of(case.lm),
        }
    requests = [
        {
            "case_id": fact.case_id,
            "prompt": fact.prompt,
            "subject": fact.subject,
            "target_new": {"str": fact.target_new},
            "target_true": {"str": fact.target_true},
        }
        for fact in case.facts
    ]
    return {"device": str(case.lm.device), "contexts": contexts, "hparams": hparams, "requests": requests}


def changes(path):
    """layer ↦ ΔW (d_value, d_key), from the file of an edit."""
    import torch

    return {layer: left @ right.T for layer, (left, right) in torch.load(path).items()}


class Other:
    """The process with the published code, as long as `running` is open."""

    def __init__(self, process, folder):
        self.process, self.folder = process, folder
        self.versions = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"it ended with status {self.process.wait()}"}
        if "error" in answer:
            raise ValueError(f"the published code failed: {answer['error']}")
        return answer

    def edit(self, method, number):
        """Seconds of an edit there, and layer ↦ ΔW (d_value, d_key)."""
        path = self.folder / "changes.pt"
        self.process.stdin.write(json.dumps({"method": method, "number": number, "path": str(path)}) + "\n")
        self.process.stdin.flush()
        return self._answer()["seconds"], changes(path)


def prepare(case, folder):
    """Write the model, facts, contexts and second moment of a case into a folder, as the other process reads them."""
    import torch

    case.lm.model.save_pretrained(folder / "model")
    case.lm.tokenizer.save_pretrained(folder / "model")
    torch.save(next(iter(case.moments.values())).cpu(), folder / "moment.pt")
    (folder / "given.json").write_text(json.dumps(given(case)), encoding="utf-8")


@contextmanager
def running(case, checkout, python=sys.executable):
    """The `Other` process on the model, facts, contexts and second moment of a case.

    Raises ValueError, in words of the other process, where it does not start or an edit fails.
    """
    check(checkout)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prepare(case, folder)
        command = [python, str(DRIVER), str(Path(checkout).resolve()), str(folder)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            yield Other(process, folder)
        finally:
            process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()


def rows(case, checkout, python=sys.executable, *, repeats=None, seconds=60.0):
    """Yield the rows of ROME and of MEMIT, theirs as the plain path. Each round takes another fact of the case.

    Args:
        repeats: rounds; None for those of the case's size.
        seconds: begin no further round of a method after so long.
    """
    import torch

    wait = torch.cuda.synchronize if case.lm.device.type == "cuda" else lambda: None
    with running(case, checkout, python) as other:
        for method in METHODS:
            theirs, ours, differences, began = [], [], [], time.perf_counter()
            for done in range(1 + (repeats or case.size.repeats)):
                if done > 1 and time.perf_counter() - began > seconds:
                    break
                number = max(0, done - 1) % len(case.facts)
                taken, expected = other.edit(method, number)
                way = parts.edit_way(case, "", method, case.facts[number : number + 1], parts.STEPS)
                way()  # its graphs are recorded
                wait()
                begun = time.perf_counter()
                (edit,) = way()
                wait()
                if done:
                    theirs.append(taken)
                    ours.append(time.perf_counter() - begun)
                    differences.append(parts._matrices_differ([expected], [edit]))
            versions = ", ".join(f"{name} {version}" for name, version in other.versions.items())
            yield costs.row(
                part=f"{method.upper()} edit, kmeng01/memit {COMMIT[:7]} ({versions}) as plain path",
                shape=case.shape,
                device=costs.device_name(case.lm.device),
                precision=case.precision,
                plain_s=statistics.median(theirs),
                fast_s=statistics.median(ours),
                ratio=statistics.median(theirs) / statistics.median(ours),
                max_rel_diff=max(differences),
            )
