"""Sequential model editing of causal language models, and what it makes them forget.

The study: Gupta, Rao, Anumanchipalli 2024, "Model Editing at Scale leads to Gradual and Catastrophic
Forgetting" (arXiv:2401.07453). One term of the field per module; importing the package loads none of them.

`load`, `edited` and `says` are the first edit in a cell (sequences/first_edit.py); they are loaded when they are asked
for, by a name that `dependencies` does not follow.
"""

import importlib

__version__ = "0.1.0"


def __getattr__(name):
    if name in ("load", "edited", "says"):
        return getattr(importlib.import_module("editscale.sequences.first_edit"), name)
    raise AttributeError(f"module 'editscale' has no attribute {name!r}")
