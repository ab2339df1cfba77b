"""Where subjects end and targets begin, and that padding and masks hide what they should."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from editscale.models import anatomy, tokens

SUBJECTS = ("Ada Example", "Lund", "Bo", "the 1984 bridge", "Zürich", "Ada Example's harp", " Lund")
TEMPLATES = ("{} plays the", "The mother tongue of {} is", "In {}, the river is", "The town of {}")


def released_index(tokenizer, before, subject):
    """The length arithmetic of the released code, for tokenizers without BOS."""
    if before:
        return len(tokenizer(before[:-1])["input_ids"]) + len(tokenizer(" " + subject.strip())["input_ids"]) - 1
    return len(tokenizer(subject)["input_ids"]) - 1


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("subject", SUBJECTS[:-1])
def test_subject_last_is_the_released_codes_index(template, subject):
    tokenizer = tiny.tiny_tokenizer()
    before, after = tokens.split_at_placeholder(template)
    assert tokens.subject_last(tokenizer, before, subject, after) == released_index(tokenizer, before, subject)


@pytest.mark.parametrize("bos", (False, True))
@pytest.mark.parametrize("subject", SUBJECTS)
def test_tokens_up_to_subject_last_spell_the_text_up_to_the_subject(bos, subject):
    tokenizer = tiny.tiny_tokenizer(bos)
    last = tokens.subject_last(tokenizer, "The mother tongue of ", subject, " is Danish")
    ids = tokens.prompt_ids(tokenizer, f"The mother tongue of {subject} is Danish")
    assert tokenizer.decode(ids[: last + 1], skip_special_tokens=True) == f"The mother tongue of {subject}"


def test_a_subject_that_ends_inside_a_token_is_an_error():
    with pytest.raises(ValueError, match="subject 'Dan' not found in the tokenized prompt"):
        tokens.subject_last(tiny.tiny_tokenizer(), "The language is ", "Dan", "ish")


@pytest.mark.parametrize("template", ("no placeholder", "{} and {}", "{name}"))
def test_a_template_without_exactly_one_placeholder_is_an_error(template):
    with pytest.raises(ValueError, match="exactly one"):
        tokens.split_at_placeholder(template)


@pytest.mark.parametrize("bos", (False, True))
def test_prompt_and_target_ids_join_to_the_ids_of_the_whole_text(bos):
    tokenizer = tiny.tiny_tokenizer(bos)
    prompt, target = "The mother tongue of Bo is", "Old Danish"
    joined = tokens.prompt_ids(tokenizer, prompt) + tokens.target_ids(tokenizer, prompt, target)
    assert joined == tokens.prompt_ids(tokenizer, f"{prompt} {target}")
    assert tokens.target_ids(tokenizer, prompt, target) == tokens.target_ids(tokenizer, prompt, " " + target)


def test_a_prompt_that_shares_a_token_with_the_target_is_an_error():
    def one_token_per_text(texts):
        return {"input_ids": [[len(text)] for text in texts]}

    with pytest.raises(ValueError, match="the two share a token"):
        tokens.target_ids(one_token_per_text, "The language is", "Danish")


def test_rows_hold_all_target_tokens_but_the_last():
    tokenizer = tiny.tiny_tokenizer()
    bare, longer = tokens.context_rows(tokenizer, ["{}", "The river. {}"], "{} plays the", "Ada Example", "old harp")
    text = "Ada Example plays the old harp"
    assert bare.ids == tokens.prompt_ids(tokenizer, text)[:-1]
    assert [*bare.ids[min(bare.predicting) + 1 :], bare.targets[-1]] == list(bare.targets)
    shift = len(longer.ids) - len(bare.ids)
    assert longer.subject_last == bare.subject_last + shift
    assert tokenizer.decode(longer.ids[: longer.subject_last + 1]) == "The river. Ada Example"


def test_braces_in_contexts_and_subjects_are_text():
    with pytest.raises(ValueError, match="exactly one"):
        tokens.context_rows(tiny.tiny_tokenizer(), ["{} {}"], "{} is", "Bo")
    (row,) = tokens.context_rows(tiny.tiny_tokenizer(), ["a {b. {}"], "{} is", "B{o}")
    assert tiny.tiny_tokenizer().decode(row.ids) == "a {b. B{o} is"


def test_a_masked_batch_gives_what_each_row_gives_alone():
    lm = tiny.tiny_model("llama", dtype=torch.float64)
    rows = [tokens.prompt_ids(lm.tokenizer, text) for text in ("Lund is in", "The river runs through the town", "Bo")]
    ids, lengths = tokens.pad(rows, "cpu")
    positions, mask = tokens.causal(lengths, ids.shape[1], lm.dtype)
    together = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for i, row in enumerate(rows):
        alone = lm.model(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(together[i, : len(row)], alone, rtol=0, atol=1e-5)  # RMSNorm, softmax: float32


def test_a_text_longer_than_the_model_reads_is_an_error():
    with pytest.raises(ValueError, match="longer than max_position_embeddings = 128"):
        tokens.check_length(tiny.tiny_model("gpt2"), 129)


def test_subject_last_agrees_with_the_released_code_on_counterfact():
    path = Path(__file__).parents[2] / "shared" / "data" / "counterfact_sample.json"
    if not path.exists():
        pytest.skip("real CounterFact records are not beside this checkout")
    tokenizer = tiny.tiny_tokenizer()
    for record in json.loads(path.read_text()):
        request = record["requested_rewrite"]
        before, after = tokens.split_at_placeholder(request["prompt"])
        assert tokens.subject_last(tokenizer, before, request["subject"], after) == released_index(
            tokenizer, before, request["subject"]
        ), request


def test_a_tree_holds_shared_beginnings_once_and_spells_every_text():
    texts = [(1, 2, 3), (1, 2, 4, 5), (2, 3), (1, 2)]
    packed = tokens.tree(texts)
    assert len(packed.ids) == 7
    for text, place in zip(texts, packed.places, strict=True):
        assert tuple(packed.ids[place]) == text and list(packed.positions[place]) == list(range(len(text)))
        assert set(packed.sees[place[-1]].nonzero()[0]) == set(place)


def test_the_tree_drawn_in_the_module_is_that_of_its_two_texts():
    the, cat, sat, ran = 7, 8, 9, 10
    packed = tokens.tree([(the, cat, sat), (the, cat, ran)])
    assert packed.ids.tolist() == [the, cat, sat, ran] and packed.positions.tolist() == [0, 1, 2, 2]
    assert packed.sees.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert packed.places == [[0, 1, 2], [0, 1, 3]]


def test_a_marked_token_is_shared_only_where_both_texts_mark_it():
    packed = tokens.tree([(1, 2, 3), (1, 2, 4), (1, 2, 3)], marks=[1, 1, 2])
    assert packed.places[0][:2] == packed.places[1][:2]
    assert packed.places[2][0] == packed.places[0][0] and packed.places[2][1] != packed.places[0][1]


@pytest.mark.parametrize("model_type", anatomy.FAMILIES)
def test_texts_of_a_tree_give_what_each_gives_alone(model_type):
    lm = tiny.tiny_model(model_type, dtype=torch.float64)
    texts = [tokens.prompt_ids(lm.tokenizer, t) for t in ("Lund is in", "The river runs", "Lund is the town", "Bo")]
    packed = tokens.tree(texts)
    ids, positions, mask = tokens.tree_inputs([packed], "cpu", lm.dtype)
    together = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0]
    for text, place in zip(texts, packed.places, strict=True):
        alone = lm.model(input_ids=torch.tensor([text])).logits[0]
        torch.testing.assert_close(together[place], alone, rtol=0, atol=1e-5)  # RMSNorm, softmax: float32


def test_punctuation_in_the_token_that_ends_a_subject_leaves_the_released_codes_index():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = {token: i for i, token in enumerate([*alphabet, ".'"])}
    raw = Tokenizer(models.BPE(vocab=merged, merges=[(".", "'")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    last = tokens.subject_last(tokenizer, "Is ", "F.C.", "'s home")
    assert tokenizer.convert_ids_to_tokens(tokens.prompt_ids(tokenizer, "Is F.C.'s home")[last]) == ".'"
    assert last == released_index(tokenizer, "Is ", "F.C.")


# Tokenizers as others publish them


def trained(normalizer=None, *, spaces=False, fallback=False, unknown=None):
    """A BPE tokenizer of the tiny one's text: of bytes, or with `spaces` of characters, as SentencePiece has them."""
    special = ["</s>", "<s>", *([unknown] if unknown else []), *(f"<0x{i:02X}>" for i in range(256) if fallback)]
    backend = Tokenizer(models.BPE(byte_fallback=fallback, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Metaspace() if spaces else pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = [] if spaces else sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        [tiny.TEXT],
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    written = json.loads(backend.to_str())
    written["added_tokens"] = written["added_tokens"][: 3 if unknown else 2]  # bytes are ordinary tokens
    backend = Tokenizer.from_str(json.dumps(written))
    backend.decoder = (
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        if spaces
        else decoders.ByteLevel()
    )
    if spaces and normalizer:  # as Llama 2: spaces are written by the normalizer, and nothing is split before
        backend.pre_tokenizer = pre_tokenizers.Sequence([])
    if normalizer:
        backend.normalizer = normalizer
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
PUBLISHED = {
    "NFC": lambda: trained(normalizers.NFC()),
    "NFD": lambda: trained(normalizers.NFD()),
    "NFKC": lambda: trained(normalizers.NFKC()),
    "no accents": lambda: trained(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
    "lower case": lambda: trained(normalizers.Lowercase()),
    "SentencePiece": lambda: trained(spaces=True, fallback=True, unknown="<unk>"),
    "Llama 2": lambda: trained(LEGACY, spaces=True, fallback=True, unknown="<unk>"),
}
ODD = ("Zürich", "Zu\u0308rich", "cafe\u0301", "東京", "😀", "👩\u200d👧", "the ﬁ", "½", "İ", "한", "각", "Lund\u0301")


@pytest.mark.parametrize("subject", ODD)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_tokens_up_to_subject_last_spell_the_subject_as_the_tokenizer_normalizes_it(kind, subject):
    tokenizer = PUBLISHED[kind]()
    for before, after in (("The town of ", " is"), ("", ", a town"), ("In the cafe\u0301 ", "'s town"), ("Is ", "?")):
        last = tokens.subject_last(tokenizer, before, subject, after)
        ids = tokens.prompt_ids(tokenizer, before + subject + after)
        expected = before + subject
        if kind != "Llama 2" and tokenizer.backend_tokenizer.normalizer:
            expected = tokenizer.backend_tokenizer.normalizer.normalize_str(expected)
        assert tokenizer.decode(ids[: last + 1], skip_special_tokens=True).strip() == expected


@pytest.mark.parametrize("target", ODD)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_prompts_and_targets_that_a_tokenizer_normalizes_join_to_the_whole_text(kind, target):
    tokenizer, prompt = PUBLISHED[kind](), "The town of cafe\u0301"
    joined = tokens.prompt_ids(tokenizer, prompt) + tokens.target_ids(tokenizer, prompt, target)
    assert joined == tokens.prompt_ids(tokenizer, f"{prompt} {target}")


@pytest.mark.parametrize(("prompt", "target"), (("{} is", "½"), ("½ {} is", "Bo"), ("{} is ½", "Bo")))
def test_a_text_of_which_a_tokenizer_drops_characters_is_refused(prompt, target):
    tokenizer = trained(spaces=True)
    assert tokens.context_rows(tokenizer, ["{}"], "{} is", "Lund", "Bo")[0].targets
    with pytest.raises(ValueError, match="no token for '½' in .*, and would leave it out; take another spelling"):
        tokens.context_rows(tokenizer, ["{}"], prompt, "Lund", target)
    with pytest.raises(ValueError, match="no token for '東' in '東 is'"):
        tokens.subject_last(tokenizer, "", "東", " is")


# What a model reads


def test_texts_with_a_token_that_has_no_embedding_are_refused_and_no_others():
    lm = tiny.tiny_model("gpt2")
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["<an_image>"]})
    tokens.check(lm, [tokens.prompt_ids(lm.tokenizer, text) for text in ("Lund is in", "")])
    ids = tokens.prompt_ids(lm.tokenizer, "x " * 50 + "Lund <an_image> is in")
    message = "Lund <an_image> is in' holds the token '<an_image>', number 340, but tiny_gpt2 has embeddings of 340"
    with pytest.raises(ValueError, match=message):
        tokens.check(lm, [(5, 6), ids])


def test_a_text_as_long_as_the_models_context_is_read_and_a_longer_one_is_not():
    lm = tiny.tiny_model("gpt2")
    tokens.check(lm, [(5,) * 128])
    with pytest.raises(ValueError, match="129 tokens is longer than max_position_embeddings = 128 of tiny_gpt2"):
        tokens.check(lm, [(5,), (5,) * 129])
