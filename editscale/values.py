"""The value an edit writes: an offset δ behind one layer that makes the model say the new target.

Shared by ROME, where δ is added to the MLP output, and MEMIT, where it is added to the block output
(arXiv:2202.05262 eq. 4; arXiv:2210.07229 eq. 16). Loss, Adam steps and projection follow the released code
(kmeng01/rome `rome/compute_v.py`, kmeng01/memit `memit/compute_z.py`), which differs from the papers' text.

Two ways compute the same function. `plain_forward` runs the whole unmodified model at every step, as the released
code does; it is what tests compare with. `cached_forward` runs once what cannot change: δ reaches only tokens from
the subject's last one on, in the layers above. So the blocks up to the edited one run once, the tokens before the
subject's last one leave their attention keys and values behind, and each step runs the few remaining tokens through
the upper blocks and takes logits at the scored positions only.
"""

from dataclasses import dataclass

import numpy as np

from editscale import anatomy, tokens

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


def descend(forward, init, params):
    """δ after Adam steps on NLL + KL + decay, each followed by projection onto a ball around 0.

    Args:
        forward: δ ↦ (NLL per context (contexts,), log-probabilities of the next token at the subject of the KL
            prompt (vocabulary,)).
        init: m₀ or h₀, (d_model,); sets the scale of the decay term and the ball's radius.
        params: has v_num_grad_steps, v_lr, v_weight_decay, clamp_norm_factor, kl_factor.

    Returns:
        δ (d_model,), losses (steps, 5), NLL per context (steps, contexts).

    The loss is tested against 0.05 before an update, and nothing follows the last forward: n steps are n forwards
    and at most n − 1 updates. The decay term is weight · ‖δ‖ / ‖init‖², the norm of δ not squared. The KL term is
    KL(now ‖ at δ = 0). Adam's moments are left alone by the projection. All of this is what the released code does.
    """
    import torch

    delta = torch.zeros_like(init, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=params.v_lr)
    init_norm = init.norm()
    radius = params.clamp_norm_factor * init_norm
    losses, nlls, reference = [], [], None
    for step in range(params.v_num_grad_steps):
        nll, log_p = forward(delta)
        reference = log_p.detach() if reference is None else reference
        kl = params.kl_factor * (log_p.exp() * (log_p - reference)).sum()
        decay = params.v_weight_decay * delta.norm() / init_norm**2
        loss = nll.mean() + kl + decay
        losses.append(torch.stack([loss, nll.mean(), kl, decay, delta.norm()]).detach())
        nlls.append(nll.detach())
        if loss < 0.05 or step == params.v_num_grad_steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            norm = delta.norm()
            if norm > radius:
                delta.mul_(radius / norm)
    return delta.detach(), torch.stack(losses), torch.stack(nlls)


def target_rows(lm, fact, contexts):
    """The rows of an optimisation: the target behind every context, and last the KL prompt without target."""
    rows = tokens.context_rows(lm.tokenizer, contexts, fact.prompt, fact.subject, fact.target_new)
    return rows + tokens.context_rows(lm.tokenizer, ["{}"], KL_PROMPT, fact.subject)


def optimise(lm, fact, contexts, layer, params, *, at, forward=None):
    """Optimise δ for one fact on the model as it stands.

    Args:
        contexts: context templates, the bare one "{}" first.
        layer: the layer behind which δ is added, at the subject's last token of every row.
        at: "mlp" (output of the whole MLP, as ROME) or "block" (residual stream, as MEMIT).
        forward: `cached_forward` (default) or `plain_forward`.

    Returns:
        `Optimised`.
    """
    rows = target_rows(lm, fact, contexts)
    tokens.check_length(lm, max(len(row.ids) for row in rows))
    init, keys, outputs, step = (forward or cached_forward)(lm, rows, layer, at)
    return Optimised(init, *descend(step, init, params), keys[:-1], outputs[:-1])


def _scored(rows, device):
    """Flat indices of all target positions: row, position, target id, weight 1 / (targets of the row)."""
    import torch

    flat = [
        (i, p, t, 1 / len(row.targets))
        for i, row in enumerate(rows)
        for p, t in zip(row.predicting, row.targets, strict=True)
    ]
    row, position, target, weight = zip(*flat, strict=True)
    return (
        *(torch.tensor(x, device=device) for x in (row, position, target)),
        torch.tensor(weight, dtype=torch.float64, device=device),
    )


def _nll(log_p, row, target, weight, n_rows):
    """Mean NLL of each row's targets, from log-probabilities (scored positions, vocabulary)."""
    import torch

    picked = -log_p.gather(1, target[:, None])[:, 0] * weight.to(log_p.dtype)
    return torch.zeros(n_rows, dtype=log_p.dtype, device=log_p.device).index_add(0, row, picked)


def cached_forward(lm, rows, layer, at):
    """Prepare an optimisation; everything δ cannot change is computed here, once.

    Returns:
        init (d_model,), keys (rows, d_key) and projection outputs (rows, d_model) at the subject-last tokens, and
        the function δ ↦ (NLL per row but the last, log-probabilities at the last row's subject).
    """
    import torch

    # The KL prompt is read at its subject only; what follows it there is not run.
    texts = [row.ids for row in rows[:-1]] + [rows[-1].ids[: rows[-1].subject_last + 1]]
    packed = tokens.tree(texts, [row.subject_last for row in rows])
    ids, positions, mask = tokens.tree_inputs([packed], lm.device, lm.dtype)
    last = torch.tensor([place[row.subject_last] for place, row in zip(packed.places, rows, strict=True)])
    subjects = last.unique()  # rows of the same text up to the subject share its last token
    after = packed.sees[:, subjects].any(axis=1)
    before, after = (torch.tensor(np.flatnonzero(part), device=lm.device) for part in (~after, after))

    seen = {}
    lower, upper = anatomy.segment(lm, 0, layer + 1), anatomy.segment(lm, layer + 1)
    with (
        torch.no_grad(),
        anatomy.watching(lm.projection(layer), lambda k, v: seen.update(key=k[0, last], value=v[0, last])),
        anatomy.watching(lm.mlp(layer), lambda _, m: seen.update(mlp=m[0])),
    ):
        block_out = lower(ids, mask, positions)
        # Tokens before the subject's last one: only their attention keys and values in the upper blocks are kept.
        earlier = anatomy.KeyValues()
        if len(before) and layer + 1 < lm.n_layers:
            upper(block_out[:, before], mask[:, :, before][..., before], positions[:, before], earlier)

    hidden, after_positions = block_out[0, after], positions[:, after]
    after_mask = mask[:, :, after][..., torch.cat([before, after])]
    at_subject = torch.isin(after, subjects.to(lm.device))[:, None]
    place_of = {node: i for i, node in enumerate(after.tolist())}
    init = seen["mlp"][last[0]] if at == "mlp" else block_out[0, last[0]]
    mlp_out = seen["mlp"][after]
    post_norm = lm.family.post_norm if at == "mlp" else ""
    post = lm.block(layer).get_submodule(post_norm) if post_norm else None
    row, position, target, weight = _scored(rows[:-1], lm.device)
    scored = [place_of[packed.places[r][p]] for r, p in zip(row.tolist(), position.tolist(), strict=True)]
    scored = torch.tensor([*scored, place_of[int(last[-1])]], device=lm.device)

    def forward(delta):
        change = delta if post is None else post(mlp_out + delta) - post(mlp_out)
        states = torch.where(at_subject, hidden + change, hidden)
        final = upper(states[None], after_mask, after_positions, anatomy.KeyValues(earlier.seen))
        log_p = lm.logits(final[0, scored]).log_softmax(dim=-1)
        return _nll(log_p[:-1], row, target, weight, len(rows) - 1), log_p[-1]

    return init.clone(), seen["key"], seen["value"], forward


def plain_forward(lm, rows, layer, at):
    """The same function by full forwards through the unmodified model, as the released code computes it."""
    import torch

    ids, lengths = tokens.pad([row.ids for row in rows], lm.device)
    each = torch.arange(len(rows), device=lm.device)
    last = torch.tensor([row.subject_last for row in rows], device=lm.device)
    attended = (torch.arange(ids.shape[1], device=lm.device) < lengths[:, None]).long()
    place = lm.mlp(layer) if at == "mlp" else lm.block(layer)
    row, position, target, weight = _scored(rows, lm.device)
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
        return _nll(log_p[row, position], row, target, weight, len(rows) - 1), log_p[-1, last[-1]]

    return seen["init"].clone(), seen["key"], seen["value"], forward
