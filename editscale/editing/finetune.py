"""FT-C: fine-tuning one layer's projection on one fact, every weight kept near where it was when the edit began.

The constrained fine-tuning ("FT+L") of arXiv:2202.05262, as released in kmeng01/rome `baselines/ft/ft_main.py`; FT-C
in the figures of arXiv:2401.07453. Adam on the projection's weight and bias; the loss is the mean of −log p over the
target's tokens, all of them at the prompt's last token, as released (no target token is read). After each step every
entry is clamped to ± ε around the start of this edit, not around the unedited model.

What enters the edited projection cannot change, so the blocks below run once; each step adds ΔW k + Δb to what leaves
the edited block and runs the blocks above. Facts that do not depend on each other run together, one row each with a
ΔW of its own. On a GPU a step is a CUDA graph (`cuda_graphs.py`).
"""

from dataclasses import dataclass

from editscale.editing.context_sampling import bare_context
from editscale.editing.descent import InPlace, Steps, adam, descend
from editscale.editing.method import Method
from editscale.editing.updates import Edit, Update
from editscale.kernels import cuda_graphs
from editscale.models import anatomy, tokens

ENOUGH = 1e-2  # a loss below this ends the edit


@dataclass(frozen=True)
class FtParams:
    """Hyper-parameters, named as in kmeng01/rome `hparams/FT`; params/ft-c/*.yaml says what each means."""

    layer: int
    num_steps: int
    lr: float
    weight_decay: float
    norm_constraint: float

    @property
    def layers(self):
        return (self.layer,)


class WeightDescent(InPlace):
    """ΔW and Δb of several facts on their way down, in float32 where the weights have 16 bits.

    Args:
        weights: W at the start, (facts, d_value, d_key); biases: (facts, d_value), or None without.

    A step is taken after every forward whose loss is at least 1e-2, the last one too; a fact with a smaller loss, or
    with NaN, does not change any more.
    """

    def __init__(self, weights, biases, params):
        import torch

        n, device = len(weights), weights.device
        self.params = params
        self.start = {"weight": weights} | ({} if biases is None else {"bias": biases})
        self.change, self.mean, self.square = (
            {name: anatomy.in_full(tensor.new_zeros(tensor.shape)) for name, tensor in self.start.items()}
            for _ in range(3)
        )
        if not params.weight_decay:
            self.start = {}  # nothing reads it
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.active = torch.ones(n, dtype=torch.bool, device=device)
        self.losses = anatomy.in_full(weights.new_zeros(params.num_steps, n))
        self.forwards = torch.zeros(n, dtype=torch.long, device=device)

    @property
    def updates(self):
        """For each forward, whether an update may follow it."""
        return [True] * self.params.num_steps

    def advance(self, forward, *, update):
        """One forward of all facts, and one Adam step with the clamp of those that go on.

        Args:
            forward: {"weight": ΔW, "bias": Δb} ↦ loss of each fact, (facts,).
        """
        import torch

        leaves = {name: tensor.detach().requires_grad_(update) for name, tensor in self.change.items()}
        with torch.set_grad_enabled(update):
            loss = forward(leaves)
            gradients = torch.autograd.grad(loss.sum(), list(leaves.values())) if update else ()
        with torch.no_grad():
            self.losses.index_copy_(0, self.step, loss[None])
            self.forwards += self.active
            self.active &= loss >= ENOUGH
            self.step += 1
            for (name, change), gradient in zip(self.change.items(), gradients, strict=bool(gradients)):
                if name in self.start:
                    gradient = gradient + self.params.weight_decay * (self.start[name] + change)
                moved, limit = change.clone(), self.params.norm_constraint
                adam(moved, self.mean[name], self.square[name], gradient, self.step, self.params.lr)
                going = self.active.view(-1, *[1] * (change.ndim - 1))
                change.copy_(torch.where(going, moved.clamp_(-limit, limit), change))

    def results(self):
        """For each fact: ΔW (d_value, d_key), Δb (d_value,) or None, losses (forwards,)."""
        change, bias = self.change["weight"], self.change.get("bias")
        return [
            (change[i].clone(), None if bias is None else bias[i].clone(), self.losses[:n, i].clone())
            for i, n in enumerate(self.forwards.tolist())
        ]


class ProjectionSteps(Steps):
    """The loss of each fact as a function of the changes, see `WeightDescent.advance`.

    `tensors`:
        block: (facts, tokens, d_model) what leaves the edited block at the start; mlp: its MLP, with `post`.
        keys: (facts, tokens, d_key) what enters the projection.
        mask, positions: of the prompts' tokens.
        last: (facts,) the prompts' last tokens.
        targets: (facts, targets) ids; weights: the same shape, 1 / (targets of the fact), 0 for padding.
    """

    def __call__(self, changes):
        import torch

        t = self.tensors
        moved = t["keys"] @ changes["weight"].mT
        if "bias" in changes:
            moved = moved + changes["bias"][:, None]
        states = (t["block"] + self.as_added(moved)).to(t["block"].dtype)
        final = self.upper(states, t["mask"], t["positions"])
        at_last = final[torch.arange(len(final), device=final.device), t["last"]]
        log_p = self.logits(at_last).log_softmax(dim=-1)
        return -(t["weights"] * log_p.gather(1, t["targets"])).sum(dim=1)


def steps(lm, facts, layer):
    """The `ProjectionSteps` of some facts, on the model as it stands or on a stack of copies, one for each fact."""
    import torch

    multiple = 16 if lm.device.type == "cuda" else 1  # sizes of a CUDA graph: few, so that one serves many facts
    pairs = tokens.with_targets(lm.tokenizer, [f.rewrite_prompt for f in facts], [f.target_new for f in facts])
    tokens.check(lm, [prompt + target for prompt, target in pairs])
    trees = [tokens.tree([prompt]) for prompt, _ in pairs]
    ids, positions, mask = tokens.tree_inputs(trees, lm.device, lm.dtype, multiple=multiple)
    width = -(-max(len(target) for _, target in pairs) // multiple) * multiple
    targets = torch.zeros(len(facts), width, dtype=torch.long)
    weights = anatomy.in_full(torch.zeros(len(facts), width, dtype=lm.dtype))
    for i, (_, target) in enumerate(pairs):
        targets[i, : len(target)], weights[i, : len(target)] = torch.tensor(target), 1 / len(target)

    with torch.no_grad():
        seen = anatomy.up_to(lm, layer, ids, mask, positions)
    post = lm.block(layer).get_submodule(lm.family.post_norm) if lm.family.post_norm else None
    kept = {name: seen[name] for name in ("block", "keys", "mlp") if name != "mlp" or post is not None}
    kept["keys"] = anatomy.in_full(kept["keys"])
    last = torch.tensor([len(prompt) - 1 for prompt, _ in pairs], device=lm.device)
    tensors = {**kept, "mask": mask, "positions": positions, "last": last}
    tensors |= {"targets": targets.to(lm.device), "weights": weights.to(lm.device)}
    return ProjectionSteps(lm.n_layers - layer - 1, anatomy.segment(lm, layer + 1), lm.logits, post, tensors)


def edit_each(lm, facts, params, contexts, factors):
    """For each fact the change of the projection that makes the model, or copy i of a stack, say `fact.target_new`.

    The model is left as it was.

    Args:
        contexts, factors: not used; FT-C reads the bare prompt and weighs no second moment.

    Returns:
        One `Edit` per fact, with one `Update` each: a full matrix, and the bias's change where there is a bias.

    Raises ValueError if norm_constraint is not positive.
    """
    if not params.norm_constraint > 0:
        raise ValueError(f"norm_constraint is {params.norm_constraint}; FT-C needs a positive one")
    n, weight, bias = len(facts), lm.weight(params.layer), lm.bias(params.layer)
    weights = weight.expand(n, -1, -1)
    biases = None if bias is None else bias.expand(n, -1)
    loss, descent = steps(lm, facts, params.layer), WeightDescent(weights, biases, params)
    if weight.is_cuda:
        descent = cuda_graphs.descend(lm, loss, descent)
    else:
        descend(loss, descent)
    edits = []
    for change, of_bias, losses in descent.results():
        of_bias = None if of_bias is None else of_bias.to(lm.dtype)
        edits.append(Edit((Update(params.layer, change.to(lm.dtype), None, of_bias),), {"losses": losses[:, None]}))
    return edits


def size(lm, params, n):
    """Bytes of ΔW and Δb of n facts, each edited by itself."""
    weight, bias = lm.weight(params.layer), lm.bias(params.layer)
    return n * (weight.shape[-2] * weight.shape[-1] + (0 if bias is None else bias.shape[-1])) * lm.dtype.itemsize


METHODS = {"ft-c": Method(FtParams, edit_each, bare_context, moments=False, size=size)}
