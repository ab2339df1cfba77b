"""A text of exactly as many tokens as the model has positions is read on every path, and a longer one on none."""

from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch

from editscale.data.facts import Fact
from editscale.editing import context_sampling, corpora, finetune, memit, moments, rome
from editscale.metrics import generation, scoring
from editscale.models import decoding, tokens
from editscale.sequences import sequence

POSITIONS = 128
CONTEXTS = ["{}", "The river. {}"]
ROME = rome.RomeParams(1, 2, 0.3, 0.01, 4.0, 0.0625, False)
MEMIT = memit.MemitParams([1], 2, 0.3, 0.01, 4.0, 0.0625, 15000.0)
FT = finetune.FtParams(1, 2, 5e-3, 0.0, 5e-2)
FACTORS = {1: torch.eye(48, dtype=torch.float64)}


def text(lm, n):
    """A text of n tokens."""
    own = n - len(tokens.prompt_ids(lm.tokenizer, ""))
    return "the" + " the" * (own - 2) + "."


def fact(lm, n):
    """A fact whose prompt with its new object has n tokens, after the longest of the contexts."""
    for words in range(n):
        found = Fact(0, "Bo", "In" + " the" * words + " {} plays the", "old harp", "Lund")
        longest = CONTEXTS[1].replace("{}", found.rewrite_prompt)
        if len(tokens.prompt_ids(lm.tokenizer, f"{longest} old harp")) == n:
            return found
    raise AssertionError(n)


def fact_alone(lm, n):
    """A fact whose prompt with its new object has n tokens."""
    context = len(tokens.prompt_ids(lm.tokenizer, "The river. In")) - len(tokens.prompt_ids(lm.tokenizer, "In"))
    return fact(lm, n + context)


def ids(lm, n):
    return tokens.prompt_ids(lm.tokenizer, text(lm, n))


def generator():
    return torch.Generator().manual_seed(0)


PATHS = {
    "scores": lambda lm, n: scoring.score_facts(lm, [fact_alone(lm, n)]),
    "scores of other prompts": lambda lm, n: generation.teacher_forced_texts(
        lm, replace(fact_alone(lm, 30), paraphrase_prompts=(text(lm, n),))
    ),
    "the check of facts": lambda lm, n: sequence.check_facts(lm, [fact(lm, n)], CONTEXTS),
    "rome": lambda lm, n: rome.edit(lm, fact(lm, n), ROME, CONTEXTS, {}),
    "memit": lambda lm, n: memit.edit(lm, [fact(lm, n)], MEMIT, [[c] for c in CONTEXTS], FACTORS),
    "ft-c": lambda lm, n: finetune.edit_each(lm, [fact_alone(lm, n)], FT, ["{}"], {}),
    "perplexity": lambda lm, n: generation.perplexity(lm, [text(lm, n)]),
    "sampled texts": lambda lm, n: generation.generate(lm, ["Lund is", text(lm, n - 1)], n, generator()),
    "contexts": lambda lm, n: context_sampling.sample(lm, [(0,)], n, generator()),
    "answers": lambda lm, n: decoding.Greedy(lm, [ids(lm, n - 2), (5,)], 3)(),  # the last of three is not read
    "documents": lambda lm, n: moments.collect(lm, [[5], list(ids(lm, n))], [1], progress=False),
    "documents from texts": lambda lm, n: moments.collect(
        lm, corpora.documents_from_texts(lm.tokenizer, [text(lm, 140)], n), [1], progress=False
    ),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_a_text_may_be_as_long_as_the_models_context_and_no_longer(model_type, path):
    lm = tiny.tiny_model(model_type)
    run = partial(PATHS[path], lm)
    run(POSITIONS)
    ran = []
    lm.block(0).register_forward_pre_hook(lambda *_: ran.append(1), prepend=True)
    with pytest.raises(ValueError, match="a text of 129 tokens is longer than max_position_embeddings = 128 of tiny_"):
        run(POSITIONS + 1)
    assert not ran
