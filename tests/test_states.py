"""Final hidden states: of trees side by side, and with those that enter the lowest edited block kept."""

import pytest
import tiny
import torch

from editscale.metrics import scoring
from editscale.models import decoding, hidden_states, stacks, tokens

TEXTS = (
    "The river runs through the town.",
    "The river was closed at noon.",
    "Lund is in Sweden",
    "The mother tongue of Bo Sample is Danish",
)
FAMILIES = ("gpt2", "gptj", "llama", "gemma", "gemma2")
# What Hugging Face computes in float32 inside float64 models tells one batch from another; GPT-2 has none of it.
BATCHED = {"gpt2": 1e-12, "gptj": 1e-5, "llama": 1e-5, "gemma": 1e-5, "gemma2": 1e-5}


def trees_of(lm, *rows):
    return [tokens.tree([tokens.prompt_ids(lm.tokenizer, text) for text in row]) for row in rows]


def full(lm, trees):
    """The definition, (tokens, d_model): one forward of the whole model, without padding."""
    ids, positions, mask = tokens.tree_inputs(trees, lm.device, lm.dtype)
    with torch.no_grad():
        hidden = lm.model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    return unpadded(hidden, trees)


def ours(lm, trees, kept=None):
    with torch.no_grad():
        return unpadded(hidden_states.final(lm, trees, kept), trees)


def unpadded(hidden, trees):
    return torch.cat([row[: len(packed.ids)] for row, packed in zip(hidden, trees, strict=True)])


def blocks_run(lm, function):
    """The numbers of the blocks that run within a call, and what it returns."""
    ran = set()
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: ran.add(i), prepend=True) for i, block in enumerate(lm.blocks)
    ]
    try:
        return function(), ran
    finally:
        for handle in handles:
            handle.remove()


def test_batches_keep_the_order_and_fill_trees_then_rows(monkeypatch):
    monkeypatch.setattr(hidden_states, "TREE_TOKENS", 10)

    def filled(sizes, batch_tokens):
        return hidden_states.batches(sizes, int, batch_tokens)

    assert filled([4, 6, 1, 9, 30, 2], 10) == [[[4, 6]], [[1, 9]], [[30]], [[2]]]
    assert filled([4, 6, 1, 9, 30, 2], 39) == [[[4, 6], [1, 9], [30]], [[2]]]
    assert filled([4, 3, 3, 1], 7) == [[[4, 3]], [[3, 1]]]
    assert filled([4, 3], 1) == [[[4]], [[3]]]
    assert filled([], 10) == []


@pytest.mark.parametrize("layer", (0, 2, 3))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_kept_states_give_those_of_the_full_forward_also_after_edits(model_type, layer):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    kept, trees = hidden_states.StateCache(lm, layer, 10**6), trees_of(lm, TEXTS[:2], TEXTS[2:], TEXTS[:1])
    for call in range(3):
        hidden, ran = blocks_run(lm, lambda: ours(lm, trees, kept))
        torch.testing.assert_close(hidden, full(lm, trees), rtol=0, atol=1e-12)
        # The first of the upper blocks is a copy, which takes given hidden states.
        assert ran - {layer} == {i for i in range(lm.n_layers) if i > layer or not call or not layer} - {layer}
        lm.weight(layer).mul_(1.5)
        lm.weight(3).add_(0.1)


def test_without_kept_states_they_are_those_of_the_full_forward():
    lm = tiny.tiny_model("gemma2", dtype=torch.float64)
    trees = trees_of(lm, TEXTS[:3], TEXTS[3:])
    torch.testing.assert_close(ours(lm, trees), full(lm, trees), rtol=0, atol=1e-12)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_states_are_kept_by_text_whatever_tree_it_is_in(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    kept, per_token = hidden_states.StateCache(lm, 2, 10**6), lm.d_model * 8
    (first,), more = trees_of(lm, TEXTS[1:3]), trees_of(lm, TEXTS[:2], (TEXTS[2], TEXTS[2][:4]), TEXTS)
    ours(lm, [first], kept)
    assert kept.held == len(first.ids) * per_token
    torch.testing.assert_close(ours(lm, more, kept), full(lm, more), rtol=0, atol=BATCHED[model_type])
    assert kept.held == len(trees_of(lm, (*TEXTS, TEXTS[2][:4]))[0].ids) * per_token
    again, ran = blocks_run(lm, lambda: ours(lm, [first], kept))
    torch.testing.assert_close(again, full(lm, [first]), rtol=0, atol=BATCHED[model_type])
    assert 0 not in ran


@pytest.mark.parametrize("n_tokens", (0, 1, 9, 20))
def test_no_more_bytes_are_held_than_allowed_and_the_rest_is_computed_anew(n_tokens):
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    kept, trees = hidden_states.StateCache(lm, 2, n_tokens * lm.d_model * 8 + 7), trees_of(lm, TEXTS[:2], TEXTS[2:])
    assert sum(len(packed.ids) for packed in trees) > 20
    for _ in range(3):
        torch.testing.assert_close(ours(lm, trees, kept), full(lm, trees), rtol=0, atol=1e-12)
        assert kept.held == n_tokens * lm.d_model * 8


def test_a_forward_that_fails_leaves_nothing_half_kept():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    kept, trees = hidden_states.StateCache(lm, 2, 10**6), trees_of(lm, TEXTS)
    handle = lm.block(1).register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ours(lm, trees, kept)
    handle.remove()
    assert kept.held == 0
    torch.testing.assert_close(ours(lm, trees, kept), full(lm, trees), rtol=0, atol=1e-12)


def test_row_i_runs_on_copy_i_of_a_stack():
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    stack = stacks.copies(lm, [2, 3], 2)
    stack.weight(2)[1] *= 2
    trees = trees_of(lm, TEXTS[:3], TEXTS[3:])
    kept = hidden_states.StateCache(stack, 2, 10**6)
    models = [tiny.tiny_model("gpt2", dtype=torch.float64) for _ in range(2)]
    models[1].weight(2).mul_(2)
    expected = torch.cat([full(one, [packed]) for one, packed in zip(models, trees, strict=True)])
    for of_kept in (None, kept, kept):
        torch.testing.assert_close(ours(stack, trees, of_kept), expected, rtol=0, atol=1e-12)


def test_states_of_another_model_or_layer_are_refused():
    lm, other = tiny.tiny_model("gpt2"), tiny.tiny_model("gpt2")
    with pytest.raises(ValueError, match="kept of another model than this tiny_gpt2; make a StateCache of it"):
        ours(lm, trees_of(lm, TEXTS), hidden_states.StateCache(other, 2, 1000))
    with pytest.raises(ValueError, match="layer 4 is not one of the 4 layers"):
        hidden_states.StateCache(lm, 4, 1000)


# Too little memory


def test_forwards_that_do_not_fit_run_in_halves_in_order_and_say_so():
    batches, ran = [[[1, 2, 3], [4, 5]], [[6, 7], [8, 9, 10]], [[11]]], []

    def forward(rows):
        if sum(map(len, rows)) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        ran.append(rows)
        return [10 * item for of in rows for item in of]

    with pytest.warns(UserWarning, match="not enough memory for . texts in one forward .CUDA out of memory") as warned:
        found = list(hidden_states.in_forwards(forward, batches))
    assert all(f"at most {n}" in str(said.message) for n, said in zip([3, 2], warned, strict=True))
    assert [x for _, of in found for x in of] == [10 * i for i in range(1, 12)]
    assert [rows for rows, _ in found] == ran == [[[1, 2]], [[3]], [[4, 5]], [[6, 7]], [[8, 9]], [[10]], [[11]]]


def test_what_did_not_fit_once_is_not_tried_again():
    tried = []

    def forward(rows):
        tried.append(sum(map(len, rows)))
        if tried[-1] > 2:
            raise MemoryError("no memory")

    with pytest.warns(UserWarning, match="at most 2"):
        list(hidden_states.in_forwards(forward, [[[0] * 4]] * 3))
    assert tried == [4, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("error", (torch.OutOfMemoryError("out of memory"), RuntimeError("a bug")))
def test_a_single_text_that_does_not_fit_and_other_errors_are_raised(error):
    def forward(rows):
        raise error

    with pytest.raises(RuntimeError, match=str(error)):
        list(hidden_states.in_forwards(forward, [[[1]]]))


def little_memory(monkeypatch, most):
    """Let forwards of more than so many tokens fail as on a device that is full."""
    real = hidden_states.tokens.tree_inputs

    def tree_inputs(trees, *of, **options):
        if sum(len(packed.ids) for packed in trees) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(trees, *of, **options)

    monkeypatch.setattr(hidden_states.tokens, "tree_inputs", tree_inputs)


@pytest.mark.parametrize("room", (0, 10**6))
def test_scores_and_answers_are_the_same_where_memory_is_short(monkeypatch, room):
    lm = tiny.tiny_model("gpt2", dtype=torch.float64)
    prompts = [(text, "harp", "town") for text in TEXTS]
    ids = [tuple(lm.tokenizer(text)["input_ids"]) for text in TEXTS]
    scores, new = scoring.score_prompts(lm, prompts), decoding.Greedy(lm, ids, 3)()
    kept = hidden_states.StateCache(lm, 2, room)
    little_memory(monkeypatch, 36)
    with pytest.warns(UserWarning, match="not enough memory"):
        found = scoring.score_prompts(lm, prompts, kept=kept, batch_tokens=4096)
    for one, other in zip(found, scores, strict=True):
        assert one.nll_new == pytest.approx(other.nll_new, abs=1e-12) and one.correct_true == other.correct_true
    greedy = decoding.Greedy(lm, ids, 3, layer=2, max_bytes=room, batch_tokens=4096)
    with pytest.warns(UserWarning, match="not enough memory"):
        assert greedy() == new
    assert greedy() == new  # without another attempt at all at once
