"""How the value an edit writes is found: Adam steps on an offset δ, with early stop and projection onto a ball.

Loss, steps and projection follow the released code (kmeng01/rome `rome/compute_v.py`, kmeng01/memit
`memit/compute_z.py`), which differs from the papers' text. Several facts descend together; each stops by itself.
"""

import copy
from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """What a descent goes down: called with a point, such as δ of all facts, the losses there and what else it needs.

    A call reads nothing but the point, these tensors and the model's weights, so that it can be a CUDA graph.

    Attributes:
        n_blocks: how many blocks are above the edited one; upper: runs them (`anatomy.segment`).
        logits: final hidden states ↦ logits.
        post: the norm after the MLP, where there is one and the change enters before it; or None.
        tensors: all else, by name.
    """

    n_blocks: int
    upper: object
    logits: object
    post: object
    tensors: dict

    def as_added(self, change):
        """What a change of the output of the edited layer's MLP, or of its block, adds to what leaves the block."""
        if self.post is None:
            return change
        return self.post(self.tensors["mlp"] + change) - self.post(self.tensors["mlp"])


class InPlace:
    """State in tensors that steps write in place, as a CUDA graph needs: attributes are tensors or dicts of them.

    What descends, `Descent` and `finetune.WeightDescent`, is such a state with

        params: hyper-parameters, no part of the state.
        active: (facts,) bool, the facts that have not stopped.
        updates: for each forward that there may be, whether an update may follow it.
        advance(forward, update=…): one forward of all facts, and one step of those that go on.
        results(): what was found, for each fact.

    `descend` lets it take its steps down a function, which may be a `Steps`; `cuda_graphs.descend` does so by graphs.
    """

    def tensors(self):
        """All of the state, by name."""
        named = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                named |= {f"{name}.{part}": tensor for part, tensor in value.items()}
            elif name != "params":
                named[name] = value
        return named

    def on(self, tensors):
        """The same state held in other tensors."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict):
                setattr(other, name, {part: tensors[f"{name}.{part}"] for part in value})
            elif name != "params":
                setattr(other, name, tensors[name])
        return other


class Descent(InPlace):
    """δ of several facts on its way down, all of it in tensors that steps write in place, as a CUDA graph needs.

    Args:
        init: m₀ or h₀, (facts, d_model); sets the scale of the decay term and the ball's radius.
        params: has v_num_grad_steps, v_lr, v_weight_decay, clamp_norm_factor, kl_factor.
        n_contexts, n_vocabulary: sizes of what `forward` returns.
        n_targets: tokens of the new object, of each fact or of all.

    The loss is compared with 0.05 before an update, and no update follows the last forward: n steps are n forwards
    and at most n − 1 updates. The decay term is weight · ‖δ‖ / ‖init‖², the norm of δ not squared. The KL term is
    KL(now ‖ at δ = 0). Adam's moments are left alone by the projection. All of this is what the released code does.
    """

    def __init__(self, init, params, n_contexts, n_vocabulary, n_targets=1):
        import torch

        n, steps = len(init), params.v_num_grad_steps
        self.n_targets = torch.as_tensor(n_targets, device=init.device).expand(n).clone()
        self.learned = torch.zeros_like(self.n_targets)
        self.params, self.init = params, init
        self.delta, self.mean, self.square = (torch.zeros_like(init) for _ in range(3))
        self.step = torch.zeros(1, dtype=torch.long, device=init.device)
        self.active = torch.ones(n, dtype=torch.bool, device=init.device)
        self.reference = init.new_zeros(n, n_vocabulary)
        self.losses = init.new_zeros(steps, n, 5)
        self.nlls = init.new_zeros(steps, n, n_contexts)
        self.forwards = torch.zeros(n, dtype=torch.long, device=init.device)

    @property
    def updates(self):
        """For each forward, whether an update may follow it."""
        return [True] * (self.params.v_num_grad_steps - 1) + [False]

    def advance(self, forward, *, update):
        """One forward of all facts, and one Adam step with projection of those that go on.

        Args:
            forward: δ (facts, d_model) ↦ (NLL per context (facts, contexts), log-probabilities of the next token at the
                subject of the KL prompt (facts, vocabulary), how many target tokens are the most probable ones per
                context (facts, contexts)). The last is left out where the parameters have no `prob_cutoff`.
            update: False for the last forward.
        """
        import torch

        params, delta = self.params, self.delta.detach().clone().requires_grad_(update)
        with torch.set_grad_enabled(update):
            nll, log_p, *n_first = forward(delta)
            self.reference.copy_(torch.where(self.step == 0, log_p.detach(), self.reference))
            init_norm = self.init.norm(dim=1)
            kl = params.kl_factor * (log_p.exp() * (log_p - self.reference)).sum(dim=1)
            decay = params.v_weight_decay * delta.norm(dim=1) / init_norm**2
            loss = nll.mean(dim=1) + kl + decay
            if update:
                (gradient,) = torch.autograd.grad(loss.sum(), delta)
        with torch.no_grad():
            row = torch.stack([loss, nll.mean(dim=1), kl, decay, delta.norm(dim=1)], dim=1)
            self.losses.index_copy_(0, self.step, row[None])
            self.nlls.index_copy_(0, self.step, nll[None])
            self.forwards += self.active
            self.active &= ~(loss < 0.05)
            if hasattr(params, "prob_cutoff"):
                self.active &= ~self._is_learned(nll, *n_first)
            self.step += 1
            if update:
                adam(self.delta, self.mean, self.square, gradient, self.step, params.v_lr)
                norm, radius = self.delta.norm(dim=1), params.clamp_norm_factor * init_norm
                projected = self.delta * torch.where(norm > radius, radius / norm, 1.0)[:, None]
                self.delta.copy_(torch.where(self.active[:, None], projected, delta))

    def _is_learned(self, nll, n_first):
        """Whether ENCORE ends here: encore `encore/compute_z.py`; arXiv:2502.01636.

        With a `prob_cutoff` of −c it ends at the c-th forward after which all target tokens are the most probable ones
        in all contexts but the bare one. The released code counts forwards with five such tokens instead
        (`stop_tokens: five`): all of them for its five contexts and a target of one token, and for longer targets often
        those that follow from their first ones, while the fact is not learned. A positive cutoff is one of the mean
        probability over all contexts.
        """
        cutoff = self.params.prob_cutoff
        if cutoff > 0:
            return (-nll).exp().mean(dim=1) > cutoff
        found = n_first[:, 1:].sum(dim=1)
        wanted = 5 if self.params.stop_tokens == "five" else (nll.shape[1] - 1) * self.n_targets
        self.learned += found == wanted
        return self.learned >= -cutoff

    def results(self):
        """For each fact: δ (d_model,), losses (steps, 5), NLL per context (steps, contexts)."""
        return [
            (self.delta[i].clone(), self.losses[:n, i].clone(), self.nlls[:n, i].clone())
            for i, n in enumerate(self.forwards.tolist())
        ]


def adam(point, mean, square, gradient, step, lr):
    """A step of Adam (arXiv:1412.6980) with torch's default β and ε, in place: step, a tensor, is counted from 1."""
    mean.mul_(0.9).add_(gradient, alpha=0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    taken = step.double()
    unbiased = mean / (1 - 0.9**taken).to(gradient)
    point.sub_(lr * unbiased / ((square / (1 - 0.999**taken).to(gradient)).sqrt() + 1e-8))


def descend(forward, descent):
    """Let a `Descent` take its steps, until every fact has stopped."""
    for update in descent.updates:
        descent.advance(forward, update=update)
        if not descent.active.any():
            break
