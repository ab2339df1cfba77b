"""Hyper-parameters for a method on a model: from the files in params/<method>/, or moved from another model's layers.

The files come with the package where it is installed, and lie in the repository's params/ in a checkout.
"""

from dataclasses import replace
from pathlib import Path

from editscale.editing import editors, modules

_PACKAGE = Path(__file__).parents[1]
# Files to begin with for a model without one, by its family, and how many layers their models have.
N_LAYERS = {"gpt2-xl": 48, "gpt-j-6b": 28, "gpt-neox-20b": 44, "llama-3-8b": 32, "smollm2-135m": 30, "gemma3-270m": 18}
NEAREST = {"gpt2": "gpt2-xl", "gptj": "gpt-j-6b", "gpt_neox": "gpt-neox-20b"}


def folder(method):
    """The folder with the files of a method's hyper-parameters: its own, or that of a variant that it shares them with.

    Raises ValueError for a method whose dataclass of hyper-parameters has none.
    """
    params = editors.method(method).params
    root = next(path for path in (_PACKAGE / "hparams", _PACKAGE.parent / "params") if path.is_dir())
    for name in (method, *modules.MODULES):
        if (root / name).is_dir() and editors.method(name).params is params:
            return root / name
    raise ValueError(f"editscale has no hyper-parameters {params.__name__} of {method}; give a file of them")


def for_model(lm, method):
    """Hyper-parameters of a method for a model, and a sentence that says where they are from.

    Those of the model's own file, found by its name; else those of a model of its family, or of the first there is,
    with each layer at the same relative depth: a beginning, and nothing that was tuned. Raises ValueError if `folder`
    does.
    """
    files = {path.stem: path for path in sorted(folder(method).glob("*.yaml"))}
    name = lm.name.replace("_", "-")
    for stem, path in files.items():
        if name == stem or name.endswith(f"-{stem}"):
            return editors.read_params(method, path), f"Hyper-parameters: {_shown(path)}."
    wanted = NEAREST.get(lm.model.config.model_type, "llama-3-8b")
    base = next(stem for stem in (wanted, *N_LAYERS) if stem in files)
    params = editors.read_params(method, files[base])
    given = editors.layers_of(params)
    last = round(given[-1] * (lm.n_layers - 1) / (N_LAYERS[base] - 1))
    layers = list(range(max(0, last - len(given) + 1), last + 1))
    moved = replace(params, **({"layer": last} if hasattr(params, "layer") else {"layers": layers}))
    return moved, (
        f"Hyper-parameters: none are known for {lm.name}, so those of {files[base].parent.name}/{files[base].name}, "
        f"layers {_listed(given)} of {N_LAYERS[base]} moved to {_listed(editors.layers_of(moved))} of {lm.n_layers}."
    )


def _shown(path):
    return "/".join(path.parts[-3:])


def _listed(layers):
    return ", ".join(map(str, layers))
