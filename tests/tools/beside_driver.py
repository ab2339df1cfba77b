"""The other process of `beside`: runs in a checkout of the published code and edits with it when it is asked to.

Knows nothing of this package, and may have another Python and other versions of torch and transformers. Started with
the checkout and a folder that holds given.json, a model with its tokenizer, and moment.pt; reads a line of JSON for
each edit from stdin, and answers each on what was stdout by one. What the published code prints goes nowhere.
"""

import dataclasses
import importlib
import json
import os
import sys
import time

# Modules of kmeng01/memit, and what is taken from each.
NEEDED = {
    "rome.rome_main": ("execute_rome", "get_context_templates"),
    "rome.rome_hparams": ("ROMEHyperParams",),
    "rome.compute_u": ("get_inv_cov",),
    "memit.memit_main": ("execute_memit", "get_context_templates", "get_cov"),
    "memit.memit_hparams": ("MEMITHyperParams",),
}


def published(names=NEEDED):
    """name ↦ module of the checkout. Raises ValueError that names what is missing in it."""
    found = {}
    for name, attributes in names.items():
        try:
            found[name] = importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"{name} of the checkout cannot be imported: {error}") from error
        if missing := [of for of in attributes if not hasattr(found[name], of)]:
            raise ValueError(f"{name} of the checkout has no {', '.join(missing)}")
    return found


def hparams(kind, given):
    """Hyper-parameters of a dataclass, from those of its fields that are given."""
    fields = dataclasses.fields(kind)
    needed = [of.name for of in fields if of.default is of.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{kind.__name__} of the checkout has the fields {', '.join(missing)}, which are not given")
    return kind(**{of.name: given[of.name] for of in fields if of.name in given})


class Published:
    """The published editors on a model, with fixed contexts and one second moment for all layers."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with open(os.path.join(folder, "given.json"), encoding="utf-8") as file:
            self.given = json.load(file)
        self.device, self.modules = torch.device(self.given["device"]), published()
        torch.set_float32_matmul_precision("highest")
        model = AutoModelForCausalLM.from_pretrained(os.path.join(folder, "model"), torch_dtype=torch.float32)
        self.model = model.to(self.device).eval()
        self.model.config.n_embd = self.model.get_input_embeddings().weight.shape[1]  # read whatever the family
        self.tokenizer = AutoTokenizer.from_pretrained(os.path.join(folder, "model"))
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        # Others are added to GPT-2's input as embeddings.
        self.tokenizer.model_input_names = ["input_ids", "attention_mask"]
        moment = torch.load(os.path.join(folder, "moment.pt"), map_location=self.device)
        inverse = torch.inverse(moment).float()
        self.modules["rome.compute_u"].get_inv_cov = lambda *_, **__: inverse
        self.modules["memit.memit_main"].get_cov = lambda *_, **__: moment.float()
        for method in ("rome", "memit"):
            contexts = self.given["contexts"][method]
            self.modules[f"{method}.{method}_main"].get_context_templates = lambda *_, of=contexts: of

    def edit(self, method, number, path):
        """Seconds of one edit, whose changes are written to a file: layer ↦ (left (d_value, n), right (d_key, n))."""
        import torch

        request, wait = self.given["requests"][number], lambda: None
        if self.device.type == "cuda":
            wait = torch.cuda.synchronize
        main = self.modules[f"{method}.{method}_main"]
        kind = getattr(self.modules[f"{method}.{method}_hparams"], f"{method.upper()}HyperParams")
        params = hparams(kind, self.given["hparams"][method])
        wait()
        begun = time.perf_counter()
        if method == "rome":
            deltas = main.execute_rome(self.model, self.tokenizer, request, params)
        else:
            deltas = main.execute_memit(self.model, self.tokenizer, [request], params)
        wait()
        seconds, changes = time.perf_counter() - begun, {}
        for layer in params.layers:
            one, two = deltas[f"{params.rewrite_module_tmp.format(layer)}.weight"]
            pair = (two[:, None], one[:, None]) if method == "rome" else (two, one)
            changes[layer] = tuple(side.detach().float().cpu() for side in pair)
        torch.save(changes, path)
        return seconds


def main(checkout, folder):
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.chdir(checkout)  # it reads globals.yml where it runs
    sys.path.insert(0, checkout)
    try:
        editors = Published(folder)
        versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers")}
        print(json.dumps(versions), file=answers)
        for line in sys.stdin:
            print(json.dumps({"seconds": editors.edit(**json.loads(line))}), file=answers)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
