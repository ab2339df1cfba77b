"""Sequential model editing of causal language models, and what it makes them forget.

The study: Gupta, Rao, Anumanchipalli 2024, "Model Editing at Scale leads to Gradual and Catastrophic
Forgetting" (arXiv:2401.07453). One term of the field per module; importing the package loads none of them.

`load`, `edited` and `says`, the first edit in a cell, are loaded when they are asked for.
"""

import importlib

__version__ = "0.1.0"
LATER = dict.fromkeys(("load", "edited", "says"), "editscale.sequences.first_edit")  # name ↦ its module


def __getattr__(name):
    if name in LATER:
        return getattr(importlib.import_module(LATER[name]), name)
    raise AttributeError(f"module 'editscale' has no attribute {name!r}")
