"""Edited copies of one model that share every weight but the edited projections.

Independent sequences of edits, the orders of a study, differ in a few matrices only. A stack of n copies is a
`LanguageModel` whose edited projections hold n weights: row i of a batch runs on copy i, in one forward. Whatever
works on a model works on a stack; `lm.weight(layer)` is (n, d_value, d_key) there.
"""

import copy
from collections import OrderedDict
from dataclasses import replace


def copies(lm, layers, n):
    """A stack of n copies of the model as it stands, with weights of their own at `layers`; `lm` is left alone.

    Args:
        lm: a model, or a stack of n copies, which is then copied row by row.

    With n = 1 a batch may have any number of rows, all on the one copy. Raises ValueError for a stack of another
    number of copies.
    """
    stacked = {}
    for layer in layers:
        weight, bias = lm.projection(layer).weight.data, lm.bias(layer)
        if weight.ndim == 3 and len(weight) != n:
            raise ValueError(f"layer {layer} of {lm.name} has {len(weight)} copies already; {n} were asked for")
        if weight.ndim == 3:
            stacked[layer] = weight.clone(), None if bias is None else bias.clone()
        else:
            stacked[layer] = weight.repeat(n, 1, 1), None if bias is None else bias.repeat(n, 1)
    return _with_weights(lm, stacked)


def subset(lm, rows):
    """The stack of only those copies of a stack whose numbers are in `rows`, with weights of their own.

    A model that is no stack serves any rows: it is returned as it is.
    """
    stacked = {}
    for layer in range(lm.n_layers):
        weight, bias = lm.projection(layer).weight.data, lm.bias(layer)
        if weight.ndim == 3 and len(weight) > 1:
            stacked[layer] = weight[rows], None if bias is None else bias[rows]
    return _with_weights(lm, stacked)


def _with_weights(lm, stacked):
    """The model with stacked weights (n, …), stored as the model stores one, and biases (n, d_value) at some layers."""
    if not stacked:
        return lm
    base, blocks = _apart(lm.model.base_model), list(lm.blocks)
    for layer, (weight, bias) in stacked.items():
        block = blocks[layer] = _apart(blocks[layer])
        *parents, name = lm.family.projection.split(".")
        for parent in parents:
            block._modules[parent] = _apart(block._modules[parent])
            block = block._modules[parent]
        block._modules[name] = _stacked(block._modules[name], weight, bias)
    base._modules[lm.family.blocks] = type(lm.blocks)(blocks)
    model = _apart(lm.model)
    model._modules[model.base_model_prefix] = base
    return replace(lm, model=model)


def _apart(module):
    """A copy of a module whose children can be exchanged; its weights are those of the module."""
    part = copy.copy(module)
    part._modules, part._forward_hooks = dict(module._modules), OrderedDict(module._forward_hooks)
    return part


def _stacked(projection, weight, bias):
    """A copy of a projection that sends row i of its input, (n, tokens, d_key), through weight and bias i."""
    import torch
    from transformers.pytorch_utils import Conv1D

    part = _apart(projection)
    bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
    part._parameters = {
        **projection._parameters,
        "weight": torch.nn.Parameter(weight, requires_grad=False),
        "bias": bias,
    }

    def forward(keys):
        matrix = part.weight if isinstance(part, Conv1D) else part.weight.mT
        values = keys @ (matrix[0] if len(matrix) == 1 else matrix)
        return values if part.bias is None else values + part.bias[:, None]

    part.forward = forward
    return part
