"""Forwards and optimization steps as CUDA graphs: recorded once for a shape, replayed whenever that shape occurs.

A step of the value optimization is a thousand kernels or more on few tokens: a GPU runs them faster than Python
launches them. A graph launches all of them together. Nothing in a step needs the host: early stop, projection and
what is recorded are tensors (`descent.Descent`).

Graphs are kept with the model, in `lm.graphs`, and there are none of a model where that is None. They read the weights
where these are, so they see every edit.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

KEPT = 64  # graphs of one model that stay recorded; the one not used for longest is dropped
BEHIND = 2  # steps that the host may be ahead of the GPU before it looks whether all facts have stopped


class Graph:
    """Functions of the same tensors, recorded on tensors of their own.

    Args:
        functions: tensors by name ↦ result. The result is overwritten by the next run of any graph of the model.
        tensors: what they are recorded with; later ones have the same shapes.
        buffers: what the graphs of a model read, by name; they share it, as one runs at a time.
        pool: memory for intermediate results, of another graph of the model, or None.
    """

    def __init__(self, functions, tensors, buffers, pool):
        import torch

        from editscale.kernels import matmul

        self.tensors = {name: _view(buffers, name, tensor) for name, tensor in tensors.items()}
        self.pool, self.recorded, self.results = pool, [], []
        device = next(iter(self.tensors.values())).device
        for function in functions:
            self.load(tensors)
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            # Libraries set themselves up here, which cannot be recorded.
            with torch.cuda.stream(aside), matmul.recorded(device):
                function(self.tensors)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool), matmul.recorded(device):
                self.results.append(function(self.tensors))
            self.recorded.append(graph)
            self.pool = graph.pool()

    def load(self, tensors):
        """Take other tensors of the same shapes."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    def run(self, which=0):
        """The result of one of the functions."""
        self.recorded[which].replay()
        return self.results[which]


def _view(buffers, name, like):
    """A tensor like another one in the buffer of a name, which is made anew where it is too small."""
    key = name, like.dtype
    if key not in buffers or buffers[key].numel() < like.numel():
        buffers[key] = like.new_empty(like.numel() * 5 // 4)
    return buffers[key][: like.numel()].view(like.shape)


@contextmanager
def multiplying_in(precision):
    """While open, float32 matrices are multiplied in full ("float32") or, on a GPU, in TensorFloat-32 ("tf32")."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _graph(lm, name, layers, functions, tensors):
    """The graph of functions with these weights and shapes, loaded with the tensors; recorded if there is none yet."""
    import torch

    key = (
        name,
        torch.backends.cuda.matmul.allow_tf32,
        *(lm.weight(layer).data_ptr() for layer in layers),
        *((of, tensor.shape, tensor.dtype) for of, tensor in tensors.items()),
    )
    recorded, buffers = lm.graphs.setdefault("recorded", {}), lm.graphs.setdefault("buffers", {})
    if key not in recorded:
        pool = next(iter(recorded.values())).pool if recorded else None
        while len(recorded) >= KEPT:
            del recorded[next(iter(recorded))]
        recorded[key] = Graph(functions, tensors, buffers, pool)
    graph = recorded[key] = recorded.pop(key)  # the one used last is dropped last
    graph.load(tensors)
    return graph


def without_gradient(lm, name, layers, function, tensors):
    """`function(tensors)`, a dict of tensors; by a graph where there can be one: on a GPU, with weights that stay put.

    Args:
        name: identifies the function; one name always means the same function of tensors and weights.
        layers: the layers whose weights it reads. Stacks of copies are made and left too often to record them.
    """
    import torch

    with torch.no_grad():
        if lm.graphs is None or lm.device.type != "cuda" or any(lm.weight(layer).ndim == 3 for layer in layers):
            return function(tensors)
        result = _graph(lm, name, layers, [function], tensors).run()
        return {of: tensor.clone() for of, tensor in result.items()}


def descend(lm, cached, descent):
    """`descent.descend` by graphs of a step and of a forward that no update follows. Returns the `Descent`, good until
    the next one.

    Args:
        cached: a `descent.Steps`. descent: what goes down it, a `descent.InPlace`.
    """
    import torch

    state, steps = descent.tensors(), len(descent.updates)

    def recordable(update):
        def advance(tensors):
            part = replace(cached, tensors={name: tensors[name] for name in cached.tensors})
            descent.on({name: tensors[name] for name in state}).advance(part, update=update)

        return advance

    upper = range(lm.n_layers - cached.n_blocks, lm.n_layers)
    kinds = sorted(set(descent.updates), reverse=True)
    functions = [recordable(update) for update in kinds]
    with multiplying_in("tf32") if lm.tf32_steps else nullcontext():
        graph = _graph(lm, f"step of {descent.params}", upper, functions, {**cached.tensors, **state})
    going = torch.ones(steps, dtype=torch.bool, pin_memory=True)
    done = [torch.cuda.Event() for _ in range(steps)]
    for step, update in enumerate(descent.updates):
        graph.run(kinds.index(update))
        going[step].copy_(graph.tensors["active"].any(), non_blocking=True)
        done[step].record()
        if step >= BEHIND:
            done[step - BEHIND].synchronize()
            if not going[step - BEHIND]:
                break
    return descent.on({name: graph.tensors[name] for name in state})
