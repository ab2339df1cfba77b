"""The value an edit writes: an offset δ behind one layer that makes the model say the new target.

Shared by ROME, where δ is added to the MLP output, and MEMIT, where it is added to the block output
(arXiv:2202.05262 eq. 4; arXiv:2210.07229 eq. 16). Loss, Adam steps and projection follow the released code
(kmeng01/rome `rome/compute_v.py`, kmeng01/memit `memit/compute_z.py`), which differs from the papers' text.

Two ways compute the same function. `plain_forward` runs the whole unmodified model at every step, as the released
code does; it is what tests compare with. `cached_forward` runs once what cannot change: δ reaches only tokens from
the subject's last one on, in the layers above. So the blocks up to the edited one run once, the tokens before the
subject's last one leave their attention keys and values behind, and each step runs the few remaining tokens through
the upper blocks and takes logits at the scored positions only.

Facts that do not depend on each other (one per copy of a stack, a batch of MEMIT, edits each made alone) are optimised
together, one row of a batch each; each stops by itself. On a GPU a step is a CUDA graph (`graphs.py`).
"""

import copy
from dataclasses import dataclass

import numpy as np

from editscale import anatomy, copies, graphs, tokens

GROUP = 4  # facts of one batch on a CPU; facts of like length are together, since all rows are as long as the longest
GROUP_ON_GPU = 16  # where launching a kernel costs as much as running it on a few facts
KL_PROMPT = "{} is a"  # the subject's "essence" is kept by a KL term at the subject's last token


@dataclass(frozen=True)
class Optimised:
    """The result of `optimise`, with what was seen on the way.

    Attributes:
        init: (d_model,) what δ is added to: m₀ (ROME) or h₀ (MEMIT), at the bare prompt's subject-last token.
        delta: (d_model,) the optimised offset; v* or z is `init + delta`.
        losses: (steps, 5) per forward: total, NLL, KL and decay parts, ‖δ‖ before that step's update.
        nll_per_prompt: (steps, contexts) NLL of the target behind each context, mean over its tokens, nats.
        keys: (contexts, d_key) inputs of the projection at the subject-last token before the edit.
        outputs: (contexts, d_model) outputs of the projection there.
    """

    init: object
    delta: object
    losses: object
    nll_per_prompt: object
    keys: object
    outputs: object


class Descent:
    """δ of several facts on its way down, all of it in tensors that steps write in place, as a CUDA graph needs.

    Args:
        init: m₀ or h₀, (facts, d_model); sets the scale of the decay term and the ball's radius.
        params: has v_num_grad_steps, v_lr, v_weight_decay, clamp_norm_factor, kl_factor.
        n_contexts, n_vocabulary: sizes of what `forward` returns.

    The loss is tested against 0.05 before an update, and nothing follows the last forward: n steps are n forwards
    and at most n − 1 updates. The decay term is weight · ‖δ‖ / ‖init‖², the norm of δ not squared. The KL term is
    KL(now ‖ at δ = 0). Adam's moments are left alone by the projection. All of this is what the released code does.
    """

    def __init__(self, init, params, n_contexts, n_vocabulary):
        import torch

        n, steps = len(init), params.v_num_grad_steps
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

    def tensors(self):
        """All of the state, by name."""
        return {name: value for name, value in vars(self).items() if name != "params"}

    def on(self, tensors):
        """The same state held in other tensors."""
        other = copy.copy(self)
        vars(other).update(tensors)
        return other

    def advance(self, forward, *, update):
        """One forward of all facts, and one Adam step with projection of those that go on.

        Args:
            forward: δ (facts, d_model) ↦ (NLL per context (facts, contexts), log-probabilities of the next token at the
                subject of the KL prompt (facts, vocabulary)).
            update: False for the last forward.
        """
        import torch

        params, delta = self.params, self.delta.detach().clone().requires_grad_(update)
        with torch.set_grad_enabled(update):
            nll, log_p = forward(delta)
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
            self.step += 1
            if update:
                adam(self.delta, self.mean, self.square, gradient, self.step, params.v_lr)
                norm, radius = self.delta.norm(dim=1), params.clamp_norm_factor * init_norm
                projected = self.delta * torch.where(norm > radius, radius / norm, 1.0)[:, None]
                self.delta.copy_(torch.where(self.active[:, None], projected, delta))

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


def target_rows(lm, fact, contexts):
    """The rows of an optimisation: the target behind every context, and last the KL prompt without target."""
    rows = tokens.context_rows(lm.tokenizer, contexts, fact.prompt, fact.subject, fact.target_new)
    return rows + tokens.context_rows(lm.tokenizer, ["{}"], KL_PROMPT, fact.subject)


def optimise(lm, facts, contexts, layer, params, *, at, forward=None):
    """Optimise δ for each of some facts on the model as it stands, or of fact i on copy i of a stack.

    Args:
        contexts: context templates, the bare one "{}" first.
        layer: the layer behind which δ is added, at the subject's last token of every row.
        at: "mlp" (output of the whole MLP, as ROME) or "block" (residual stream, as MEMIT).
        forward: `cached_forward` (default) or `plain_forward`.

    Returns:
        One `Optimised` per fact. Facts together give what each gives alone, up to rounding.
    """
    rows = [target_rows(lm, fact, contexts) for fact in facts]
    tokens.check_length(lm, max(len(row.ids) for of_fact in rows for row in of_fact))
    lengths, found = [sum(len(row.ids) - row.subject_last for row in of) for of in rows], [None] * len(facts)
    most = GROUP_ON_GPU if lm.device.type == "cuda" else GROUP
    for group in np.array_split(np.argsort(lengths, kind="stable"), -(-len(facts) // most)):
        part = copies.take(lm, group) if len(facts) > 1 else lm
        together = _optimise(part, [rows[i] for i in group], layer, params, at, forward or cached_forward)
        for i, one in zip(group, together, strict=True):
            found[i] = one
    return found


def _optimise(lm, rows, layer, params, at, forward):
    """One `Optimised` for the rows of each fact, all in one batch."""
    init, keys, outputs, step = forward(lm, rows, layer, at)
    descent = Descent(init, params, len(rows[0]) - 1, lm.n_vocabulary)
    if init.is_cuda and isinstance(step, Cached):
        descent = graphs.descend(lm, step, descent)
    else:
        descend(step, descent)
    return [Optimised(init[i], *result, keys[i][:-1], outputs[i][:-1]) for i, result in enumerate(descent.results())]


def _scored(rows):
    """All target positions of a fact's rows: row, position, target id, weight 1 / (targets of the row)."""
    return [
        (i, p, t, 1 / len(row.targets))
        for i, row in enumerate(rows)
        for p, t in zip(row.predicting, row.targets, strict=True)
    ]


def _weights(scored, n_rows, like):
    """(rows, scored positions): what times the NLL at scored positions is the mean NLL of each row's targets."""
    import torch

    weights = torch.zeros(n_rows, len(scored), dtype=like.dtype)
    for j, (row, *_, weight) in enumerate(scored):
        weights[row, j] = weight
    return weights.to(like.device)


@dataclass(frozen=True)
class Cached:
    """The steps of an optimisation: a function of δ (facts, d_model), see `Descent.advance`, with all it needs.

    Attributes:
        n_blocks: how many blocks are above the edited one; upper: runs them (`anatomy.segment`).
        logits: final hidden states ↦ logits.
        post: the norm behind the MLP, if there is one and δ enters before it.
        tensors: by name; tokens are those that δ reaches, from the subjects' last ones on, in rows of a few facts
            hidden: (rows, tokens, d_model) what leaves the edited block at δ = 0; mlp: output of its MLP, with `post`.
            fact: (rows, tokens) the fact that a token belongs to; at_subject: (rows, tokens, 1) where δ is added.
            mask, positions: of these tokens, behind the earlier ones.
            keys.<i>, values.<i>: (rows, heads, earlier tokens, d_head) of the earlier tokens in upper block i.
            scored: (positions + facts,) indices into all rows' tokens: where targets are scored, then the KL prompts.
            targets: (positions,) ids; weights: (facts · contexts, positions), see `_weights`.
    """

    n_blocks: int
    upper: object
    logits: object
    post: object
    tensors: dict

    def __call__(self, delta):
        import torch

        t = self.tensors
        change, n = delta[t["fact"]], len(delta)
        if self.post is not None:
            change = self.post(t["mlp"] + change) - self.post(t["mlp"])
        states = torch.where(t["at_subject"], t["hidden"] + change, t["hidden"])
        layers = [int(name.removeprefix("keys.")) for name in t if name.startswith("keys.")]
        earlier = anatomy.KeyValues({i: (t[f"keys.{i}"], t[f"values.{i}"]) for i in layers})
        final = self.upper(states, t["mask"], t["positions"], earlier)
        log_p = self.logits(final.flatten(0, 1)[t["scored"]]).log_softmax(dim=-1)
        nll = t["weights"] @ -log_p[:-n].gather(1, t["targets"][:, None])[:, 0]
        return nll.view(n, -1), log_p[-n:]


def _rounded(n):
    """n rounded up to three binary digits, so that few sizes come up."""
    step = 1 << max(0, n.bit_length() - 3)
    return -(-n // step) * step


def _shared_rows(sizes, capacity):
    """Facts that share a row, for each row a list of their numbers: first-fit, the longest first.

    Args:
        sizes: (facts, kinds) tokens of each kind; capacity: (kinds,) most of a row, no less than one fact has.
    """
    rows, left = [], []
    for i in np.argsort(-sizes[:, 0], kind="stable"):
        row = next((r for r, room in enumerate(left) if (sizes[i] <= room).all()), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(np.array(capacity))
        rows[row].append(int(i))
        left[row] -= sizes[i]
    return rows


def _slots(parts, shared, multiple):
    """Tokens of several facts in rows: (fact, token) index arrays (rows, width), −1 where there is padding.

    Args:
        parts: for each fact its tokens; shared: for each row its facts.
    """
    filled = [[(i, token) for i in row for token in parts[i]] for row in shared]
    slots = np.full((len(shared), -(-max(map(len, filled)) // multiple) * multiple, 2), -1)
    for row, of in zip(slots, filled, strict=True):
        row[: len(of)] = np.array(of).reshape(-1, 2)
    return slots


def _sees(trees, queries, keys):
    """(rows, queries, keys) bool: which tokens of its fact's tree each token sees, both given as `_slots`.

    The last keys are the queries; padding sees itself alone.
    """
    each = np.arange(queries.shape[1])
    sees = np.zeros((*queries.shape[:2], keys.shape[1]), dtype=bool)
    for row, q, k in zip(sees, queries, keys, strict=True):
        for i in np.unique(q[:, 0][q[:, 0] >= 0]):
            of_query, of_key = np.flatnonzero(q[:, 0] == i), np.flatnonzero(k[:, 0] == i)
            row[np.ix_(of_query, of_key)] = trees[i].sees[np.ix_(q[of_query, 1], k[of_key, 1])]
    sees[:, each, each + keys.shape[1] - len(each)] = True
    return sees


def cached_forward(lm, rows, layer, at):
    """Prepare the optimisation of some facts; everything δ cannot change is computed here, once.

    Args:
        rows: for each fact its `target_rows`.

    Returns:
        init (facts, d_model); keys and projection outputs at the subject-last tokens, for each fact (rows, d_key) and
        (rows, d_model); and a `Cached`.
    """
    import torch

    # Sizes of a CUDA graph: few, so that one serves many facts. Rows of several facts have one size whatever the facts.
    on_gpu = lm.device.type == "cuda"
    to_after, to_before = ((256, 768) if len(rows) > 1 else (32, 128)) if on_gpu else (1, 1)
    # The KL prompt is read at its subject only; what follows it there is not run.
    texts = [[*(row.ids for row in of[:-1]), of[-1].ids[: of[-1].subject_last + 1]] for of in rows]
    trees = [tokens.tree(text, [row.subject_last for row in of]) for text, of in zip(texts, rows, strict=True)]
    subjects = [
        [p[row.subject_last] for p, row in zip(t.places, of, strict=True)] for t, of in zip(trees, rows, strict=True)
    ]
    last, fact = torch.tensor(subjects, device=lm.device), torch.arange(len(rows), device=lm.device)[:, None]
    ids, positions, mask = tokens.tree_inputs(trees, lm.device, lm.dtype, multiple=min(to_before, 128))
    lower, upper = anatomy.segment(lm, 0, layer + 1), anatomy.segment(lm, layer + 1)

    def up_to_the_edited_block(t):
        seen, each = {}, torch.arange(len(t["last"]), device=t["last"].device)[:, None]

        def projection(keys, values):
            seen.update(keys=keys[each, t["last"]], values=values[each, t["last"]])

        with (
            anatomy.watching(lm.projection(layer), projection),
            anatomy.watching(lm.mlp(layer), lambda _, out: seen.update(mlp=out)),
        ):
            seen["block"] = lower(t["ids"], t["mask"], t["positions"])
        return seen

    inputs = {"ids": ids, "mask": mask, "positions": positions, "last": last}
    seen = graphs.without_gradient(lm, f"lower {layer}", range(layer + 1), up_to_the_edited_block, inputs)
    block_out = seen["block"]

    # δ reaches the tokens that see a subject's last one; rows of the same text up to the subject share that token.
    reached = [packed.sees[:, np.unique(of)].any(axis=1) for packed, of in zip(trees, subjects, strict=True)]
    tokens_of = [[np.flatnonzero(part), np.flatnonzero(~part)] for part in reached]
    sizes = np.array([list(map(len, of)) for of in tokens_of])
    longest = np.maximum(1, -(-sizes.max(axis=0) // (to_after, to_before))) * (to_after, to_before)
    room = longest if on_gpu else longest * (1, 2)
    # Where the blocks above are a copy's own, row i must stay fact i's.
    own = any(lm.weight(i).ndim == 3 and len(lm.weight(i)) > 1 for i in range(layer + 1, lm.n_layers))
    shared = [[i] for i in range(len(rows))] if own else _shared_rows(sizes, room)
    after, before = (_slots([of[k] for of in tokens_of], shared, n) for k, n in enumerate((to_after, to_before)))

    def part(states, slots):
        return states[tuple(torch.from_numpy(slots.clip(0)).to(lm.device).unbind(-1))]

    def mask_of(keys, queries):
        return tokens.additive_mask(torch.from_numpy(_sees(trees, queries, keys)).to(lm.device), lm.dtype)

    def keys_and_values(t):
        cache = anatomy.KeyValues()
        upper(t["hidden"], t["mask"], t["positions"], cache)
        return {
            f"{name}.{i}": x for i, of in cache.seen.items() for name, x in zip(("keys", "values"), of, strict=True)
        }

    # Of tokens before the subject's last one only attention keys and values in the upper blocks are kept.
    earlier = {}
    if before.size and layer + 1 < lm.n_layers:
        inputs = {
            "hidden": part(block_out, before),
            "mask": mask_of(before, before),
            "positions": part(positions, before),
        }
        earlier = graphs.without_gradient(lm, f"upper {layer}", range(layer + 1, lm.n_layers), keys_and_values, inputs)

    found = [_scored(of[:-1]) for of in rows]
    place_of = {tuple(slot): j for j, slot in enumerate(after.reshape(-1, 2).tolist())}
    scored = [place_of[i, t.places[r][p]] for i, t in enumerate(trees) for r, p, *_ in found[i]]
    n_contexts = len(rows[0]) - 1
    flat = [(i * n_contexts + r, p, t, w) for i, of in enumerate(found) for r, p, t, w in of]
    padding = (_rounded(len(flat)) if on_gpu else len(flat)) - len(flat)
    flat += [(0, 0, 0, 0.0)] * padding
    tensors = {
        "hidden": part(block_out, after),
        "fact": torch.from_numpy(after[..., 0].clip(0)),
        "at_subject": torch.from_numpy(
            np.array([[i >= 0 and token in subjects[i] for i, token in row] for row in after.tolist()])[..., None]
        ),
        "mask": mask_of(np.concatenate([before, after], axis=1), after),
        "positions": part(positions, after),
        "scored": torch.tensor([*scored, *[0] * padding, *(place_of[i, of[-1]] for i, of in enumerate(subjects))]),
        "targets": torch.tensor([t for _, _, t, _ in flat]),
        "weights": _weights(flat, len(rows) * n_contexts, block_out),
    }
    tensors |= earlier
    post = None
    if at == "mlp" and lm.family.post_norm:
        post, tensors["mlp"] = lm.block(layer).get_submodule(lm.family.post_norm), part(seen["mlp"], after)
    init = (seen["mlp"] if at == "mlp" else block_out)[fact[:, 0], last[:, 0]]
    tensors = {name: tensor.to(lm.device) for name, tensor in tensors.items()}
    return init.clone(), seen["keys"], seen["values"], Cached(lm.n_layers - layer - 1, upper, lm.logits, post, tensors)


def plain_forward(lm, rows, layer, at):
    """The same function by full forwards through the unmodified model, one fact after another, as the released code
    computes it."""
    import torch

    of_facts = [_plain_forward(lm, of_fact, layer, at) for of_fact in rows]

    def forward(delta):
        return [
            torch.stack(x) for x in zip(*(step(d) for (*_, step), d in zip(of_facts, delta, strict=True)), strict=True)
        ]

    return torch.stack([init for init, *_ in of_facts]), *([of[i] for of in of_facts] for i in (1, 2)), forward


def _plain_forward(lm, rows, layer, at):
    """`plain_forward` for one fact, of one δ (d_model,)."""
    import torch

    ids, lengths = tokens.pad([row.ids for row in rows], lm.device)
    each = torch.arange(len(rows), device=lm.device)
    last = torch.tensor([row.subject_last for row in rows], device=lm.device)
    attended = (torch.arange(ids.shape[1], device=lm.device) < lengths[:, None]).long()
    place = lm.mlp(layer) if at == "mlp" else lm.block(layer)
    scored = _scored(rows)
    row, position, target = (torch.tensor(x, device=lm.device) for x in list(zip(*scored, strict=True))[:3])
    seen = {}

    with (
        torch.no_grad(),
        anatomy.watching(lm.projection(layer), lambda k, v: seen.update(key=k[each, last], value=v[each, last])),
        anatomy.watching(place, lambda _, out: seen.update(init=out[0, last[0]])),
    ):
        lm.model(input_ids=ids, attention_mask=attended, use_cache=False)

    def forward(delta):
        def insert(_, __, output):
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[each, last] = states[each, last] + delta
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handle = place.register_forward_hook(insert)
        try:
            logits = lm.model(input_ids=ids, attention_mask=attended, use_cache=False).logits
        finally:
            handle.remove()
        log_p = logits.log_softmax(dim=-1)
        weights = _weights(scored, len(rows) - 1, log_p)
        return weights @ -log_p[row, position, target], log_p[-1, last[-1]]

    return seen["init"].clone(), seen["key"], seen["value"], forward
