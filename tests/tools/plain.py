"""The plain path: edits, scores, answers and second moments by full forwards of the unmodified Hugging Face model.

What the public implementations do, one forward for one question, whatever was computed before: the oracle and the
yardstick of `bench`. ROME's plain path is `rome.edit(…, forward=plain_forward)`.

Sources: kmeng01/memit `memit/memit_main.py`, `experiments/py/eval_utils_counterfact.py`, `rome/layer_stats.py`;
scalable-model-editing/gradual-catastrophic-forgetting `glue_eval/`, `experiments/evaluate_history.py`.
"""

import copy
from dataclasses import replace

from editscale.editing import memit, suffix, updates, values
from editscale.metrics import scoring
from editscale.models import anatomy, tokens


def plain_forward(lm, rows, layer, at):
    """As `suffix.cached_forward`, by full forwards through the unmodified model, one fact after another."""
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
    scored = suffix.scored_positions(rows)
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
        weights = suffix.mean_weights(scored, len(rows) - 1, log_p)
        first = (log_p[row, position].argmax(dim=1) == target).to(log_p)
        return weights @ -log_p[row, position, target], log_p[-1, last[-1]], (weights > 0).to(log_p) @ first

    return seen["init"].clone(), seen["key"], seen["value"], forward


def memit_edit(lm, fact, params, contexts, moments):
    """layer ↦ ΔW (d_value, d_key) of MEMIT for one fact. The model is left as it was.

    Args:
        contexts: groups of context templates, see `memit.edit`.
        moments: layer ↦ C, (d_key, d_key) float64; λC + KKᵀ is solved anew for every layer.
    """
    import torch

    layers, groups = sorted(params.layers), [len(group) for group in contexts]
    flat = [context for group in contexts for context in group]
    (found,) = values.optimize(lm, [fact], flat, layers[-1], params, at="block", forward=plain_forward)
    rows = tokens.context_rows(lm.tokenizer, flat, fact.prompt, fact.subject)
    original, changes = updates.saved_weights(lm, layers), {}
    try:
        for i, layer in enumerate(layers):
            keys, _ = _at_subject(lm, rows, lm.projection(layer))
            _, current = _at_subject(lm, rows[:1], lm.block(layers[-1]))
            k = memit.mean_keys(keys, groups).double()[:, None]
            residual = (found.init + found.delta - current[0]).double()[:, None] / (len(layers) - i)
            solved = torch.linalg.solve(params.mom2_update_weight * moments[layer] + k @ k.T, k)
            changes[layer] = (residual @ solved.T).to(lm.dtype)
            lm.weight(layer).add_(changes[layer])
    finally:
        updates.restore(lm, original)
    return changes


def _at_subject(lm, rows, module):
    """Input and output of a module at the subjects' last tokens, (rows, …) each, from one full forward."""
    import torch

    each, last = torch.arange(len(rows)), torch.tensor([row.subject_last for row in rows])
    seen = []
    with anatomy.watching(module, lambda given, out: seen.append((given[each, last], out[each, last]))):
        _logits(lm, [row.ids for row in rows])
    return seen[0]


def _logits(lm, texts):
    """Logits (texts, tokens, vocabulary) of token ids, padded on the right."""
    import torch

    ids, lengths = tokens.pad(texts, lm.device)
    attended = (torch.arange(ids.shape[1], device=lm.device) < lengths[:, None]).long()
    with torch.no_grad():
        return lm.model(input_ids=ids, attention_mask=attended, use_cache=False).logits


def score_prompts(lm, prompts):
    """As `scoring.score_prompts`, in one forward: a padded row for each prompt with each of its objects."""
    import torch

    texts = []
    for prompt, *objects in prompts:
        before = tokens.prompt_ids(lm.tokenizer, prompt)
        texts += [(before, tokens.target_ids(lm.tokenizer, prompt, target)) for target in objects]
    log_p = _logits(lm, [before + target for before, target in texts]).log_softmax(dim=-1)
    scores = []
    for row, (before, target) in zip(log_p, texts, strict=True):
        predicted = row[len(before) - 1 : len(before) - 1 + len(target)]
        target = torch.tensor(target, device=lm.device)
        nll = -predicted.gather(1, target[:, None]).mean().item()
        scores.append((nll, bool((predicted.argmax(dim=-1) == target).all())))
    return [
        scoring.PromptScore(new[0], true[0], new[1], true[1])
        for new, true in zip(scores[::2], scores[1::2], strict=True)
    ]


def score_facts(lm, facts):
    """As `scoring.score_facts`, one fact after another."""
    by_fact = []
    for fact in facts:
        by_kind = scoring.prompts_of(fact)
        prompts = [(prompt, fact.target_new, fact.target_true) for of_kind in by_kind.values() for prompt in of_kind]
        scores = iter(score_prompts(lm, prompts))
        by_fact.append({kind: [next(scores) for _ in of_kind] for kind, of_kind in by_kind.items()})
    return by_fact


def recall(lm, facts):
    """`PromptScore` of each fact's rewrite prompt, one fact after another, on a copy of the model.

    The copy stands for the model that is saved at a checkpoint and loaded again.
    """
    lm = replace(lm, model=copy.deepcopy(lm.model))
    return [score_prompts(lm, [(fact.rewrite_prompt, fact.target_new, fact.target_true)])[0] for fact in facts]


def greedy(lm, prompts, n_new):
    """As `decoding.Greedy`: each prompt by itself, its keys and values in the model's own cache."""
    import torch

    ends = lm.model.generation_config.eos_token_id
    ends, answers = (ends if isinstance(ends, list) else [ends]), []
    for prompt in prompts:
        read, cache, new = prompt, None, []
        while len(new) < n_new:
            ids = torch.tensor([read], device=lm.device)
            with torch.no_grad():
                out = lm.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = out.logits[0, -1].argmax().item()
            if token in ends:
                break
            new.append(token)
            read, cache = (token,), out.past_key_values
        answers.append(tuple(new))
    return answers


def second_moments(lm, documents, layers, batch_rows):
    """layer ↦ C, (d_key, d_key): a pass over the documents (token ids) per layer, summed in the model's dtype."""
    import torch

    moments = {}
    for layer in layers:
        total, n_tokens = 0, 0
        for start in range(0, len(documents), batch_rows):
            batch = documents[start : start + batch_rows]
            seen = []
            with anatomy.watching(lm.projection(layer), lambda keys, _, seen=seen: seen.append(keys)):
                _logits(lm, batch)
            keys = torch.cat([k[: len(ids)] for k, ids in zip(seen[0], batch, strict=True)])
            total = total + keys.T @ keys
            n_tokens += sum(map(len, batch))
        moments[layer] = total / n_tokens
    return moments
